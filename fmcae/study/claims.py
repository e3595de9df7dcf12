"""The paper's claims, and findings of our own, as data: each is a few contrasts that are tested over the seeds.

A contrast is one number a seed, from runs of the same seed. It is claimed to be above 0, or within ±margin of 0; a ratio is
claimed to be above a number, and a spread over the seeds below one. Student's t over the seeds decides at the 5% level,
one-sided; for a margin, two one-sided tests (TOST); for a spread, the chi-squared test of a variance. A claim is confirmed
if every contrast is as claimed, not confirmed if one is significantly not, and undecided otherwise. One seed is no test:
of it is only said on which side its numbers lie.

All contrasts of a claim must hold together, so its confirmation needs no correction for their number (an
intersection-union test). One alone refutes it, so refutation does: Bonferroni's, 5% over their number.

A claim about curves may hold at one epoch and not at another, and any claim under one reading of the paper and not under
another: :func:`variants` has them all.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fmcae.study.grid import DROPOUTS, LABELS, LATENT_DIMS, OTHER_READINGS, find_reading, label_count, task_of
from fmcae.study.results import Results, RunResult

Verdict = Literal[
    "not confirmed",
    "undecided",
    "not run",
    "one seed, otherwise",
    "one seed, as claimed",
    "confirmed",
    "holds early (after epoch 5), not at the end",
    "holds early (after epoch 5), undecided at the end",
    "holds at each run's best epoch, not at the end",
    "holds at each run's best epoch, undecided at the end",
]
ONE_SEED: tuple[Verdict, Verdict] = ("one seed, otherwise", "one seed, as claimed")
# Of a claim's contrasts the worst counts.
_FROM_WORST: tuple[Verdict, ...] = ("not confirmed", "undecided", "not run", *ONE_SEED, "confirmed")
PAPER_RECALL = 0.91  # Figure 6
ALPHA = 0.05
POWER = 0.8
SAME_ACCURACY = 0.005  # half a point: what the paper's two digits cannot tell apart
SAME_LOSS = 0.02  # nats
LAST_DIGIT = 0.001  # of the paper's mean squared errors
EARLY, BEST, END = "after epoch 5", "at the best epoch", ""  # what is said of a metric; the best by validation loss
READING = "as taken"  # dropout after pooling, the decoder's output padded and not dropped, ReLU in all hidden layers
_ROUNDING = 1e-12  # seeds whose numbers differ by less have the same number
_GAP = "val minus train cross-entropy"
_MSE_GAP = "val minus train MSE"


@dataclass(frozen=True)
class Contrast:
    """One number a seed: a metric of one cell, or of a first cell less that of a second, less ``constant``.

    Attributes:
        metric: what :func:`measure` takes.
        cells: part and cell, of one, of two, or of several pairs, whose mean difference it is.
        margin: what is claimed of the number: None for "above 0", else "within ±margin of 0".
        ratio: where it is given, the number is the first cell's over the second's, and is claimed to be above ``ratio``;
            ``values`` are logarithms.
        limit: where it is given, the standard deviation over the seeds is claimed to be below it.
        beside: part and cell of runs that a seed must have too, such as those whose times are compared side by side.
        label, subject, than: what the number is; what is compared in plain words; and with what, as it is read after
            "higher", "lower" or "times". Where they are empty, they follow from the metric and the cells.
        values: the number of each seed that has the runs; filled by :func:`evaluate`.
    """

    metric: str
    cells: tuple[tuple[str, str], ...] = ()
    margin: float | None = None
    ratio: float | None = None
    limit: float | None = None
    constant: float = 0.0
    beside: tuple[tuple[str, str], ...] = ()
    label: str = ""
    subject: str = ""
    than: str = ""
    values: tuple[float, ...] = ()

    @property
    def estimate(self) -> float:
        """The mean over the seeds; of a ratio the geometric mean; of a spread the standard deviation. NaN without any."""
        if self.limit is not None:
            return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan
        return self._shown(float(np.mean(self.values))) if self.values else math.nan

    @property
    def effect_size(self) -> float:
        """The mean over the sample standard deviation: Cohen's d of paired differences; NaN without a spread."""
        if self.limit is not None or not self._has_spread:
            return math.nan
        return float(np.mean(self.values) / np.std(self.values, ddof=1))

    @property
    def interval(self) -> tuple[float, float]:
        """The 90% confidence interval of the estimate, which agrees with one-sided tests at 5%; NaN with one seed."""
        count = len(self.values)
        if count < 2:
            return math.nan, math.nan
        if self.limit is not None:
            sides = stats.chi2.ppf((1 - ALPHA, ALPHA), count - 1)
            low, high = self.estimate * np.sqrt((count - 1) / sides)
            return float(low), float(high)
        half = float(stats.sem(self.values) * stats.t.ppf(1 - ALPHA, count - 1))
        mean = float(np.mean(self.values))
        return self._shown(mean - half), self._shown(mean + half)

    @property
    def p_value(self) -> float:
        """The p-value of the one-sided test, or the larger one of the two; NaN with one seed or none."""
        return self._p_values()[0]

    def verdict(self, contrasts: int = 1) -> Verdict:
        """Return whether the number is as claimed, as one of so many contrasts of a claim."""
        if not self.values:
            return "not run"
        if len(self.values) == 1 and self.limit is None:
            low, high = self._claimed_range
            return ONE_SEED[bool(low < self.values[0] < high)]
        p, p_against = self._p_values()
        if p < ALPHA:
            return "confirmed"
        return "not confirmed" if p_against < ALPHA / contrasts else "undecided"

    def seeds_needed(self) -> int | None:
        """Return how many seeds would confirm it with a probability of 80%, if estimate and spread stay; None if none.

        Source: the power of a one-sided t-test, by the noncentral t distribution.
        """
        if not self._has_spread or self.limit is not None:
            return None
        low, high = self._claimed_range
        mean, std = float(np.mean(self.values)), float(np.std(self.values, ddof=1))
        room = min(mean - low, high - mean)
        for count in range(2, 10_000) if room > 0 else ():
            needed = stats.t.ppf(1 - ALPHA, count - 1)
            if stats.nct.sf(needed, count - 1, room / std * math.sqrt(count)) >= POWER:
                return count
        return None

    def _shown(self, value: float) -> float:
        return value if self.ratio is None else math.exp(value)

    @property
    def _claimed_range(self) -> tuple[float, float]:
        if self.margin is not None:
            return -self.margin, self.margin
        return (0.0 if self.ratio is None else math.log(self.ratio)), math.inf

    def _p_values(self) -> tuple[float, float]:
        """Of the claim and of its opposite."""
        if len(self.values) < 2:
            return math.nan, math.nan
        if self.limit is not None:
            degrees = len(self.values) - 1
            p = float(stats.chi2.cdf(degrees * (self.estimate / self.limit) ** 2, degrees))
            return p, 1 - p
        p_low, p_high = map(self._p_above, self._claimed_range)
        return max(p_low, 1 - p_high), min(1 - p_low, p_high)

    def _p_above(self, threshold: float) -> float:
        if not self._has_spread:  # where t is infinite, or 0 over 0
            return float(np.mean(self.values) - threshold <= _ROUNDING)
        return float(stats.ttest_1samp(self.values, threshold, alternative="greater").pvalue)

    @property
    def _has_spread(self) -> bool:
        return len(self.values) > 1 and float(np.ptp(self.values)) > _ROUNDING


