"""The report: what ``report.md.jinja`` prints, from ``results.json`` alone."""

import io
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fmcae.export.markdown import render
from fmcae.files import write_atomic
from fmcae.study.claims import CLAIMS, FINDINGS, PAPER_RECALL, Claim, Contrast, evaluate, measure
from fmcae.study.grid import ALSO_CALLED, EPOCHS, LABELS, PAPER_MSE, PARTS, READINGS, TABLES, label_count, plan
from fmcae.study.results import Results, RunResult
from fmcae.train.figures import METRIC_NAMES, confusion_figure

NAME = "report.md"
CURVES = ("figure-3", "figure-4", "figure-5", "figure-ap2", "figure-ap3", "learning-rate")
NOT_RUN = "not run"
# after Okabe and Ito, from light to dark, so that they differ in grey as well; so do markers and dashes
COLOURS = ("#E69F00", "#009E73", "#00558B", "#000000")
TWO_COLOURS = ("#00558B", "#E69F00")
MARKERS = ("o", "s", "^", "D")
STYLES = {"train": "--", "val": "-"}


def write_report(folder: Path, results: Results, epochs: int | None = None) -> list[Path]:
    """Write ``report.md`` and its figures into ``folder``, and return the files that were written.

    It is about the runs with so many ``epochs``; by default 30, or what most runs have if none has 30.
    """
    epochs = epochs or usual_epochs(results)
    runs = {name: run for name, run in results.runs.items() if run.config["epochs"] == epochs}
    page = _Page(replace(results, runs=runs), epochs)
    paths = [path for name, figure in page.figures.items() for path in _save(figure, folder / name)]
    write_atomic(folder / NAME, page.text(folder))
    return [folder / NAME, *paths]


def usual_epochs(results: Results) -> int:
    """Return the default number of epochs, or if no run has so many, the number that most runs have."""
    counts = Counter(run.config["epochs"] for run in results.runs.values())
    return EPOCHS if EPOCHS in counts or not counts else int(counts.most_common(1)[0][0])


class _Page:
    """What the template asks for."""

    def __init__(self, results: Results, epochs: int) -> None:
        self.results, self.data, self.epochs = results, results.data, epochs
        self.epochs_option = [] if epochs == EPOCHS else ["--epochs", str(epochs)]
        self.seeds: list[int] = sorted({run.config["seed"] for run in results.runs.values()}) or [0]
        self.claims = evaluate(CLAIMS, results, self.seeds, epochs)
        self.findings = evaluate(FINDINGS, results, self.seeds, epochs)
        self.few_labels = self._few_labels()
        self.figures = self._figures()

    def text(self, folder: Path) -> str:
        plans = [plan(PARTS, [seed], self.epochs, self.data["counts"]["train"]) for seed in self.seeds]
        place = folder.name if folder.is_absolute() else folder.as_posix()  # a report names no machine's own path
        text = render(
            Path(__file__).with_name(f"{NAME}.jinja"),
            FILTERS,
            **vars(self),
            cells=self.cells,
            values=self.values,
            command=self.command,
            report_command=shlex.join(["fmcae", "study", "report", place, *self.epochs_option]),
            left_out=[claim for claim in CLAIMS if not claim.fits(self.data)],
            too_many_labels=[count for count in LABELS if (count or 0) >= self.data["counts"]["train"]],
            machines=_machines(self.results.runs.values()),
            reported_mse=PAPER_MSE,
            reported_recall=PAPER_RECALL,
            tables=TABLES,
            fits={reading: self._fit(reading) for reading in READINGS},
            tasks=[(same[0], sum(map(bool, map(self.results.find, same)))) for same in zip(*plans, strict=True)],
        )
        return text.rstrip() + "\n"

    @cache  # noqa: B019 (a page lives as long as its report is made)
    def cells(self, part: str) -> dict[str, list[RunResult]]:
        """The runs of a part's cells, one for each seed that has it."""
        found = {}
        for name, cell in PARTS[part].items():
            runs = [self.results.find(cell(seed, epochs=self.epochs)) for seed in self.seeds]
            found[name] = [run for run in runs if run]
        return found

    def values(self, part: str, cell: str, metric: str) -> list[float]:
        """A metric of a cell's runs."""
        return [measure(metric, run, self.data["class_names"]) for run in self.cells(part)[cell]]

    def command(self, *parts: str) -> str:
        """What makes all that the parts have here; without parts, everything."""
        seeds = [run.config["seed"] for part in parts or PARTS for runs in self.cells(part).values() for run in runs]
        only = [word for part in parts for word in ("--only", part)]
        run = ["fmcae", "study", "run", *only, "--seeds", str(max(seeds, default=0) + 1), *self.epochs_option]
        return f"{shlex.join(run)} && {shlex.join(['fmcae', 'study', 'report', *self.epochs_option])}"

    def _few_labels(self) -> dict[int, tuple[list[float], list[float], Claim]]:
        """By number of labels, the test accuracies, pre-trained and random, and the finding on them."""
        claims = {claim.labels: claim for claim in self.findings if claim.labels or claim.name == "F2"}
        rows = {}
        for labels, claim in sorted(claims.items(), key=lambda item: item[0] or math.inf):
            name = label_count(labels)
            pretrained = self.values("labels", f"{name}, pre-trained", "test accuracy")
            random = self.values("labels", f"{name}, random", "test accuracy")
            rows[labels or self.data["counts"]["train"]] = pretrained, random, claim
        return rows

    def _figures(self) -> dict[str, Figure]:
        """The figures that have runs, by name."""
        drawn = {name: _draw_curves(self.cells(ALSO_CALLED.get(name, name))) for name in CURVES}
        drawn["figure-ap1"] = _draw_reconstructions(self.results, self.cells("appendix"))
        drawn["labels"] = _draw_few_labels(self.few_labels)
        if runs := self.cells("final-model")["final model"]:
            counts = np.sum([run.confusion for run in runs if run.confusion is not None], axis=0)
            drawn["figure-6"] = confusion_figure(counts, self.data["class_names"])
        return {name: figure for name, figure in drawn.items() if figure}

    def _fit(self, reading: str) -> dict[str, float]:
        """By table, and for all, the root mean square of ln(ours / the paper's); infinite if a cell was not run."""
        squares = {}
        for part in TABLES:
            logs = []
            for cell, reported in PAPER_MSE[part].items():
                ours = self.values("readings", f"{reading}: {part}, {cell}", "test MSE")
                logs.append(math.log(np.mean(ours) / reported) if ours else math.inf)
            squares[part] = float(np.mean(np.square(logs)))
        squares["all"] = float(np.mean(list(squares.values())))
        return {name: math.sqrt(square) for name, square in squares.items()}


