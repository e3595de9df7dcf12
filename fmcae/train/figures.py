"""The pictures of a run, drawn from its records: curves, confusion matrix, and a grid of reconstructions.

The colours are Okabe and Ito's, which colour-blind readers can distinguish. Train is dashed and val solid, so that the
curves can be distinguished in grey too.
"""

import io
import textwrap
import warnings
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmcae.files import write_atomic
from fmcae.preprocess import scale

BLUE, ORANGE = "#0072B2", "#D55E00"
COLUMNS = 10  # of the picture of reconstructions
MOST_CLASSES = 40  # that it shows
MOST_NAMES = 60  # beside a confusion matrix
AS_TEXT = {"parse_math": False}  # a class name may have dollars in it
METRIC_NAMES = {"mse": "mean squared error", "cross_entropy": "cross-entropy (nats)", "accuracy": "accuracy"}


@matplotlib.style.context("default")  # whatever a matplotlibrc says
def draw_run(folder: Path, records: list[dict[str, Any]], stage: str, class_names: list[str]) -> None:
    """Write ``<stage>_curves.png`` and, for a classifier, ``confusion.png`` from the records of ``metrics.jsonl``."""
    records = [record for record in records if record["stage"] == stage]
    epochs = [record for record in records if "epoch" in record]
    test = next(record for record in records if record.get("split") == "test")
    names = [name for name in METRIC_NAMES if f"val_{name}" in epochs[0]]
    figure = Figure(figsize=(5.2 * len(names), 3.8), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        x = [record["epoch"] for record in epochs]
        for split, style, colour in (("train", "--", ORANGE), ("val", "-", BLUE)):
            if f"{split}_{name}" not in epochs[0]:
                continue  # the robust recipe has no figure for its training images, which it changes
            y = [record[f"{split}_{name}"] for record in epochs]
            axes.plot(x, y, style, color=colour, label=split, marker="o" if len(x) == 1 else None)
        value = test[f"test_{name}"]
        kept = test.get("kept_epoch", x[-1])
        axes.plot(kept, value, "kD", markersize=5, label=f"test after epoch {kept}: {value:.4f}")
        axes.set(xlabel="epoch", ylabel=METRIC_NAMES[name])
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(x) == 1:
            axes.set_xticks(x)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(f"{stage.capitalize()}, {METRIC_NAMES[names[-1]] if len(names) == 1 else 'loss and accuracy'}")
    _save(figure, folder / f"{stage}_curves.png")
    if "confusion" in test:
        name = "confusion.png" if stage == "classifier" else f"{stage}_confusion.png"
        _save(confusion_figure(np.array(test["confusion"]), class_names), folder / name)


def examples(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of the images of labels (N,) that a run shows: the first of each of up to 40 classes.

    Of fewer than ten classes it shows the first few of each, ten images in all if there are as many.
    """
    classes = np.unique(labels)[:MOST_CLASSES]
    of_each = max(1, COLUMNS // len(classes))
    return np.concatenate([np.flatnonzero(labels == label)[:of_each] for label in classes])


@matplotlib.style.context("default")
def draw_reconstructions(
    folder: Path, images: NDArray[np.uint8], x_hat: NDArray[np.float32], captions: list[str]
) -> None:
    """Write ``reconstructions.png``: images uint8, each below its caption and above its x_hat (C, S, S)."""
    columns = min(len(images), COLUMNS)
    channels, size = x_hat.shape[1:3]
    edge = size * 8 // 7  # with a margin, of 2 pixels beside 28
    inner = slice(size // 14, size // 14 + size)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(max(columns, 5) + 0.8, 2.5 * rows + 0.4), layout="constrained")  # 5: the title
    for row, axes in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        part = slice(row * columns, (row + 1) * columns)
        count = len(images[part])
        # one picture of all, with white between them: an axes for each would take ten times as long
        tiles = np.ones((2, edge, columns, edge, channels), np.float32)
        for line, shown in enumerate((scale(images[part]), x_hat[part])):  # each (N, C, S, S)
            tiles[line, inner, :count, inner] = shown.transpose(2, 0, 3, 1)
        picture = tiles.reshape(2 * edge, edge * columns, channels)
        axes.imshow(picture if channels == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
        # so much of a name as fits above its picture
        names = [textwrap.fill(_shortened(name, 36), 12) for name in captions[part]]
        axes.xaxis.tick_top()
        axes.set_xticks(edge / 2 + edge * np.arange(count), names, fontsize=9, **AS_TEXT)
        axes.set_yticks([edge / 2, edge * 3 / 2], ["input", "output"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.suptitle("Validation images by class, and their reconstructions")
    _save(figure, folder / "reconstructions.png")


def _shortened(name: str, length: int) -> str:
    """A class's name on one line, or so much of its beginning and end."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length * 2 // 3]}…{name[-(length // 3) + 1 :]}"


def confusion_figure(counts: NDArray[np.int64], class_names: list[str], off_diagonal: bool = False) -> Figure:
    """Return a labelled heat map of counts (K, K), each row (true class) as shares.

    With ``off_diagonal`` the colours are of the mistakes alone, and the diagonal is grey.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(max(4.5, 0.62 * len(class_names) + 1.5), 20)  # inches: a picture of 256 classes would take 13 GB
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    colours, highest = shares, 1.0
    if off_diagonal:
        axes.set_facecolor("0.88")
        colours = np.ma.masked_array(shares, np.eye(len(shares), dtype=bool))
        highest = float(colours.max()) or 1.0
    image = axes.imshow(colours, cmap="Blues", vmin=0, vmax=highest)
    figure.colorbar(image, label=f"share of the true class{', mistakes' if off_diagonal else ''}", shrink=0.8)
    ticks = range(0, len(class_names), -(-len(class_names) // MOST_NAMES))
    names = [_shortened(class_names[tick], 24) for tick in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **AS_TEXT)
    axes.set_yticks(ticks, names, **AS_TEXT)
    diagonal = np.diag(shares)[counts.sum(axis=1) > 0]  # of the classes that test has images of
    axes.set(xlabel="predicted", ylabel="true", title=f"Test: mean of the diagonal {diagonal.mean():.3f}")
    if len(class_names) <= 20:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:  # less would be .00
                text = f"{share:.2f}".lstrip("0") if share < 1 else "1"
                color = "w" if share > 0.7 * highest and not (off_diagonal and row == column) else "k"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color, in_layout=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class name in another script; boxes stand for it
        figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())