@dataclass(frozen=True)
class Claim:
    """One statement, where the paper makes it, and the contrasts that it is tested by.

    Attributes:
        text: the statement; :func:`evaluate` fills in the number of training images for {train}.
        classes: the classes that it is about; without one of them it is left out.
        by_epoch: whether it is about curves, and so tested at several epochs.
        by_reading: whether it is tested under other readings too.
    """

    name: str
    text: str
    where: str
    contrasts: tuple[Contrast, ...]
    classes: tuple[str, ...] = ()
    by_epoch: bool = False
    by_reading: bool = True

    @property
    def verdict(self) -> Verdict:
        """The worst of the contrasts' verdicts."""
        return min((contrast.verdict(len(self.contrasts)) for contrast in self.contrasts), key=_FROM_WORST.index)

    def fits(self, data: dict[str, Any]) -> bool:
        """Return whether the data set has the classes that the claim is about."""
        return set(self.classes) <= set(data["class_names"])

    def at(self, moment: str) -> "Claim":
        """Return the claim at another epoch than the last."""
        metrics = [f"{contrast.metric} {moment}".strip() for contrast in self.contrasts]
        pairs = zip(self.contrasts, metrics, strict=True)
        return replace(self, contrasts=tuple(replace(contrast, metric=metric) for contrast, metric in pairs))

    def under(self, reading: str) -> "Claim | None":
        """Return the claim under another reading of the paper; None where no cell of it would be another."""
        contrasts = []
        for contrast in self.contrasts:
            cells = [find_reading(reading, *cell) for cell in contrast.cells]
            if not all(cells):
                return None
            own = tuple(cell for cell in cells if cell)
            contrasts.append(replace(contrast, cells=own, label=_label(contrast), than=_than(contrast)))
        return replace(self, contrasts=tuple(contrasts))


