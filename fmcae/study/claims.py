"""The paper's claims, and findings of our own, as data: each is a few contrasts that are tested over the seeds.

A contrast is one number a seed, from runs of the same seed. It is claimed to be above 0, or within ±margin of 0. Student's
t over the seeds decides at the 5% level, one-sided; for a margin, two one-sided tests (TOST). A claim is

    confirmed       if every contrast is as claimed
    not confirmed   if one is significantly not: below 0, or outside the margin
    undecided       otherwise, and where there is only one seed

All contrasts of a claim must hold together, so its confirmation needs no correction for their number (an
intersection-union test). One alone refutes it, so refutation does: Bonferroni's, 5% over their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fmcae.study.grid import DROPOUTS, LABELS, LATENT_DIMS, PARTS, label_count
from fmcae.study.paper import MEAN_RECALL
from fmcae.study.results import Results, RunResult

Verdict = Literal["confirmed", "not confirmed", "undecided"]
ALPHA = 0.05
SAME_ACCURACY = 0.005  # half a point: what the paper's two digits cannot tell apart
SAME_LOSS = 0.02  # nats
_ROUNDING = 1e-12  # seeds whose numbers differ by less have the same number


# --- statistics --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """One number a seed, and what is claimed of it.

    Attributes:
        label: what the number is.
        values: one for each seed that has the runs.
        margin: None for "above 0", else for "within ±margin of 0".
        subject: what is compared in plain words, such as "test MSE".
        than: what it is compared with; "with n=64 than with n=128" is read after "higher" or "lower".
    """

    label: str
    values: tuple[float, ...]
    margin: float | None = None
    subject: str = ""
    than: str = ""

    @property
    def mean(self) -> float:
        """The mean over the seeds; NaN without any."""
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def effect_size(self) -> float:
        """The mean over the sample standard deviation: Cohen's d of paired differences; NaN without a spread."""
        return self.mean / float(np.std(self.values, ddof=1)) if self._has_spread else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 90% confidence interval of the mean, which agrees with one-sided tests at 5%; NaN with one seed or none."""
        if not self._has_spread:
            return (self.mean, self.mean) if len(self.values) > 1 else (float("nan"), float("nan"))
        low, high = stats.ttest_1samp(self.values, 0).confidence_interval(1 - 2 * ALPHA)
        return float(low), float(high)

    @property
    def p_value(self) -> float:
        """The p-value of the one-sided test, or the larger one of the two; NaN with fewer than two seeds."""
        if self.margin is None:
            return self._p_value("greater", 0)
        return max(self._p_value("greater", -self.margin), self._p_value("less", self.margin))

    def verdict(self, contrasts: int = 1) -> Verdict:
        """Return whether the number is as claimed, as one of so many contrasts of a claim."""
        if self.p_value < ALPHA:
            return "confirmed"
        tests = [("less", 0.0)] if self.margin is None else [("greater", self.margin), ("less", -self.margin)]
        return "not confirmed" if min(self._p_value(*test) for test in tests) < ALPHA / contrasts else "undecided"

    def _p_value(self, alternative: str, threshold: float) -> float:
        if len(self.values) < 2:
            return float("nan")
        if not self._has_spread:  # where t is infinite, or 0 over 0
            difference = self.mean - threshold if alternative == "greater" else threshold - self.mean
            return 0.0 if difference > _ROUNDING else 1.0
        return float(stats.ttest_1samp(self.values, threshold, alternative=alternative).pvalue)

    @property
    def _has_spread(self) -> bool:
        return len(self.values) > 1 and float(np.ptp(self.values)) > _ROUNDING


@dataclass(frozen=True)
class Claim:
    """One statement, where the paper makes it, and the contrasts that it is tested by.

    Attributes:
        labels: the number of labels that a finding on pre-training is about; None for all, and for other claims.
    """

    name: str
    text: str
    where: str
    contrasts: tuple[Contrast, ...]
    labels: int | None = None

    def verdict_on(self, contrast: Contrast) -> Verdict:
        """Return the verdict on one of its contrasts."""
        return contrast.verdict(len(self.contrasts))

    @property
    def verdict(self) -> Verdict:
        """What the contrasts say together."""
        verdicts = {self.verdict_on(contrast) for contrast in self.contrasts}
        if "not confirmed" in verdicts:
            return "not confirmed"
        return "undecided" if "undecided" in verdicts else "confirmed"

    @property
    def seeds(self) -> int:
        """The number of seeds of the contrast that has fewest."""
        return min(len(contrast.values) for contrast in self.contrasts)


# --- metrics -----------------------------------------------------------------------------------------------------


def gap(run: RunResult) -> float:
    """Return how much a classifier overfits: val minus train cross-entropy after the last epoch, in nats."""
    return run.epochs["val_cross_entropy"][-1] - run.epochs["train_cross_entropy"][-1]


def mean_recall(run: RunResult) -> float:
    """Return the mean of the confusion matrix's diagonal, over the classes that test has."""
    assert run.confusion is not None
    return float(np.diag(_shares(run))[run.confusion.sum(axis=1) > 0].mean())


