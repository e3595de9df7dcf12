import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmcae import Model, Prediction
from fmcae.runtime import charts
from fmcae.runtime.charts import BLUE, confusion_png, mistakes_png, reliability_png, short_count
from fmcae.runtime.contact_sheet import LINE, MARGIN, TILE_SIZE, TITLE, VERMILION
from fmcae.runtime.evaluate import NO_CLASS, SHOWN_MISTAKES, Scores, evaluate, find_pictures, measure


def drawn(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    picture.load()
    assert picture.format == "PNG" and picture.mode == "RGB"
    return picture


def count_of(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(axis=-1).sum())


def scores_of(names: list[str], truth: list[int], score: float = 0.75) -> Scores:
    """The scores of pictures that are all taken for the first class, with probability 0.75, at the threshold 0.5."""
    probabilities = np.full(len(names), 0.25 / max(1, len(names) - 1), np.float32)
    probabilities[0] = 0.75
    prediction = Prediction(names[0], 0, 0.75, probabilities, score >= 0.5, score)
    return measure([prediction] * len(truth), np.array(truth), names, 0.5)


@pytest.mark.parametrize("count", [1, 2, 10, 60])
def test_any_number_of_classes_is_drawn(count: int) -> None:
    names = [f"class {index}" for index in range(count)]
    known = drawn(confusion_png(scores_of(names, list(range(count)))))
    with_unknown = drawn(confusion_png(scores_of(names, [*range(count), NO_CLASS])))
    assert with_unknown.width == known.width and with_unknown.height > known.height
    cell = count_of(known, BLUE)  # a whole row is in the first column, as is each other
    assert cell > 50 * count and count_of(known, VERMILION) == 0


def test_what_is_refused_has_another_colour() -> None:
    assert count_of(drawn(confusion_png(scores_of(["a", "b"], [0, 1], score=0.25))), VERMILION) > 100


@pytest.mark.parametrize("name", ["", "a" * 5000, "\N{DRESS}", "\udcff", "two\nlines", "\N{HEBREW LETTER ALEF}"])
def test_odd_names_fit(name: str) -> None:
    picture = drawn(confusion_png(scores_of([name, "other"], [0, 1, NO_CLASS])))
    assert picture.width < 1000 and picture.height < 600


def test_a_dot_lies_where_confidence_and_accuracy_say() -> None:
    picture = drawn(reliability_png(scores_of(["a", "b"], [0, 1, 0, 1]).reliability, 0.25))
    left, top = charts.MARGIN + 60, picture.height - charts.PLOT - charts.HISTOGRAM - 5 * LINE
    x, y = left + round(0.75 * charts.PLOT), top + round(0.5 * charts.PLOT)
    assert picture.getpixel((x, y)) == picture.getpixel((x + 2, y)) == BLUE
    assert picture.getpixel((x + 30, y)) != BLUE


@pytest.mark.parametrize("truth", [[NO_CLASS], [0], [0] * 20_000])
def test_none_one_and_many_pictures_are_drawn(truth: list[int]) -> None:
    scores = scores_of(["a", "b"], truth)
    picture = drawn(reliability_png(scores.reliability, scores.expected_calibration_error))
    assert (count_of(picture, BLUE) > 100) == (truth != [NO_CLASS])
    drawn(confusion_png(scores))


def test_the_most_confident_mistakes_are_on_the_sheet(model: Model, sample: Path, tmp_path: Path) -> None:
    pictures = find_pictures(sample, model.class_names)
    evaluation = evaluate(model, pictures)
    many = replace(evaluation, mistakes=evaluation.mistakes * 2)
    assert len(many.mistakes) > SHOWN_MISTAKES and pictures.images is not None
    sheet = drawn(mistakes_png(pictures, many))
    assert sheet.height == MARGIN + TITLE + 4 * (TILE_SIZE[1] + MARGIN)
    edge = 28 * 5
    first = sheet.crop((MARGIN, MARGIN + TITLE, MARGIN + edge, MARGIN + TITLE + edge)).convert("L")
    seen = np.asarray(first.resize((28, 28), Image.Resampling.NEAREST))
    assert np.array_equal(seen, pictures.images[evaluation.mistakes[0].index])


def test_a_mistake_that_can_no_longer_be_read_is_left_out(model: Model, shipped: Path, tmp_path: Path) -> None:
    sheets = []
    (tmp_path / "Coat").mkdir()
    for name in ("bag", "dress"):
        (tmp_path / "Coat" / f"{name}.png").write_bytes((shipped.parent / "samples" / f"{name}.png").read_bytes())
    pictures = find_pictures(tmp_path, model.class_names)
    evaluation = evaluate(model, pictures)
    for path in ["bag.png", "dress.png", None]:
        sheets.append(drawn(mistakes_png(pictures, evaluation)).size)
        if path:
            (tmp_path / "Coat" / path).unlink()
    assert sheets[0][0] > sheets[1][0] and sheets[2] == (sheets[1][0], MARGIN + TITLE)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (9_999, "9,999"), (10_000, "10k"), (999_499, "999k"), (2_600_000, "3M")]
)
def test_counts_are_short(count: int, text: str) -> None:
    assert short_count(count) == text
