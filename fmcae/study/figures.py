"""The report's figures, from results alone.

Colours are after Okabe and Ito, from light to dark, so that they differ in grey as well; so do markers and dashes.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmcae.files import write_atomic
from fmcae.study.results import Results, RunResult
from fmcae.train.figures import METRIC_NAMES

COLOURS = ("#E69F00", "#009E73", "#00558B", "#000000")
TWO_COLOURS = ("#00558B", "#E69F00")
MARKERS = ("o", "s", "^", "D")
STYLES = {"train": "--", "val": "-"}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png and ``stem``.svg; the SVG is the same bytes for the same figure."""
    paths = {stem.with_suffix(".png"): None, stem.with_suffix(".svg"): {"Date": None}}
    for path, metadata in paths.items():
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "fmcae"}):
            figure.savefig(buffer, format=path.suffix[1:], dpi=120, metadata=metadata)
        write_atomic(path, buffer.getvalue())
    return list(paths)


def curves(cells: Mapping[str, Sequence[RunResult]]) -> Figure | None:
    """Draw the accuracy and cross-entropy of classifiers over the epochs; None if no cell has runs."""
    if not any(cells.values()):
        return None
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    colours = COLOURS if len(cells) > 2 else TWO_COLOURS
    for axes, metric in zip(panels, ("accuracy", "cross_entropy"), strict=True):
        for index, ((name, runs), colour) in enumerate(zip(cells.items(), colours, strict=False)):
            for split in ("train", "val") if runs else ():
                _band(axes, [run.epochs[f"{split}_{metric}"] for run in runs], index, colour, name, split)
        axes.set(xlabel="epoch", ylabel=METRIC_NAMES[metric])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    lines = [axes.plot([], [], STYLES[split], color="grey", label=split)[0] for split in ("val", "train")]
    handles = [*panels[0].get_legend_handles_labels()[0], *lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _band(axes: Axes, series: Sequence[Sequence[float]], index: int, colour: str, name: str, split: str) -> None:
    values = np.array(series)
    epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
    face, label = (colour, name) if split == "val" else ("white", None)
    every = (index, 4) if len(epochs) > 4 else 1  # not all at the same epochs, where they would hide each other
    markers = {"marker": MARKERS[index], "markersize": 5.5, "markerfacecolor": face, "markevery": every}
    axes.plot(epochs, mean, STYLES[split], color=colour, linewidth=1.3, label=label, **markers)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)


def reconstructions(
    results: Results, with_pooling: Sequence[RunResult], without_pooling: Sequence[RunResult]
) -> Figure | None:
    """Draw test images above their reconstructions; None unless both autoencoders have theirs in the results."""
    rows = [("input", "x")]
    for label, runs in (("with pooling", with_pooling), ("without", without_pooling)):
        rows += [(label, run.name) for run in runs if run.name in results.examples][:1]
    if len(rows) < 3:
        return None
    count = len(results.examples["x"])
    figure = Figure(figsize=(1.1 * count + 0.4, 3.5), layout="constrained")
    grid = figure.subplots(3, count)
    for line, (label, name) in zip(grid, rows, strict=True):
        for axes, image in zip(line, results.examples[name], strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, fontsize=9)
    return figure


def few_labels(pairs: Mapping[int, Sequence[Sequence[float]]]) -> Figure | None:
    """Draw the test accuracy over the number of labels, pre-trained and random; None without runs."""
    if not any(values for pair in pairs.values() for values in pair):
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (name, style, aside) in enumerate((("pre-trained", "-", 0.97), ("random", "--", 1.03))):
        points = {count: values[index] for count, values in pairs.items() if values[index]}
        mean = [float(np.mean(values)) for values in points.values()]
        std = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in points.values()]
        x = [aside * count for count in points]  # bars beside each other
        look = {"linestyle": style, "marker": MARKERS[index], "color": TWO_COLOURS[index]}
        axes.errorbar(x, mean, std, capsize=3, label=name, **look)
    axes.set(xscale="log", xlabel="labelled images", ylabel="test accuracy")
    axes.set_xticks(list(pairs), [f"{count:,}" for count in pairs], fontsize=8)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