def _shares(run: RunResult) -> NDArray[np.float64]:
    """The confusion matrix (K, K) with rows that sum to 1; a class without images has zeros."""
    assert run.confusion is not None
    shares: NDArray[np.float64] = run.confusion / np.maximum(run.confusion.sum(axis=1, keepdims=True), 1)
    return shares


def _levelled(values: Sequence[float]) -> float:
    """The mean of the last three epochs minus that of the three before half-time."""
    half = len(values) // 2
    return float(np.mean(values[-3:]) - np.mean(values[max(half - 3, 0) : max(half, 1)]))


def _shirt_is_hardest(run: RunResult, class_names: Sequence[str]) -> float:
    shirt, recall = class_names.index("Shirt"), np.diag(_shares(run))
    return float(np.delete(recall, shirt).min() - recall[shirt])


def _shirt_goes_to_similar(run: RunResult, class_names: Sequence[str]) -> float:
    row = dict(zip(class_names, _shares(run)[class_names.index("Shirt")], strict=True))
    del row["Shirt"]
    rarer = min(row.pop("Pullover"), row.pop("T-shirt/top"))
    return float(rarer - max(row.values(), default=0.0))


METRICS: dict[str, Callable[[RunResult, Sequence[str]], float]] = {
    "val minus train cross-entropy": lambda run, _: gap(run),
    "mean test recall": lambda run, _: mean_recall(run),
    "levelled val accuracy": lambda run, _: _levelled(run.epochs["val_accuracy"]),
    "levelled val cross-entropy": lambda run, _: _levelled(run.epochs["val_cross_entropy"]),
    "shirt is hardest": _shirt_is_hardest,
    "shirt goes to similar": _shirt_goes_to_similar,
}


def measure(metric: str, run: RunResult, class_names: Sequence[str]) -> float:
    """Return one of METRICS, or such as "test MSE" (after the last epoch) or "val accuracy" (of the last epoch)."""
    if metric in METRICS:
        return METRICS[metric](run, class_names)
    split, _, name = metric.lower().replace("-", "_").partition(" ")
    return run.test[name] if split == "test" else run.epochs[f"{split}_{name}"][-1]


