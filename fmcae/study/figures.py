"""The study's figures, from the runs of the grid's cells."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.style
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fmcae.files import write_atomic
from fmcae.study.grid import ALSO_CALLED, INTERIOR
from fmcae.study.results import Results, RunResult
from fmcae.train.figures import METRIC_NAMES, confusion_figure

Cells: TypeAlias = Mapping[str, Sequence[RunResult]]
# From light to dark at even steps, so that they differ in grey as well; so do markers.
COLOURS = ("#F2B200", "#0A8F6B", "#00408A", "#000000")
TWO_COLOURS = ("#00558B", "#E69F00")
MARKERS = ("o", "s", "^", "D")
STYLES = {"train": "--", "val": "-"}
METRICS = ("accuracy", "cross_entropy")
# Up to which epoch the second row goes, and what it leaves out, beside which the others would lie on top of each other.
ZOOMED = {
    "figure-3": (None, ""),
    "figure-4": (None, ""),
    "learning-rate": (None, ""),
    "figure-ap3": (10, "random, frozen"),
}
FIRST_EPOCHS = 15  # of the learning speed
TUNED, CONTROL = "pre-trained, fine-tuned", "random, fine-tuned"


@matplotlib.style.context("default")  # whatever a matplotlibrc says
def draw(
    results: Results, cells: Callable[[str], Cells], few_labels: Mapping[int, Mapping[str, Any]]
) -> dict[str, Figure]:
    """Return the figures that have runs, by name."""
    drawn = {name: _curves(cells(name), last, left_out) for name, (last, left_out) in ZOOMED.items()}
    drawn["figure-5"] = _curves(cells(ALSO_CALLED["figure-5"]), None, zoom=False)
    drawn["figure-ap1"] = _reconstructions(results, cells)
    drawn["figure-ap2"] = _side_by_side(cells("figure-ap2"))
    drawn["learning-speed"] = _learning_speed(cells("figure-ap3"))
    drawn["labels"] = _few_labels(few_labels)
    if runs := cells("final-model")["final model"]:
        counts = np.sum([run.confusion for run in runs if run.confusion is not None], axis=0)
        drawn["figure-6"] = confusion_figure(counts, results.data["class_names"], off_diagonal=True)
    return {name: figure for name, figure in drawn.items() if figure}


@matplotlib.style.context("default")
def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png and ``stem``.svg; the SVG is the same bytes for the same figure."""
    paths = {stem.with_suffix(".png"): None, stem.with_suffix(".svg"): {"Date": None}}
    for path, metadata in paths.items():
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "fmcae"}):
            figure.savefig(buffer, format=path.suffix[1:], dpi=120, metadata=metadata)
        write_atomic(path, buffer.getvalue())
    return list(paths)


def _curves(cells: Cells, last: int | None, left_out: str = "", zoom: bool = True) -> Figure | None:
    """Draw the accuracy (a) and cross-entropy (b) of classifiers over the epochs; None if no cell has runs.

    With ``zoom`` a second row has validation alone, up to the epoch ``last`` if it is given, and without the cell
    ``left_out``.
    """
    if not any(cells.values()):
        return None
    figure = Figure(figsize=(11, 7.6 if zoom else 4.2), layout="constrained")
    panels = figure.subplots(2 if zoom else 1, 2, squeeze=False)
    colours = COLOURS if len(cells) > 2 else TWO_COLOURS
    for column, metric in enumerate(METRICS):
        for index, ((name, runs), colour) in enumerate(zip(cells.items(), colours, strict=False)):
            for split in ("train", "val") if runs else ():
                _band(panels[0, column], runs, f"{split}_{metric}", index, colour, STYLES[split], name)
            if zoom and runs and name != left_out:
                _band(panels[1, column], runs, f"val_{metric}", index, colour, STYLES["val"], name)
        panels[0, column].set_title(f"({'ab'[column]}) {METRIC_NAMES[metric]}", fontsize=10)
        _label(panels[0, column], metric)
        if zoom:
            title = "validation alone" + (f", epochs 1 to {last}" if last else ", values from epoch 3 on")
            title += f", without “{left_out}”" if left_out else ""
            panels[1, column].set_title(title, fontsize=10)
            _label(panels[1, column], metric)
            _zoom(panels[1, column], cells, f"val_{metric}", last)
    lines = [panels[0, 0].plot([], [], STYLES[split], color="grey", label=split)[0] for split in ("val", "train")]
    handles = [*panels[0, 0].get_legend_handles_labels()[0], *lines]
    figure.legend(handles=handles[: -len(lines)], loc="outside lower center", ncols=6, frameon=False)
    return figure


