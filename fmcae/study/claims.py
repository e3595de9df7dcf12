"""The paper's claims, each as contrasts between runs that are tested over seeds.

A contrast is one number a seed, from runs of the same seed. It is claimed to be above 0, or within ±margin of 0. Student's
t over the seeds decides at the 5% level, one-sided; for a margin, two one-sided tests (TOST). A claim is

    confirmed       if every contrast is as claimed
    not confirmed   if one is significantly not: below 0, or outside the margin
    undecided       otherwise, and where there is only one seed

All contrasts of a claim must hold together, so its confirmation needs no correction for their number (an
intersection-union test). One alone refutes it, so refutation does: Bonferroni's, 5% over their number.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import stats

from fmcae.study.grid import DROPOUTS, LABELS, LATENT_DIMS, PARTS, TRAIN_IMAGES, label_count
from fmcae.study.paper import MEAN_RECALL
from fmcae.study.results import Results, RunResult

Verdict = Literal["confirmed", "not confirmed", "undecided"]
ALPHA = 0.05
SAME_ACCURACY = 0.005  # half a point: what the paper's two digits cannot tell apart
SAME_LOSS = 0.02  # nats
GAP = "val minus train cross-entropy"
Value = Callable[[RunResult], float]


@dataclass(frozen=True)
class Contrast:
    """One number a seed, and what is claimed of it.

    Attributes:
        says: what the number is.
        values: one for each seed that has the runs.
        margin: None for "above 0", else for "within ±margin of 0".
        subject: what is compared, in plain words, such as "the test MSE".
        comparison: with what; "with n=64 than with n=128" is read after "higher" or "lower".
    """

    says: str
    values: tuple[float, ...]
    margin: float | None = None
    subject: str = ""
    comparison: str = ""

    @property
    def mean(self) -> float:
        """Over the seeds; NaN without any."""
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds; NaN with fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    @property
    def effect_size(self) -> float:
        """Mean over standard deviation: Cohen's d of paired differences. Of a margin's contrast too."""
        return self.mean / self.std if self.std > 0 else float("nan")

    @cached_property
    def interval(self) -> tuple[float, float]:
        """90% confidence interval of the mean, which agrees with one-sided tests at 5%; NaN with fewer than two seeds."""
        count = len(self.values)
        if count < 2:
            return float("nan"), float("nan")
        half = float(stats.t.ppf(1 - ALPHA, count - 1)) * self.std / np.sqrt(count)
        return self.mean - half, self.mean + half

    @cached_property
    def p_value(self) -> float:
        """Of the one-sided test, or the larger one of the two; NaN with fewer than two seeds."""
        if self.margin is None:
            return self._p_above(0)
        return max(self._p_above(-self.margin), 1 - self._p_above(self.margin))

    def verdict(self, among: int = 1) -> Verdict:
        """Whether the number is as claimed, as one of ``among`` contrasts of a claim."""
        if self.p_value < ALPHA:
            return "confirmed"
        level = ALPHA / among
        if self.margin is None:
            refuted = self._p_above(0) > 1 - level
        else:
            refuted = self._p_above(self.margin) < level or self._p_above(-self.margin) > 1 - level
        return "not confirmed" if refuted else "undecided"

    def _p_above(self, threshold: float) -> float:
        """Of the hypothesis that the mean is not above ``threshold``."""
        if len(self.values) < 2:
            return float("nan")
        if self.std == 0:
            return 0.0 if self.mean > threshold else 1.0
        t = (self.mean - threshold) / (self.std / np.sqrt(len(self.values)))
        return float(stats.t.sf(t, len(self.values) - 1))


@dataclass(frozen=True)
class Claim:
    """One statement, where the paper makes it, and the contrasts that it is tested by."""

    name: str
    text: str
    where: str
    contrasts: tuple[Contrast, ...]
    labels: int | None = None  # of a finding on pre-training with so many

    def of(self, contrast: Contrast) -> Verdict:
        """The verdict on one of its contrasts."""
        return contrast.verdict(len(self.contrasts))

    @property
    def verdict(self) -> Verdict:
        """What the contrasts say together."""
        verdicts = {self.of(contrast) for contrast in self.contrasts}
        if "not confirmed" in verdicts:
            return "not confirmed"
        return "undecided" if "undecided" in verdicts else "confirmed"

    @property
    def seeds(self) -> int:
        """Of the contrast that has fewest."""
        return min(len(contrast.values) for contrast in self.contrasts)


def on_test(metric: str) -> Value:
    """A metric on the test split."""
    return lambda run: run.test[metric]


def after(metric: str) -> Value:
    """A metric after the last epoch."""
    return lambda run: run.epochs[metric][-1]


def gap(run: RunResult) -> float:
    """How much the classifier overfits: val minus train cross-entropy after the last epoch, in nats."""
    return run.epochs["val_cross_entropy"][-1] - run.epochs["train_cross_entropy"][-1]


def mean_recall(run: RunResult) -> float:
    """Mean of the confusion matrix's diagonal."""
    return float(np.diag(shares(run)).mean())


