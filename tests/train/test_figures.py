import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from fmcae.train.figures import confusion_figure, draw_reconstructions, draw_run, examples


@given(st.lists(st.integers(0, 60), min_size=1, max_size=300))
def test_each_class_has_an_example_up_to_forty(labels: list[int]) -> None:
    chosen = examples(np.array(labels))
    classes = sorted(set(labels))[:40]
    shown = [labels[index] for index in chosen]
    assert list(dict.fromkeys(shown)) == classes and len(set(chosen)) == len(chosen) <= 40
    for label in classes:
        of_class = [index for index in chosen if labels[index] == label]
        assert of_class == [index for index, other in enumerate(labels) if other == label][: len(of_class)]
        assert len(of_class) == min(labels.count(label), max(1, 10 // len(classes)))


@pytest.mark.parametrize("count", [1, 3, 10, 23])
def test_any_number_of_pairs_is_drawn_below_any_caption(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    savefig = Figure.savefig

    def keep(figure: Figure, buffer: io.BytesIO, **options: object) -> None:
        figures.append(figure)
        savefig(figure, buffer, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    names = ["$10_to_$20", "$\\frac$", "x" * 200, "猫 🙂", "T-shirt/top", "", "two\nlines"]
    captions = [names[index % len(names)] for index in range(count)]
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    draw_reconstructions(tmp_path, images, np.float32(1 / 255) * images[:, np.newaxis].astype(np.float32), captions)
    with Image.open(tmp_path / "reconstructions.png") as image:
        assert image.size[0] == 120 * max(5, min(count, 10)) + 96
    shown = [label.get_text() for axes in figures[0].axes for label in axes.get_xticklabels()]
    assert len(shown) == count and shown[0] == "$10_to_$20"
    tiles = np.concatenate([axes.images[0].get_array()[:64] for axes in figures[0].axes], axis=1)  # type: ignore[index]
    for index in range(count):
        x, x_hat = (tiles[top : top + 28, 32 * index + 2 : 32 * index + 30] for top in (2, 34))
        assert np.allclose(x, images[index] / 255) and np.allclose(x, x_hat)


def test_a_confusion_matrix_of_many_classes_stays_a_picture() -> None:
    counts = np.eye(256, dtype=np.int64)
    counts[7] = 0  # without a test image
    figure = confusion_figure(counts, [f"class {index}" for index in range(256)])
    assert max(figure.get_size_inches()) <= 21
    axes = figure.axes[0]
    assert axes.get_title() == "Test: mean of the diagonal 1.000"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) <= 60 and names[1] == f"class {axes.get_yticks()[1]}"


def test_no_matplotlibrc_changes_a_picture(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    drawn = []
    settings: list[dict[Any, Any]] = [{}, {"text.usetex": True, "font.size": 30, "axes.grid": True}]
    for own in settings:
        with rc_context(own):
            draw_reconstructions(tmp_path, images, np.zeros((2, 1, 28, 28), np.float32), ["a", "b"])
        drawn.append((tmp_path / "reconstructions.png").read_bytes())
    assert drawn[0] == drawn[1]


def test_the_curves_mark_the_epoch_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("fmcae.train.figures._save", lambda figure, path: drawn.append(figure))
    records = [
        {"stage": "autoencoder", "epoch": epoch, "train_mse": value, "val_mse": value}
        for epoch, value in enumerate([0.3, 0.1, 0.2], 1)
    ]
    draw_run(tmp_path, [*records, {"stage": "autoencoder", "split": "test", "kept_epoch": 2, "test_mse": 0.1}],
             "autoencoder", [])  # fmt: skip
    (point,) = [line for line in drawn[0].axes[0].lines if "test" in str(line.get_label())]
    assert point.get_label() == "test after epoch 2: 0.1000" and list(point.get_xdata()) == [2]  # type: ignore[arg-type]
