"""The report: what ``report.md.jinja`` prints, from ``results.json`` alone."""

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fmcae.export.markdown import render
from fmcae.files import write_atomic
from fmcae.study import figures, paper
from fmcae.study.claims import CLAIMS, FINDINGS, Claim, Contrast, evaluate, measure
from fmcae.study.grid import ALSO_CALLED, EPOCHS, LABELS, PARTS, READINGS, TABLES, Task, label_count, plan
from fmcae.study.results import Results, RunResult
from fmcae.train.figures import confusion_figure

NAME = "report.md"
CURVES = ("figure-3", "figure-4", "figure-5", "figure-ap2", "figure-ap3", "learning-rate")
NOT_RUN = "not run"


def write_report(folder: Path, results: Results, epochs: int | None = None) -> list[Path]:
    """Write ``report.md`` and its figures into ``folder``, and return the files that were written.

    Args:
        epochs: the runs that it is about; None for those of 30 epochs, or what most runs have if there are none.
    """
    epochs = epochs or usual_epochs(results)
    runs = {name: run for name, run in results.runs.items() if run.config["epochs"] == epochs}
    page = _Page(replace(results, runs=runs), epochs)
    paths = [path for name, figure in page.figures.items() for path in figures.save(figure, folder / name)]
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
        self.seeds: list[int] = sorted({run.config["seed"] for run in results.runs.values()}) or [0]
        self.claims = evaluate(CLAIMS, results, self.seeds, epochs)
        self.findings = evaluate(FINDINGS, results, self.seeds, epochs)
        self.few_labels = self._few_labels()
        self.figures = self._figures()

    def text(self, folder: Path) -> str:
        place = folder.name if folder.is_absolute() else folder.as_posix()  # a report names no machine's own path
        text = render(
            Path(__file__).with_name(f"{NAME}.jinja"),
            FILTERS,
            **vars(self),
            cells=self.cells,
            values=self.values,
            command=self.command,
            report_command=shlex.join(["fmcae", "study", "report", place, *self._epochs_option()]),
            left_out=[claim for claim in CLAIMS if not claim.fits(self.data)],
            too_many_labels=[count for count in LABELS if (count or 0) >= self.data["counts"]["train"]],
            hours=sum(run.seconds for run in self.results.runs.values()) / 3600,
            machines=_machines(self.results.runs.values()),
            paper=paper,
            tables=TABLES,
            fits={reading: self._fit(reading) for reading in READINGS},
            tasks=self._tasks(),
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
        run = ["fmcae", "study", "run", *only, "--seeds", str(max(seeds, default=0) + 1), *self._epochs_option()]
        return f"{shlex.join(run)} && {shlex.join(['fmcae', 'study', 'report', *self._epochs_option()])}"

    def _epochs_option(self) -> list[str]:
        return [] if self.epochs == EPOCHS else ["--epochs", str(self.epochs)]

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
        drawn = {name: figures.curves(self.cells(ALSO_CALLED.get(name, name))) for name in CURVES}
        drawn["figure-ap1"] = figures.reconstructions(self.results, *self.cells("appendix").values())
        drawn["labels"] = figures.few_labels({count: row[:2] for count, row in self.few_labels.items()})
        if runs := self.cells("final-model")["final model"]:
            confusion = np.sum([run.confusion for run in runs], axis=0)
            drawn["figure-6"] = confusion_figure(confusion, self.data["class_names"])
        return {name: figure for name, figure in drawn.items() if figure}

    def _fit(self, reading: str) -> dict[str, float]:
        """By table, and for all, the root mean square of ln(ours / the paper's); infinite if a cell was not run."""
        squares = {}
        for part in TABLES:
            logs = []
            for cell, reported in paper.TEST_MSE[part].items():
                ours = self.values("readings", f"{reading}: {part}, {cell}", "test MSE")
                logs.append(math.log(np.mean(ours) / reported) if ours else math.inf)
            squares[part] = float(np.mean(np.square(logs)))
        squares["all"] = float(np.mean(list(squares.values())))
        return {name: math.sqrt(square) for name, square in squares.items()}

    def _tasks(self) -> list[tuple[Task, int]]:
        """Every task of the first seed, and how many seeds have its run."""
        plans = [plan(PARTS, [seed], self.epochs, self.data["counts"]["train"]) for seed in self.seeds]
        return [(same[0], sum(map(bool, map(self.results.find, same)))) for same in zip(*plans, strict=True)]


def _machines(runs: Iterable[RunResult]) -> list[dict[str, Any]]:
    """The machines and versions that the runs were made with, each with its number of runs and its days."""
    names = ("cpu", "available_cpus", "device", "threads", "fmcae", "torch", "python", "recorded")
    days: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        facts = {"cpu": "an unknown CPU", "available_cpus": "?", "recorded": run.recorded}
        facts |= run.config | run.versions | run.machine
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
