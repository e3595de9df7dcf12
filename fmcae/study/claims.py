"""The paper's claims, and findings of our own, as data: each is a few contrasts that are tested over the seeds.

A contrast is one number a seed, from runs of the same seed. It is claimed to be above 0, or within ±margin of 0. Student's
t over the seeds decides at the 5% level, one-sided; for a margin, two one-sided tests (TOST). A claim is confirmed if every
contrast is as claimed, not confirmed if one is significantly not, and undecided otherwise or with one seed.

All contrasts of a claim must hold together, so its confirmation needs no correction for their number (an
intersection-union test). One alone refutes it, so refutation does: Bonferroni's, 5% over their number.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fmcae.study.grid import DROPOUTS, LABELS, LATENT_DIMS, PARTS, label_count
from fmcae.study.results import Results, RunResult

Verdict = Literal["not confirmed", "undecided", "confirmed"]
PAPER_RECALL = 0.91  # Figure 6
ALPHA = 0.05
SAME_ACCURACY = 0.005  # half a point: what the paper's two digits cannot tell apart
SAME_LOSS = 0.02  # nats
_ROUNDING = 1e-12  # seeds whose numbers differ by less have the same number
CONFUSION_METRICS = ("mean test recall", "shirt is hardest", "shirt goes to similar")
_GAP = "val minus train cross-entropy"


@dataclass(frozen=True)
class Contrast:
    """One number a seed: a metric of one cell, less ``factor`` times that of a second, less ``constant``.

    Attributes:
        metric: what :func:`measure` takes.
        cells: part and cell, of one or two.
        margin: what is claimed of the number: None for "above 0", else "within ±margin of 0".
        label, subject, than: what the number is; what is compared in plain words; and with what, as it is read after
            "higher" or "lower". Where they are empty, they follow from the metric and the cells.
        values: the number of each seed that has the runs; filled by :func:`evaluate`.
    """

    metric: str
    cells: tuple[tuple[str, str], ...] = ()
    margin: float | None = None
    factor: float = 1.0
    constant: float = 0.0
    label: str = ""
    subject: str = ""
    than: str = ""
    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """The mean over the seeds; NaN without any."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def effect_size(self) -> float:
        """The mean over the sample standard deviation: Cohen's d of paired differences; NaN without a spread."""
        return self.mean / float(np.std(self.values, ddof=1)) if self._has_spread else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 90% confidence interval of the mean, which agrees with one-sided tests at 5%; NaN with one seed or none."""
        if len(self.values) < 2:
            return math.nan, math.nan
        half = float(stats.sem(self.values) * stats.t.ppf(1 - ALPHA, len(self.values) - 1))
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """The p-value of the one-sided test, or the larger one of the two; NaN with one seed or none."""
        low, high = self._claimed_range
        return max(self._p_above(low), 1 - self._p_above(high))

    def verdict(self, contrasts: int = 1) -> Verdict:
        """Return whether the number is as claimed, as one of so many contrasts of a claim."""
        if self.p_value < ALPHA:
            return "confirmed"
        low, high = self._claimed_range
        p_against = min(1 - self._p_above(low), self._p_above(high))
        return "not confirmed" if p_against < ALPHA / contrasts else "undecided"

    @property
    def _claimed_range(self) -> tuple[float, float]:
        return (0.0, math.inf) if self.margin is None else (-self.margin, self.margin)

    def _p_above(self, threshold: float) -> float:
        if len(self.values) < 2:
            return math.nan
        if not self._has_spread:  # where t is infinite, or 0 over 0
            return float(self.mean - threshold <= _ROUNDING)
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
        labels: the number of labels that it is about, if any; with no more training images it is left out.
    """

    name: str
    text: str
    where: str
    contrasts: tuple[Contrast, ...]
    classes: tuple[str, ...] = ()
    labels: int | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst of the contrasts' verdicts."""
        return min((contrast.verdict(len(self.contrasts)) for contrast in self.contrasts), key=get_args(Verdict).index)

    def fits(self, data: dict[str, Any]) -> bool:
        """Return whether the data set has what the claim is about."""
        return set(self.classes) <= set(data["class_names"]) and (self.labels or 0) < data["counts"]["train"]


def _measure_confusion(metric: str, confusion: NDArray[np.int64], class_names: Sequence[str]) -> float:
    counts = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(counts, 1)
    recall = np.diag(shares)
    if metric == "mean test recall":
        return float(recall[counts[:, 0] > 0].mean())
    shirt, *similar = map(class_names.index, ("Shirt", "Pullover", "T-shirt/top"))
    if metric == "shirt is hardest":
        return float(np.delete(recall, shirt).min() - recall[shirt])
    return float(shares[shirt, similar].min() - np.delete(shares[shirt], [shirt, *similar]).max(initial=0))


