"""Made-up results of the whole grid, so that what is said of them can be known beforehand; and small data sets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fmcae.data import FASHION_MNIST_CLASSES, idx
from fmcae.study.grid import PARTS, Task, cells_of_runs, plan
from fmcae.study.results import Results, RunResult
from fmcae.study.runner import run_task


def as_the_paper_says(task: Task, noise: np.random.Generator) -> RunResult:
    """A run whose numbers make every claim true, with a little noise."""
    config, network = task.config, task.config.network
    bad_rate = abs(np.log10(config.learning_rate) + 3)
    jitter = 1 + 0.0005 * noise.standard_normal()
    confusion = None
    if config.stage == "autoencoder":
        with_pooling = 0.01 + 1.0 / network.latent_dim + 0.1 * network.dropout + 0.01 * bad_rate
        mse = (with_pooling if network.pooling else 0.004) * jitter
        epochs = {f"{split}_mse": [mse] * config.epochs for split in ("train", "val")}
        test = {"mse": mse, "interior_mse": 0.8 * mse}
    else:
        is_frozen = config.encoder_training == "frozen"
        overfit = 0.0 if is_frozen else 0.02 + network.latent_dim / 2_000 - 0.2 * network.dropout
        loss = (0.3 + 10 / network.latent_dim + network.dropout + bad_rate + 0.2 * is_frozen) * jitter
        few = 0 if config.labels is None else 1 / np.sqrt(config.labels)
        accuracy = (0.92 - loss / 30 - few * (1 if config.encoder_init == "pretrained" else 3)) * jitter
        confusion = np.full((10, 10), 1) + np.diag(np.full(10, 1_000))
        confusion[6] = [150, 0, 100, 20, 30, 0, 600, 0, 0, 0]
        epochs = {
            "train_cross_entropy": [loss - overfit * jitter] * config.epochs,
            "val_cross_entropy": [loss] * config.epochs,
            "train_accuracy": [accuracy] * config.epochs,
            "val_accuracy": [accuracy] * config.epochs,
        }
        test = {"cross_entropy": loss, "accuracy": accuracy}
    return RunResult(
        name=task.name,
        cells=cells_of_runs(config.seed, config.epochs)[task.name],
        config=config.to_json(),
        autoencoder=task.needs.name if task.needs else None,
        data={"name": "Fashion-MNIST", "fingerprint": "0" * 64},
        machine={"cpu": "a CPU", "available_cpus": 2},
        versions={"fmcae": "0", "torch": "0", "python": "3"},
        date="2026-01-01T12:00:00+00:00",
        recorded="when the run started",
        epochs=epochs,
        test=test,
        confusion=confusion,
        seconds=60.0 * (1 + network.latent_dim / 100) * jitter,
    )


@pytest.fixture(scope="session")
def study_results() -> Results:
    """The results of four seeds of everything."""
    noise = np.random.default_rng(0)
    return Results(
        runs={task.name: as_the_paper_says(task, noise) for task in plan(PARTS, range(4))},
        data={
            "name": "Fashion-MNIST",
            "class_names": list(FASHION_MNIST_CLASSES),
            "counts": {"train": 50_000, "val": 10_000, "test": 10_000},
            "split_seed": 2023,
            "fingerprint": "0" * 64,
        },
        examples={},
        baseline={"components": 128, "edge_mse": 0.01, "mse": 0.006, "interior_mse": 0.005},
    )


@pytest.fixture(scope="session")
def trained_study(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with the two runs of the final model, of one epoch on the sample."""
    folder = tmp_path_factory.mktemp("trained-study")
    for task in plan(["final-model"], [0], epochs=1):
        run_task(folder, task, str(sample))
    return folder


@pytest.fixture
def study_copy(trained_study: Path, tmp_path: Path) -> Path:
    """A copy of ``trained_study`` to change."""
    return shutil.copytree(trained_study, tmp_path / "study")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a report's page without its figures, which take most of the time."""
    monkeypatch.setattr("fmcae.study.figures.save", lambda figure, stem: [])


@pytest.fixture(scope="session")
def make_dataset(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Make an IDX set of some classes from the sample: ``make_dataset(name, classes)``.

    With more than ten classes, every other image of the first ones is of a further class. Ten classes are renamed.
    """

    def make(name: str, classes: int) -> Path:
        folder = tmp_path_factory.mktemp("data") / name
        folder.mkdir()
        for part in ("train", "t10k"):
            images = idx.parse(idx.read_bytes(sample / f"{part}-images-idx3-ubyte.gz"), part)
            labels = idx.parse(idx.read_bytes(sample / f"{part}-labels-idx1-ubyte.gz"), part).copy()
            more = (labels < classes - 10) & (np.arange(len(labels)) % 2 == 1)
            labels[more] += 10
            kept = labels < classes
            idx.write(folder / f"{part}-images-idx3-ubyte.gz", images[kept])
            idx.write(folder / f"{part}-labels-idx1-ubyte.gz", labels[kept])
        return folder

    return make
