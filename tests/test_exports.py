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
    assert len(artefact.content) <= 114_000


def test_accuracy_and_error_are_what_the_cards_say(dataset: Dataset, model: Model) -> None:
    x, labels = scale(dataset.test.images), dataset.test.labels
    logits = model.classify(x)
    card = model.artefacts["classifier"].card.metrics
    assert metrics.accuracy(logits, labels) == card["test_accuracy"]
    assert metrics.confusion(logits, labels).tolist() == card["confusion"]
    assert metrics.cross_entropy(logits, labels) == pytest.approx(card["test_cross_entropy"], abs=1e-6)
    error = metrics.mse(x, model.reconstruct(x))
    assert error == pytest.approx(model.artefacts["encoder"].card.metrics["test_mse"], abs=1e-6)
    assert model.artefacts["decoder"].card.metrics == model.artefacts["encoder"].card.metrics