def _label(contrast: Contrast) -> str:
    return contrast.label or f"{contrast.metric}: {' minus '.join(cell for _, cell in contrast.cells)}"


def _than(contrast: Contrast) -> str:
    return contrast.than or " than ".join(_with(cell) for _, cell in contrast.cells)


def _shirts(metric: str, confusion: NDArray[np.int64], class_names: Sequence[str]) -> float:
    counts = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(counts, 1)
    recall = np.diag(shares)
    if metric == "mean test recall":
        return float(recall[counts[:, 0] > 0].mean())
    shirt, pullover, top = map(class_names.index, ("Shirt", "Pullover", "T-shirt/top"))
    if metric == "shirt is hardest":
        return float(np.delete(recall, shirt).min() - recall[shirt])
    if metric == "shirt goes to similar":
        return float(shares[shirt, [pullover, top]].sum() / max(1 - recall[shirt], 1e-9))
    return float(shares[shirt, pullover] - shares[shirt, class_names.index("Coat")])


CONFUSION_METRICS = ("mean test recall", "shirt is hardest", "shirt goes to similar", "shirt is pullover before coat")
_AFTER = re.compile(r"(.+) after epoch (\d+)")


def measure(metric: str, run: RunResult, class_names: Sequence[str]) -> float | None:
    """Return such as "test MSE", "val accuracy" after the last epoch, "val accuracy after epoch 5", or "val accuracy at the
    best epoch", which is that of the lowest validation loss; or one of CONFUSION_METRICS; None if the run has it not.

    "levelled val accuracy" is the mean of the last three epochs, less that of the three before half-time.
    """
    if metric in CONFUSION_METRICS:
        return None if run.confusion is None else _shirts(metric, run.confusion, class_names)
    if metric == "training seconds":
        return run.seconds
    index = -1
    if metric.endswith(BEST):
        metric, index = metric.removesuffix(f" {BEST}"), int(np.argmin(run.epochs["val_cross_entropy"]))
    elif found := _AFTER.fullmatch(metric):
        metric, index = found[1], int(found[2]) - 1
        if index >= run.config["epochs"]:
            return None
    if metric in (_GAP, _MSE_GAP):
        name = "mse" if metric == _MSE_GAP else "cross_entropy"
        return run.epochs[f"val_{name}"][index] - run.epochs[f"train_{name}"][index]
    split, _, name = metric.lower().replace("-", "_").replace(" ", "_").partition("_")
    if split == "test":
        return run.test.get(name)
    if split == "levelled":
        values, half = run.epochs[name], len(run.epochs[name]) // 2
        return float(np.mean(values[-3:]) - np.mean(values[max(half - 3, 0) : max(half, 1)]))
    return run.epochs[f"{split}_{name}"][index]


def _difference(metric: str, part: str, first: str, second: str, **more: Any) -> Contrast:
    return Contrast(metric, ((part, first), (part, second)), **more)


def _worse(part: str, bad: str, good: str, *splits: str) -> Iterator[Contrast]:
    for split in splits:
        yield _difference(f"{split} cross-entropy", part, bad, good)
        yield _difference(f"{split} accuracy", part, good, bad)


def _no_overfitting(cell: str) -> Contrast:
    subject, than = f"val cross-entropy {_with(cell)}", "than the train cross-entropy"
    return Contrast(_GAP, (("figure-ap3", cell),), SAME_LOSS, subject=subject, than=than)


def _pretraining(metric: str, first: str, second: str, margin: float | None = None) -> Contrast:
    label, than = f"{metric}: pre-trained minus random", "with a pre-trained encoder than with a random one"
    return _difference(metric, "figure-ap3", first, second, margin=margin, label=label, than=than)


def _few_labels(part: str, *counts: int | None) -> Contrast:
    cells = [(part, f"{label_count(labels)}, {start}") for labels in counts for start in ("pre-trained", "random")]
    numbers = "" if len(counts) > 1 else f", {label_count(counts[0])}"
    label = f"test accuracy{numbers}: pre-trained minus random"
    than = "with a pre-trained encoder than with a random one"
    return Contrast("test accuracy", tuple(cells), label=label, than=than)


