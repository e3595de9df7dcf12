"""The one definition of each metric, in numpy and float64.

A metric over a split is the mean over its images; the paper's mean over batches equals it if they are of one size.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import UsageError

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
Z_95 = 1.959963984540054  # 95% of a normal distribution lie within so many standard deviations of its mean
CALIBRATION_BINS = 15


def mse(x: FloatArray, x_hat: FloatArray) -> float:
    """The mean squared error of inputs and reconstructions, both (N, ...) in [0, 1]. Source: the paper's ECM, §1.2.3."""
    difference = np.subtract(x, x_hat).reshape(len(x), -1)
    total = np.einsum("np,np->n", difference, difference, dtype=np.float64)
    return float((total / difference.shape[1]).mean())


def softmax(logits: FloatArray, temperature: float = 1) -> NDArray[np.float32]:
    """The probabilities (N, K) float32 of logits (N, K), each row summing to 1.

    Logits are divided by the temperature first: above 1 it makes every image less certain and changes no label.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    with np.errstate(over="ignore"):  # to minus infinity, whose exponential is right
        shifted = logits - logits.max(axis=-1, keepdims=True)
        shifted = np.exp(shifted if temperature == 1 else shifted / temperature, dtype=np.float64)
    probabilities: NDArray[np.float32] = (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def cross_entropy(logits: FloatArray, labels: IntArray) -> float:
    """The mean cross-entropy in nats of logits (N, K) and class indices (N,). Source: the paper's equation 2 (in bits)."""
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sum - shifted[np.arange(len(labels)), labels]).mean())


def accuracy(logits: FloatArray, labels: IntArray) -> float:
    """The share in [0, 1] of rows of logits (N, K) whose largest entry is the label's (N,)."""
    return float((logits.argmax(axis=1) == labels).mean())


def confusion(logits: FloatArray, labels: IntArray) -> NDArray[np.int64]:
    """The counts (K, K) int64: row = true class, column = predicted class. Source: the paper's Figure 6."""
    return confusion_of(logits.argmax(axis=1), labels, logits.shape[1])


def confusion_of(predicted: IntArray, labels: IntArray, class_count: int) -> NDArray[np.int64]:
    """The counts (K, K) int64 of :func:`confusion`, from predicted and true class indices, both (N,)."""
    pairs = labels.astype(np.int64) * class_count + predicted
    return np.bincount(pairs, minlength=class_count**2).reshape(class_count, class_count)


@dataclass(frozen=True)
class ClassScores:
    """How well each class is told from the others: three arrays (K,) float64 in [0, 1], NaN where nothing defines it.

    ``recall`` is the share of a class's images that get its label, ``precision`` the share of the images with its label
    that are of the class, and ``f1`` their harmonic mean.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    f1: NDArray[np.float64]


def class_scores(counts: IntArray) -> ClassScores:
    """Compute the scores of each class from the counts (K, K) of :func:`confusion`."""
    right, images, predicted = np.diag(counts).astype(np.float64), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0/0, of a class without images or one that nothing is taken for
        return ClassScores(right / images, right / predicted, 2 * right / (images + predicted))


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95% interval in [0, 1] of a share that was seen as ``right`` out of ``count`` independent images.

    Unlike the share plus and minus two standard errors it also holds for few images and for shares close to 0 or 1.
    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.

    Raises:
        UsageError: ``count`` is less than 1, or ``right`` is not between 0 and it.
    """
    if count < 1 or not 0 <= right <= count:
        raise UsageError(f"right (={right}) must be from 0 to count (={count}), which must be at least 1")
    share, z_squared = right / count, Z_95**2
    centre = share + z_squared / (2 * count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z_squared / (4 * count**2))
    low, high = ((centre + side * half) / (1 + z_squared / count) for side in (-1, 1))
    return max(0.0, low) if right else 0.0, min(1.0, high) if right < count else 1.0


def known_score(logits: FloatArray) -> NDArray[np.float64]:
    """How much each image looks like what the model was trained on: (N,) in [0, 1] of logits (N, K), 1 for familiar.

    It is Σ exp(logits) / (1 + Σ exp(logits)). A network of the robust recipe learns one class more, "unknown", whose
    logit is fixed at 0; its outputs and that 0 go into one softmax over K + 1 classes, and the score is 1 minus the
    probability of unknown. For any other network it orders images as the energy score does, because it grows with
    log Σ exp(logits). Source: Liu et al. 2020, arXiv:2010.03759, section 3.
    """
    top = logits.max(axis=-1, initial=0).astype(np.float64)  # so that no exponent is above 0
    total = np.exp(logits - top[..., np.newaxis]).sum(axis=-1)
    score: NDArray[np.float64] = total / (np.exp(-top) + total)
    return score


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of a reliability diagram: ``count`` images, their mean confidence and their accuracy, both in [0, 1]."""

    confidence: float
    accuracy: float
    count: int


def reliability(probabilities: FloatArray, labels: IntArray, bins: int = CALIBRATION_BINS) -> list[ReliabilityBin]:
    """Group images by confidence, the probability of their most probable class, into ``bins`` of equal width.

    A reliability diagram shows them. Bins without images are left out.

    Args:
        probabilities: (N, K) in [0, 1].
        labels: (N,) class indices.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)  # each bin has its upper edge
    members = [index == number for number in np.unique(index)]
    return [ReliabilityBin(float(confidence[m].mean()), float(right[m].mean()), int(m.sum())) for m in members]


def expected_calibration_error(probabilities: FloatArray, labels: IntArray, bins: int = CALIBRATION_BINS) -> float:
    """The mean gap in [0, 1] between confidence and accuracy, over the bins of :func:`reliability` by their images.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    groups = reliability(probabilities, labels, bins)
    return sum(group.count * abs(group.confidence - group.accuracy) for group in groups) / len(labels)


def auroc(known_scores: FloatArray, unknown_scores: FloatArray) -> float:
    """The chance in [0, 1] that a known image has a higher score than an unknown one, equal scores counting half.

    That is the area under the ROC curve. Source: Mann and Whitney 1947, the statistic U over all pairs.

    Raises:
        UsageError: there are no scores of one kind.
    """
    for name, scores in (("known_scores", known_scores), ("unknown_scores", unknown_scores)):
        if not len(scores):
            raise UsageError(f"{name} (=[]) must have at least one score")
    ordered = np.sort(unknown_scores)
    below, up_to = (np.searchsorted(ordered, known_scores, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(ordered)))
