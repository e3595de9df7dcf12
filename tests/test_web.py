"""The page of exports/web in a real Chromium: tests/web/page.test.js, with pictures and what Pillow makes of them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fmcae.images import read_image


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, of each the pixels (name.raw) that Pillow gives, and pictures.json on how near they must be."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (60, 80, 4), np.uint8)
    slopes = np.stack([*np.mgrid[:60, :80], np.full((60, 80), 90)], axis=-1).astype(np.uint8) * 3
    colour, photo = Image.fromarray(noise[..., :3]), Image.fromarray(slopes // 4 * 3 + noise[..., :3] // 4)
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray(generator.integers(0, 256, (3, 5000), np.uint8))  # more than one texture
    files: dict[str, tuple[Image.Image, dict[str, Any], int]] = {
        "colour.png": (colour, {}, 0),
        "turned.png": (colour, {"exif": turned}, 0),
        "wide.png": (wide, {}, 0),
        "transparent.png": (Image.fromarray(noise), {}, 0),
        "grey.png": (colour.convert("L"), {}, 0),
        "transparent-grey.png": (Image.fromarray(noise).convert("LA"), {}, 0),
        "palette.png": (photo.quantize(64), {}, 0),
        "transparent-palette.png": (photo.quantize(64), {"transparency": bytes(range(0, 256, 4))}, 0),
        "bits.png": (colour.convert("1"), {}, 0),
        "deep.png": (Image.fromarray(generator.integers(0, 65536, (60, 80)).astype(np.uint16)), {}, 1),
        # Bytes for bytes too, as long as both decode with libjpeg-turbo.
        "photo.jpg": (photo, {"quality": 85}, 2),
        "sharp.jpg": (photo, {"quality": 95, "subsampling": 0}, 2),
        "turned.jpg": (photo, {"exif": turned}, 2),
        "grey.jpg": (photo.convert("L"), {}, 2),
    }
    facts = {}
    for name, (image, options, tolerance) in files.items():
        image.save(folder / name, **options)
        read = read_image(folder / name)
        transparent = read.mode == "RGBA"
        (folder / f"{name}.raw").write_bytes((read if transparent else read.convert("RGB")).tobytes())
        facts[name] = {"width": read.width, "height": read.height, "transparent": transparent, "tolerance": tolerance}
    (folder / "pictures.json").write_text(json.dumps(facts))
    return folder


def test_the_page_works_in_a_browser(web: Path, pictures: Path) -> None:
    environment = {**os.environ, "FMCAE_PICTURES": str(pictures)}
    result = subprocess.run(["npm", "test"], cwd=web, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped 0" in result.stdout
