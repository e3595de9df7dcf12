"""What ships, measured again on all of Fashion-MNIST; skipped where the data set is not installed."""

import json
from pathlib import Path

import pytest

import fmcae
from fmcae import Model, metrics
from fmcae.data import DEBIAN_FOLDER, Dataset, load_dataset
from fmcae.preprocess import scale


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)")
    return load_dataset(DEBIAN_FOLDER)


def test_the_data_are_the_ones_it_was_trained_on(dataset: Dataset, shipped: Path) -> None:
    config = json.loads((shipped / "config.json").read_text())
    assert config["data"]["name"] == dataset.name == "Fashion-MNIST"
    assert config["data"]["fingerprint"] == dataset.fingerprint


def test_int8_is_as_accurate_as_its_card_says(dataset: Dataset) -> None:
    model = fmcae.load("fashion-mnist-int8")
    artefact = model.artefacts["classifier"]
    logits = model.classify(scale(dataset.test.images))
    # the first convolution's rounding may differ between processors, and with it a label or two
    assert metrics.accuracy(logits, dataset.test.labels) == pytest.approx(
        artefact.card.metrics["test_accuracy"], abs=5e-4
    )
    assert len(artefact.content) <= 90_000


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-paper"])
def test_accuracy_and_error_are_what_the_cards_say(dataset: Dataset, name: str) -> None:
    model = fmcae.load(name)
    x, labels = scale(dataset.test.images), dataset.test.labels
    logits = model.classify(x)
    card = model.artefacts["classifier"].card.metrics
    assert metrics.accuracy(logits, labels) == card["test_accuracy"]
    assert metrics.confusion(logits, labels).tolist() == card["confusion"]
    assert metrics.cross_entropy(logits, labels) == pytest.approx(card["test_cross_entropy"], abs=1e-6)
    error = metrics.mse(x, model.reconstruct(x))
    assert error == pytest.approx(model.artefacts["encoder"].card.metrics["test_mse"], abs=1e-6)
    assert model.artefacts["decoder"].card.metrics == model.artefacts["encoder"].card.metrics


def test_the_shipped_classifier_forgives_a_mirror_and_is_calibrated(dataset: Dataset, model: Model) -> None:
    images, labels = dataset.test.images, dataset.test.labels
    card = model.artefacts["classifier"].card
    mirrored = metrics.accuracy(model.classify(scale(images[..., ::-1])), labels)
    assert mirrored == pytest.approx(card.metrics["test_accuracy"], abs=0.005)
    logits = model.classify(scale(images))
    error = metrics.expected_calibration_error(metrics.softmax(logits, card.temperature), labels)
    assert error == pytest.approx(card.calibration["ece_after"], abs=1e-6) and error <= 0.015
    kept = (metrics.known_score(model.classify(scale(dataset.val.images))) >= card.threshold).mean()
    # The threshold is one image's own score, which another CPU's rounding may move to its other side.
    assert kept == pytest.approx(0.98, abs=0.0005)


def test_the_large_classifier_is_as_accurate_as_its_card_says(dataset: Dataset) -> None:
    model = fmcae.load("fashion-mnist-large")
    images, labels = dataset.test.images[:2000], dataset.test.labels[:2000]
    accuracy = metrics.accuracy(model.classify(scale(images)), labels)
    artefact = model.artefacts["classifier"]
    assert accuracy == pytest.approx(artefact.card.metrics["test_accuracy"], abs=0.02)  # of the first fifth
    assert len(artefact.content) <= 3_000_000
