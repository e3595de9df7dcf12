import gzip
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmcae.errors import ImageError
from fmcae.preprocess import MAX_PIXELS, SIZE, preprocess, read_image, scale, to_uint8

SAMPLE = Path(__file__).parent / "data" / "fashion-mnist-sample" / "t10k-images-idx3-ubyte.gz"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "I;16B",
    "F",
)


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def item_on_white(size=(400, 300), box=(40, 120, 140, 280), colour=(60, 60, 60)):
    image = Image.new("RGB", size, "white")
    image.paste(colour, box)
    return image


def check_form(result):
    assert result.shape == (1, SIZE, SIZE)
    assert result.dtype == np.float32
    assert 0 <= result.min() <= result.max() <= 1


# --- any picture -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FORMATS), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_any_format_and_size(file_format, width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    check_form(preprocess(encoded(Image.fromarray(pixels), file_format)))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(MODES), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_any_mode(mode, width, height, seed):
    source = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, (width, height), source.astype("<u2" if mode == "I;16" else ">u2").tobytes())
    elif mode in ("LAB", "HSV"):
        image = Image.merge(mode, [Image.fromarray(source)] * 3)
    elif mode in ("La", "PA"):
        image = Image.fromarray(source).convert("LA" if mode == "La" else "P").convert(mode)
    else:
        image = Image.fromarray(np.stack([source] * 3, -1)).convert("RGBA" if mode == "RGBa" else "RGB").convert(mode)
    assert image.mode == mode
    check_form(preprocess(image))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3), (28, 27), (3000, 2000)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_picture_gives_zeros(shape, value):
    assert not to_uint8(np.full((*shape, 3), value, np.uint8)).any()


@pytest.mark.parametrize("background", [(255, 255, 255), (245, 243, 238), (225, 225, 225), (200, 230, 255)])
def test_an_item_is_centred_and_its_longest_edge_is_28(background):
    image = Image.new("RGB", (700, 500), background)
    image.paste((50, 40, 30), (33, 190, 133, 490))  # 100 x 300
    result = to_uint8(image)
    rows, columns = (np.flatnonzero(result.max(axis=axis) > 127) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (0, 27)
    assert len(columns) in (9, 10)
    assert abs(columns[0] - (27 - columns[-1])) <= 1
    assert result[:, :8].max() == 0
    assert result.max() == 255


@pytest.mark.parametrize("height, width", [(1, 500), (500, 1), (20, 3000)])
def test_thin_items(height, width):
    image = np.full((height + 40, width + 40), 255, np.uint8)
    image[20:-20, 20:-20] = 0
    result = to_uint8(image)
    assert max(result.max(axis=0).astype(bool).sum(), result.max(axis=1).astype(bool).sum()) == 28


def test_transparent_white_and_black_items_both_show():
    for colour in ("white", "black"):
        image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
        image.paste(Image.new("RGBA", (40, 60), colour), (10, 20))
        assert (to_uint8(image)[:, 10:18] == 255).all()


def test_a_light_item_on_dark_is_bright():
    image = Image.new("L", (100, 100), 10)
    image.paste(200, (30, 20, 70, 80))
    assert to_uint8(image)[14, 14] > 200


# --- what is read how --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["array", "L", "RGB", "RGBA", "PNG", "WEBP", "GIF", "16-bit"]))
def test_28x28_grey_is_taken_exactly_as_it_is(seed, kind):
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
    image = Image.fromarray(pixels)
    source = {
        "array": lambda: pixels,
        "L": lambda: image,
        "RGB": lambda: image.convert("RGB"),
        "RGBA": lambda: image.convert("RGBA"),
        "PNG": lambda: encoded(image),
        "WEBP": lambda: encoded(image, "WEBP", lossless=True),
        "GIF": lambda: encoded(image, "GIF"),
        "16-bit": lambda: encoded(Image.fromarray(pixels.astype(np.uint16) * 257)),
    }[kind]()
    assert np.array_equal(to_uint8(source), pixels)
    assert np.array_equal(preprocess(source), pixels[None].astype(np.float32) / np.float32(255))


def test_scale_is_a_division_by_255():
    images = np.arange(2 * 784).reshape(2, 28, 28).astype(np.uint8)
    assert np.array_equal(scale(images), images[:, None].astype(np.float32) / np.float32(255))
    assert scale(images[0]).shape == (1, 28, 28)


def test_every_exif_orientation_stands_upright():
    upright = item_on_white()
    undo = [None, 0, 3, 1, 5, 2, 6, 4]
    for orientation, step in enumerate(undo, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = upright if step is None else upright.transpose(Image.Transpose(step))
        for file_format in ("PNG", "TIFF"):
            assert np.array_equal(np.asarray(read_image(encoded(turned, file_format, exif=exif))), np.asarray(upright))


def test_the_first_frame_counts():
    frames = [item_on_white(), Image.new("RGB", (400, 300), "black")]
    for file_format in ("GIF", "TIFF", "WEBP", "PNG"):
        content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert np.abs(to_uint8(content).astype(int) - to_uint8(frames[0])).mean() < 3


def test_deep_grey_is_scaled_not_clipped():
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


def test_a_file_bytes_an_image_and_an_array_are_the_same(tmp_path):
    image = item_on_white()
    image.save(tmp_path / "item.png")
    expected = to_uint8(image)
    for source in (tmp_path / "item.png", str(tmp_path / "item.png"), encoded(image), np.asarray(image)):
        assert np.array_equal(to_uint8(source), expected)


# --- what cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated(file_format, share, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    content = encoded(noise, file_format)
    path = tmp_path / f"cut.{file_format.lower()}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=rf"cut\.{file_format.lower()}: (cannot be read as|is not) an image") as error:
        preprocess(path)
    assert "\n" not in str(error.value)


def png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 9_000), (8_001, 8_000)])
def test_a_decompression_bomb_is_not_decoded(size):
    with pytest.raises(ImageError, match="pixels"):
        preprocess(png_header(*size))
    with pytest.raises(ImageError, match="pixels"):
        preprocess(np.broadcast_to(np.uint8(0), size))
    assert size[0] * size[1] > MAX_PIXELS


