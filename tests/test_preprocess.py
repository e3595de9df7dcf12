import gzip
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

import fmcae.preprocess
from fmcae.errors import ImageError, UsageError
from fmcae.images import ImageSource
from fmcae.preprocess import SIZE, preprocess, scale, to_uint8
from fmcae.shape import SHAPES

SAMPLE = Path(__file__).parent / "data" / "fashion-mnist-sample" / "t10k-images-idx3-ubyte.gz"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F",
)  # fmt: skip


def check_form(result: NDArray[np.float32]) -> None:
    assert result.shape == (1, SIZE, SIZE)
    assert result.dtype == np.float32
    assert 0 <= result.min() <= result.max() <= 1


# --- any picture -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.sampled_from(FORMATS), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_any_format_and_size(
    encoded: Callable[..., bytes], file_format: Any, width: Any, height: Any, seed: Any
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    check_form(preprocess(encoded(Image.fromarray(pixels), file_format)))


@settings(max_examples=60)
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


@settings(max_examples=60)
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


@settings(max_examples=60)
@given(st.integers(60, 1500), st.floats(0.01, 0.08), *[st.floats(0.05, 0.35)] * 2, *[st.floats(0.65, 0.95)] * 2)
def test_an_outline_keeps_all_of_its_sides(
    size: int, width: float, left: float, top: float, right: float, bottom: float
) -> None:
    picture = Image.new("L", (size, size), 255)
    box = [round(edge * size) for edge in (left, top, right, bottom)]
    ImageDraw.Draw(picture).rectangle(box, outline=0, width=math.ceil(width * size))
    x = preprocess(picture)[0]
    seen = x[np.ix_(x.any(axis=1), x.any(axis=0))]
    assert min(side.mean() for side in (seen[0], seen[-1], seen[:, 0], seen[:, -1])) > 0.3


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


# --- colours and other sizes -------------------------------------------------------------------------------------

INK = st.tuples(*[st.integers(0, 255)] * 3)


@settings(max_examples=40)
@given(
    st.sampled_from(SHAPES), st.integers(1, 90), st.integers(1, 90), st.sampled_from([0, 1, 3, 4]), st.integers(0, 999)
)
def test_any_pixels_have_the_form_that_is_asked_for(
    shape: tuple[int, int], height: int, width: int, planes: int, seed: int
) -> None:
    channels, size = shape
    picture = np.random.default_rng(seed).integers(
        0, 256, (height, width, planes) if planes else (height, width), np.uint8
    )
    x = preprocess(picture, channels, size)
    assert x.shape == (channels, size, size) and x.dtype == np.float32 and 0 <= x.min() <= x.max() <= 1
    assert to_uint8(picture, channels, size).shape == (size, size) + (3,) * (channels == 3)
    if planes < 3:  # grey
        assert all(np.array_equal(plane, x[0]) for plane in x)


