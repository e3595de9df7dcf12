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

from fmcae.export.markdown import render
from fmcae.files import write_atomic
from fmcae.study import figures
from fmcae.study.claims import (
    ALPHA,
    CLAIMS,
    END,
    FEW_LABELS,
    FINDINGS,
    ONE_SEED,
    PAPER_RECALL,
    READING,
    SINGLE_LABELS,
    WITHOUT_FEWEST,
    Claim,
    Contrast,
    Verdict,
    epochs_held,
    evaluate,
    holm,
    measure,
    overall,
    variants,
    with_values,
)
from fmcae.study.grid import (
    COMPONENTS,
    EPOCHS,
    INTERIOR,
    LABELS,
    LINEAR_PARAMETERS,
    OTHER_READINGS,
    PAPER_MSE,
    PARTS,
    TABLES,
    find_reading,
    label_count,
    parameters,
    plan,
    task_of,
)
from fmcae.study.results import Results, RunResult

NAME, SUMMARY = "report.md", "summary.md"
NOT_RUN = "not run"
NO_SPREAD = "one seed has no spread"
EDGE_SHARE = 1 - INTERIOR**2 / 28**2  # of the pixels
SPEED_EPOCHS = (1, 5, 15)  # and the last
APPENDIX = {  # the networks of the Appendix's table
    "with pooling": ("appendix", "with pooling"),
    "without pooling": ("appendix", "without pooling"),
    "with pooling, no edge": ("no-decoder-padding", "appendix, with pooling"),
    "with pooling, no dropout": ("no-dropout", "with pooling"),
    "without pooling, no dropout": ("no-dropout", "without pooling"),
}
TALLY: dict[Verdict, str] = {
    "confirmed": "confirmed",
    "holds early (after epoch 5), not at the end": "confirmed after epoch 5 and not at the end",
    "holds early (after epoch 5), undecided at the end": "confirmed after epoch 5 and undecided at the end",
    "holds at each run's best epoch, not at the end": "confirmed at each run's best epoch only",
    "holds at each run's best epoch, undecided at the end": "confirmed at each run's best epoch and undecided at the end",
    "not confirmed": "not confirmed",
    "undecided": "undecided",
    "one seed, as claimed": "as claimed with one seed",
    "one seed, otherwise": "not as claimed with one seed",
    "not run": "not run",
}


