from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import fmcae
from fmcae import metrics
from fmcae.data import Dataset, Split, load_dataset
from fmcae.export.artefacts import export_run
from fmcae.train.backend import balanced_weights
from fmcae.train.config import ROBUST, NetworkConfig, TrainConfig
from fmcae.train.loop import train
from fmcae.train.measure import DeviceSplit, scale
from fmcae.train.negatives import negatives
from fmcae.train.networks import Classifier, Encoder, NormalizedClassifier
from fmcae.train.progress import Progress
from fmcae.train.robust import _Stage, one_cycle
from fmcae.train.run import Run, create_run

SMALL = replace(ROBUST, teacher_epochs=2, classifier_epochs=4, view_epochs=3, batch_size=30, negatives=40)
CONFIG = TrainConfig(NetworkConfig(latent_dim=16), epochs=1, robust=SMALL)
STAGES = ("autoencoder", "teacher", "classifier")


@pytest.fixture(scope="module")
def dataset(sample: Path) -> Dataset:
    whole = load_dataset(sample)
    splits = (whole.train, whole.val, whole.test)
    train, val, test = (Split(split.images[:200], split.labels[:200]) for split in splits)
    return Dataset(whole.name, whole.class_names, train, val, test)


@pytest.fixture(scope="module")
def whole_run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = create_run(tmp_path_factory.mktemp("robust") / "run", CONFIG, dataset)
    train(run, dataset)
    return run


class StopAt(Progress):
    """Stops a run as a signal would, in a step of an epoch of a stage."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.wanted, self.steps_left = stage, 8 * (epoch - 1) + 3

    def stage(self, stage: str, epochs: int, first_epoch: int, images_per_epoch: int) -> None:
        self.at = stage

    def step(self, images: int, loss: Tensor) -> None:
        self.steps_left -= self.at == self.wanted
        if self.steps_left == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("stage", "epoch"), [("teacher", 2), ("classifier", 1), ("classifier", 3)])
def test_a_stopped_run_resumes_to_the_same_bits(
    dataset: Dataset, whole_run: Run, tmp_path: Path, stage: str, epoch: int
) -> None:
    run = create_run(tmp_path / "run", CONFIG, dataset)
    with pytest.raises(KeyboardInterrupt):
        train(run, dataset, StopAt(stage, epoch))
    assert not run.finished
    train(run, dataset)
    for name in STAGES:
        expected, found = load_file(whole_run.weights(name)), load_file(run.weights(name))
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert run.metrics()[-1] == whole_run.metrics()[-1]


@pytest.mark.usefixtures("undrawn")
def test_negatives_are_drawn_once_for_both_stages(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def draw(images: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.uint8]:
        counts.append(count)
        return negatives(images, count, seed)

    monkeypatch.setattr("fmcae.train.robust.negatives", draw)
    train(create_run(tmp_path / "run", CONFIG, dataset), dataset)
    assert len(counts) == 1


def test_the_run_has_the_papers_classifier_and_its_records(dataset: Dataset, whole_run: Run) -> None:
    assert whole_run.finished
    classifier = whole_run.network("classifier")
    assert isinstance(classifier, Classifier)  # its weights fit the paper's layers
    records = whole_run.metrics()
    assert [record["stage"] for record in records if "epoch" not in record] == list(STAGES)
    epochs = [record for record in whole_run.metrics("classifier") if "epoch" in record]
    assert [record["epoch"] for record in epochs] == [1, 2, 3, 4]
    with torch.no_grad():
        logits = classifier(scale(torch.from_numpy(dataset.val.images.copy()))).numpy()
    assert epochs[-1]["val_accuracy"] == metrics.accuracy(logits, dataset.val.labels)
    for name in ("teacher_curves", "classifier_curves", "confusion", "teacher_confusion", "reconstructions"):
        assert (whole_run.folder / f"{name}.png").is_file()


def test_folding_leaves_the_logits_as_they_were() -> None:
    torch.manual_seed(0)
    config = NetworkConfig(latent_dim=16, class_count=5)
    active = torch.rand(16) < 0.7
    network = NormalizedClassifier(config, Encoder(config), active)
    x = torch.rand(64, 1, 28, 28)
    for _ in range(20):
        network(x * torch.rand(1))  # running means and variances away from 0 and 1
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.eval()
    folded = network.folded().eval()
    with torch.no_grad():
        assert torch.allclose(folded(x), network(x), atol=1e-4)
        assert (folded.encoder(x)[:, ~active] == 0).all()


@pytest.mark.usefixtures("undrawn")
def test_it_learns(sample: Path, tmp_path: Path) -> None:
    dataset = load_dataset(sample)
    settings = replace(ROBUST, teacher_epochs=2, classifier_epochs=6, batch_size=25, negatives=100)
    run = create_run(tmp_path / "run", TrainConfig(NetworkConfig(latent_dim=32), epochs=2, robust=settings), dataset)
    train(run, dataset)
    test = {stage: run.metrics(stage)[-1] for stage in ("teacher", "classifier")}
    assert test["teacher"]["test_accuracy"] > 0.6
    assert test["classifier"]["test_accuracy"] > 0.6
    noise = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    network = run.network("classifier")
    with torch.no_grad():
        known, unknown = (
            torch.logsumexp(network(scale(torch.from_numpy(images.copy()))), 1)
            for images in (dataset.val.images, noise)
        )
    assert known.median() > unknown.median()


def test_its_files_are_one_model_though_their_stages_have_other_numbers_of_epochs(
    dataset: Dataset, whole_run: Run, tmp_path: Path
) -> None:
    export_run(whole_run, dataset, tmp_path / "out")
    model = fmcae.load(tmp_path / "out")
    assert model.reconstruct(np.zeros((2, 1, 28, 28), np.float32)).shape == (2, 1, 28, 28)
    assert model.predict(dataset.test.images[0]).label in dataset.class_names


@pytest.mark.usefixtures("undrawn")
def test_class_weights_reach_teacher_and_classifier_and_leave_negatives_as_they_are(
    dataset: Dataset, whole_run: Run, tmp_path: Path
) -> None:
    run = create_run(tmp_path / "run", replace(CONFIG, class_weights=True), dataset)
    train(run, dataset)
    assert run.weights("autoencoder").read_bytes() == whole_run.weights("autoencoder").read_bytes()
    splits = {name: DeviceSplit.from_split(getattr(dataset, name), torch.device("cpu")) for name in ("train", "val")}
    for name in ("teacher", "classifier"):
        assert run.weights(name).read_bytes() != whole_run.weights(name).read_bytes()
        stage = _Stage(run, name, splits)
        expected = torch.cat([balanced_weights(splits["train"].labels, 10), torch.ones(1)])
        assert stage.class_weights is not None and torch.equal(stage.class_weights, expected)
        stage.views.soft_labels = None
        logits, labels = torch.randn(30, 11), torch.arange(30) % 11
        stage.views.labels[:30] = labels
        assert stage._loss(logits, torch.arange(30)) == F.cross_entropy(logits, labels, expected)


def test_the_learning_rate_rises_and_falls_once() -> None:
    rates = [one_cycle(progressed) for progressed in np.linspace(0, 1, 101)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(1) and 0 < rates[0] < 0.1 and rates[-1] == pytest.approx(0)
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
