from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

import fmcae
from fmcae.card import Card, Golden
from fmcae.data import Dataset, Split, load_dataset
from fmcae.export.artefacts import export_smaller
from fmcae.export.calibration import KEPT, TEMPERATURES, calibrate, calibrated, fit_temperature, fit_threshold
from fmcae.metrics import cross_entropy, expected_calibration_error, known_score, softmax
from fmcae.preprocess import scale
from fmcae.runtime.model import read_artefact, read_artefacts
from fmcae.runtime.verify import verify
from fmcae.train.run import open_run

pytestmark = pytest.mark.usefixtures("graphs_are_kept")


def drawn(temperature: float, count: int = 4000) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits (count, 5), and labels drawn from the probabilities that they have at a temperature."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (count, 5)).astype(np.float32)
    noise = generator.gumbel(size=logits.shape)  # the largest of logits with it is a draw from their softmax
    return logits, (logits / temperature + noise).argmax(axis=1).astype(np.uint8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    assert cross_entropy(logits / found, labels) <= cross_entropy(logits / temperature, labels) + 1e-4
    after = expected_calibration_error(softmax(logits, found), labels)
    assert after < 0.03 and after <= expected_calibration_error(softmax(logits), labels) + 0.005


@given(
    arrays(np.float32, (6, 3), elements=st.floats(-1e4, 1e4, width=32)), arrays(np.uint8, 6, elements=st.integers(0, 2))
)
def test_any_temperature_is_within_its_bounds(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
    low, high = TEMPERATURES
    assert low <= fit_temperature(logits, labels) <= high


def test_few_images_that_are_all_right_do_not_make_it_sure() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]] * 3
    assert 0.3 < fit_temperature(logits, np.array([0, 1, 2, 0], np.uint8)) <= 1
    assert softmax(logits, fit_temperature(logits, np.array([0, 1, 2, 0], np.uint8))).max() < 1


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300))
def test_the_threshold_keeps_no_more_than_enough(values: list[float]) -> None:
    scores = np.array(values)
    threshold = fit_threshold(scores)
    kept = scores >= threshold
    assert kept.mean() >= KEPT
    assert (scores > scores[kept].min()).mean() < KEPT


@pytest.mark.parametrize("count", [50, 100, 10_000])
def test_the_share_kept_is_exact(count: int) -> None:
    scores = np.arange(count) / count
    assert (scores >= fit_threshold(scores)).sum() == count * 98 // 100


def test_the_threshold_is_no_image_s_own_score() -> None:
    scores = np.linspace(0.5, 0.7, 101)
    rounded = scores + np.random.default_rng(0).uniform(-0.0009, 0.0009, 101)  # less than half of 0.002 between two
    assert ((scores >= fit_threshold(scores)) == (rounded >= fit_threshold(scores))).all()


def test_golden_vectors_get_what_the_runtime_says() -> None:
    logits = np.array([[2, 0.5], [-3, 1]], np.float32)
    golden = calibrated(Golden(logits, logits, ("a", "b")), 2)
    assert np.array_equal(golden.probabilities, softmax(logits, 2))  # type: ignore[arg-type]
    assert np.array_equal(golden.known_scores, known_score(logits))  # type: ignore[arg-type]
    assert golden.labels == ("a", "b")


def check(card: Card, folder: Path, dataset: Dataset) -> None:
    """The calibration in a card is what the file itself gives on the data set."""
    model = fmcae.load(folder, only="classifier")
    validation, test = (model.predict_inputs(scale(split.images)) for split in (dataset.val, dataset.test))
    calibration = card.calibration
    assert (calibration["images"], calibration["kept"]) == (len(dataset.val), KEPT)
    assert model.threshold == card.threshold > 0
    assert np.mean([prediction.known for prediction in validation]) == pytest.approx(KEPT, abs=0.006)
    probabilities = np.stack([prediction.probabilities for prediction in test])
    error = expected_calibration_error(probabilities, dataset.test.labels)
    assert error == pytest.approx(calibration["ece_after"], abs=1e-3)
    assert sum(item["count"] for item in calibration["reliability"]) == len(dataset.test)


def test_an_export_is_calibrated(exported: Path, sample: Path) -> None:
    dataset = load_dataset(sample)
    cards = {kind: artefact.card for kind, artefact in read_artefacts(exported).items()}
    check(cards["classifier"], exported, dataset)
    assert cards["encoder"].calibration == cards["decoder"].calibration == {}
    before = softmax(fmcae.load(exported).classify(scale(dataset.test.images)))
    error = expected_calibration_error(before, dataset.test.labels)
    assert error == pytest.approx(cards["classifier"].calibration["ece_before"], abs=1e-3)


def test_a_smaller_precision_has_its_own_calibration(
    trained_run: Path, exported: Path, sample: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(sample)
    export_smaller(open_run(trained_run), dataset, tmp_path / "int8", "int8", budget_points=2)
    artefact = read_artefact(tmp_path / "int8" / "classifier.onnx")
    check(artefact.card, tmp_path / "int8", dataset)
    assert artefact.card.calibration != read_artefact(exported / "classifier.onnx").card.calibration
    assert artefact.golden.probabilities is not None and verify(artefact).passed


@pytest.mark.parametrize("count", [3, 49, 60])
def test_the_card_has_the_share_that_the_threshold_keeps(exported: Path, sample: Path, count: int) -> None:
    dataset = load_dataset(sample)
    few = Split(dataset.val.images[:count], dataset.val.labels[:count])
    session = read_artefact(exported / "classifier.onnx").session()
    found = calibrate(session, Dataset("x", dataset.class_names, dataset.train, few, dataset.test))
    assert found["kept"] == (1 if count < 50 else 59 / 60)


def test_the_card_for_people_says_what_is_unknown(exported: Path) -> None:
    text = (exported / "MODEL_CARD.md").read_text()
    card = read_artefact(exported / "classifier.onnx").card
    assert "## Known and unknown" in text and "any image gets one of their labels" not in text
    for words in (f"temperature {card.temperature:.4g}", f"threshold {card.threshold:.4g}", "(reliability.png)"):
        assert words in text
    assert f"from {card.calibration['ece_before']:.4f} to {card.calibration['ece_after']:.4f}" in text
    with Image.open(exported / "reliability.png") as picture:
        assert picture.format == "PNG"