def write_report(folder: Path, results: Results, epochs: int | None = None) -> list[Path]:
    """Write ``report.md``, its figures and a short table, ``summary.md``, into ``folder``; return what was written.

    It is about the runs with so many ``epochs``; by default 30, or what most runs have if none has 30.
    """
    epochs = epochs or usual_epochs(results)
    runs = {name: run for name, run in results.runs.items() if run.config["epochs"] == epochs}
    page = _Page(replace(results, runs=runs), epochs)
    paths = [path for name, figure in page.figures.items() for path in figures.save(figure, folder / name)]
    for name, text in ((NAME, page.text(folder)), (SUMMARY, page.summary())):
        write_atomic(folder / name, text)
    return [folder / NAME, folder / SUMMARY, *paths]


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
        kept = {claim.name for claim in self.claims}
        self.variants = {claim.name: variants(claim, *self._of()) for claim in CLAIMS if claim.name in kept}
        self.verdict: dict[str, Verdict] = {name: overall(found[READING]) for name, found in self.variants.items()}
        self.few_labels = self._few_labels()
        self.all_labels = self._labels(None)
        self.speed = [
            with_values(replace(FINDINGS[0].contrasts[0], metric=f"val accuracy after epoch {epoch}"), *self._of())
            for epoch in (*SPEED_EPOCHS, epochs)
        ]
        self.figures = figures.draw(results, self.cells, self.few_labels)

    def text(self, folder: Path) -> str:
        every_claim = self._every_claim()
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
            appendix=self._appendix(),
            dropped=self._without_dropout(),
            edge=self._edge(),
            range=self._range(),
            readings=(readings := (READING, *(name for name in OTHER_READINGS if _has_tables(name)))),
            reading_values=self.reading_values,
            inf=math.inf,
            fits=(fits := {reading: self._fit(reading) for reading in readings}),
            fit_seeds={reading: self._fit_seeds(reading) for reading in fits},
            nearest=_nearest(fits),
            on_gpu={f"“{reading}”": seeds for reading in fits if (seeds := self._gpu_seeds(reading))},
            beaten=self._beaten(),
            has_single=any(claim.verdict in ONE_SEED for _, claim in every_claim),
            tally=self._tally(),
            own=sum(claim.where.startswith("ours") for claim in self.claims),
            seed_counts=self._seed_counts(),
            without_fewest=with_values(WITHOUT_FEWEST, *self._of()),
            held={claim.name: self._held(claim) for claim in CLAIMS if claim.by_epoch and claim.name in self.variants},
            best_epochs=self._best_epochs(),
            trained_twice=self._trained_twice(),
            elsewhere=self._elsewhere,
            every_claim=every_claim,
            tasks=[(same[0], sum(map(bool, map(self.results.find, same)))) for same in zip(*plans, strict=True)],
        )
        return text.rstrip() + "\n"

    def summary(self) -> str:
        """The short table: a few numbers of the paper beside ours."""
        confirmed = f"{Counter(self.verdict.values())['confirmed']} of {len(self.claims)}"
        with_pooling = f"{PAPER_MSE['table-2']['p=0.1']} (Table 2), {PAPER_MSE['appendix']['with pooling']} (Appendix)"
        without = str(PAPER_MSE["appendix"]["without pooling"])
        columns = (
            ("test MSE with pooling", with_pooling, _mean(self.values("appendix", "with pooling", "test MSE"))),
            ("test MSE without", without, _mean(self.values("appendix", "without pooling", "test MSE"))),
            (
                "mean test recall",
                f"{PAPER_RECALL}",
                _mean(self.values("final-model", "final model", "mean test recall")),
            ),
            ("claims confirmed at the end", "", confirmed),
        )
        name = "fmcae, mean ± standard deviation (seeds)"
        heads, paper, ours = (" | ".join(texts) for texts in zip(*columns, strict=True))
        rules = " | ".join(["---"] * (len(columns) + 1))
        return f"| n=128, p=0.1 | {heads} |\n| {rules} |\n| the paper | {paper} |\n| {name} | {ours} |\n"

    @cache  # noqa: B019 (a page lives as long as its report is made)
    def cells(self, part: str) -> dict[str, list[RunResult]]:
        """The runs of a part's cells, one for each seed that has it."""
        found = {}
        for name in PARTS[part]:
            runs = [self.results.find(task_of(part, name, seed, self.epochs)) for seed in self.seeds]
            found[name] = [run for run in runs if run]
        return found

    def values(self, part: str, cell: str, metric: str) -> list[float]:
        """A metric of a cell's runs, of those that have it."""
        values = [measure(metric, run, self.data["class_names"]) for run in self.cells(part)[cell]]
        return [value for value in values if value is not None]

    def reading_values(self, reading: str, part: str, cell: str, metric: str) -> list[float]:
        """The same under a reading."""
        place = _place(reading, part, cell)
        return self.values(*place, metric) if place else []

    def command(self, *parts: str) -> str:
        """What makes all that the parts have here; without parts, everything."""
        seeds = [run.config["seed"] for part in parts or PARTS for runs in self.cells(part).values() for run in runs]
        only = [word for part in parts for word in ("--only", part)]
        run = ["fmcae", "study", "run", *only, "--seeds", str(max(seeds, default=0) + 1), *self.epochs_option]
        return f"{shlex.join(run)} && {shlex.join(['fmcae', 'study', 'report', *self.epochs_option])}"

    def _of(self) -> tuple[Results, list[int], int]:
        return self.results, self.seeds, self.epochs

    def _every_claim(self) -> list[tuple[str, Claim]]:
        """Every claim and finding with its name, and then the claims at other epochs and under other readings."""
        others = [
            (", ".join(word for word in (name, reading if reading != READING else "", moment) if word), claim)
            for name, by_reading in self.variants.items()
            for reading, by_moment in by_reading.items()
            for moment, claim in by_moment.items()
            if (reading, moment) != (READING, END) and claim.verdict != NOT_RUN
        ]
        return [*((claim.name, claim) for claim in (*self.claims, *self.findings)), *others]

    def _elsewhere(self, claim: Claim) -> str:
        """The verdicts under the other readings of the grid, in a few words: of more than two those that differ.

        One seed of a claim about curves is not summed up: it stands with each epoch in a table of its own.
        """
        found_at = [one.verdict for by_moment in self.variants[claim.name].values() for one in by_moment.values()]
        if claim.by_epoch and any(verdict in ONE_SEED for verdict in found_at):
            return "below"
        found: dict[Verdict, list[str]] = {}
        for reading, by_moment in self.variants[claim.name].items():
            if reading != READING:
                found.setdefault(overall(by_moment), []).append(reading)
        same = [] if self.verdict[claim.name] == NOT_RUN else found.pop(self.verdict[claim.name], [])
        texts = [f"{_marked(verdict)}: {', '.join(readings)}" for verdict, readings in found.items()]
        if same:
            many = f"{'the other' if texts else 'all'} {len(same)} the same"
            texts.append(many if len(same) > 2 else f"the same: {', '.join(same)}")
        return "; ".join(texts)

    def _few_labels(self) -> dict[int, dict[str, Any]]:
        """By number of labels, the test accuracies, pre-trained and random, their difference, and its p-value after Holm."""
        train = self.data["counts"]["train"]
        rows = {count: self._labels(count) for count in FEW_LABELS if count < train}
        adjusted = holm([row["contrast"].p_value for row in rows.values()])
        for row, p in zip(rows.values(), adjusted, strict=True):
            decided = row["contrast"].verdict(len(rows))
            row |= {"p": p, "verdict": "undecided" if decided == "confirmed" and not p < ALPHA else decided}
        return rows

    def _labels(self, count: int | None) -> dict[str, Any]:
        """The test accuracies with so many labels, pre-trained and random, and their difference."""
        starts = {
            start: self.values("equal-steps", f"{label_count(count)}, {start}", "test accuracy")
            for start in ("pre-trained", "random")
        }
        return {**starts, "contrast": with_values(SINGLE_LABELS[count], *self._of())}

    def _tally(self) -> str:
        """How many claims have each verdict, in words."""
        counts = Counter(self.verdict.values())
        found = [(counts[verdict], words) for verdict, words in TALLY.items() if counts[verdict]]
        return _conjunction(f"{count} {'is' if count == 1 else 'are'} {words}" for count, words in found)

    def _seed_counts(self) -> str:
        """How many seeds the cells that were run have."""
        counts = {len(runs) for part in PARTS for runs in self.cells(part).values() if runs} or {0}
        return f"{min(counts)} to {max(counts)} seeds" if len(counts) > 1 else FILTERS["seeds"](max(counts))

    def _held(self, claim: Claim) -> dict[str, str]:
        """After which epochs a claim about curves is confirmed, by reading."""
        found = {}
        for reading in self.variants[claim.name]:
            own = claim if reading == READING else claim.under(reading)
            assert own is not None
            tested = self.variants[claim.name][reading][END].verdict not in (NOT_RUN, *ONE_SEED)
            found[reading] = _spans(epochs_held(own, *self._of())) if tested else ""
        return found

    def _best_epochs(self) -> str:
        """Which epochs are the best of the claims about curves, in words; empty without their runs."""
        texts = []
        for claim in self.claims:
            for part, cell in dict.fromkeys(cell for contrast in claim.contrasts for cell in contrast.cells):
                if claim.by_epoch and (runs := self.cells(part)[cell]):
                    best = [int(np.argmin(run.epochs["val_cross_entropy"])) + 1 for run in runs]
                    texts.append(f"{min(best)} to {max(best)} {cell if 'with' in cell else f'with {cell}'}")
        return f" {_conjunction(texts)}" if texts else ""

    def _trained_twice(self) -> tuple[list[dict[str, Any]], float, str] | None:
        """The machines of second trainings for the interior's error, and by how much at most which autoencoder differs."""
        runs = [run for run in self.results.runs.values() if run.second_training]
        apart = [abs(run.test["mse"] - run.second_training["mse"]) for run in runs if run.second_training]
        if not apart:
            return None
        network = runs[int(np.argmax(apart))].config["network"]
        pooling = "" if network["pooling"] else ", without pooling"
        second = [
            replace(
                run,
                recorded="when the run started",
                **{name: run.second_training[name] for name in ("machine", "versions", "date")},
            )
            for run in runs
            if run.second_training
        ]
        return _machines(second), max(apart), f"n={network['latent_dim']}, p={network['dropout']:g}{pooling}"

    def _gpu_seeds(self, reading: str) -> list[int]:
        """The seeds of those of a reading's autoencoders of Tables 1 to 3 that a GPU trained."""
        places = [_place(reading, part, cell) for part in TABLES for cell in PAPER_MSE[part]]
        runs = [run for place in places if place for run in self.cells(place[0])[place[1]]]
        return sorted({run.config["seed"] for run in runs if run.config["device"] == "cuda"})

    def _beaten(self) -> tuple[int, int] | None:
        """How many networks of the Appendix's table have a larger error than the linear baseline, and of how many."""
        found = [self.values(*place, "test MSE") for place in APPENDIX.values()]
        errors = [float(np.mean(values)) for values in found if values]
        if not errors or not self.results.baseline:
            return None
        return sum(error > self.results.baseline["mse"] for error in errors), len(errors)

    def _appendix(self) -> list[tuple[str, int, str, str, str, str]]:
        """The rows of the Appendix's table: name, parameters, the paper's error, ours, their ratio, ours on the interior."""
        rows: list[tuple[str, int, str, str, str, str]] = []
        for name, (part, cell) in APPENDIX.items():
            count = parameters(task_of(part, cell, 0).config.network)
            whole, interior = (self.values(part, cell, metric) for metric in ("test MSE", "test interior MSE"))
            reported = PAPER_MSE["appendix"].get(name)
            paper, ratio = (f"{reported:.3f}", _ratio(whole, reported)) if reported else ("", "")
            rows.append((name, count, paper, _mean(whole), ratio, _mean(interior)))
        errors = [
            f"{self.results.baseline[key]:.4f}" if self.results.baseline else NOT_RUN for key in ("mse", "interior_mse")
        ]
        rows.append(
            (
                f"linear baseline: {COMPONENTS} principal components of train",
                LINEAR_PARAMETERS,
                "",
                errors[0],
                "",
                errors[1],
            )
        )
        return rows

    def _without_dropout(self) -> tuple[float, str] | None:
        """The error with neither pooling nor dropout, and whether it is nearer to the paper's than without pooling alone."""
        neither, alone = (self.values(part, "without pooling", "test MSE") for part in ("no-dropout", "appendix"))
        if not neither or not alone:
            return None
        reported, error = PAPER_MSE["appendix"]["without pooling"], float(np.mean(neither))
        nearer = abs(error - reported) < abs(float(np.mean(alone)) - reported)
        return error, "nearer to" if nearer else "farther from"

    def _edge(self) -> dict[str, float]:
        """What the edge of the decoder with pooling adds to the error, its share of it, and the least that it can add.

        Empty if the interior was not measured. The whole's error is of the same training as the interior's.
        """
        runs = [run for run in self.cells("appendix")["with pooling"] if "interior_mse" in run.test]
        if not runs or not self.results.baseline:
            return {}
        whole = float(np.mean([(run.second_training or run.test)["mse"] for run in runs]))
        interior = float(np.mean([run.test["interior_mse"] for run in runs]))
        part = whole - (1 - EDGE_SHARE) * interior
        least = self.results.baseline["edge_mse"]
        return {"whole": whole, "interior": interior, "part": part, "share": part / whole, "least": least}

    def _range(self) -> tuple[float, float] | None:
        """The least and the largest ratio of our errors in Tables 1 to 3 to the paper's; None without runs."""
        ratios = [
            float(np.mean(ours)) / reported
            for part in TABLES
            for cell, reported in PAPER_MSE[part].items()
            if (ours := self.values(part, cell, "test MSE"))
        ]
        return (min(ratios), max(ratios)) if ratios else None

    def _fit_seeds(self, reading: str) -> str:
        """How many seeds the cells of Tables 1 to 3 have under a reading, of those that have any."""
        cells = [(part, cell) for part in TABLES for cell in PAPER_MSE[part]]
        counts = {len(self.reading_values(reading, *place, "test MSE")) for place in cells} - {0} or {0}
        return " to ".join(str(count) for count in sorted({min(counts), max(counts)}))

    def _fit(self, reading: str) -> dict[str, float]:
        """By table, and for all, the root mean square of ln(ours / the paper's); infinite if a cell was not run.

        Table 3 and all are there with and without lr=0.01.
        """
        logs: dict[str, dict[str, float]] = {}
        for part in TABLES:
            logs[part] = {}
            for cell, reported in PAPER_MSE[part].items():
                ours = self.reading_values(reading, part, cell, "test MSE")
                logs[part][cell] = math.log(np.mean(ours) / reported) if any(ours) else math.inf
        squares = {part: float(np.mean(np.square(list(values.values())))) for part, values in logs.items()}
        kept = [value for cell, value in logs["table-3"].items() if cell != "lr=0.01"]
        squares["table-3 short"] = float(np.mean(np.square(kept)))
        squares["all"] = float(np.mean([squares[part] for part in TABLES]))
        most = [squares["table-1"], squares["table-2"], squares["table-3 short"]]
        squares["all short"] = float(np.mean(most))
        return {name: math.sqrt(square) for name, square in squares.items()}