def shares(run: RunResult) -> np.ndarray:
    """The confusion matrix (K, K) with rows that sum to 1."""
    assert run.confusion is not None
    counts: np.ndarray = run.confusion / run.confusion.sum(axis=1, keepdims=True)
    return counts


def check(results: Results, seeds: Sequence[int], epochs: int = 30) -> list[Claim]:
    """C1 to C13 on the runs that there are."""

    def difference(part: str, more: str, less: str, value: Value, what: str, margin: float | None = None) -> Contrast:
        """``value`` of one cell minus that of another."""
        pairs = _runs(results, seeds, epochs, (part, more), (part, less))
        values = tuple(value(a) - value(b) for a, b in pairs)
        comparison = f"{_where(more)} than {_where(less)}"
        subject = "the gap between val and train cross-entropy" if what == GAP else f"the {what}"
        return Contrast(f"{what}: {more} minus {less}", values, margin, subject, comparison)

    def overfitting(part: str, cell: str) -> Contrast:
        """That there is none."""
        values = tuple(gap(run) for (run,) in _runs(results, seeds, epochs, (part, cell)))
        subject = f"the val cross-entropy {_where(cell)}"
        return Contrast(f"{GAP}: {cell}", values, SAME_LOSS, subject, "than the train cross-entropy")

    def final(value: Value, says: str, subject: str, comparison: str, margin: float | None = None) -> Contrast:
        runs = _runs(results, seeds, epochs, ("final-model", "final model"))
        return Contrast(says, tuple(value(run) for (run,) in runs), margin, subject, comparison)

    def worse(part: str, bad: str, good: str, split: str) -> tuple[Contrast, Contrast]:
        """Loss and accuracy after the last epoch."""
        loss, accuracy = after(f"{split}_cross_entropy"), after(f"{split}_accuracy")
        return (
            difference(part, bad, good, loss, f"{split} cross-entropy"),
            difference(part, good, bad, accuracy, f"{split} accuracy"),
        )

    def levelled(metric: str) -> Value:
        """After the last epoch minus halfway, each as the mean of three epochs."""
        return lambda run: float(
            np.mean(run.epochs[metric][-3:])
            - np.mean(run.epochs[metric][max(epochs // 2 - 3, 0) : max(epochs // 2, 1)])
        )

    mse = on_test("mse")
    n, p = [f"n={n}" for n in LATENT_DIMS], [f"p={p}" for p in DROPOUTS]
    tuned, kept, untrained = "pre-trained, fine-tuned", "pre-trained, frozen", "random, frozen"
    shirt, others = results.class_names.index("Shirt"), ("Pullover", "T-shirt/top")
    similar = [results.class_names.index(name) for name in others]

    def shirt_is_hardest(run: RunResult) -> float:
        diagonal = np.diag(shares(run))
        return float(np.delete(diagonal, shirt).min() - diagonal[shirt])

    dissimilar = [index for index in range(len(results.class_names)) if index not in (shirt, *similar)]
    finals = [shares(run)[shirt] for (run,) in _runs(results, seeds, epochs, ("final-model", "final model"))]
    next_most = dissimilar[int(np.mean(finals, axis=0)[dissimilar].argmax())] if finals else dissimilar[0]

    def shirt_goes_to(run: RunResult) -> float:
        row = shares(run)[shirt]
        return float(row[similar].min() - row[dissimilar].max())

    return [
        Claim("C1", "The autoencoder's test MSE falls as n grows from 64 to 512.", "Table 1", tuple(
            difference("table-1", few, many, mse, "test MSE") for few, many in pairwise(n)
        )),
        Claim("C2", "The autoencoder's test MSE rises with p; p=0.05 is the best of the four.", "Table 2", tuple(
            difference("table-2", more, less, mse, "test MSE") for less, more in pairwise(p)
        )),
        Claim("C3", "A learning rate of 0.001 is the best of 0.01, 0.001 and 0.0001.", "Table 3", tuple(
            difference("table-3", f"lr={lr}", "lr=0.001", mse, "test MSE") for lr in (0.01, 0.0001)
        )),
        Claim("C4", "The classifier's loss falls and its accuracy rises with n, while the gap between train and "
              "validation widens. (Tested between the smallest and the largest n.)", "Figure 3", (
            *worse("figure-3", n[0], n[-1], "train"),
            *worse("figure-3", n[0], n[-1], "val"),
            difference("figure-3", n[-1], n[0], gap, GAP),
        )),
        Claim("C5", "The gap shrinks as p grows, and loss and accuracy get worse. (Tested between the smallest and the "
              "largest p.)", "Figure 4", (
            difference("figure-4", p[0], p[-1], gap, GAP),
            *worse("figure-4", p[-1], p[0], "train"),
            *worse("figure-4", p[-1], p[0], "val"),
        )),
        Claim("C6", "A learning rate of 0.001 is best for the classifier too.", "§3.2", tuple(
            contrast for lr in (0.01, 0.0001) for contrast in worse("learning-rate", f"lr={lr}", "lr=0.001", "val")
        )),
        Claim("C7", "15 epochs give about what 30 give.", "Figure 5", (
            final(levelled("val_accuracy"), "val accuracy: epochs 28 to 30 minus 13 to 15", "the val accuracy",
                  "after 30 epochs than after 15", SAME_ACCURACY),
            final(levelled("val_cross_entropy"), "val cross-entropy: epochs 28 to 30 minus 13 to 15",
                  "the val cross-entropy", "after 30 epochs than after 15", SAME_LOSS),
        )),
        Claim("C8", "The mean of the confusion matrix's diagonal is 0.91.", "Figure 6", (
            final(lambda run: mean_recall(run) - MEAN_RECALL, f"mean test recall minus {MEAN_RECALL}",
                  "the mean recall on test", f"than {MEAN_RECALL}", SAME_ACCURACY),
        )),
        Claim("C9", "Shirt is confused the most, and with pullover and T-shirt more than with any other class. (The paper "
              "says only that shirts are hard to tell from the two.)", "Figure 6", (
            final(shirt_is_hardest, "test recall: the next lowest class minus Shirt",
                  "the recall of the second hardest class", "than Shirt's"),
            final(shirt_goes_to, "share of shirts: the rarer of pullover and T-shirt minus the most frequent other mistake",
                  "the share of shirts taken for the rarer one of pullover and T-shirt",
                  f"than for the most frequent other class, {results.class_names[next_most]}"),
        )),
        Claim("C10", "Removing pooling makes the autoencoder much better: the test MSE falls from 0.019 to 0.004. (Tested: "
              "it falls to less than half.)", "Appendix", (
            Contrast("test MSE: with pooling minus twice without", tuple(
                a.test["mse"] - 2 * b.test["mse"] for a, b in _runs(
                    results, seeds, epochs, ("appendix", "with pooling"), ("appendix", "without pooling"))
            ), None, "the test MSE with pooling", "than twice that without"),
        )),
        Claim("C11", "Removing pooling does not change the classifier.", "Figure Ap.2", (
            difference("figure-ap2", "with pooling", "without pooling", after("val_accuracy"), "val accuracy",
                       SAME_ACCURACY),
            difference("figure-ap2", "with pooling", "without pooling", after("val_cross_entropy"), "val cross-entropy",
                       SAME_LOSS),
        )),
        Claim("C12", "Freezing the encoder worsens loss and accuracy, and removes the overfitting.", "Figure Ap.3", (
            *worse("figure-ap3", kept, tuned, "val"),
            overfitting("figure-ap3", kept),
        )),
        Claim("C13", "An encoder with random weights, frozen, does badly in the same way. (The paper takes that "
              "as evidence for pre-training; F2 and F3 have the control that this lacks.)", "Figure Ap.3", (
            *worse("figure-ap3", untrained, tuned, "val"),
            overfitting("figure-ap3", untrained),
        )),
    ]  # fmt: skip


def findings(results: Results, seeds: Sequence[int], epochs: int = 30) -> list[Claim]:
    """What the paper leaves open: what pre-training is worth, with its control and with fewer labels; and a reading."""
    accuracy = on_test("accuracy")

    def helps(part: str, pretrained: str, random: str, subject: str, margin: float | None = None) -> Contrast:
        pairs = _runs(results, seeds, epochs, (part, pretrained), (part, random))
        values = tuple(accuracy(a) - accuracy(b) for a, b in pairs)
        comparison = "with a pre-trained encoder than with a random one"
        return Contrast(f"test accuracy: {pretrained} minus {random}", values, margin, subject, comparison)

    def from_another(p: float) -> Iterable[Contrast]:
        """The same classifier from another autoencoder minus from its own."""
        pairs = _runs(results, seeds, epochs, ("encoder-dropout", f"p={p}"), ("figure-4", f"p={p}"))
        for metric, what, margin in (
            ("accuracy", "test accuracy", SAME_ACCURACY),
            ("cross_entropy", "test cross-entropy", SAME_LOSS),
        ):
            values = tuple(on_test(metric)(a) - on_test(metric)(b) for a, b in pairs)
            says = f"{what}, p={p}: pre-trained with p={DROPOUTS[0]} minus with its own"
            subject = f"the {what} from the autoencoder with p={DROPOUTS[0]}"
            yield Contrast(says, values, margin, subject, f"for p={p} than from that with p={p}")

    tuned = ("figure-ap3", "pre-trained, fine-tuned", "random, fine-tuned", "the test accuracy")
    return [
        Claim("F1", "A pre-trained encoder, frozen, is better than a random one, frozen.", "control of C13", (
            helps("figure-ap3", "pre-trained, frozen", "random, frozen", "the test accuracy of a frozen encoder"),
        )),
        Claim("F2", "Pre-training helps where all 50,000 labels are used and the encoder is fine-tuned.",
              "control of C13", (helps(*tuned),), TRAIN_IMAGES),
        Claim("F3", "With all 50,000 labels pre-training makes less than half a point of difference.", "control of C13", (
            helps(*tuned, SAME_ACCURACY),
        )),
        *(
            Claim(f"F{4 + index}", f"Pre-training on all images helps with {label_count(labels)}.", "few labels", (
                helps("labels", f"{label_count(labels)}, pre-trained", f"{label_count(labels)}, random",
                      "the test accuracy"),
            ), labels)
            for index, labels in enumerate(LABELS[:-1])
        ),
        Claim("F9", f"The classifiers of Figure 4 come out the same where each starts from the autoencoder with "
              f"p={DROPOUTS[0]} instead of its own p.", "§3.2", tuple(
            contrast for p in DROPOUTS[1:] for contrast in from_another(p)
        )),
    ]  # fmt: skip


def _runs(results: Results, seeds: Iterable[int], epochs: int, *cells: tuple[str, str]) -> list[tuple[RunResult, ...]]:
    """For each seed that has them all, the cells' runs."""
    found = []
    for seed in seeds:
        runs = [results.of(PARTS[part][cell](seed, epochs=epochs)) for part, cell in cells]
        if all(run is not None for run in runs):
            found.append(tuple(run for run in runs if run is not None))
    return found


def _where(cell: str) -> str:
    """A cell's name as it reads in a sentence."""
    if cell.startswith("with"):
        return cell
    return f"with a {cell} encoder" if ", " in cell else f"with {cell}"
