"""The pictures of an evaluation: its confusion matrix, its reliability diagram and its most confident mistakes.

Only Pillow draws, as for the contact sheet. The colours are Okabe and Ito's, which colour-blind readers can distinguish.
"""

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from fmcae.data import UNKNOWN
from fmcae.errors import ImageError
from fmcae.metrics import CALIBRATION_BINS, ReliabilityBin, wilson_interval
from fmcae.preprocess import to_uint8
from fmcae.runtime.contact_sheet import (
    CHECKER,
    FAINT,
    INK,
    LINE,
    PAPER,
    VERMILION,
    Font,
    contact_sheet,
    font_of,
    legible,
    png,
    shortened,
    tile,
)
from fmcae.runtime.evaluate import SHOWN_MISTAKES, Evaluation, LabelledPictures, Scores

BLUE = 0, 114, 178
MARGIN = 20  # pixels
TITLE_SIZE, TEXT_SIZE, NUMBER_SIZE = 16, 13, 12  # of the fonts, in pixels
MATRIX = 920  # pixels of an edge that a matrix of many classes has
LARGEST_CELL, NUMBERED_CELL = 46, 34  # pixels; a smaller one than the latter has no room for its number
LABEL_WIDTH = 200  # pixels, of a class's name
PLOT, HISTOGRAM = 420, 110  # pixels: an edge of the reliability diagram, and the height of the bars below