def _with(cell: str) -> str:
    return cell if cell.startswith("with") or ", " in cell else f"with {cell}"


def _removing_pooling(metric: str) -> tuple[Contrast, ...]:
    label, subject = f"{metric}: with pooling over without", f"{metric} with pooling"
    return (_difference(metric, "appendix", *_POOLING, ratio=2.0, label=label, subject=subject, than="that without"),)


_N, _P = [f"n={n}" for n in LATENT_DIMS], [f"p={p}" for p in DROPOUTS]
_TUNED, _FROZEN, _RANDOM, _CONTROL = (
    "pre-trained, fine-tuned", "pre-trained, frozen", "random, frozen", "random, fine-tuned",
)  # fmt: skip
_FINAL = (("final-model", "final model"),)
_POOLING = ("with pooling", "without pooling")
FEW_LABELS: tuple[int, ...] = tuple(labels for labels in LABELS if labels)
_SIMILAR = ("Shirt", "Pullover", "T-shirt/top")

CLAIMS = (
    Claim("C1", "The autoencoder's test MSE falls as n grows from 64 to 512.", "Table 1",
        tuple(_difference("test MSE", "table-1", few, many) for few, many in pairwise(_N))),
    Claim("C2", "That error rises with p, and p=0.05 is the best.", "Table 2",
        tuple(_difference("test MSE", "table-2", more, less) for less, more in pairwise(_P))),
    Claim("C3", "A learning rate of 0.001 is the best for the autoencoder.", "Table 3",
        tuple(_difference("test MSE", "table-3", f"lr={lr}", "lr=0.001") for lr in (0.01, 0.0001))),
    Claim("C4", "The classifier's loss falls, its accuracy rises and the gap widens from n=64 to n=512.", "Figure 3", (
        *_worse("figure-3", _N[0], _N[-1], "train", "val"),
        _difference(_GAP, "figure-3", _N[-1], _N[0])), by_epoch=True),
    Claim("C5", "From p=0.05 to p=0.2 the gap shrinks, and loss and accuracy get worse.", "Figure 4", (
        _difference(_GAP, "figure-4", _P[0], _P[-1]),
        *_worse("figure-4", _P[-1], _P[0], "train", "val")), by_epoch=True),
    Claim("C6", "A learning rate of 0.001 is best for the classifier too.", "§3.2", (
        *_worse("learning-rate", "lr=0.01", "lr=0.001", "val"),
        *_worse("learning-rate", "lr=0.0001", "lr=0.001", "val"))),
    Claim("C7", "15 epochs give about what 30 give.", "Figure 5", tuple(
        Contrast(f"levelled {metric}", _FINAL, margin, label=f"{metric}: epochs {{end}} minus {{half}}",
            subject=metric, than="at the end than half-way")
        for metric, margin in (("val accuracy", SAME_ACCURACY), ("val cross-entropy", SAME_LOSS)))),
    Claim("C8", "The mean of the confusion matrix's diagonal is 0.91.", "Figure 6", (
        Contrast("mean test recall", _FINAL, SAME_ACCURACY, constant=PAPER_RECALL,
            label=f"mean test recall minus {PAPER_RECALL}", than=f"than {PAPER_RECALL}"),)),
    Claim("C9a", "Shirt is the hardest class.", "ours, on Figure 6", (
        Contrast("shirt is hardest", _FINAL, label="test recall: the next lowest class minus Shirt",
            subject="recall of the second hardest class", than="than Shirt's"),), classes=_SIMILAR),
    Claim("C9b", "Pullover and T-shirt/top take more than half of Shirt's errors.", "Figure 6", (
        Contrast("shirt goes to similar", _FINAL, constant=0.5,
            label="their share of Shirt's errors minus 0.5",
            subject="their share of the errors", than="than one half"),), classes=_SIMILAR),
    Claim("C9c", "Shirt is taken for a pullover more often than for a coat.", "ours, on Figure 6", (
        Contrast("shirt is pullover before coat", _FINAL, label="share of shirts: taken for Pullover minus for Coat",
            subject="share of shirts taken for a pullover", than="than for a coat"),), classes=(*_SIMILAR, "Coat")),
    Claim("C10a", "Removing pooling at least halves the autoencoder's error (0.019 → 0.004): on the whole picture.",
        "Appendix", _removing_pooling("test MSE")),
    Claim("C10b", "C10a on the interior, which the input reaches.", "ours, on the Appendix",
        _removing_pooling("test interior MSE")),
    Claim("C11", "Removing pooling does not change the classifier.", "Figure Ap.2", (
        _difference("val accuracy", "figure-ap2", *_POOLING, margin=SAME_ACCURACY),
        _difference("val cross-entropy", "figure-ap2", *_POOLING, margin=SAME_LOSS)), by_epoch=True),
    Claim("C12", "Freezing the encoder worsens loss and accuracy, and removes the overfitting.", "Figure Ap.3", (
        *_worse("figure-ap3", _FROZEN, _TUNED, "val"), _no_overfitting(_FROZEN))),
    Claim("C13a", "“Without training the encoder” the same happens as in C12, read as random and frozen.", "Figure Ap.3", (
        *_worse("figure-ap3", _RANDOM, _TUNED, "val"), _no_overfitting(_RANDOM))),
    Claim("C13b", "C13a, read as random and fine-tuned: the control for pre-training (F2 has its size).", "Figure Ap.3",
        (_difference("val cross-entropy", "figure-ap3", _CONTROL, _TUNED,
            label="val cross-entropy: random minus pre-trained",
            than="with a random encoder than with a pre-trained one"),
        _pretraining("val accuracy", _TUNED, _CONTROL), _no_overfitting(_CONTROL))),
    Claim("C14", "p=0.1 is the best for the classifier.", "§3.2",
        tuple(contrast for p in (_P[0], *_P[2:]) for contrast in _worse("figure-4", p, _P[1], "val"))),
    Claim("C15", "Training takes longer as n grows.", "§3.1", tuple(
        _difference("training seconds", "table-1", many, few, ratio=1.0, label=f"training time: {many} over {few}",
            beside=tuple(("table-1", n) for n in _N), subject=f"training time with {many}", than=f"that with {few}")
        for few, many in pairwise(_N)), by_reading=False),
    Claim("C16", "The spread, read as over runs and not test batches, is negligible: below "
        f"{LAST_DIGIT}, the tables' last digit.", "Table 1", tuple(
        Contrast("test MSE", (("table-1", n),), limit=LAST_DIGIT, label=f"standard deviation of the test MSE, {n}",
            subject=f"spread {_with(n)}") for n in _N), by_reading=False),
    Claim("C17", f"The autoencoder does not overfit: val and train error within {LAST_DIGIT}.", "§3.2", tuple(
        Contrast(_MSE_GAP, ((part, cell),), LAST_DIGIT, label=f"{_MSE_GAP}, {cell}, p={p}",
            subject=f"val MSE {_with(cell)}, p={p},", than="than the train MSE")
        for part, cell, p in (*(("table-1", n, 0.2) for n in _N), ("appendix", "without pooling", 0.1))),
        by_reading=False),
)  # fmt: skip

