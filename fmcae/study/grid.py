"""The paper's grid as data: which runs fill which table, figure and claim.

Where the text leaves a reading open, one is taken throughout: dropout after pooling, the decoder's output padded and not
dropped, ReLU in all hidden layers. The others are parts of their own: "readings" and those of SWITCHES have Tables 1 to 3,
and "dropout-first" the classifiers of Figures 3 to 6. A classifier starts from the autoencoder with its own latent size,
dropout and seed, trained at a learning rate of 0.001; §3.2 can also be read so that all start from the one with p=0.05,
which the part "encoder-dropout" has, the reading "one encoder".

The first edition's part "labels" takes more steps with some numbers of labels than with others; "equal-steps" takes
as many with each.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from typing import Any, TypeAlias

from fmcae.errors import UsageError
from fmcae.train.config import EDGE, NetworkConfig, TrainConfig

INTERIOR = NetworkConfig().size - EDGE  # rows and columns that the input reaches through the decoder with padding
EPOCHS, LEARNING_RATE = TrainConfig().epochs, TrainConfig().learning_rate
SEEDS = 3
LATENT_DIMS = (64, 128, 256, 512)
DROPOUTS = (0.05, 0.1, 0.15, 0.2)
LEARNING_RATES = (0.01, 0.001, 0.0001)
TRAIN_IMAGES = 50_000  # of Fashion-MNIST
LABELS = (100, 300, 1_000, 3_000, 10_000, None)  # None: all of train
READINGS: dict[str, dict[str, Any]] = {
    "dropout after pooling, output not dropped": {"dropout_position": "after-pooling", "output_dropout": False},
    "dropout before pooling, output not dropped": {"dropout_position": "before-pooling", "output_dropout": False},
    "dropout after pooling, output dropped": {"dropout_position": "after-pooling", "output_dropout": True},
    "dropout before pooling, output dropped": {"dropout_position": "before-pooling", "output_dropout": True},
}
# Readings of their own parts, each with Tables 1 to 3 and perhaps more.
SWITCHES: dict[str, dict[str, Any]] = {
    "no-decoder-padding": {"decoder_padding": False},
    "no-latent-activation": {"latent_activation": False},
    "no-decoder-relu": {"decoder_relu": False},
}
COMPONENTS = 128  # of the linear baseline, as many as the latent vector of most autoencoders has
LINEAR_PARAMETERS = 784 * COMPONENTS + 784  # with the mean
EQUAL_STEPS = 100  # mini-batches of each epoch with few labels: one pass over 10,000
# What the settings of a task leave out: the device and threads move last bits only, and the rest is said elsewhere.
NOT_SETTINGS = {"network", "stage", "seed", "device", "threads", "data", "autoencoder_from", "class_count"}
# What the options of ``fmcae train`` are where they are not like the setting's name and value.
OPTIONS = {
    ("encoder_init", "random"): "--encoder random",
    ("encoder_training", "frozen"): "--freeze-encoder",
    ("output_dropout", True): "--output-dropout",
    ("pooling", False): "--no-pooling",
    ("decoder_padding", False): "--no-decoder-padding",
    ("latent_activation", False): "--no-latent-activation",
    ("decoder_relu", False): "--no-decoder-relu",
}
# What the paper reports. Source: Gabaldón 2023, Tables 1 to 3 and the Appendix's table. It prints table-2's 0.020 as 0.20.
PAPER_MSE: dict[str, dict[str, float]] = {
    "table-1": {"n=64": 0.034, "n=128": 0.025, "n=256": 0.023, "n=512": 0.020},
    "table-2": {"p=0.05": 0.020, "p=0.1": 0.024, "p=0.15": 0.031, "p=0.2": 0.036},
    "table-3": {"lr=0.01": 0.042, "lr=0.001": 0.020, "lr=0.0001": 0.023},
    "appendix": {"with pooling": 0.019, "without pooling": 0.004},
}


@dataclass(frozen=True)
class Task:
    """One run: what to train, and the task whose autoencoder it starts from."""

    config: TrainConfig
    needs: "Task | None" = None

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration's values that differ from the defaults, by name.

        A field that is added later, with a default that means what was done before, changes nothing here. So the names
        of runs outlive new options.
        """
        found: dict[str, Any] = {}
        for config in (self.config.network, self.config):
            defaults = vars(type(config)())
            found |= {name: value for name, value in vars(config).items() if value != defaults[name]}
        return {name: value for name, value in found.items() if name not in NOT_SETTINGS}

    @cached_property
    def name(self) -> str:
        """The run's folder: a few words for readers, and a hash of all that decides the result.

        The data are not in it: a study has one data set, which :func:`fmcae.study.results.check_study` sees to.
        """
        config, network = self.config, self.config.network
        needs = self.needs.name if self.needs else None
        identity = {"stage": config.stage, "seed": config.seed, "settings": self.settings, "autoencoder": needs}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{config.stage}-n{network.latent_dim}-p{network.dropout:g}-seed{config.seed}-{digest[:8]}"

    @property
    def title(self) -> str:
        """What tells this run from others, in a few words."""
        config, network = self.config, self.config.network
        parts = [f"n={network.latent_dim}", f"p={network.dropout:g}", f"lr={config.learning_rate:g}"]
        parts += [] if network.pooling else ["no pooling"]
        parts += ["dropout before pooling"] if network.dropout_position == "before-pooling" else []
        parts += ["output dropped"] if network.output_dropout else []
        parts += [] if network.decoder_padding else ["no decoder padding"]
        parts += [] if network.latent_activation else ["no ReLU or dropout on z"]
        parts += [] if network.decoder_relu else ["no ReLU in the decoder"]
        if config.stage == "classifier":
            parts += [f"{config.labels:,} labels"] if config.labels else []
            parts += [f"{config.steps_per_epoch} steps an epoch"] if config.steps_per_epoch else []
            start, p = ("pre-trained", self.needs.config.network.dropout) if self.needs else ("random", network.dropout)
            start += f" with p={p:g}" if p != network.dropout else ""
            encoder = [start, config.encoder_training]
            parts += encoder if encoder != ["pre-trained", "fine-tuned"] else []
        return f"{config.stage} {', '.join(parts)}, seed {config.seed}"

    def command(self, runs: str = "runs") -> list[str]:
        """The ``fmcae train`` that makes this run by itself, with ``runs`` for the folder of all runs."""
        arguments = ["fmcae", "train", "--stage", self.config.stage]
        if self.needs:
            arguments += ["--from", f"{runs}/{self.needs.name}"]
        for name, value in self.settings.items():
            arguments += OPTIONS.get((name, value), f"--{name.replace('_', '-')} {value}").split()
        return [*arguments, "--seed", str(self.config.seed), "--out", f"{runs}/{self.name}"]