def _machines(runs: Iterable[RunResult]) -> list[dict[str, Any]]:
    """The machines and versions that the runs were made with, each with its number of runs and its days."""
    facts_of: dict[tuple[Any, ...], list[str]] = {}
    names = ("hardware", "device", "threads", "versions", "recorded")
    for run in runs:
        machine = {"cpu": "an unknown CPU", "available_cpus": "?"} | run.machine
        parts = [machine["cpu"], machine.get("cpu_model"), machine.get("instruction_set")]
        parts += [f"{machine['available_cpus']} CPUs"]
        parts += [f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else "memory not recorded"]
        parts += [machine.get("device_name")]  # of the GPU
        order = ("fmcae", "commit", "torch", "numpy", "numba", "python")
        versions = ", ".join(f"{name} {run.versions.get(name, 'not recorded')}" for name in order)
        hardware = ", ".join(str(part) for part in parts if part)
        key = (hardware, run.config["device"], run.config["threads"], versions, run.recorded)
        facts_of.setdefault(key, []).append(run.date[:10])
    return [dict(zip(names, key, strict=True)) | {"days": days} for key, days in facts_of.items()]


def _place(reading: str, part: str, cell: str) -> tuple[str, str] | None:
    """Where a cell stands under a reading, as part and cell; None where it is not tried under it."""
    return (part, cell) if reading == READING else find_reading(reading, part, cell)