def _label(axes: Axes, metric: str) -> None:
    axes.set(xlabel="epoch", ylabel=METRIC_NAMES[metric])
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)


def _zoom(axes: Axes, cells: Cells, name: str, last: int | None) -> None:
    """Limit the axes to the epochs up to ``last``, or to the values after the second epoch."""
    if last:
        axes.set_xlim(0.7, last + 0.3)
        return
    means = [np.mean([run.epochs[name] for run in runs], axis=0) for runs in cells.values() if runs]
    kept = np.concatenate([mean[2:] if len(mean) > 3 else mean for mean in means])
    room = 0.08 * float(np.ptp(kept)) or 0.01
    axes.set_ylim(float(kept.min()) - room, float(kept.max()) + room)


def _side_by_side(cells: Cells) -> Figure | None:
    """Draw the classifier without pooling (a) and with (b), as the paper has them, and (c) validation of both."""
    if not any(cells.values()):
        return None
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 3, sharey="row")
    order = ("without pooling", "with pooling")
    for row, metric in enumerate(METRICS):
        for column, name in enumerate(order):
            axes = panels[row, column]
            for split in STYLES if cells[name] else ():
                _band(axes, cells[name], f"{split}_{metric}", column, TWO_COLOURS[column], STYLES[split], split)
                _band(
                    panels[row, 2], cells[name], f"{split}_{metric}", column, TWO_COLOURS[column], STYLES[split], name
                )
            axes.set_title(f"({'ab'[column]}) {name}", fontsize=10)
        panels[row, 2].set_title("(c) both", fontsize=10)
        for axes in panels[row]:
            _label(axes, metric)
            axes.yaxis.set_tick_params(labelleft=True)
    return _with_legend(figure, panels[0, 2])


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    lines = [axes.plot([], [], STYLES[split], color="grey", label=split)[0] for split in ("val", "train")]
    handles = [handle for handle in axes.get_legend_handles_labels()[0] if handle not in lines]
    figure.legend(handles=[*handles, *lines], loc="outside lower center", ncols=6, frameon=False)
    return figure


def _band(axes: Axes, runs: Sequence[RunResult], metric: str, index: int, colour: str, style: str, name: str) -> None:
    """Draw the mean over the runs after each epoch, with a band of ± one standard deviation."""
    values = np.array([run.epochs[metric] for run in runs])
    epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
    is_val = metric.startswith("val")
    # Not all at the same epochs, where they would hide each other.
    every = ((index + (0 if is_val else 2)) % 4, 4) if len(epochs) > 4 else 1
    face = colour if is_val else "white"
    markers: dict[str, Any] = {"marker": MARKERS[index], "markersize": 5.5, "markerfacecolor": face, "markevery": every}
    axes.plot(epochs, mean, style, color=colour, linewidth=1.3, label=name if is_val else None, **markers)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)


