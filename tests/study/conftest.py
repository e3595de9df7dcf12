"""Made-up results of the whole grid, so that what is said of them can be known beforehand."""

import numpy as np
import pytest

from fmcae.study.grid import PARTS, Task, plan
from fmcae.study.results import Results, RunResult

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def as_the_paper_says(task: Task, noise: np.random.Generator) -> RunResult:
    """A run whose numbers make every claim true, with a little noise."""
    config, network = task.config, task.config.network
    bad_rate = abs(np.log10(config.learning_rate) + 3)
    jitter = 1 + 0.0005 * noise.standard_normal()
    if config.stage == "autoencoder":
        mse = (
            0.004
            if not network.pooling
            else (0.01 + 1.0 / network.latent_dim + 0.1 * network.dropout + 0.01 * bad_rate)
        )
        epochs = {f"{split}_mse": [mse * jitter] * config.epochs for split in ("train", "val")}
        return RunResult(
            task.name, config.to_json(), epochs, {"mse": mse * jitter}, None, 60.0, {"torch": "0", "python": "3"}
        )
    overfit = 0.0 if config.encoder_training == "frozen" else 0.02 + network.latent_dim / 2_000 - 0.2 * network.dropout
    loss = 0.3 + 10 / network.latent_dim + network.dropout + bad_rate + 0.2 * (config.encoder_training == "frozen")
    few = 0 if config.labels is None else 1 / np.sqrt(config.labels)
    accuracy = 0.92 - loss / 30 - few * (1 if config.encoder_init == "pretrained" else 3)
    counts = np.full((10, 10), 1) + np.diag(np.full(10, 1_000))
    counts[6] = [150, 0, 100, 20, 30, 0, 600, 0, 0, 0]
    epochs = {
        "train_cross_entropy": [(loss - overfit) * jitter] * config.epochs,
        "val_cross_entropy": [loss * jitter] * config.epochs,
        "train_accuracy": [accuracy * jitter] * config.epochs,
        "val_accuracy": [accuracy * jitter] * config.epochs,
    }
    test = {"cross_entropy": loss * jitter, "accuracy": accuracy * jitter}
    return RunResult(task.name, config.to_json(), epochs, test, counts, 60.0, {"torch": "0", "python": "3"})


@pytest.fixture(scope="session")
def whole() -> Results:
    """Four seeds of everything."""
    noise = np.random.default_rng(0)
    return Results(
        runs={task.name: as_the_paper_says(task, noise) for task in plan(PARTS, range(4))},
        class_names=CLASSES,
        data={
            "name": "Fashion-MNIST",
            "counts": {"train": 50_000, "val": 10_000, "test": 10_000},
            "split_seed": 2023,
            "fingerprint": "0" * 64,
        },
        machine={"cpu": "a CPU", "available_cpus": 2, "fmcae": "0"},
        date="2026-01-01",
        examples={},
    )