def _has_tables(reading: str) -> bool:
    """Whether a reading has autoencoders of its own for Tables 1 to 3."""
    return all(find_reading(reading, part, cell) for part in TABLES for cell in PAPER_MSE[part])


def _nearest(fits: dict[str, dict[str, float]]) -> dict[str, tuple[float, str]]:
    """The best fit and its reading, with and without lr=0.01; empty if no reading has all cells."""
    best = {name: min((fit[name], reading) for reading, fit in fits.items()) for name in ("all", "all short")}
    return best if best["all"][0] < math.inf else {}


def _mean(values: Sequence[float], digits: int = 4) -> str:
    if not values:
        return NOT_RUN
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread} ({len(values)})"


def _ratio(values: Sequence[float], reported: float) -> str:
    return f"{np.mean(values) / reported:.2f}" if values else ""


def _interval(contrast: Contrast) -> str:
    low, high = contrast.interval
    sign = "+" if contrast.ratio is None and contrast.limit is None else ""
    if contrast.limit is not None and len(contrast.values) == 1:
        return NO_SPREAD
    if not contrast.values or math.isnan(contrast.estimate):
        return NOT_RUN
    shown = f"{contrast.estimate:{sign}.4f}"
    return shown if math.isnan(low) else f"{shown} ({low:{sign}.4f} to {high:{sign}.4f})"