def measure(metric: str, run: RunResult, class_names: Sequence[str]) -> float:
    """Return such as "test MSE", or "val accuracy" after the last epoch, or one of CONFUSION_METRICS.

    "levelled val accuracy" is the mean of the last three epochs, less that of the three before half-time.
    """
    if metric in CONFUSION_METRICS:
        assert run.confusion is not None
        return _measure_confusion(metric, run.confusion, class_names)
    if metric == _GAP:
        return run.epochs["val_cross_entropy"][-1] - run.epochs["train_cross_entropy"][-1]
    split, _, name = metric.lower().replace("-", "_").replace(" ", "_").partition("_")
    if split == "test":
        return run.test[name]
    if split == "levelled":
        values, half = run.epochs[name], len(run.epochs[name]) // 2
        return float(np.mean(values[-3:]) - np.mean(values[max(half - 3, 0) : max(half, 1)]))
    return run.epochs[f"{split}_{name}"][-1]


def _difference(metric: str, part: str, first: str, second: str, **more: Any) -> Contrast:
    return Contrast(metric, ((part, first), (part, second)), **more)


def _worse(part: str, bad: str, good: str, *splits: str) -> Iterator[Contrast]:
    """A higher loss and a lower accuracy after the last epoch."""
    for split in splits:
        yield _difference(f"{split} cross-entropy", part, bad, good)
        yield _difference(f"{split} accuracy", part, good, bad)


def _no_overfitting(cell: str) -> Contrast:
    subject, than = f"val cross-entropy {_with(cell)}", "than the train cross-entropy"
    return Contrast(_GAP, (("figure-ap3", cell),), SAME_LOSS, subject=subject, than=than)


def _pretraining(part: str, first: str, second: str, margin: float | None = None) -> Contrast:
    than = "with a pre-trained encoder than with a random one"
    return _difference("test accuracy", part, first, second, margin=margin, than=than)


def _with(cell: str) -> str:
    if cell.startswith("with"):
        return cell
    return f"with a {cell} encoder" if ", " in cell else f"with {cell}"


_N, _P = [f"n={n}" for n in LATENT_DIMS], [f"p={p}" for p in DROPOUTS]
_TUNED, _FROZEN, _RANDOM = "pre-trained, fine-tuned", "pre-trained, frozen", "random, frozen"
_FINAL = (("final-model", "final model"),)
_POOLING = ("with pooling", "without pooling")

CLAIMS = (
    Claim("C1", "The autoencoder's test MSE falls as n grows from 64 to 512.", "Table 1",
        tuple(_difference("test MSE", "table-1", few, many) for few, many in pairwise(_N))),
    Claim("C2", "The autoencoder's test MSE rises with p; p=0.05 is the best of the four.", "Table 2",
        tuple(_difference("test MSE", "table-2", more, less) for less, more in pairwise(_P))),
    Claim("C3", "A learning rate of 0.001 is the best of 0.01, 0.001 and 0.0001.", "Table 3",
        tuple(_difference("test MSE", "table-3", f"lr={lr}", "lr=0.001") for lr in (0.01, 0.0001))),
    Claim("C4", "The classifier's loss falls and its accuracy rises with n, while the gap between train and validation "
        "widens. (Tested between the smallest and the largest n.)", "Figure 3", (
        *_worse("figure-3", _N[0], _N[-1], "train", "val"),
        _difference(_GAP, "figure-3", _N[-1], _N[0]))),
    Claim("C5", "The gap shrinks as p grows, and loss and accuracy get worse. (Tested between the smallest and the "
        "largest p.)", "Figure 4", (
        _difference(_GAP, "figure-4", _P[0], _P[-1]),
        *_worse("figure-4", _P[-1], _P[0], "train", "val"))),
    Claim("C6", "A learning rate of 0.001 is best for the classifier too.", "§3.2", (
        *_worse("learning-rate", "lr=0.01", "lr=0.001", "val"),
        *_worse("learning-rate", "lr=0.0001", "lr=0.001", "val"))),
    Claim("C7", "15 epochs give about what 30 give.", "Figure 5", tuple(
        Contrast(f"levelled {metric}", _FINAL, margin, label=f"{metric}: epochs {{end}} minus {{half}}",
            subject=metric, than="at the end than at half-time")
        for metric, margin in (("val accuracy", SAME_ACCURACY), ("val cross-entropy", SAME_LOSS)))),
    Claim("C8", "The mean of the confusion matrix's diagonal is 0.91.", "Figure 6", (
        Contrast("mean test recall", _FINAL, SAME_ACCURACY, constant=PAPER_RECALL,
            label=f"mean test recall minus {PAPER_RECALL}", than=f"than {PAPER_RECALL}"),)),
    Claim("C9", "Shirt is confused the most, and with pullover and T-shirt more than with any other class. (The paper "
        "says only that shirts are hard to tell from the two.)", "Figure 6", (
        Contrast("shirt is hardest", _FINAL, label="test recall: the next lowest class minus Shirt",
            subject="recall of the second hardest class", than="than Shirt's"),
        Contrast("shirt goes to similar", _FINAL,
            label="share of shirts: the rarer of pullover and T-shirt minus the most frequent other mistake",
            subject="share of shirts taken for the rarer one of pullover and T-shirt",
            than="than for the most frequent other class")),
        classes=("Shirt", "Pullover", "T-shirt/top")),
    Claim("C10", "Removing pooling makes the autoencoder much better: the test MSE falls from 0.019 to 0.004. (Tested: "
        "it falls to less than half.)", "Appendix", (
        _difference("test MSE", "appendix", *_POOLING, factor=2.0, label="test MSE: with pooling minus twice without",
            subject="test MSE with pooling", than="than twice that without"),)),
    Claim("C11", "Removing pooling does not change the classifier.", "Figure Ap.2", (
        _difference("val accuracy", "figure-ap2", *_POOLING, margin=SAME_ACCURACY),
        _difference("val cross-entropy", "figure-ap2", *_POOLING, margin=SAME_LOSS))),
    Claim("C12", "Freezing the encoder worsens loss and accuracy, and removes the overfitting.", "Figure Ap.3", (
        *_worse("figure-ap3", _FROZEN, _TUNED, "val"), _no_overfitting(_FROZEN))),
    Claim("C13", "An encoder with random weights, frozen, does badly in the same way. (The paper takes that "
        "as evidence for pre-training; F2 and F3 have the control that this lacks.)", "Figure Ap.3", (
        *_worse("figure-ap3", _RANDOM, _TUNED, "val"), _no_overfitting(_RANDOM))),
)  # fmt: skip

