"""The report: the paper's tables, figures and claims beside ours, from ``results.json`` alone.

Its prose is in ``report.md.jinja``; this module prepares what the template prints.
"""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from fmcae.files import write_atomic
from fmcae.study import figures, paper
from fmcae.study.claims import CLAIMS, FINDINGS, Claim, Contrast, evaluate, measure
from fmcae.study.grid import ALSO_CALLED, EPOCHS, LABELS, PARTS, READINGS, TABLES, label_count, plan
from fmcae.study.results import Results, RunResult

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
        self.results, self.epochs = results, epochs
        self.seeds: list[int] = sorted({run.config["seed"] for run in results.runs.values()}) or [0]
        self.claims = evaluate(CLAIMS, results, self.seeds, epochs)
        self.findings = evaluate(FINDINGS, results, self.seeds, epochs)
        self.few_labels = self._few_labels()
        self.figures = self._figures()

    def text(self, folder: Path) -> str:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=False,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(FILTERS)
        data, runs = self.results.data, self.results.runs.values()
        place = folder.name if folder.is_absolute() else folder.as_posix()  # a report names no machine's own path
        fits = self._fits()
        text = environment.get_template(f"{NAME}.jinja").render(
            **{name: getattr(self, name) for name in ("claims", "findings", "few_labels", "epochs", "seeds")},
            **{name: getattr(self, name) for name in ("cells", "values", "command")},
            report_command=shlex.join(["fmcae", "study", "report", place, *self._epochs_option()]),
            data=data,
            counts=data["counts"],
            left_out=[
                (claim.name, [name for name in claim.classes if name not in data["class_names"]])
                for claim in CLAIMS
                if not claim.fits(data)
            ],
            too_many_labels=[count for count in LABELS if count and count not in self.few_labels],
            runs=runs,
            hours=sum(run.seconds for run in runs) / 3600,
            machines=_machines(runs),
            drawn=self.figures,
            paper=paper,
            title=lambda part: paper.TITLES[part].partition(":")[0],
            tables=TABLES,
            fits=fits,
            best={column: min((fit[column] or math.inf) for fit in fits.values()) for column in (*TABLES, "all")},
            tasks=self._tasks(),
        )
        return text.rstrip() + "\n"

    @cache  # noqa: B019 (a page lives as long as its report is made)
    def cells(self, part: str) -> dict[str, list[RunResult]]:
        """The runs of a part's cells, one for each seed that has it."""
        found = {
            name: [self.results.find(cell(seed, epochs=self.epochs)) for seed in self.seeds]
            for name, cell in PARTS[part].items()
        }
        return {name: [run for run in runs if run] for name, runs in found.items()}

    def values(self, part: str, cell: str, metric: str) -> list[float]:
        """A metric of a cell's runs."""
        return [measure(metric, run, self.results.data["class_names"]) for run in self.cells(part)[cell]]

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
        train = self.results.data["counts"]["train"]
        claims = {claim.labels: claim for claim in self.findings if claim.labels or claim.name == "F2"}
        accuracies = {
            labels: [
                self.values("labels", f"{label_count(labels)}, {start}", "test accuracy")
                for start in ("pre-trained", "random")
            ]
            for labels in claims
        }
        counts = [labels for labels in LABELS if labels in claims]
        return {labels or train: (accuracies[labels][0], accuracies[labels][1], claims[labels]) for labels in counts}

    def _figures(self) -> dict[str, Any]:
        """The figures that have runs, by name."""
        appendix = self.cells("appendix")
        drawn = {name: figures.curves(self.cells(ALSO_CALLED.get(name, name))) for name in CURVES}
        drawn["figure-ap1"] = figures.reconstructions(self.results, *appendix.values())
        drawn["figure-6"] = figures.confusion(
            self.cells("final-model")["final model"], self.results.data["class_names"]
        )
        drawn["labels"] = figures.few_labels({count: row[:2] for count, row in self.few_labels.items()})
        return {name: figure for name, figure in drawn.items() if figure}

    def _fits(self) -> dict[str, dict[str, float | None]]:
        """By reading and table (and "all"), the root mean square of ln(ours / the paper's); None if a cell was not run."""
        fits: dict[str, dict[str, float | None]] = {}
        for reading in READINGS:
            tables = {
                part: [
                    math.log(np.mean(values) / reported) if values else math.nan
                    for cell, reported in paper.TEST_MSE[part].items()
                    for values in [self.values("readings", f"{reading}: {part}, {cell}", "test MSE")]
                ]
                for part in TABLES
            }
            squares = {part: float(np.mean(np.square(logs))) for part, logs in tables.items()}
            squares["all"] = float(np.mean(list(squares.values())))
            fits[reading] = {
                name: None if math.isnan(square) else math.sqrt(square) for name, square in squares.items()
            }
        return fits

    def _tasks(self) -> list[tuple[Any, int]]:
        """Every task of the first seed, and how many seeds have its run."""
        train = self.results.data["counts"]["train"]
        plans = [plan(PARTS, [seed], self.epochs, train) for seed in self.seeds]
        return [
            (same[0], sum(self.results.find(task) is not None for task in same)) for same in zip(*plans, strict=True)
        ]


def _machines(runs: Iterable[RunResult]) -> list[dict[str, Any]]:
    """The machines and versions that the runs were made with, each with its number of runs and its days."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    names = ("cpu", "available_cpus", "device", "threads", "fmcae", "torch", "python", "recorded")
    for run in runs:
        facts = {"cpu": "an unknown CPU", "available_cpus": "?", "recorded": run.recorded}
        facts |= run.config | run.versions | run.machine
        groups.setdefault(tuple(facts[name] for name in names), []).append(run.date[:10])
    return [
        dict(zip(names, key, strict=True)) | {"runs": len(days), "dates": sorted({min(days), max(days)})}
        for key, days in groups.items()
    ]


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
    return (
        f"{size if float(size) else f'less than {10**-digits:.{digits}f}'} {'higher' if contrast.mean > 0 else 'lower'}"
    )


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    return "<0.001" if digits == 3 and value < 0.001 else f"{value:.{digits}f}"


def _conjunction(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


FILTERS = {
    "mean": _mean,
    "difference": lambda values, reported: f"{np.mean(values) - reported:+.4f}" if values else "",
    "interval": _interval,
    "size": _size,
    "number": _number,
    "thousands": lambda number: f"{number:,}",
    "conjunction": _conjunction,
}
