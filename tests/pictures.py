"""Pictures in many presentations, for tests that compare runtimes with each other: the fixture ``fifty_pictures`` has them.

    python tests/pictures.py FOLDER

writes them into a folder, so that a program in another language can read them too.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmcae.data import load_dataset

Bytes: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, ...]

TESTS = Path(__file__).parent
PAPERS = ((255, 255, 255), (245, 243, 238), (225, 225, 225), (200, 230, 255), (255, 215, 225), (200, 60, 50))
INKS = ((0, 0, 0), (90, 10, 20), (10, 30, 90), (10, 70, 40), (30, 60, 180))
DARKS = ((0, 0, 0), (20, 20, 25), (15, 35, 60))
LIGHTS = ((255, 255, 255), (240, 230, 210), (190, 190, 190))


def pictures(count: int = 50, seed: int = 0) -> dict[str, bytes]:
    """Encoded pictures by file name: PNG (of 8 or 16 bits) and JPEG, from 28 to 1,024 pixels, the same ones for a seed.

    They show images of the sample of Fashion-MNIST and of ``exports/samples``: as they are, on white, grey and coloured
    paper, on a photo's noise, transparent and on dark.
    """
    raw = [np.asarray(Image.open(path)) for path in sorted((TESTS.parent / "exports" / "samples").glob("*.png"))]
    raw += list(load_dataset(TESTS / "data" / "fashion-mnist-sample").test.images)
    rng = np.random.default_rng(seed)
    made: dict[str, bytes] = {}
    for number in range(count):
        turn, which = divmod(number, len(WAYS))
        name, way = list(WAYS.items())[which]
        image = raw[number] if number < 10 else raw[rng.integers(10, len(raw))]
        picture = way(image, rng)
        is_jpeg = picture.mode in ("L", "RGB") and turn % 2 == 1 and picture.size != (28, 28)
        if name == "grey" and not is_jpeg:  # of 16 bits
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        options = {"quality": int(rng.integers(60, 96))} if is_jpeg else {}
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG" if is_jpeg else "PNG", **options)
        made[f"{number:02d}-{name}.{'jpg' if is_jpeg else 'png'}"] = buffer.getvalue()
    return made


def _as_it_is(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(raw)


def _on_paper(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    return _inked(_enlarged(raw, rng), _pick(PAPERS, rng), _pick(INKS, rng))


def _on_grey_paper(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    return _inked(_enlarged(raw, rng), (235, 235, 235), (20, 20, 20)).convert("L")


def _noisy(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(_on_paper(raw, rng))
    noise = rng.standard_normal(pixels.shape) * 2
    return Image.fromarray(np.rint(pixels + noise).clip(0, 255).astype(np.uint8))


def _in_palette(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    return _on_paper(raw, rng).quantize(64)


def _transparent(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    ink = _enlarged(raw, rng)
    picture = Image.new("RGB", ink.size, _pick(INKS, rng))
    picture.putalpha(ink)
    return picture


def _transparent_grey(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    ink = _enlarged(raw, rng)
    return Image.merge("LA", (Image.new("L", ink.size, 30), ink))


def _on_dark(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    return _inked(_enlarged(raw, rng), _pick(DARKS, rng), _pick(LIGHTS, rng))


WAYS: dict[str, Callable[[Bytes, np.random.Generator], Image.Image]] = {
    "as-it-is": _as_it_is,
    "paper": _on_paper,
    "transparent": _transparent,
    "dark": _on_dark,
    "grey": _on_grey_paper,
    "noisy": _noisy,
    "palette": _in_palette,
    "transparent-grey": _transparent_grey,
}


def _pick(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    return colours[rng.integers(len(colours))]


def _enlarged(raw: Bytes, rng: np.random.Generator) -> Image.Image:
    """Put an image, enlarged, anywhere into a picture whose longest edge has 28 to 1,024 pixels: (H, W), 0 is background."""
    longest = int(28 * (1024 / 28) ** rng.random())
    size = max(28, int(longest * rng.uniform(0.7, 1)))  # of the picture's shortest edge
    item = max(20, int(size * rng.uniform(0.6, 1)))  # of the image
    width, height = (longest, size) if rng.random() < 0.5 else (size, longest)
    picture = Image.new("L", (max(28, width), max(28, height)))
    corner = (int(rng.integers(picture.width - item + 1)), int(rng.integers(picture.height - item + 1)))
    picture.paste(Image.fromarray(raw).resize((item, item), Image.Resampling.BICUBIC), corner)
    return picture


def _inked(ink: Image.Image, paper: Colour, colour: Colour) -> Image.Image:
    """Colour a picture: paper where it is 0, the ink's colour where it is 255, and linearly between."""
    share = np.asarray(ink, np.float32)[..., np.newaxis] / 255  # (H, W, 1)
    start, end = np.array(paper, np.float32), np.array(colour, np.float32)
    return Image.fromarray(np.rint(start + (end - start) * share).astype(np.uint8))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, content in pictures().items():
        (folder / file_name).write_bytes(content)
