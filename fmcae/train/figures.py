"""The pictures of a run, drawn from its records: curves, confusion matrix, and a grid of reconstructions.

The colours are Okabe and Ito's, which colour-blind readers can distinguish. Train is dashed and val solid, so that the
curves can be distinguished in grey too.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmcae.files import write_atomic

BLUE, ORANGE = "#0072B2", "#D55E00"
RECONSTRUCTIONS = 10  # test images that a run shows
METRIC_NAMES = {"mse": "mean squared error", "cross_entropy": "cross-entropy (nats)", "accuracy": "accuracy"}


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
        axes.plot(x[-1], value, "kD", markersize=5, label=f"test after epoch {x[-1]}: {value:.4f}")
        axes.set(xlabel="epoch", ylabel=METRIC_NAMES[name])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(f"{stage.capitalize()}, {METRIC_NAMES[names[-1]] if len(names) == 1 else 'loss and accuracy'}")
    _save(figure, folder / f"{stage}_curves.png")
    if "confusion" in test:
        name = "confusion.png" if stage == "classifier" else f"{stage}_confusion.png"
        _save(confusion_figure(np.array(test["confusion"]), class_names), folder / name)


def draw_reconstructions(folder: Path, images: NDArray[np.uint8], x_hat: NDArray[np.float32]) -> None:
    """Write ``reconstructions.png``: images (N, 28, 28) uint8 above their x_hat (N, 1, 28, 28) in [0, 1]."""
    count = len(images)
    figure = Figure(figsize=(count, 2.4), layout="constrained")
    # one picture of all, with white between them: an axes for each would take ten times as long
    tiles = np.ones((2, 32, count, 32), np.float32)
    tiles[0, 2:30, :, 2:30] = images.transpose(1, 0, 2) / 255
    tiles[1, 2:30, :, 2:30] = x_hat[:, 0].transpose(1, 0, 2)
    axes = figure.subplots()
    axes.imshow(tiles.reshape(64, 32 * count), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([16, 48], ["input", "output"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(f"The first {count} test images and their reconstructions")
    _save(figure, folder / "reconstructions.png")


def confusion_figure(counts: NDArray[np.int64], class_names: list[str]) -> Figure:
    """Return a labelled heat map of counts (K, K), each row (true class) as shares."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = max(4.5, 0.62 * len(class_names) + 1.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    ticks = range(len(class_names))
    as_text = {"parse_math": False}  # a name may have dollars in it
    axes.set_xticks(ticks, class_names, rotation=45, ha="right", rotation_mode="anchor", **as_text)
    axes.set_yticks(ticks, class_names, **as_text)
    axes.set(xlabel="predicted", ylabel="true", title=f"Test: mean of the diagonal {np.diag(shares).mean():.3f}")
    if len(class_names) <= 20:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:  # less would be .00
                text = f"{share:.2f}".lstrip("0") if share < 1 else "1"
                color = "w" if share > 0.5 else "k"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color, in_layout=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomic(path, buffer.getvalue())
