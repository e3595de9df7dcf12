import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmcae import images
from fmcae.errors import ImageError
from fmcae.images import COMMON_FORMATS, IMAGE_SUFFIXES, MAX_PIXELS, OTHER_FORMATS, read_image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def test_every_exif_orientation_stands_upright(encoded: Callable[..., bytes], item_on_white: Image.Image) -> None:
    upright = item_on_white
    undo = [None, 0, 3, 1, 5, 2, 6, 4]
    for orientation, step in enumerate(undo, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = upright if step is None else upright.transpose(Image.Transpose(step))
        for file_format in ("PNG", "TIFF"):
            assert np.array_equal(np.asarray(read_image(encoded(turned, file_format, exif=exif))), np.asarray(upright))


def test_the_first_frame_counts(encoded: Callable[..., bytes], item_on_white: Image.Image) -> None:
    frames = [item_on_white, Image.new("RGB", (400, 300), "black")]
    for file_format in ("GIF", "TIFF", "WEBP", "PNG"):
        content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        difference = np.asarray(read_image(content).convert("RGB")).astype(int) - np.asarray(frames[0])
        assert np.abs(difference).mean() < 3


def test_deep_grey_is_scaled_not_clipped(encoded: Callable[..., bytes]) -> None:
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    eight = np.arange(256).reshape(16, 16)
    assert np.array_equal(np.asarray(read_image(levels)), eight)
    assert np.array_equal(np.asarray(read_image(encoded(Image.fromarray(levels)))), eight)
    big_endian = Image.frombytes("I;16B", (16, 16), levels.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(read_image(big_endian)), eight)
    assert np.array_equal(np.asarray(read_image(Image.fromarray(levels.astype(np.int32)))), eight)
    for full in (1, 255):
        assert np.array_equal(
            np.asarray(read_image(Image.fromarray(np.float32(eight) * np.float32(full / 255)))), eight
        )


# --- what cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated(encoded: Callable[..., bytes], file_format: str, share: float, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    content = encoded(noise, file_format)
    path = tmp_path / f"cut.{file_format.lower()}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=rf"cut\.{file_format.lower()}: (cannot be read as|is not) an image") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 9_000), (8_001, 8_000)])
def test_a_decompression_bomb_is_not_decoded(size: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="pixels"):
        read_image(png_header(*size))
    with pytest.raises(ImageError, match="pixels"):
        read_image(np.broadcast_to(np.uint8(0), size))
    assert size[0] * size[1] > MAX_PIXELS


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("empty.png", "is empty"),
        ("text.png", "is not an image"),
        ("folder.png", "cannot be read: Is a directory"),
        ("missing.png", "cannot be read: No such file or directory"),
        ("null\0.png", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=reason) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(ImageError, match="image bytes: is empty"):
        read_image(b"")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(encoded: Callable[..., bytes], item_on_white: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(item_on_white))
    path.chmod(0)
    with pytest.raises(ImageError, match=r"secret\.png: cannot be read: Permission denied"):
        read_image(path)


def test_a_large_file_is_not_read(
    encoded: Callable[..., bytes], item_on_white: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded(item_on_white) + bytes(1 << 20))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(ImageError, match=r"large\.png: cannot be read: it has more than 1 MiB"):
        read_image(path)


def test_an_empty_path_is_named() -> None:
    with pytest.raises(ImageError, match=r"^path \(=\) must not be empty$"):
        read_image("")


def test_rarer_formats(encoded: Callable[..., bytes], item_on_white: Image.Image) -> None:
    Image.init()
    for file_format in ("PPM", *OTHER_FORMATS):
        if file_format in Image.SAVE:
            assert read_image(encoded(item_on_white, file_format)).mode in ("RGB", "RGBA")


def test_the_suffixes_are_those_that_pillow_registers_for_the_formats() -> None:
    Image.init()
    formats = {suffix: name for suffix, name in Image.EXTENSION.items() if name in COMMON_FORMATS + OTHER_FORMATS}
    unknown_to_this_pillow = IMAGE_SUFFIXES - formats.keys()
    assert formats.keys() <= IMAGE_SUFFIXES
    assert not unknown_to_this_pillow or set(COMMON_FORMATS + OTHER_FORMATS) - Image.OPEN.keys()


@pytest.mark.parametrize("file_format", ["EPS", "TGA", "PCX", "PDF"])
def test_formats_that_other_programs_decode_or_that_have_no_magic_are_refused(
    encoded: Callable[..., bytes], item_on_white: Image.Image, file_format: str
) -> None:
    with pytest.raises(ImageError, match=r"image bytes: is not an image in a format that is read \(PNG, JPEG, "):
        read_image(encoded(item_on_white, file_format))


@settings(deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff", b"RIFF"]),
)
def test_rubbish_is_an_image_error_or_an_image(rubbish: bytes, magic: bytes) -> None:
    try:
        assert read_image(magic + rubbish).mode in ("L", "RGB", "RGBA")
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("shape", [(5,), (2, 2, 2), (2, 2, 5), (1, 2, 2, 3), (0, 4), (4, 0, 3)])
def test_a_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"array's shape \(=|array: has"):
        read_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8, object])
def test_a_wrong_dtype_is_named(dtype: Any) -> None:
    with pytest.raises(ImageError, match=r"array's dtype \(=.*\) must be uint8, uint16 or bool"):
        read_image(np.zeros((4, 4), dtype))
