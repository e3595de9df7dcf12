import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fmcae import metrics
from fmcae.errors import UsageError

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


@given(LOGITS, LABELS)
def test_class_scores_are_what_counting_gives(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    scores = metrics.class_scores(metrics.confusion(logits, labels))
    predicted = logits.argmax(axis=1)
    for index in range(4):
        pairs = [(int(true), int(said)) for true, said in zip(labels, predicted, strict=True) if index in (true, said)]
        right = pairs.count((index, index))
        for name, count in (("recall", (labels == index).sum()), ("precision", (predicted == index).sum())):
            value = getattr(scores, name)[index]
            assert value == right / count if count else np.isnan(value)
        # of the pictures that are of the class or called so, those that are both count twice
        assert (
            scores.f1[index] == pytest.approx(2 * right / (len(pairs) + right)) if pairs else np.isnan(scores.f1[index])
        )


def test_wilsons_interval_is_the_textbooks() -> None:
    assert metrics.wilson_interval(10, 100) == pytest.approx((0.05522914, 0.17436566))
    assert metrics.wilson_interval(0, 10) == pytest.approx((0, 0.2775328))


@given(st.integers(1, 10**6).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilsons_interval_has_the_shares_that_the_seen_one_is_not_too_far_from(seen: tuple[int, int]) -> None:
    right, count = seen
    low, high = metrics.wilson_interval(right, count)
    assert 0 <= low <= right / count <= high <= 1
    assert metrics.wilson_interval(count - right, count) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    for end in {low, high} - {0, 1}:  # at the ends, the seen share is exactly so many standard deviations away
        deviations = abs(right / count - end) / np.sqrt(end * (1 - end) / count)
        assert deviations == pytest.approx(metrics.Z_95, rel=1e-6)


@pytest.mark.parametrize(("right", "count"), [(0, 0), (-1, 3), (4, 3)])
def test_wilsons_interval_of_nothing_is_refused(right: int, count: int) -> None:
    with pytest.raises(UsageError, match=rf"right \(={right}\) must be from 0 to count \(={count}\)"):
        metrics.wilson_interval(right, count)


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


@given(LOGITS, st.floats(0.05, 20))
def test_a_temperature_divides_the_logits_and_changes_no_label(logits: NDArray[np.float32], temperature: float) -> None:
    probabilities = metrics.softmax(logits, temperature)
    assert probabilities == pytest.approx(metrics.softmax(logits.astype(np.float64) / temperature), abs=1e-5)
    rows = np.arange(len(logits))
    assert probabilities[rows, logits.argmax(axis=1)] == pytest.approx(probabilities.max(axis=1))


@given(LOGITS)
def test_the_known_score_is_what_a_class_of_logit_0_leaves(logits: NDArray[np.float32]) -> None:
    score = metrics.known_score(logits)
    with_unknown = np.concatenate([logits, np.zeros((7, 1), np.float32)], axis=1)
    assert score == pytest.approx(1 - metrics.softmax(with_unknown)[:, -1], abs=1e-6)
    assert score.dtype == np.float64 and (score >= 0).all() and (score <= 1).all()


@given(LOGITS)
def test_the_known_score_orders_images_by_their_energy(logits: NDArray[np.float32]) -> None:
    energy = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    assert (np.diff(metrics.known_score(logits)[energy.argsort()]) >= -1e-15).all()


def test_the_known_score_survives_large_logits_and_one_image() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, -2e4]], np.float32)
    assert metrics.known_score(logits).tolist() == [1, 0]
    assert metrics.known_score(logits[0]) == 1
    assert metrics.known_score(logits[:0]).shape == (0,)


def test_reliability_and_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6], [0.0, 1.0]])
    labels = np.array([0, 0, 1, 1, 1])
    low, high, sure = metrics.reliability(probabilities, labels, bins=10)
    assert (low.accuracy, low.count, high.accuracy, high.count) == (0.5, 2, 0.5, 2)
    assert (low.confidence, high.confidence) == pytest.approx((0.6, 0.9))
    assert sure == metrics.ReliabilityBin(1, 1, 1)
    assert metrics.expected_calibration_error(probabilities, labels, bins=10) == pytest.approx((0.2 + 0.8) / 5)


@given(LOGITS, LABELS, st.integers(1, 20))
def test_every_image_is_in_one_bin(logits: NDArray[np.float32], labels: NDArray[np.int64], bins: int) -> None:
    probabilities = metrics.softmax(logits)
    groups = metrics.reliability(probabilities, labels, bins)
    assert sum(group.count for group in groups) == 7 and len(groups) <= bins
    assert sum(group.count * group.accuracy for group in groups) / 7 == pytest.approx(
        (probabilities.argmax(axis=1) == labels).mean()
    )
    assert 0 <= metrics.expected_calibration_error(probabilities, labels, bins) <= 1


SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=8)


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_in_the_right_order(known: list[float], unknown: list[float]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in known for b in unknown]
    assert metrics.auroc(np.array(known), np.array(unknown)) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_needs_scores_of_both_kinds() -> None:
    with pytest.raises(UsageError, match=r"unknown_scores \(=\[\]\) must have at least one score"):
        metrics.auroc(np.ones(2), np.ones(0))
