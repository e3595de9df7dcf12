"""A classifier's temperature and threshold, fitted on validation images and measured on test images.

A network's probabilities are mostly too sure. One number mends that, the temperature, which every logit is divided by; it
changes no label. The threshold is the known score that almost all validation images reach, so that a picture below it is
unlike what the model was trained on. Both come from the exported graph's own logits, so that they fit its precision.

Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature); Liu et al. 2020, arXiv:2010.03759, section 3 (score).
"""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcae.card import Golden
from fmcae.data import Dataset, Split
from fmcae.metrics import cross_entropy, expected_calibration_error, known_score, reliability, softmax
from fmcae.preprocess import scale
from fmcae.runtime.session import Session

KEPT = 0.98  # the share of validation images that must count as known
TEMPERATURES = 0.05, 20.0  # the smallest and the largest
_BATCH_SIZE = 1000


def calibrate(session: Session, dataset: Dataset) -> dict[str, Any]:
    """Fit temperature and threshold on val, and measure the calibration error on test, all by a classifier's session.

    The result is what :class:`fmcae.card.Card` calls its calibration.
    """
    logits, test_logits = _logits(session, dataset.val), _logits(session, dataset.test)
    temperature = fit_temperature(logits, dataset.val.labels)
    scores = known_score(logits)
    threshold = fit_threshold(scores)
    before, after = softmax(test_logits), softmax(test_logits, temperature)
    return {
        "temperature": temperature,
        "threshold": threshold,
        "kept": float((scores >= threshold).mean()),
        "images": len(dataset.val),
        "ece_before": expected_calibration_error(before, dataset.test.labels),
        "ece_after": expected_calibration_error(after, dataset.test.labels),
        "reliability": [asdict(group) for group in reliability(after, dataset.test.labels)],
    }


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """Find the temperature in TEMPERATURES that gives logits (N, K) the smallest cross-entropy with labels (N,).

    A prior keeps it near 1 where images are too few to say more: without it a classifier that has every label right
    would get the smallest temperature, however few images that rests on. log(temperature) has mean 0 and standard
    deviation 1, which thousands of images outweigh.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        prior = log_temperature**2 / (2 * len(labels))
        return cross_entropy(logits.astype(np.float64) / math.exp(log_temperature), labels) + prior

    low, high = TEMPERATURES
    found = minimize_scalar(loss, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-6})
    return min(max(math.exp(found.x), low), high)


def fit_threshold(scores: NDArray[np.float64]) -> float:
    """Find the threshold that keeps the least part of known scores (N,) that is at least the share KEPT.

    It lies half-way to the next lower score, so that another CPU, which rounds otherwise, keeps the same images. Of fewer
    than 50 scores it is the lowest.
    """
    left_out = len(scores) - math.ceil(round(KEPT * len(scores), 6))  # 0.98 of 50 is 49, whatever a float makes of it
    return float(np.sort(scores)[max(left_out - 1, 0) : left_out + 1].mean())


def calibrated(golden: Golden, temperature: float) -> Golden:
    """Add the probabilities and known scores of a classifier's golden outputs, which ``fmcae verify`` replays."""
    return replace(golden, probabilities=softmax(golden.outputs, temperature), known_scores=known_score(golden.outputs))


def _logits(session: Session, split: Split) -> NDArray[np.float32]:
    starts = range(0, len(split), _BATCH_SIZE)
    return np.concatenate([session.run(scale(split.images[start : start + _BATCH_SIZE])) for start in starts])