def _digits(contrast: Contrast) -> int:
    return 3 if "cross-entropy" in contrast.metric else 4


def _validation(claim: Claim) -> str:
    """The differences of validation's loss and accuracy."""
    shown = [c for c in claim.contrasts if c.metric.startswith("val ") and "minus" not in c.metric]
    shown.sort(key=lambda contrast: "accuracy" in contrast.metric)
    return ", ".join(f"{contrast.estimate:+.{_digits(contrast)}f}" for contrast in shown)


def _words(contrast: Contrast) -> str:
    """What a contrast found, as a part of a sentence."""
    estimate, digits = contrast.estimate, _digits(contrast)
    if contrast.ratio is not None:
        return f"{contrast.subject} {estimate:.2f} times {contrast.than}"
    if contrast.limit is not None:
        return NO_SPREAD if len(contrast.values) == 1 else f"{contrast.subject} {_interval(contrast)}"
    size = f"{abs(estimate):.{digits}f}"
    if not float(size):
        size = f"less than {10**-digits:.{digits}f}"
    return f"{contrast.subject} {size} {'higher' if estimate > 0 else 'lower'} {contrast.than}"


def _brief(claim: Claim) -> str:
    """What a claim's contrasts found after the last epoch: the worst that is not as claimed, or that of the largest p.

    For a claim about curves they stand in a table of their own.
    """
    if not all(contrast.values for contrast in claim.contrasts):
        return NOT_RUN
    if claim.by_epoch:
        return "below"
    found: dict[Verdict, list[Contrast]] = {}
    for contrast in sorted(claim.contrasts, key=lambda contrast: -np.nan_to_num(contrast.p_value)):
        found.setdefault(contrast.verdict(len(claim.contrasts)), []).append(contrast)
    names: dict[Verdict, str] = {
        "not confirmed": "against it", "undecided": "open", "one seed, otherwise": "otherwise"
    }  # fmt: skip
    worst = next((verdict for verdict in names if verdict in found), None)
    texts = [f"{names[worst]}: {_words(found[worst].pop(0))}"] if worst else []
    texts += [f"{len(found[verdict])} more {name}" for verdict, name in names.items() if found.get(verdict)]
    if not texts:
        first, metrics = next(iter(found.values()))[0], {contrast.metric for contrast in claim.contrasts}
        label = first.label.rpartition(": ")[2] if len(claim.contrasts) > 1 == len(metrics) else first.label
        if first.ratio is not None or first.limit is not None:
            texts.append(_words(first))
        elif first.constant:  # the number itself says more than its distance
            value = first.estimate + first.constant
            texts.append(f"{label.removesuffix(f' minus {first.constant}')} {value:.{_digits(first)}f}")
        else:
            texts.append(f"{label} {first.estimate:+.{_digits(first)}f}")
    return "; ".join(texts)


