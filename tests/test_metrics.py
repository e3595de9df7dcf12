import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fmcae import metrics

LOGITS = arrays(np.float32, (7, 4), elements=st.floats(-50, 50, width=32))
LABELS = arrays(np.uint8, 7, elements=st.integers(0, 3))


def test_mse_by_hand() -> None:
    x = np.zeros((2, 1, 2, 2), np.float32)
    x_hat = np.array([[[[0, 0], [0, 1]]], [[[1, 1], [1, 1]]]], np.float32)
    assert metrics.mse(x, x_hat) == 0.625


def test_accuracy_and_confusion_by_hand() -> None:
    logits = np.array([[2, 1], [0, 3], [5, 1]], np.float32)
    labels = np.array([0, 1, 1], np.uint8)
    assert metrics.accuracy(logits, labels) == pytest.approx(2 / 3)
    assert metrics.confusion(logits, labels).tolist() == [[1, 0], [1, 1]]


@given(LOGITS)
def test_softmax_is_a_distribution_with_the_logits_order(logits: NDArray[np.float32]) -> None:
    probabilities = metrics.softmax(logits)
    assert probabilities.dtype == np.float32
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (probabilities.argmax(axis=1) <= logits.argmax(axis=1)).all()  # equal, but for ties in float32


@given(LOGITS, LABELS)
def test_cross_entropy_is_the_mean_negative_log_probability(
    logits: NDArray[np.float32], labels: NDArray[np.int64]
) -> None:
    exact = logits.astype(np.float64)
    probabilities = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(7), labels]).mean()
    assert metrics.cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_cross_entropy_survives_large_logits() -> None:
    assert metrics.cross_entropy(np.array([[1e4, -1e4]], np.float32), np.array([0])) == 0
    assert metrics.cross_entropy(np.array([[1e4, -1e4]], np.float32), np.array([1])) == pytest.approx(2e4)