def test_files_that_are_no_images(tmp_path):
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
            preprocess(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(ImageError, match="image bytes: is empty"):
        preprocess(b"")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(item_on_white()))
    path.chmod(0)
    with pytest.raises(ImageError, match=r"secret\.png: cannot be read: Permission denied"):
        preprocess(path)


@settings(deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff", b"RIFF"]),
)
def test_rubbish_is_an_image_error_or_an_image(rubbish, magic):
    try:
        check_form(preprocess(magic + rubbish))
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("shape", [(5,), (2, 2, 2), (2, 2, 5), (1, 2, 2, 3), (0, 4), (4, 0, 3)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ImageError, match=r"array's shape \(=|array: has"):
        preprocess(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8, object])
def test_a_wrong_dtype_is_named(dtype):
    with pytest.raises(ImageError, match=r"array's dtype \(=.*\) must be uint8, uint16 or bool"):
        preprocess(np.zeros((4, 4), dtype))


# --- Fashion-MNIST's own images, undone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "background, ink", [((255,) * 3, (0,) * 3), ((245, 243, 238), (90, 10, 20)), ((20, 20, 25), (240,) * 3)]
)
def test_undone_images_come_back(background, ink):
    with gzip.open(SAMPLE) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:40]
    differences = []
    for raw in images:
        share = np.asarray(Image.fromarray(raw).resize((420, 420), Image.Resampling.BICUBIC))[..., None] / 255
        photo = np.rint(np.array(background) * (1 - share) + np.array(ink) * share).astype(np.uint8)
        picture = np.full((560, 620, 3), background, np.uint8)
        picture[30:450, 150:570] = photo
        differences.append(np.abs(to_uint8(picture).astype(int) - raw).mean())
    assert np.median(differences) < 6