# What the paper leaves open: what pre-training is worth, with its control and with fewer labels; and a reading.
FINDINGS = (
    Claim("F1", "A pre-trained encoder, frozen, is better than a random one, frozen.", "control of C13",
        (_pretraining("figure-ap3", _FROZEN, _RANDOM),)),
    Claim("F2", "Pre-training helps where all {train} labels are used and the encoder is fine-tuned.", "control of C13",
        (_pretraining("figure-ap3", _TUNED, "random, fine-tuned"),)),
    Claim("F3", "With all {train} labels pre-training makes less than half a point of difference.", "control of C13",
        (_pretraining("figure-ap3", _TUNED, "random, fine-tuned", SAME_ACCURACY),)),
    *(
        Claim(f"F{number}", f"Pre-training on all images helps with {label_count(labels)}.", "few labels",
            (_pretraining("labels", f"{label_count(labels)}, pre-trained", f"{label_count(labels)}, random"),),
            labels=labels)
        for number, labels in enumerate(LABELS[:-1], 4)
    ),
    Claim("F9", f"The classifiers of Figure 4 come out the same where each starts from the autoencoder with "
        f"p={DROPOUTS[0]} instead of its own p.", "§3.2", tuple(
        Contrast(metric, (("encoder-dropout", f"p={p}"), ("figure-4", f"p={p}")), margin,
            label=f"{metric}, p={p}: pre-trained with p={DROPOUTS[0]} minus with its own",
            than=f"for p={p} from the autoencoder with p={DROPOUTS[0]} than from its own")
        for p, (metric, margin) in product(
            DROPOUTS[1:], (("test accuracy", SAME_ACCURACY), ("test cross-entropy", SAME_LOSS))))),
)  # fmt: skip


def evaluate(claims: Sequence[Claim], results: Results, seeds: Sequence[int], epochs: int) -> list[Claim]:
    """Return those of the claims that fit the data set, with their contrasts' values from the runs that there are."""
    evaluated = []
    for claim in claims:
        if claim.fits(results.data):
            contrasts = tuple(_with_values(contrast, results, seeds, epochs) for contrast in claim.contrasts)
            text = claim.text.format(train=f"{results.data['counts']['train']:,}")
            evaluated.append(replace(claim, text=text, contrasts=contrasts))
    return evaluated


def _with_values(contrast: Contrast, results: Results, seeds: Sequence[int], epochs: int) -> Contrast:
    values = []
    for seed in seeds:
        runs = [results.find(PARTS[part][cell](seed, epochs=epochs)) for part, cell in contrast.cells]
        if all(runs):
            first, *rest = (measure(contrast.metric, run, results.data["class_names"]) for run in runs if run)
            values.append(first - contrast.factor * sum(rest) - contrast.constant)
    cells = [cell for _, cell in contrast.cells]
    end, half = (f"{max(last - 2, 1)} to {max(last, 1)}" for last in (epochs, epochs // 2))
    label = contrast.label.format(end=end, half=half) or f"{contrast.metric}: {' minus '.join(cells)}"
    than = contrast.than or " than ".join(map(_with, cells))
    return replace(contrast, label=label, subject=contrast.subject or contrast.metric, than=than, values=tuple(values))