# What the paper leaves open: what pre-training is worth, with its control and with fewer labels; and a reading.
_LATER = ("val accuracy after epoch 15", "val accuracy", "test accuracy")
FINDINGS = (
    Claim("F1", "Pre-training makes learning faster.", "§1.2.3", tuple(
        _pretraining(f"val accuracy after epoch {epoch}", _TUNED, _CONTROL) for epoch in (1, 5))),
    Claim("F2", "With all {train} labels its effect is below half a point after epoch 15 and after the last.",
        "control of C13", tuple(_pretraining(metric, _TUNED, _CONTROL, SAME_ACCURACY) for metric in _LATER)),
    Claim("F3", "A pre-trained encoder, frozen, is better than a random one, frozen.", "control of C13",
        (_pretraining("test accuracy", _FROZEN, _RANDOM),)),
    Claim("F4", "Pre-training helps with few labels, averaged over their numbers, with 100 steps an epoch.",
        "few labels", (_few_labels("equal-steps", *FEW_LABELS),)),
    Claim("F5", "The same with 30 to 100 steps an epoch.", "few labels",
        (_few_labels("labels", *FEW_LABELS),)),
    Claim("F6", f"Figure 4's classifiers come out the same from the autoencoder with p={DROPOUTS[0]}.", "§3.2", tuple(
        Contrast(metric, (("encoder-dropout", f"figure-4, p={p}"), ("figure-4", f"p={p}")), margin,
            label=f"{metric}, p={p}: pre-trained with p={DROPOUTS[0]} minus with its own",
            than=f"than from its own, p={p}")
        for p, (metric, margin) in product(
            DROPOUTS[1:], (("test accuracy", SAME_ACCURACY), ("test cross-entropy", SAME_LOSS))))),
)  # fmt: skip
SINGLE_LABELS = {labels: _few_labels("equal-steps", labels) for labels in LABELS}  # and None, all of them
WITHOUT_FEWEST = _few_labels("equal-steps", *FEW_LABELS[1:])