def _machines(runs: Iterable[RunResult]) -> list[dict[str, Any]]:
    """The machines and versions that the runs were made with, each with its number of runs and its days."""
    names = ("cpu", "available_cpus", "device", "threads", "fmcae", "torch", "python", "recorded")
    days: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        facts = {"cpu": "an unknown CPU", "available_cpus": "?", "recorded": run.recorded}
        facts |= {name: run.config[name] for name in ("device", "threads")} | run.versions | run.machine
        days.setdefault(tuple(facts[name] for name in names), []).append(run.date[:10])
    return [dict(zip(names, facts, strict=True)) | {"days": found} for facts, found in days.items()]


def _mean(values: Sequence[float], digits: int = 4) -> str:
    if not values:
        return NOT_RUN
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread} ({len(values)})"


def _interval(contrast: Contrast) -> str:
    low, high = contrast.interval
    mean = f"{contrast.mean:+.4f}" if contrast.values else NOT_RUN
    return mean if math.isnan(low) else f"{mean} ({low:+.4f} to {high:+.4f})"


def _size(contrast: Contrast) -> str:
    digits = 3 if "cross-entropy" in contrast.label else 4
    size = f"{abs(contrast.mean):.{digits}f}"
    if not float(size):
        size = f"less than {10**-digits:.{digits}f}"
    return f"{size} {'higher' if contrast.mean > 0 else 'lower'}"


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    return "<0.001" if digits == 3 and value < 0.001 else f"{value:.{digits}f}"


def _conjunction(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


FILTERS: dict[str, Callable[..., str]] = {
    "mean": _mean,
    "difference": lambda values, reported: f"{np.mean(values) - reported:+.4f}" if values else "",
    "fit": lambda value, best: (
        NOT_RUN if value == math.inf else f"**{value:.3f}**" if value == best else f"{value:.3f}"
    ),
    "interval": _interval,
    "size": _size,
    "number": _number,
    "thousands": lambda number: f"{number:,}",
    "conjunction": _conjunction,
}


def _save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png and ``stem``.svg; the SVG is the same bytes for the same figure."""
    paths = {stem.with_suffix(".png"): None, stem.with_suffix(".svg"): {"Date": None}}
    for path, metadata in paths.items():
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "fmcae"}):
            figure.savefig(buffer, format=path.suffix[1:], dpi=120, metadata=metadata)
        write_atomic(path, buffer.getvalue())
    return list(paths)


def _draw_curves(cells: Mapping[str, Sequence[RunResult]]) -> Figure | None:
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
    markers: dict[str, Any] = {"marker": MARKERS[index], "markersize": 5.5, "markerfacecolor": face, "markevery": every}
    axes.plot(epochs, mean, STYLES[split], color=colour, linewidth=1.3, label=label, **markers)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)


def _draw_reconstructions(results: Results, cells: Mapping[str, Sequence[RunResult]]) -> Figure | None:
    """Draw test images above their reconstructions; None unless both autoencoders have theirs in the results."""
    rows = [("input", "x")]
    for label, runs in zip(("with pooling", "without"), cells.values(), strict=True):
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


def _draw_few_labels(rows: Mapping[int, tuple[list[float], list[float], Claim]]) -> Figure | None:
    """Draw the test accuracy over the number of labels, pre-trained and random; None without runs."""
    if not any(pretrained or random for pretrained, random, _ in rows.values()):
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (name, style, aside) in enumerate((("pre-trained", "-", 0.97), ("random", "--", 1.03))):
        points = {count: row[:2][index] for count, row in rows.items() if row[index]}
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
