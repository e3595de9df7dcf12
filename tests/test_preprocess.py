import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import fmcae.preprocess
from fmcae.errors import ImageError
from fmcae.images import ImageSource
from fmcae.preprocess import SIZE, preprocess, scale, to_uint8

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


def check_form(result: NDArray[np.float32]) -> None:
    assert result.shape == (1, SIZE, SIZE)
    assert result.dtype == np.float32
    assert 0 <= result.min() <= result.max() <= 1


# --- any picture -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FORMATS), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_any_format_and_size(
    encoded: Callable[..., bytes], file_format: Any, width: Any, height: Any, seed: Any
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    check_form(preprocess(encoded(Image.fromarray(pixels), file_format)))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(MODES), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_any_mode(mode: str, width: int, height: int, seed: int) -> None:
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
def test_a_blank_picture_gives_zeros(shape: tuple[int, ...], value: int) -> None:
    assert not to_uint8(np.full((*shape, 3), value, np.uint8)).any()


@pytest.mark.parametrize("background", [(255, 255, 255), (245, 243, 238), (225, 225, 225), (200, 230, 255)])
def test_an_item_is_centred_and_its_longest_edge_is_28(background: tuple[int, ...]) -> None:
    image = Image.new("RGB", (700, 500), background)
    image.paste((50, 40, 30), (33, 190, 133, 490))  # 100 x 300
    result = to_uint8(image)
    rows, columns = (np.flatnonzero(result.max(axis=axis) > 127) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (0, 27)
    assert len(columns) in (9, 10)
    assert abs(columns[0] - (27 - columns[-1])) <= 1
    assert result[:, :8].max() == 0
    assert result.max() == 255


@settings(deadline=None, max_examples=60)
@given(st.integers(29, 300), st.integers(1, 60), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_noise_is_no_obstacle(size: int, sigma: float, index: int, seed: int) -> None:
    with gzip.open(SAMPLE) as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[index]
    photo = 255 - np.asarray(Image.fromarray(raw).resize((size, size), Image.Resampling.BICUBIC)).astype(float)
    noise = np.random.default_rng(seed).normal(0, sigma, photo.shape)
    check_form(preprocess((photo + noise).clip(0, 255).astype(np.uint8)))


@pytest.mark.parametrize("height, width", [(1, 500), (500, 1), (20, 3000)])
def test_thin_items(height: int, width: int) -> None:
    image = np.full((height + 40, width + 40), 255, np.uint8)
    image[20:-20, 20:-20] = 0
    result = to_uint8(image)
    assert max(result.max(axis=0).astype(bool).sum(), result.max(axis=1).astype(bool).sum()) == 28


def test_transparent_white_and_black_items_both_show() -> None:
    for colour in ("white", "black"):
        image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
        image.paste(Image.new("RGBA", (40, 60), colour), (10, 20))
        assert (to_uint8(image)[:, 10:18] == 255).all()


def test_a_light_item_on_dark_is_bright() -> None:
    image = Image.new("L", (100, 100), 10)
    image.paste(200, (30, 20, 70, 80))
    assert to_uint8(image)[14, 14] > 200


def test_a_large_picture_takes_no_more_than_its_pixels() -> None:
    image = Image.new("RGBA", (3000, 2000), (255, 255, 255, 99))
    tracemalloc.start()
    to_uint8(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 3000 * 2000 + (4 << 20)  # bytes; Pillow's own copy would take twice as much


def test_a_dark_maze_ends() -> None:
    """A picture, said to be a photo by its light rim, with a dark path of thousands of turns from its margin."""
    y, x = np.mgrid[:280, :280]
    diagonal = x - y
    path = diagonal % 4 < 2  # stairs, joined at their ends by turns
    path |= ((x == 0) | (y == 0)) & (diagonal // 4 % 2 == 0)
    path |= ((x == 279) | (y == 279)) & (diagonal // 4 % 2 == 1)
    picture = np.zeros((336, 336), np.uint8)
    picture[4:-4, 4:-4], picture[14:-14, 14:-14] = 250, 150
    picture[28:-28, 28:-28] = np.where(path, 0, 120)
    picture[300:, 28] = 0  # the way in
    check_form(preprocess(picture))


def test_a_picture_on_which_the_graph_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Broken:
        def run(self, *_: Any) -> None:
            raise RuntimeError("no room\nat some place")

    monkeypatch.setattr(fmcae.preprocess, "_session", lambda *_: Broken())
    path = tmp_path / "item.png"
    Image.new("RGB", (30, 40)).save(path)
    for source, name in (
        (path, str(path)),
        (np.zeros((30, 40), np.uint8), "image"),
        (path.read_bytes(), "image bytes"),
    ):
        with pytest.raises(ImageError) as failure:
            preprocess(source)
        assert str(failure.value) == f"{name}: cannot be preprocessed: no room"


# --- what is read how --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["array", "L", "RGB", "RGBA", "PNG", "WEBP", "GIF", "16-bit"]))
def test_28x28_grey_is_taken_exactly_as_it_is(encoded: Callable[..., bytes], seed: int, kind: str) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
    image = Image.fromarray(pixels)
    sources: dict[str, Callable[[], ImageSource]] = {
        "array": lambda: pixels,
        "L": lambda: image,
        "RGB": lambda: image.convert("RGB"),
        "RGBA": lambda: image.convert("RGBA"),
        "PNG": lambda: encoded(image),
        "WEBP": lambda: encoded(image, "WEBP", lossless=True),
        "GIF": lambda: encoded(image, "GIF"),
        "16-bit": lambda: encoded(Image.fromarray(pixels.astype(np.uint16) * 257)),
    }
    source = sources[kind]()
    assert np.array_equal(to_uint8(source), pixels)
    assert np.array_equal(preprocess(source), pixels[None].astype(np.float32) / np.float32(255))


def test_scale_is_a_division_by_255() -> None:
    images = np.arange(2 * 784).reshape(2, 28, 28).astype(np.uint8)
    assert np.array_equal(scale(images), images[:, None].astype(np.float32) / np.float32(255))
    assert scale(images[0]).shape == (1, 28, 28)


def test_a_file_bytes_an_image_and_an_array_are_the_same(
    encoded: Callable[..., bytes], item_on_white: Image.Image, tmp_path: Path
) -> None:
    image = item_on_white
    image.save(tmp_path / "item.png")
    expected = to_uint8(image)
    for source in (tmp_path / "item.png", str(tmp_path / "item.png"), encoded(image), np.asarray(image)):
        assert np.array_equal(to_uint8(source), expected)


# --- Fashion-MNIST's own images, undone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "background, ink", [((255,) * 3, (0,) * 3), ((245, 243, 238), (90, 10, 20)), ((20, 20, 25), (240,) * 3)]
)
def test_undone_images_come_back(background: int, ink: int) -> None:
    with gzip.open(SAMPLE) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:40]
    differences = []
    for raw in images:
        share = np.asarray(Image.fromarray(raw).resize((420, 420), Image.Resampling.BICUBIC))[..., None] / 255
        photo = np.rint(np.array(background) * (1 - share) + np.array(ink) * share).astype(np.uint8)
        picture = np.full((560, 620, 3), background, np.uint8)
        picture[30:450, 150:570] = photo
        differences.append(np.abs(to_uint8(picture).astype(int) - raw).mean())
    assert np.median(differences) < 6  # of 255