Cell: TypeAlias = Callable[..., Task]  # takes the seed, and ``epochs`` if they are not the default


def autoencoder(seed: int, epochs: int = EPOCHS, learning_rate: float = LEARNING_RATE, **network: Any) -> Task:
    """Return the run of an autoencoder; ``network`` has what its :class:`NetworkConfig` sets."""
    config = TrainConfig(NetworkConfig(**network), learning_rate, epochs=epochs, seed=seed, stage="autoencoder")
    return Task(config)


def classifier(
    seed: int,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    labels: int | None = None,
    is_random: bool = False,
    is_frozen: bool = False,
    encoder_dropout: float | None = None,
    steps_per_epoch: int | None = None,
    **network: Any,
) -> Task:
    """Return the run of a classifier, from the autoencoder of its own shape and seed unless ``is_random``.

    ``encoder_dropout`` is that autoencoder's dropout where it is not the classifier's own.
    """
    dropout = {} if encoder_dropout is None else {"dropout": encoder_dropout}
    needs = None if is_random else autoencoder(seed, epochs, **{**network, **dropout})
    start: dict[str, Any] = {"autoencoder_from": needs.name} if needs else {"encoder_init": "random"}
    if is_frozen:
        start["encoder_training"] = "frozen"
    start |= {"labels": labels, "steps_per_epoch": steps_per_epoch}
    config = TrainConfig(NetworkConfig(**network), learning_rate, epochs=epochs, seed=seed, stage="classifier", **start)
    return Task(config, needs)


def label_count(labels: int | None) -> str:
    """Return such as "300 labels", or "all labels" for None."""
    return "all labels" if labels is None else f"{labels:,} labels"