def _reconstructions(results: Results, cells: Callable[[str], Cells]) -> Figure | None:
    """Draw test images above their reconstructions, with the interior's frame and the error of what is shown.

    None without the reconstructions of two autoencoders.
    """
    places = (
        ("with pooling", "appendix", "with pooling"),
        ("without pooling", "appendix", "without pooling"),
        ("with pooling,\nno edge", "no-decoder-padding", "appendix, with pooling"),
    )
    rows: list[tuple[str, str, str]] = [("input", "x", "")]
    for label, part, cell in places:
        runs = [run for run in cells(part)[cell] if run.name in results.examples]
        for run in runs[:1]:
            squares = np.square((results.examples["x"] / 255.0) - results.examples[run.name] / 255.0)
            interior = squares[:, :INTERIOR, :INTERIOR].mean()
            rows.append((label, run.name, f"whole\n{squares.mean():.4f}\ninterior\n{interior:.4f}"))
    if len(rows) < 3:
        return None
    count = len(results.examples["x"])
    figure = Figure(figsize=(1.1 * count + 1.4, 1.15 * len(rows)), layout="constrained")
    for line, (label, name, error) in zip(figure.subplots(len(rows), count), rows, strict=True):
        for axes, image in zip(line, results.examples[name], strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.add_patch(Rectangle((-0.5, -0.5), INTERIOR, INTERIOR, fill=False, color="#F2B200", linewidth=0.9))
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, fontsize=8)
        line[-1].yaxis.set_label_position("right")
        line[-1].set_ylabel(error, fontsize=8, rotation=0, ha="left", va="center")
    return figure


def _learning_speed(cells: Cells) -> Figure | None:
    """Draw the validation accuracy in the first epochs, pre-trained and random, and their difference; None without runs."""
    pairs = {run.config["seed"]: run for run in cells[CONTROL]}
    both = [(run, pairs[run.config["seed"]]) for run in cells[TUNED] if run.config["seed"] in pairs]
    if not both:
        return None
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, runs) in enumerate(zip(("pre-trained", "random"), zip(*both, strict=True), strict=True)):
        _band(left, runs, "val_accuracy", index, TWO_COLOURS[index], STYLES["val"], name)
    differences = np.array([np.subtract(a.epochs["val_accuracy"], b.epochs["val_accuracy"]) for a, b in both])
    epochs, mean = np.arange(1, differences.shape[1] + 1), differences.mean(axis=0)
    right.plot(epochs, mean, "-o", color=TWO_COLOURS[0], markersize=4, linewidth=1.3)
    if len(both) > 1:
        std = differences.std(axis=0, ddof=1)
        right.fill_between(epochs, mean - std, mean + std, color=TWO_COLOURS[0], alpha=0.2, linewidth=0)
    right.axhline(0, color="black", linewidth=0.8)
    left.set_xlim(0.5, FIRST_EPOCHS + 0.5)
    left.set_title("(a) validation accuracy", fontsize=10)
    right.set_title("(b) pre-trained minus random", fontsize=10)
    _label(left, "accuracy")
    _label(right, "accuracy")
    right.set_ylabel("difference in accuracy")
    left.legend(frameon=False, loc="lower right")
    return figure


def _few_labels(rows: Mapping[int, Mapping[str, Any]]) -> Figure | None:
    """Draw the test accuracy over the number of labels, pre-trained and random; None without runs."""
    if not any(row["pre-trained"] or row["random"] for row in rows.values()):
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (name, style, aside) in enumerate((("pre-trained", "-", 0.97), ("random", "--", 1.03))):
        points = {count: row[name] for count, row in rows.items() if row[name]}
        mean = [float(np.mean(values)) for values in points.values()]
        std = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in points.values()]
        x = [aside * count for count in points]  # bars beside each other
        look: dict[str, Any] = {"linestyle": style, "marker": MARKERS[index], "color": TWO_COLOURS[index]}
        axes.errorbar(x, mean, std, capsize=3, label=name, **look)
    axes.set(xscale="log", xlabel="labelled images", ylabel="test accuracy")
    axes.set_xticks(list(rows), [f"{count:,}" for count in rows], fontsize=8)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
