"""A contact sheet for eyes: each picture, the pixels that the model sees of it, and what the model says.

Only Pillow draws, so that the light install can. ``fmcae predict --show OUT.png`` writes one,
and ``fmcae evaluate --out DIR`` one of the most confident mistakes.
"""

import io
import os
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fmcae.images import ImageSource, read_image
from fmcae.runtime.model import Prediction
from fmcae.runtime.predict import prediction_text

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

MAX_TILES = 200  # more than eyes look at in one picture
COLUMNS = 6
EDGE = 140  # pixels of a picture, and of what the model sees of it, each pixel enlarged alike: 5 times of 28
GAP = 4  # pixels between the two
MARGIN = 10  # pixels around each tile
LINE = 18  # pixels of height
TITLE = 30  # pixels of height
TILE_SIZE = 2 * EDGE + GAP, EDGE + 2 * LINE
SYSTEM_FONTS = ("LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf", "DejaVuSans.ttf")
PAPER, GROUND, CHECKER = (255, 255, 255), (236, 236, 236), (204, 204, 204)
INK, FAINT, VERMILION = (20, 20, 20), (110, 110, 110), (213, 94, 0)  # the last is Okabe and Ito's


def caption(prediction: Prediction, pixels: NDArray[np.uint8] | None = None) -> str:
    """What a prediction says in one line, as ``fmcae predict`` prints it.

    It has the label and its probability, or that the picture is unknown, what is nearest, and whether it shows no item.
    """
    return prediction_text(f"{prediction.label} {prediction.probability:.4f}", prediction.known, pixels)


def tile(source: ImageSource, pixels: NDArray[np.uint8], prediction: Prediction, name: str) -> Image.Image:
    """Draw one picture's tile of TILE_SIZE.

    Args:
        source: the picture as given; what lies behind transparent parts is a checkerboard.
        pixels: (S, S) or (S, S, 3) uint8, what the model saw of it.
        name: the line below the prediction, such as the file's name; cut in the middle if it is too long.

    Raises:
        ImageError: ``source`` cannot be read.
    """
    drawn = Image.new("RGB", TILE_SIZE, PAPER)
    drawn.paste(_fitted(read_image(source)))
    drawn.paste(_fitted(Image.fromarray(pixels), EDGE // len(pixels)), (EDGE + GAP, 0))
    draw = ImageDraw.Draw(drawn)
    for left in (0, EDGE + GAP):  # a white picture must not merge with the paper
        draw.rectangle((left, 0, left + EDGE - 1, EDGE - 1), outline=CHECKER)
    lines = ((caption(prediction, pixels), 14, INK if prediction.known else VERMILION), (name, 12, FAINT))
    for row, (text, size, colour) in enumerate(lines):
        font = font_of(size)
        draw.text((0, EDGE + 2 + row * LINE), shortened(legible(text), font, TILE_SIZE[0]), colour, font)
    return drawn


def contact_sheet(tiles: Sequence[Image.Image], title: str = "") -> bytes:
    """Put tiles, at most MAX_TILES, in rows of up to COLUMNS below a title, if there is one, as a PNG file."""
    columns = max(1, min(COLUMNS, len(tiles)))
    rows = -(-len(tiles) // columns)
    width, height = (edge + MARGIN for edge in TILE_SIZE)
    top = MARGIN + (TITLE if title else 0)
    sheet = Image.new("RGB", (columns * width + MARGIN, top + rows * height), PAPER)
    font = font_of(16)
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), shortened(legible(title), font, columns * width), INK, font)
    for number, drawn in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(drawn, (MARGIN + column * width, top + row * height))
    return png(sheet)


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _fitted(picture: Image.Image, zoom: float | None = None) -> Image.Image:
    """The whole picture in the middle of a square of EDGE pixels; a small one keeps its pixels' edges."""
    zoom = zoom or EDGE / max(picture.size)
    size = max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom))
    method = Image.Resampling.NEAREST if zoom > 1 else Image.Resampling.BOX
    square = Image.new("RGB", (EDGE, EDGE), GROUND)
    corner = (EDGE - size[0]) // 2, (EDGE - size[1]) // 2
    if picture.mode == "RGBA":
        square.paste(_checkerboard(size), corner)
        fitted = picture.resize(size, method)
        square.paste(fitted.convert("RGB"), corner, fitted.getchannel("A"))
    else:
        square.paste(picture.resize(size, method), corner)
    return square


def _checkerboard(size: tuple[int, int], step: int = 7) -> Image.Image:
    x, y = (np.arange(edge) // step for edge in size)
    is_dark = (x + y[:, np.newaxis]) % 2 == 1
    return Image.fromarray(np.where(is_dark[..., np.newaxis], CHECKER, PAPER).astype(np.uint8))


@cache
def font_of(size: int) -> Font:
    """A font of the system that has the letters of many languages, or else Pillow's own, which has ASCII's alone."""
    for name in SYSTEM_FONTS:
        if os.path.lexists(name):  # Pillow would take a file of the current folder, which may be anything
            continue
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def legible(text: str) -> str:
    """The text with what the font lacks, such as control characters, as ASCII letters without accents or as escapes."""
    return "".join(map(_with_glyph, unicodedata.normalize("NFC", text)))


@cache
def _with_glyph(character: str) -> str:
    font = font_of(14)
    if character.isprintable() and bytes(font.getmask(character)) != bytes(font.getmask("\uffff")):
        return character
    plain = "".join(part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part))
    return plain if plain.isascii() and plain.isprintable() else ascii(character)[1:-1]


def shortened(text: str, font: Font, width: int) -> str:
    """The text, or its beginning and end with dots between them, as much as ``width`` pixels hold."""

    def cut(kept: int) -> str:
        return f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"

    if font.getlength(text) <= width:
        return text
    kept = bisect_left(range(len(text)), True, key=lambda count: font.getlength(cut(count)) > width) - 1
    return cut(max(0, kept))