TABLES: dict[str, dict[str, Cell]] = {
    "table-1": {f"n={n}": partial(autoencoder, latent_dim=n, dropout=0.2) for n in LATENT_DIMS},
    "table-2": {f"p={p}": partial(autoencoder, dropout=p) for p in DROPOUTS},
    "table-3": {f"lr={lr}": partial(autoencoder, dropout=0.05, learning_rate=lr) for lr in LEARNING_RATES},
}


def _of_tables(**network: Any) -> dict[str, Cell]:
    """The cells of Tables 1 to 3 under another reading."""
    return {
        f"{part}, {name}": partial(cell, **network) for part, cells in TABLES.items() for name, cell in cells.items()
    }


# Each part's cells by name.
PARTS: dict[str, dict[str, Cell]] = {
    **TABLES,
    "appendix": {"with pooling": partial(autoencoder), "without pooling": partial(autoencoder, pooling=False)},
    "figure-3": {f"n={n}": partial(classifier, latent_dim=n, dropout=0.05) for n in LATENT_DIMS},
    "figure-4": {f"p={p}": partial(classifier, dropout=p) for p in DROPOUTS},
    "learning-rate": {f"lr={lr}": partial(classifier, learning_rate=lr) for lr in LEARNING_RATES},
    "final-model": {"final model": partial(classifier)},  # Figures 5 and 6
    "figure-ap2": {"with pooling": partial(classifier), "without pooling": partial(classifier, pooling=False)},
    "figure-ap3": {  # with the control that C13 lacks: a random encoder that is trained
        "pre-trained, fine-tuned": partial(classifier),
        "pre-trained, frozen": partial(classifier, is_frozen=True),
        "random, frozen": partial(classifier, is_random=True, is_frozen=True),
        "random, fine-tuned": partial(classifier, is_random=True),
    },
    "labels": {
        f"{label_count(labels)}, {start}": partial(classifier, labels=labels, is_random=start == "random")
        for labels, start in product(LABELS, ("pre-trained", "random"))
    },
    "readings": {
        f"{reading}: {name}": cell
        for reading, values in READINGS.items()
        for name, cell in _of_tables(**values).items()
    },
    **{part: _of_tables(**values) for part, values in SWITCHES.items()},
    "no-dropout": {
        "with pooling": partial(autoencoder, dropout=0.0),
        "without pooling": partial(autoencoder, dropout=0.0, pooling=False),
    },
    "equal-steps": {
        f"{label_count(labels)}, {start}": partial(
            classifier, labels=labels, steps_per_epoch=EQUAL_STEPS, is_random=start == "random"
        )
        for labels, start in product(LABELS, ("pre-trained", "random"))
    },
}
# Without pooling there is no padding, and dropout cannot come before it: those cells are the same runs.
PARTS["no-decoder-padding"] |= {
    "appendix, with pooling": partial(autoencoder, decoder_padding=False),
    "appendix, without pooling": PARTS["appendix"]["without pooling"],
}
PARTS["dropout-first"] = {
    f"{part}, {name}": partial(cell, dropout_position="before-pooling")
    for part in ("figure-3", "figure-4", "final-model")
    for name, cell in PARTS[part].items()
} | {
    "figure-ap2, with pooling": partial(classifier, dropout_position="before-pooling"),
    "figure-ap2, without pooling": PARTS["figure-ap2"]["without pooling"],
}
# With p=0.05 a classifier starts from that autoencoder anyway: the same run as Figure 4's.
PARTS["encoder-dropout"] = {
    f"{part}, {name}": partial(cell, encoder_dropout=DROPOUTS[0])
    for part in ("figure-4", "final-model")
    for name, cell in PARTS[part].items()
}
# Where the cells of other readings than the one taken throughout are: part, and cell after that of the paper's part.
OTHER_READINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "dropout first": (
        ("readings", "dropout before pooling, output not dropped: {}"), ("dropout-first", "{}"),
    ),
    "output dropped": (("readings", "dropout after pooling, output dropped: {}"),),
    "both": (("readings", "dropout before pooling, output dropped: {}"),),
    "no edge": (("no-decoder-padding", "{}"),),
    "linear z": (("no-latent-activation", "{}"),),
    "linear decoder": (("no-decoder-relu", "{}"),),
    "one encoder": (("encoder-dropout", "{}"),),
}  # fmt: skip
# Figures that are made from a part of another name.
ALSO_CALLED = {"figure-5": "final-model", "figure-6": "final-model", "figure-ap1": "appendix"}