def evaluate(claims: Sequence[Claim], results: Results, seeds: Sequence[int], epochs: int) -> list[Claim]:
    """Return those of the claims that fit the data set, with their contrasts' values from the runs that there are."""
    evaluated = []
    for claim in claims:
        if not claim.fits(results.data):
            continue
        contrasts = tuple(with_values(contrast, results, seeds, epochs) for contrast in claim.contrasts)
        if all(contrast.cells for contrast in contrasts):  # else it is about more labels than there are
            text = claim.text.format(train=f"{results.data['counts']['train']:,}")
            evaluated.append(replace(claim, text=text, contrasts=contrasts))
    return evaluated


def variants(claim: Claim, results: Results, seeds: Sequence[int], epochs: int) -> dict[str, dict[str, Claim]]:
    """Return the claim, evaluated, by reading and by moment, under those readings that the grid tries it under."""
    found: dict[str, dict[str, Claim]] = {}
    for reading in (READING, *OTHER_READINGS):
        own = claim if reading == READING else claim.under(reading) if claim.by_reading else None
        if own is not None:
            moments = (EARLY, BEST, END) if claim.by_epoch else (END,)
            evaluated = evaluate([own.at(moment) for moment in moments], results, seeds, epochs)
            found[reading] = dict(zip(moments, evaluated, strict=True))
    return found


def overall(by_moment: Mapping[str, Claim]) -> Verdict:
    """Return the verdict at the end, or that a claim which does not hold then holds before."""
    found = {moment: claim.verdict for moment, claim in by_moment.items()}
    is_open = found[END] == "undecided"
    if found[END] in ("undecided", "not confirmed"):
        if found.get(EARLY) == "confirmed":
            return (
                "holds early (after epoch 5), undecided at the end"
                if is_open
                else "holds early (after epoch 5), not at the end"
            )
        if found.get(BEST) == "confirmed":
            return (
                "holds at each run's best epoch, undecided at the end"
                if is_open
                else "holds at each run's best epoch, not at the end"
            )
    return found[END]


def epochs_held(claim: Claim, results: Results, seeds: Sequence[int], epochs: int) -> list[int]:
    """Return after which epochs a claim about curves is confirmed."""
    moments = evaluate([claim.at(f"after epoch {epoch}") for epoch in range(1, epochs + 1)], results, seeds, epochs)
    return [epoch for epoch, then in enumerate(moments, 1) if then.verdict == "confirmed"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number; NaN stays. Source: Holm 1979, Scand. J. Statist. 6(2), 65-70."""
    adjusted, highest = list(p_values), 0.0
    order = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = highest
    return adjusted


def with_values(contrast: Contrast, results: Results, seeds: Sequence[int], epochs: int) -> Contrast:
    """Return the contrast with the number of each seed that has its runs, without cells of more labels than there are."""
    train = results.data["counts"]["train"]
    cells = tuple(place for place in contrast.cells if (task_of(*place, 0).config.labels or 0) < train)
    values = []
    for seed in seeds:
        if not all(results.find(task_of(*place, seed, epochs)) for place in contrast.beside):
            continue
        runs = [results.find(task_of(*place, seed, epochs)) for place in cells]
        measured = [measure(contrast.metric, run, results.data["class_names"]) for run in runs if run]
        # the time of a tiny set's run is rounded to 0, which has no ratio
        numbers = [number for number in measured if number is not None and (contrast.ratio is None or number > 0)]
        if numbers and len(numbers) == len(cells):
            values.append(_number(contrast, numbers))
    end, half = (f"{max(last - 2, 1)} to {max(last, 1)}" for last in (epochs, epochs // 2))
    label, subject = _label(contrast).format(end=end, half=half), contrast.subject or contrast.metric
    return replace(contrast, cells=cells, label=label, subject=subject, than=_than(contrast), values=tuple(values))


def _number(contrast: Contrast, numbers: list[float]) -> float:
    if contrast.ratio is not None:
        return math.log(numbers[0] / numbers[1])
    if len(numbers) == 1:
        return numbers[0] - contrast.constant
    return float(np.mean(np.subtract(numbers[::2], numbers[1::2]))) - contrast.constant