def _marked(verdict: Verdict) -> str:
    """A verdict in few words, with a mark where it is one seed's."""
    return f"{verdict.removeprefix('one seed, ')}¹" if verdict in ONE_SEED else verdict


def _said(verdict: Verdict) -> str:
    """A verdict as a sentence's verb and what follows it."""
    if verdict in ONE_SEED:
        return f"comes out {verdict.removeprefix('one seed, ')} with one seed"
    return verdict if verdict.startswith("holds") else f"is {verdict}"


def _spans(numbers: Sequence[int]) -> str:
    """Such as "2 to 5, 7 and 11" of ascending numbers; "none" without any."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    texts = [f"{span[0]} to {span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans]
    return _conjunction(texts) if texts else "none"


def _claimed(contrast: Contrast) -> str:
    if contrast.limit is not None:
        return f"below {contrast.limit}"
    if contrast.ratio is not None:
        return f"above {contrast.ratio:g}"
    return "above 0" if contrast.margin is None else f"within ±{contrast.margin}"


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    return "<0.001" if digits == 3 and value < 0.001 else f"{value:.{digits}f}"


def _conjunction(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


FILTERS: dict[str, Callable[..., str]] = {
    "mean": _mean,
    "ratio": _ratio,
    "fit": lambda value, best: (
        NOT_RUN if value == math.inf else f"**{value:.3f}**" if value == best else f"{value:.3f}"
    ),
    "interval": _interval,
    "brief": _brief,
    "validation": _validation,
    "said": _said,
    "marked": _marked,
    "claimed": _claimed,
    "number": _number,
    "seed_names": lambda seeds: f"seed{'s' * (len(seeds) > 1)} {_conjunction(map(str, seeds))}",
    "seeds": lambda number: f"{number} seed{'s' * (number != 1)}",
    "thousands": lambda number: f"{number:,}",
    "conjunction": _conjunction,
}