def confusion_png(scores: Scores) -> bytes:
    """Draw the confusion matrix: a row for each class, and one for unknown pictures if there are some."""
    counts = [*scores.confusion, scores.unknown_confusion] if scores.images_unknown else scores.confusion
    names = [shortened(legible(row.label), font_of(TEXT_SIZE), LABEL_WIDTH) for row in scores.classes]
    refused = [row.images_refused for row in scores.classes]
    if scores.unknown_refused is not None:
        refused.append(round(scores.unknown_refused * scores.images_unknown))
    cell = max(round(LINE * math.sqrt(2)), min(LARGEST_CELL, MATRIX // len(names)))
    text = [
        _accuracy_text(scores),
        "A row is what pictures show, a column the label that they got, whatever the threshold; darker is more of the row.",
        f"Refused are those whose known score is below the threshold, {scores.threshold:.4f}.",
    ]
    font, gap = font_of(TEXT_SIZE), max(6, cell // 4)
    labels_width = round(max(font.getlength(name) for name in (*names, UNKNOWN)))
    slant = round(max(font.getlength(name) for name in (*names, "pictures")) * math.sqrt(0.5)) + LINE
    left, top = MARGIN + labels_width + 8, MARGIN + LINE * (len(text) + 1) + slant
    aside = left + cell * len(names) + gap  # where the two columns on the right begin, which always have numbers
    width = max(aside + 2 * LARGEST_CELL + slant, MARGIN + _text_width(text)) + MARGIN
    drawn = Image.new("RGB", (width, top + cell * len(counts) + gap + MARGIN), PAPER)
    draw = ImageDraw.Draw(drawn)
    _draw_text(draw, text)
    for column, name in enumerate(names):
        _draw_slanted(drawn, (left + cell * column + cell // 2, top - 4), name)
    for column, name in enumerate(("refused", "pictures")):
        _draw_slanted(drawn, (aside + LARGEST_CELL * column + LARGEST_CELL // 2, top - 4), name)
    for row, (row_counts, row_refused) in enumerate(zip(counts, refused, strict=True)):
        is_class = row < len(names)
        y = top + cell * row + (0 if is_class else gap)
        total = sum(row_counts)
        draw.text((left - 8, y + cell / 2), names[row] if is_class else UNKNOWN, INK, font, anchor="rm")
        for column, count in enumerate(row_counts):
            _draw_cell(draw, (left + cell * column, y, cell, cell), count, total, BLUE)
        _draw_cell(draw, (aside, y, LARGEST_CELL, cell), row_refused, total, VERMILION)
        centre = aside + 1.5 * LARGEST_CELL, y + cell / 2
        draw.text(centre, short_count(total), FAINT, font_of(NUMBER_SIZE), anchor="mm")
    return png(drawn)


def reliability_png(groups: Sequence[ReliabilityBin], error: float | None) -> bytes:
    """Draw the reliability diagram: how often the label is right over how probable the model calls it.

    Source: Guo et al. 2017, arXiv:1706.04599, Figure 1; the intervals are Wilson's.
    """
    count = sum(group.count for group in groups)
    number = "no picture of a class" if error is None else f"{count:,} pictures"
    text = [
        f"Expected calibration error {'undefined' if error is None else f'{error:.4f}'} ({number})",
        "A dot is a group of like confidence, with its 95% interval.",
        "On the dashed line the label is right as often as the model says.",
    ]
    left, top = MARGIN + 60, MARGIN + LINE * (len(text) + 1) + 4
    bars_bottom = top + PLOT + 2 * LINE + HISTOGRAM
    drawn = Image.new("RGB", (left + PLOT + 2 * MARGIN, bars_bottom + 3 * LINE), PAPER)
    draw = ImageDraw.Draw(drawn)
    _draw_text(draw, text)
    small = font_of(NUMBER_SIZE)

    def at(confidence: float, accuracy: float) -> tuple[float, float]:
        return left + PLOT * confidence, top + PLOT * (1 - accuracy)

    for tick in range(0, 11, 2):
        draw.line((*at(0, tick / 10), *at(1, tick / 10)), CHECKER)
        draw.line((*at(tick / 10, 0), *at(tick / 10, 1)), CHECKER)
        draw.text((left - 6, at(0, tick / 10)[1]), f"{tick / 10:.1f}", FAINT, small, anchor="rm")
        draw.text((at(tick / 10, 0)[0], bars_bottom + 4), f"{tick / 10:.1f}", FAINT, small, anchor="mt")
    for dash in range(0, 50, 2):
        draw.line((*at(dash / 50, dash / 50), *at((dash + 1) / 50, (dash + 1) / 50)), FAINT, 1)
    draw.rectangle((left, top, left + PLOT, top + PLOT), outline=FAINT)
    dots = [at(group.confidence, group.accuracy) for group in groups]
    most = max((group.count for group in groups), default=1)
    for group, (x, y) in zip(groups, dots, strict=True):
        ends = wilson_interval(round(group.accuracy * group.count), group.count)
        draw.line([at(group.confidence, end) for end in ends], BLUE, 1)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), BLUE)
        index = min(CALIBRATION_BINS - 1, math.ceil(group.confidence * CALIBRATION_BINS) - 1)
        start, end = (at(edge / CALIBRATION_BINS, 0)[0] for edge in (index, index + 1))
        bar = (HISTOGRAM - LINE) * (math.log(group.count) + 0.2) / (math.log(most) + 0.2)  # one picture is seen too
        draw.rectangle((start + 2, bars_bottom - bar, end - 2, bars_bottom), BLUE)
        draw.text(((start + end) / 2, bars_bottom - bar - 3), short_count(group.count), INK, font_of(10), anchor="ms")
    draw.line((left, bars_bottom, left + PLOT, bars_bottom), FAINT)
    middle = left + PLOT / 2, bars_bottom + LINE + 6
    draw.text(middle, "confidence: the probability of the label", INK, font_of(TEXT_SIZE), anchor="mt")
    _draw_upright(drawn, (MARGIN + 8, top + PLOT // 2), "accuracy")
    _draw_upright(drawn, (MARGIN + 8, bars_bottom - HISTOGRAM // 2), "pictures (log)")
    return png(drawn)


def mistakes_png(pictures: LabelledPictures, evaluation: Evaluation, channels: int = 1, size: int = 28) -> bytes:
    """Draw a contact sheet of the most confident mistakes; one that can no longer be read is left out.

    ``channels`` and ``size`` are the model's.
    """
    tiles = []
    for mistake in evaluation.mistakes[:SHOWN_MISTAKES]:
        path = mistake.path
        try:
            pixels = to_uint8(path, channels, size) if pictures.images is None else pictures.images[mistake.index]
            source = path if pictures.images is None else Image.fromarray(np.asarray(pixels))
            name = f"is {mistake.truth}: {os.path.basename(path)}"
            tiles.append(tile(source, pixels, mistake.prediction, name))
        except ImageError:
            continue
    count = len(evaluation.mistakes)
    shown = f"The {len(tiles)} most confident of " if len(tiles) < count else ""
    return contact_sheet(tiles, f"{shown}{count:,} mistake{'s' * (count != 1)}" if count else "No mistakes")


def short_count(count: int) -> str:
    """A count in at most five characters: 9,999, then 10k."""
    return f"{count:,}" if count < 10_000 else f"{count / 1000:.0f}k" if count < 999_500 else f"{count / 1e6:.0f}M"


def _accuracy_text(scores: Scores) -> str:
    if scores.accuracy is None or scores.accuracy_wilson_interval_95 is None:
        return "No picture of a class of the model"
    low, high = scores.accuracy_wilson_interval_95
    seen = f"{scores.images_right:,} of {scores.images_known:,} pictures"
    return f"Accuracy {scores.accuracy:.2%} (95% interval {low:.2%} to {high:.2%}): {seen}"


def _text_fonts(lines: Sequence[str]) -> list[Font]:
    return [font_of(TEXT_SIZE if row else TITLE_SIZE) for row in range(len(lines))]


def _text_width(lines: Sequence[str]) -> int:
    return math.ceil(max(font.getlength(text) for text, font in zip(lines, _text_fonts(lines), strict=True)))


def _draw_text(draw: ImageDraw.ImageDraw, lines: Sequence[str]) -> None:
    """A title and faint lines below it, in the picture's upper left corner."""
    for row, (text, font) in enumerate(zip(lines, _text_fonts(lines), strict=True)):
        draw.text((MARGIN, MARGIN + row * LINE + (8 if row else 0)), text, FAINT if row else INK, font)


def _draw_cell(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], count: int, total: int, colour: tuple[int, int, int]
) -> None:
    """A cell of a matrix (left, top, width, height), the darker the more of its row is in it."""
    x, y, width, height = box
    share = count / max(1, total)
    red, green, blue = (round(white + (dark - white) * share) for white, dark in zip(PAPER, colour, strict=True))
    draw.rectangle((x, y, x + width, y + height), (red, green, blue), CHECKER)
    if count and width >= NUMBERED_CELL:
        centre = x + width / 2, y + height / 2
        draw.text(centre, short_count(count), PAPER if share > 0.5 else INK, font_of(NUMBER_SIZE), anchor="mm")


def _draw_slanted(drawn: Image.Image, foot: tuple[int, int], text: str) -> None:
    """Text that rises to the right from ``foot``."""
    mask = _text_mask(text).rotate(45, Image.Resampling.BICUBIC, expand=True)
    below = round(LINE * math.sqrt(0.5) / 2)  # of the line's beginning, half a line's height, turned
    drawn.paste(INK, (foot[0] - below, foot[1] + below - mask.height), mask)


def _draw_upright(drawn: Image.Image, centre: tuple[int, int], text: str) -> None:
    mask = _text_mask(text).transpose(Image.Transpose.ROTATE_90)
    drawn.paste(INK, (centre[0] - mask.width // 2, centre[1] - mask.height // 2), mask)


def _text_mask(text: str) -> Image.Image:
    font = font_of(TEXT_SIZE)
    mask = Image.new("L", (math.ceil(font.getlength(text)) + 1, LINE))
    ImageDraw.Draw(mask).text((0, LINE / 2), text, 255, font, anchor="lm")
    return mask
