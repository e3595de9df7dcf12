"""The paper's grid as data: which runs fill which table, figure and claim.

A cell is a function of the seed, so that every seed makes the same grid of its own. Where the text leaves a reading
open, the one that comes closest to its numbers is taken throughout (dropout after pooling, the output not dropped), and
the part "readings" has Tables 1 to 3 in all four. A classifier starts from the autoencoder with its own latent size,
dropout and seed, trained at a learning rate of 0.001; §3.2 can also be read so that all start from the one with p=0.05,
which the part "encoder-dropout" has.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from fmcae.errors import UsageError
from fmcae.train.config import NetworkConfig, TrainConfig

EPOCHS = 30
LATENT_DIMS = (64, 128, 256, 512)
DROPOUTS = (0.05, 0.1, 0.15, 0.2)
LEARNING_RATES = (0.01, 0.001, 0.0001)
TRAIN_IMAGES = 50_000
LABELS = (100, 300, 1_000, 3_000, 10_000, None)  # None: all of train
READINGS: dict[str, dict[str, Any]] = {
    f"dropout {position.replace('-', ' ')}, output {'dropped' if output else 'not dropped'}": {
        "dropout_position": position,
        "output_dropout": output,
    }
    for output in (False, True)
    for position in ("after-pooling", "before-pooling")
}


@dataclass(frozen=True)
class Task:
    """One run: what to train, and the task whose autoencoder it starts from."""

    config: TrainConfig
    needs: "Task | None" = None

    @property
    def name(self) -> str:
        """The run's folder: the stage and a hash of all that decides the result, the autoencoder's included.

        Not of the device and threads, which move last bits only, nor of where the data lie.
        """
        values = {
            key: value for key, value in self.config.to_json().items() if key not in ("device", "threads", "data")
        }
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return f"{self.config.stage}-{digest[:12]}"

    @property
    def title(self) -> str:
        """What tells this run from others, in a few words."""
        config, network = self.config, self.config.network
        parts = [f"n={network.latent_dim}", f"p={network.dropout:g}", f"lr={config.learning_rate:g}"]
        parts += [] if network.pooling else ["no pooling"]
        parts += ["dropout before pooling"] if network.dropout_position == "before-pooling" else []
        parts += ["output dropped"] if network.output_dropout else []
        if config.stage == "classifier":
            parts += [f"{config.labels:,} labels"] if config.labels else []
            start, p = ("pre-trained", self.needs.config.network.dropout) if self.needs else ("random", network.dropout)
            start += f" with p={p:g}" if p != network.dropout else ""
            both = [start, config.encoder_training]
            parts += both if both != ["pre-trained", "fine-tuned"] else []
        return f"{config.stage} {', '.join(parts)}, seed {config.seed}"

    def command(self, runs: Path | str = "runs") -> list[str]:
        """The ``fmcae train`` that makes this run by itself."""
        config, network, default = self.config, self.config.network, TrainConfig()
        options = {
            "--stage": (config.stage, "both"),
            "--from": (f"{runs}/{self.needs.name}" if self.needs else None, None),
            "--encoder": (config.encoder_init, default.encoder_init),
            "--labels": (config.labels, None),
            "--latent-dim": (network.latent_dim, default.network.latent_dim),
            "--dropout": (network.dropout, default.network.dropout),
            "--dropout-position": (network.dropout_position, default.network.dropout_position),
            "--learning-rate": (config.learning_rate, default.learning_rate),
            "--epochs": (config.epochs, default.epochs),
            "--seed": (config.seed, None),
            "--out": (f"{runs}/{self.name}", None),
        }
        flags = {
            "--freeze-encoder": config.encoder_training == "frozen",
            "--output-dropout": network.output_dropout,
            "--no-pooling": not network.pooling,
        }
        arguments = [text for name, (value, usual) in options.items() if value != usual for text in (name, str(value))]
        return ["fmcae", "train", *arguments, *(name for name, is_set in flags.items() if is_set)]


Cell: TypeAlias = Callable[..., Task]  # of the seed, and of ``epochs`` if they are not 30


def autoencoder(
    seed: int,
    latent_dim: int = 128,
    dropout: float = 0.1,
    learning_rate: float = 0.001,
    epochs: int = EPOCHS,
    **network: Any,
) -> Task:
    """The run of an autoencoder; ``network`` has the other values of its :class:`NetworkConfig`."""
    shape = NetworkConfig(latent_dim=latent_dim, dropout=dropout, **network)
    return Task(TrainConfig(shape, learning_rate=learning_rate, epochs=epochs, seed=seed, stage="autoencoder"))


def classifier(
    seed: int,
    latent_dim: int = 128,
    dropout: float = 0.1,
    learning_rate: float = 0.001,
    epochs: int = EPOCHS,
    labels: int | None = None,
    is_random: bool = False,
    is_frozen: bool = False,
    encoder_dropout: float | None = None,
    **network: Any,
) -> Task:
    """The run of a classifier, from the autoencoder of its own shape and seed unless ``is_random``.

    Args:
        encoder_dropout: of that autoencoder; None for the classifier's own.
    """
    needs = autoencoder(
        seed, latent_dim, dropout if encoder_dropout is None else encoder_dropout, epochs=epochs, **network
    )
    config = TrainConfig(
        replace(needs.config.network, dropout=dropout),
        learning_rate=learning_rate,
        epochs=epochs,
        encoder_init="random" if is_random else "pretrained",
        encoder_training="frozen" if is_frozen else "fine-tuned",
        seed=seed,
        stage="classifier",
        autoencoder_from=None if is_random else needs.name,
        labels=labels,
    )
    return Task(config, None if is_random else needs)


def label_count(labels: int | None) -> str:
    """The name of a number of labels: "300 labels", or "50,000 labels" for all of train."""
    return f"{TRAIN_IMAGES if labels is None else labels:,} labels"


# Of each part, its cells by name.
PARTS: dict[str, dict[str, Cell]] = {
    "table-1": {f"n={n}": partial(autoencoder, latent_dim=n, dropout=0.2) for n in LATENT_DIMS},
    "table-2": {f"p={p}": partial(autoencoder, dropout=p) for p in DROPOUTS},
    "table-3": {f"lr={lr}": partial(autoencoder, dropout=0.05, learning_rate=lr) for lr in LEARNING_RATES},
    "appendix": {
        "with pooling": partial(autoencoder),
        "without pooling": partial(autoencoder, pooling=False),
    },
    "figure-3": {f"n={n}": partial(classifier, latent_dim=n, dropout=0.05) for n in LATENT_DIMS},
    "figure-4": {f"p={p}": partial(classifier, dropout=p) for p in DROPOUTS},
    "encoder-dropout": {f"p={p}": partial(classifier, dropout=p, encoder_dropout=DROPOUTS[0]) for p in DROPOUTS[1:]},
    "learning-rate": {f"lr={lr}": partial(classifier, learning_rate=lr) for lr in LEARNING_RATES},
    "final-model": {"final model": partial(classifier)},  # Figures 5 and 6
    "figure-ap2": {
        "with pooling": partial(classifier),
        "without pooling": partial(classifier, pooling=False),
    },
    "figure-ap3": {  # with the control that C13 lacks: a random encoder that is trained
        "pre-trained, fine-tuned": partial(classifier),
        "pre-trained, frozen": partial(classifier, is_frozen=True),
        "random, frozen": partial(classifier, is_random=True, is_frozen=True),
        "random, fine-tuned": partial(classifier, is_random=True),
    },
    "labels": {
        f"{label_count(labels)}, {'random' if is_random else 'pre-trained'}": partial(
            classifier, labels=labels, is_random=is_random
        )
        for labels in LABELS
        for is_random in (False, True)
    },
    "readings": {
        f"{reading}: {name}": partial(cell, **values)
        for reading, values in READINGS.items()
        for table, of_table in (
            ("Table 1", {f"n={n}": partial(autoencoder, latent_dim=n, dropout=0.2) for n in LATENT_DIMS}),
            ("Table 2", {f"p={p}": partial(autoencoder, dropout=p) for p in DROPOUTS}),
            ("Table 3", {f"lr={lr}": partial(autoencoder, dropout=0.05, learning_rate=lr) for lr in LEARNING_RATES}),
        )
        for name, cell in ((f"{table}, {key}", cell) for key, cell in of_table.items())
    },
}


# A multiply-add without pooling, which PyTorch's own step computes, takes about so many times as long on a CPU.
UNFUSED_COST = 2
# Figures that are made from a part of another name.
ALSO_CALLED = {"figure-5": "final-model", "figure-6": "final-model", "figure-ap1": "appendix"}


def plan(parts: Iterable[str], seeds: Iterable[int], epochs: int = EPOCHS) -> list[Task]:
    """Every run that the parts need, each once, an autoencoder before the classifiers that start from it.

    Raises:
        UsageError: there is no such part.
    """
    tasks: dict[str, Task] = {}
    wanted = [ALSO_CALLED.get(part, part) for part in parts]
    for part in wanted:
        if part not in PARTS:
            raise UsageError(f"only (={part}) must be one of {', '.join(PARTS)}")
    for seed in seeds:
        for part in wanted:
            for cell in PARTS[part].values():
                task = cell(seed, epochs=epochs)
                for item in (task.needs, task):
                    if item is not None:
                        tasks.setdefault(item.name, item)
    return list(tasks.values())


def multiply_adds(config: TrainConfig) -> int:
    """Of one image forward through the network that a stage trains: what a run's time is about proportional to."""
    network = config.network
    convolution = 26 * 26 * 16 * 9
    if network.pooling:
        encoder = convolution + 11 * 11 * 32 * 16 * 9 + 800 * network.latent_dim
        decoder = 800 * network.latent_dim + 5 * 5 * 32 * 16 * 16 + 13 * 13 * 16 * 9
    else:
        encoder = convolution + 24 * 24 * 32 * 16 * 9 + 18_432 * network.latent_dim
        decoder = 18_432 * network.latent_dim + 24 * 24 * 32 * 16 * 9 + convolution
    return encoder + (decoder if config.stage == "autoencoder" else network.latent_dim * network.class_count)


def work(config: TrainConfig, train_images: int = TRAIN_IMAGES, val_images: int = 10_000) -> int:
    """Multiply-adds of a whole run: forward and backward (three times forward) in training, forward in evaluation."""
    images = train_images if config.labels is None else config.labels
    is_seen_backward = 1 if config.encoder_training == "frozen" else 3
    whole = config.epochs * multiply_adds(config) * (images * (is_seen_backward * config.passes + 1) + val_images)
    return whole * (1 if config.network.pooling else UNFUSED_COST)