# --- what is claimed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A contrast as data: the metric of the first cell, less ``factor`` times that of the second, less ``constant``.

    The other attributes are those of a :class:`Contrast`; where they are empty, they follow from the metric and the cells.
    """

    metric: str
    cells: tuple[tuple[str, str], ...]  # part and cell: one, or two to compare
    margin: float | None = None
    factor: float = 1.0
    constant: float = 0.0
    label: str = ""
    subject: str = ""
    than: str = ""


@dataclass(frozen=True)
class Statement:
    """A claim as data. In its text {train} stands for the number of training images.

    Attributes:
        classes: the classes that it is about; without one of them the claim is left out.
        labels: as in :class:`Claim`; with fewer training images the claim is left out.
    """

    name: str
    text: str
    where: str
    comparisons: tuple[Comparison, ...]
    classes: tuple[str, ...] = ()
    labels: int | None = None

    def fits(self, data: dict[str, Any]) -> bool:
        """Return whether the data set has what the claim is about."""
        return set(self.classes) <= set(data["class_names"]) and (self.labels or 0) < data["counts"]["train"]


def _difference(metric: str, part: str, first: str, second: str, **more: Any) -> Comparison:
    return Comparison(metric, ((part, first), (part, second)), **more)


def _worse(split: str, part: str, bad: str, good: str) -> tuple[Comparison, Comparison]:
    """A higher loss and a lower accuracy after the last epoch."""
    return (
        _difference(f"{split} cross-entropy", part, bad, good),
        _difference(f"{split} accuracy", part, good, bad),
    )


def _no_overfitting(cell: str) -> Comparison:
    return Comparison(
        "val minus train cross-entropy",
        (("figure-ap3", cell),),
        SAME_LOSS,
        subject=f"val cross-entropy {_with(cell)}",
        than="than the train cross-entropy",
    )


def _pretraining(part: str, first: str, second: str, margin: float | None = None) -> Comparison:
    than = "with a pre-trained encoder than with a random one"
    return _difference("test accuracy", part, first, second, margin=margin, than=than)


def _other_autoencoder(metric: str, p: float, margin: float) -> Comparison:
    return Comparison(
        metric,
        (("encoder-dropout", f"p={p}"), ("figure-4", f"p={p}")),
        margin,
        label=f"{metric}, p={p}: pre-trained with p={DROPOUTS[0]} minus with its own",
        than=f"for p={p} from the autoencoder with p={DROPOUTS[0]} than from its own",
    )


def _with(cell: str) -> str:
    if cell.startswith("with"):
        return cell
    return f"with a {cell} encoder" if ", " in cell else f"with {cell}"


_N, _P = [f"n={n}" for n in LATENT_DIMS], [f"p={p}" for p in DROPOUTS]
_TUNED, _FROZEN, _RANDOM = "pre-trained, fine-tuned", "pre-trained, frozen", "random, frozen"
_FINAL = (("final-model", "final model"),)
_POOLING = ("with pooling", "without pooling")

CLAIMS = (
    Statement("C1", "The autoencoder's test MSE falls as n grows from 64 to 512.", "Table 1",
        tuple(_difference("test MSE", "table-1", few, many) for few, many in pairwise(_N))),
    Statement("C2", "The autoencoder's test MSE rises with p; p=0.05 is the best of the four.", "Table 2",
        tuple(_difference("test MSE", "table-2", more, less) for less, more in pairwise(_P))),
    Statement("C3", "A learning rate of 0.001 is the best of 0.01, 0.001 and 0.0001.", "Table 3",
        tuple(_difference("test MSE", "table-3", f"lr={lr}", "lr=0.001") for lr in (0.01, 0.0001))),
    Statement("C4", "The classifier's loss falls and its accuracy rises with n, while the gap between train and validation "
        "widens. (Tested between the smallest and the largest n.)", "Figure 3", (
        *_worse("train", "figure-3", _N[0], _N[-1]),
        *_worse("val", "figure-3", _N[0], _N[-1]),
        _difference("val minus train cross-entropy", "figure-3", _N[-1], _N[0]))),
    Statement("C5", "The gap shrinks as p grows, and loss and accuracy get worse. (Tested between the smallest and the "
        "largest p.)", "Figure 4", (
        _difference("val minus train cross-entropy", "figure-4", _P[0], _P[-1]),
        *_worse("train", "figure-4", _P[-1], _P[0]),
        *_worse("val", "figure-4", _P[-1], _P[0]))),
    Statement("C6", "A learning rate of 0.001 is best for the classifier too.", "§3.2", (
        *_worse("val", "learning-rate", "lr=0.01", "lr=0.001"),
        *_worse("val", "learning-rate", "lr=0.0001", "lr=0.001"))),
    Statement("C7", "15 epochs give about what 30 give.", "Figure 5", tuple(
        Comparison(f"levelled {metric}", _FINAL, margin, label=f"{metric}: epochs {{end}} minus {{half}}",
            subject=metric, than="at the end than at half-time")
        for metric, margin in (("val accuracy", SAME_ACCURACY), ("val cross-entropy", SAME_LOSS)))),
    Statement("C8", "The mean of the confusion matrix's diagonal is 0.91.", "Figure 6", (
        Comparison("mean test recall", _FINAL, SAME_ACCURACY, constant=MEAN_RECALL,
            label=f"mean test recall minus {MEAN_RECALL}", than=f"than {MEAN_RECALL}"),)),
    Statement("C9", "Shirt is confused the most, and with pullover and T-shirt more than with any other class. (The paper "
        "says only that shirts are hard to tell from the two.)", "Figure 6", (
        Comparison("shirt is hardest", _FINAL, label="test recall: the next lowest class minus Shirt",
            subject="recall of the second hardest class", than="than Shirt's"),
        Comparison("shirt goes to similar", _FINAL,
            label="share of shirts: the rarer of pullover and T-shirt minus the most frequent other mistake",
            subject="share of shirts taken for the rarer one of pullover and T-shirt",
            than="than for the most frequent other class")),
        classes=("Shirt", "Pullover", "T-shirt/top")),
    Statement("C10", "Removing pooling makes the autoencoder much better: the test MSE falls from 0.019 to 0.004. (Tested: "
        "it falls to less than half.)", "Appendix", (
        _difference("test MSE", "appendix", *_POOLING, factor=2.0, label="test MSE: with pooling minus twice without",
            subject="test MSE with pooling", than="than twice that without"),)),
    Statement("C11", "Removing pooling does not change the classifier.", "Figure Ap.2", (
        _difference("val accuracy", "figure-ap2", *_POOLING, margin=SAME_ACCURACY),
        _difference("val cross-entropy", "figure-ap2", *_POOLING, margin=SAME_LOSS))),
    Statement("C12", "Freezing the encoder worsens loss and accuracy, and removes the overfitting.", "Figure Ap.3", (
        *_worse("val", "figure-ap3", _FROZEN, _TUNED), _no_overfitting(_FROZEN))),
    Statement("C13", "An encoder with random weights, frozen, does badly in the same way. (The paper takes that "
        "as evidence for pre-training; F2 and F3 have the control that this lacks.)", "Figure Ap.3", (
        *_worse("val", "figure-ap3", _RANDOM, _TUNED), _no_overfitting(_RANDOM))),
)  # fmt: skip

# What the paper leaves open: what pre-training is worth, with its control and with fewer labels; and a reading.
FINDINGS = (
    Statement("F1", "A pre-trained encoder, frozen, is better than a random one, frozen.", "control of C13",
        (_pretraining("figure-ap3", _FROZEN, _RANDOM),)),
    Statement("F2", "Pre-training helps where all {train} labels are used and the encoder is fine-tuned.", "control of C13",
        (_pretraining("figure-ap3", _TUNED, "random, fine-tuned"),)),
    Statement("F3", "With all {train} labels pre-training makes less than half a point of difference.", "control of C13",
        (_pretraining("figure-ap3", _TUNED, "random, fine-tuned", SAME_ACCURACY),)),
    *(
        Statement(f"F{number}", f"Pre-training on all images helps with {label_count(labels)}.", "few labels",
            (_pretraining("labels", f"{label_count(labels)}, pre-trained", f"{label_count(labels)}, random"),),
            labels=labels)
        for number, labels in enumerate(LABELS[:-1], 4)
    ),
    Statement("F9", f"The classifiers of Figure 4 come out the same where each starts from the autoencoder with "
        f"p={DROPOUTS[0]} instead of its own p.", "§3.2", tuple(
        _other_autoencoder(metric, p, margin) for p, (metric, margin) in product(
            DROPOUTS[1:], (("test accuracy", SAME_ACCURACY), ("test cross-entropy", SAME_LOSS))))),
)  # fmt: skip


def evaluate(statements: Sequence[Statement], results: Results, seeds: Sequence[int], epochs: int) -> list[Claim]:
    """Test those of the statements that fit the data set on the runs that there are."""
    train = f"{results.data['counts']['train']:,}"
    return [
        Claim(
            statement.name,
            statement.text.format(train=train),
            statement.where,
            tuple(_contrast(comparison, results, seeds, epochs) for comparison in statement.comparisons),
            statement.labels,
        )
        for statement in statements
        if statement.fits(results.data)
    ]


def _contrast(comparison: Comparison, results: Results, seeds: Sequence[int], epochs: int) -> Contrast:
    values = []
    for seed in seeds:
        runs = [results.find(PARTS[part][cell](seed, epochs=epochs)) for part, cell in comparison.cells]
        numbers = [measure(comparison.metric, run, results.data["class_names"]) for run in runs if run]
        if len(numbers) == len(runs):
            values.append(numbers[0] - comparison.factor * sum(numbers[1:]) - comparison.constant)
    cells = [cell for _, cell in comparison.cells]
    half = epochs // 2
    return Contrast(
        label=comparison.label.format(
            end=f"{max(epochs - 2, 1)} to {epochs}", half=f"{max(half - 2, 1)} to {max(half, 1)}"
        )
        or f"{comparison.metric}: {' minus '.join(cells)}",
        values=tuple(values),
        margin=comparison.margin,
        subject=comparison.subject or comparison.metric,
        than=comparison.than or " than ".join(map(_with, cells)),
    )
