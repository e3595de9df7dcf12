import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFont

import fmcae.runtime.contact_sheet as contact_sheet_module
from fmcae.errors import ImageError
from fmcae.preprocess import to_uint8
from fmcae.runtime.contact_sheet import (
    COLUMNS,
    EDGE,
    GAP,
    SYSTEM_FONTS,
    TILE_SIZE,
    VERMILION,
    caption,
    contact_sheet,
    font_of,
    legible,
    tile,
)
from fmcae.runtime.model import Prediction

BLANK = np.zeros((28, 28), np.uint8)


def prediction(label: str = "Bag", known: bool = True) -> Prediction:
    return Prediction(label, 0, 0.41, np.array([0.41, 0.59], np.float32), known, 0.5)


def has_colour(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == colour).all(axis=-1).any())


def test_the_caption_tells_known_from_unknown() -> None:
    assert caption(prediction()) == "Bag 0.4100"
    assert caption(prediction(known=False)) == "unknown (nearest: Bag 0.4100)"
    nearly = np.full((64, 64, 3), (9, 90, 200), np.uint8)
    nearly[5] += 8
    assert caption(prediction(known=False), nearly) == "unknown (no item; nearest: Bag 0.4100)"
    nearly[6, 7, 2] -= 1
    assert caption(prediction(known=False), nearly) == "unknown (nearest: Bag 0.4100)"
    assert caption(prediction(known=False), BLANK) == "unknown (no item; nearest: Bag 0.4100)"
    assert caption(prediction(), BLANK) == "Bag 0.4100 (no item)"


def test_a_tile_has_the_picture_and_what_the_model_sees(test_images: NDArray[np.uint8]) -> None:
    red = Image.new("RGB", (400, 200), (200, 0, 0))
    drawn = tile(red, test_images[0], prediction(), "red.png")
    assert drawn.size == TILE_SIZE
    assert drawn.getpixel((EDGE // 2, EDGE // 2)) == (200, 0, 0)
    assert drawn.getpixel((EDGE // 2, 10)) != (200, 0, 0)  # the ground above a wide picture
    left = EDGE + GAP
    seen = drawn.crop((left, 0, left + EDGE, EDGE)).convert("L").resize((28, 28), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(seen), test_images[0])


def test_what_is_unknown_has_another_colour() -> None:
    picture = Image.new("L", (28, 28))
    assert has_colour(tile(picture, BLANK, prediction(known=False), "a.png"), VERMILION)
    assert not has_colour(tile(picture, BLANK, prediction(), "a.png"), VERMILION)


def test_transparent_parts_show_a_checkerboard() -> None:
    drawn = tile(Image.new("RGBA", (50, 50)), BLANK, prediction(), "a.png").crop((1, 1, EDGE - 1, EDGE - 1))
    assert len(set(drawn.get_flattened_data() if hasattr(drawn, "get_flattened_data") else drawn.getdata())) == 2


@given(st.text(max_size=300), st.text(min_size=1, max_size=300), st.booleans())
def test_any_name_and_label_fit(name: str, label: str, known: bool) -> None:
    drawn = tile(Image.new("L", (28, 28)), BLANK, prediction(label, known), name)
    assert drawn.size == TILE_SIZE


@pytest.mark.parametrize(
    "name", ["\N{DRESS}.png", "\udcff.png", "two\nlines.png", "\N{HEBREW LETTER ALEF}.png", "a" * 5000]
)
def test_odd_names_fit(name: str) -> None:
    assert tile(Image.new("L", (28, 28)), BLANK, prediction(), name).size == TILE_SIZE


@pytest.mark.parametrize(
    ("fonts", "expected"),
    [((), "Gro\\xdfe cafe Bags \\u65e5 \\x1b"), (contact_sheet_module.SYSTEM_FONTS, "Größe café Bags \\u65e5 \\x1b")],
)
def test_letters_that_the_font_lacks_are_written_otherwise(
    monkeypatch: pytest.MonkeyPatch, fonts: tuple[str, ...], expected: str
) -> None:
    caches = contact_sheet_module.font_of, contact_sheet_module._with_glyph
    for cached in caches:
        cached.cache_clear()
    monkeypatch.setattr(contact_sheet_module, "SYSTEM_FONTS", fonts)
    try:
        if fonts and isinstance(getattr(contact_sheet_module.font_of(14), "path", None), io.BytesIO):
            pytest.skip("no system font is here")
        assert legible("Größe cafe\u0301 Bags \u65e5 \x1b") == expected
    finally:
        for cached in caches:
            cached.cache_clear()


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["L", "RGB", "RGBA", "1", "P"]))
def test_any_shape_fits(width: int, height: int, mode: str) -> None:
    picture = Image.new(mode, (width, height))
    assert tile(picture, to_uint8(picture), prediction(), "a.png").size == TILE_SIZE


def test_a_picture_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ImageError, match="is not an image"):
        tile(b"nothing", BLANK, prediction(), "a.png")


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (COLUMNS, COLUMNS, 1), (COLUMNS + 1, COLUMNS, 2)])
def test_tiles_stand_in_rows(count: int, columns: int, rows: int) -> None:
    tiles = [Image.new("RGB", TILE_SIZE, (number, 9, 9)) for number in range(count)]
    with Image.open(io.BytesIO(contact_sheet(tiles))) as sheet:
        assert sheet.format == "PNG"
        width, height = (edge + 10 for edge in TILE_SIZE)
        assert sheet.size == (columns * width + 10, rows * height + 10)
        last = (count - 1) % columns * width + 20, (count - 1) // columns * height + 20
        assert sheet.getpixel(last) == (count - 1, 9, 9)


def test_a_font_of_the_current_folder_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in SYSTEM_FONTS:
        Path(name).write_bytes(b"not a font")
    truetype = ImageFont.truetype

    def own_font_only(font: Any, *arguments: Any, **options: Any) -> Any:
        assert not isinstance(font, str), "a file of the folder was opened"
        return truetype(font, *arguments, **options)

    monkeypatch.setattr(ImageFont, "truetype", own_font_only)
    font_of.cache_clear()
    try:
        font_of(14)
    finally:
        font_of.cache_clear()