@cache
def task_of(part: str, cell: str, seed: int, epochs: int = EPOCHS) -> Task:
    """Return the run of a part's cell; a report asks for the same ones thousands of times."""
    return PARTS[part][cell](seed, epochs=epochs)


def find_reading(reading: str, part: str, cell: str) -> tuple[str, str] | None:
    """Return the part and cell of another reading that a cell of the paper's becomes; None where there is none."""
    places = [(other, name.format(f"{part}, {cell}")) for other, name in OTHER_READINGS[reading]]
    return next(((other, name) for other, name in places if name in PARTS[other]), None)


def plan(
    parts: Iterable[str], seeds: Iterable[int], epochs: int = EPOCHS, train_images: int = TRAIN_IMAGES
) -> list[Task]:
    """Return every run that the parts need, each once, an autoencoder before the classifiers that start from it.

    A cell that asks for as many labels as ``train_images``, the size of the train split, or more is left out.

    Raises:
        UsageError: there is no such part.
    """
    tasks: dict[str, Task] = {}
    wanted = [ALSO_CALLED.get(part, part) for part in parts]
    for part in wanted:
        if part not in PARTS:
            raise UsageError(f"only (={part}) must be one of {', '.join(PARTS)}")
    for seed, part in product(seeds, wanted):
        for task in (cell(seed, epochs=epochs) for cell in PARTS[part].values()):
            if (task.config.labels or 0) < train_images:
                tasks |= {item.name: item for item in (task.needs, task) if item}
    return list(tasks.values())


@cache
def cells_of_runs(seed: int, epochs: int) -> dict[str, list[str]]:
    """Return the cells ("table-1: n=64") that each run of a seed belongs to, by the run's name.

    An autoencoder that fills no cell itself belongs to those of the classifiers that start from it.
    """
    filled: dict[str, list[str]] = {}
    started: dict[str, list[str]] = {}
    for part, cells in PARTS.items():
        for name, cell in cells.items():
            task = cell(seed, epochs=epochs)
            filled.setdefault(task.name, []).append(f"{part}: {name}")
            if task.needs:
                started.setdefault(task.needs.name, []).append(f"{part}: {name}")
    return started | filled


def multiply_adds(config: TrainConfig) -> int:
    """Return the multiply-adds of one image, forward through what a stage trains."""
    network = config.network
    convolution = 26 * 26 * 16 * 9
    if network.pooling:
        size1, size2 = (4, 3) if network.decoder_padding else (5, 4)
        linear, second = 800, 11 * 11 * 32 * 16 * 9
        decoder = 5 * 5 * 32 * 16 * size1**2 + 13 * 13 * 16 * size2**2
    else:
        linear, second, decoder = 18_432, 24 * 24 * 32 * 16 * 9, 24 * 24 * 32 * 16 * 9 + convolution
    encoder = convolution + second + linear * network.latent_dim
    head = decoder + linear * network.latent_dim
    return encoder + (head if config.stage == "autoencoder" else network.latent_dim * network.class_count)


def parameters(network: NetworkConfig) -> int:
    """Return the number of weights and biases of an autoencoder."""
    channels = 32 * 25 if network.pooling else 32 * 24 * 24
    size1, size2 = (3, 3) if not network.pooling else (4, 3) if network.decoder_padding else (5, 4)
    encoder = 16 * (9 + 1) + 32 * (16 * 9 + 1) + network.latent_dim * (channels + 1)
    return encoder + channels * (network.latent_dim + 1) + 16 * (32 * size1**2 + 1) + 16 * size2**2 + 1


def work(config: TrainConfig) -> int:
    """Return the multiply-adds of a run: training is three times forward, or once if frozen; evaluation is forward."""
    labelled = config.labels or TRAIN_IMAGES
    trained = config.images_of_epoch(config.stage, labelled) * (1 if config.encoder_training == "frozen" else 3)
    images = trained + labelled + 10_000  # of validation
    total = config.epochs * multiply_adds(config) * images
    return total * (1 if config.network.pooling else 2)  # PyTorch's own step takes about twice as long on a CPU