@settings(max_examples=30)
@given(st.sampled_from(SHAPES[1:]), INK, st.booleans(), st.data())
def test_a_mirrored_picture_gives_mirrored_pixels(
    shape: tuple[int, int], ink: tuple[int, int, int], is_dark: bool, data: st.DataObject
) -> None:
    paper = np.uint8(10 if is_dark else 245)
    height, width = data.draw(st.integers(100, 200)), data.draw(st.integers(240, 300))
    picture = np.full((height + 60, width + 80, 3), paper)
    picture[20 : 20 + height, 30 : 30 + width] = ink
    picture[20 : 20 + height // 2, 30 : 30 + width // 3] = 128
    if np.abs(picture.astype(int) - paper).max(axis=2)[20:-40, 30:-50].min() < 40:
        return  # an item that looks like its background
    x, mirrored = (preprocess(pixels, *shape) for pixels in (picture, picture[:, ::-1]))
    assert np.abs(mirrored[:, :, ::-1] - x).mean() < 0.02


@pytest.mark.parametrize("size", [28, 56, 64])
@pytest.mark.parametrize("paper", [(255, 255, 255), (20, 20, 25), (200, 230, 255), None])
@pytest.mark.parametrize("ink", [(220, 40, 30), (20, 180, 60), (0, 0, 0), (255, 255, 255)])
def test_an_item_keeps_its_colour_before_any_background(
    size: int, paper: tuple[int, int, int] | None, ink: tuple[int, int, int]
) -> None:
    if ink == paper:
        return
    image = Image.new("RGB", (300, 260), paper) if paper else Image.new("RGBA", (300, 260))
    ImageDraw.Draw(image).ellipse((90, 50, 210, 170), fill=ink)
    x = preprocess(image, 3, size)
    middle = np.array(ink) / 255 * 0.8 + 0.2  # black is 0.2
    assert x[:, size // 2, size // 2] == pytest.approx(middle, abs=0.01)
    assert not x[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert (x.max(axis=0) > 0).mean() == pytest.approx(np.pi / 4, abs=0.08)


def test_light_and_shadow_on_the_background_are_none_of_a_coloured_item() -> None:
    y, x = np.mgrid[:400, :500]
    photo = np.repeat((235 - y / 20 - 40 * np.exp(-(((x - 250) / 90) ** 2) - ((y - 330) / 20) ** 2))[..., None], 3, 2)
    photo[(x - 250) ** 2 + (y - 200) ** 2 < 110**2] = 220, 120, 30
    photo += np.random.default_rng(0).normal(0, 2, photo.shape)
    found = preprocess(photo.clip(0, 255).astype(np.uint8), 3, 64)
    is_seen = found.max(axis=0) > 0
    assert np.median(found[:, is_seen], axis=1) == pytest.approx(np.array([220, 120, 30]) / 255 * 0.8 + 0.2, abs=0.02)
    rows, columns = (np.flatnonzero(is_seen.any(axis=axis)) for axis in (1, 0))
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)  # a circle


@pytest.mark.parametrize("ink", [(255, 250, 225), (245, 245, 245)])
def test_a_pale_item_is_not_taken_for_background(ink: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (300, 260), "white")
    ImageDraw.Draw(image).ellipse((90, 50, 210, 170), fill=ink)
    for picture in (image, image.filter(ImageFilter.GaussianBlur(3))):
        assert (preprocess(picture, 3, 64).max(axis=0) > 0).mean() > 0.6


def test_a_photo_is_as_pillow_shrinks_it() -> None:
    y, x = np.mgrid[:600, :480] / 600
    waves = [np.sin(40 * x + 20 * y), np.cos(70 * (x - 0.4) ** 2 + 90 * y), np.sin(60 * y * x + 9)]
    item = np.rint(128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)
    picture = np.full((700, 700, 3), (0, 255, 0), np.uint8)
    picture[40:640, 100:580] = item
    expected = np.asarray(Image.fromarray(item).resize((51, 64), Image.Resampling.LANCZOS)) / 255 * 0.8 + 0.2
    found = preprocess(picture, 3, 64).transpose(1, 2, 0)[:, 7:58]
    assert np.abs(found - expected)[2:-2, 2:-2].mean() < 0.02


def test_pictures_of_the_size_are_taken_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for source in (pixels, Image.fromarray(pixels)):
        assert np.array_equal(to_uint8(source, 3, 64), pixels)
    assert np.array_equal(preprocess(pixels, 3, 64), scale(pixels)) and scale(pixels).flags.c_contiguous
    assert np.array_equal(scale(pixels[None])[0], scale(pixels))
    assert np.array_equal(to_uint8(pixels[..., 0], 1, 64), pixels[..., 0])
    assert np.array_equal(to_uint8(pixels[..., 0], 3, 64), pixels[..., [0, 0, 0]])
    transparent = np.dstack([pixels, np.full((64, 64), 99, np.uint8)])
    assert not np.array_equal(to_uint8(transparent, 3, 64), pixels)


@pytest.mark.parametrize(("channels", "size"), [(2, 28), (1, 32), (4, 64), (3.0, 64)])
def test_another_shape_is_refused(channels: Any, size: Any) -> None:
    with pytest.raises(UsageError, match=r"channels \(=\d(\.0)?\) must be 1 or 3|size \(=32\) must be 28, 56 or 64"):
        preprocess(np.zeros((9, 9), np.uint8), channels, size)


# --- what is read how --------------------------------------------------------------------------------------------


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
