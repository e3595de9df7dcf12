"""The configuration of a run: small frozen dataclasses that check themselves and travel as JSON.

The defaults, the choices and the limits of ``fmcae train`` and of the study are these. The defaults are the paper's
optimum (n=128, p=0.1, lr=0.001, batches of 100, 30 epochs; §3.2). Where its text leaves a reading open (dropout before or
after pooling, the decoder's output dropped or not), the default is the reading that comes closest to its numbers, and
the other is a switch.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from fmcae import schema
from fmcae.errors import UsageError
from fmcae.shape import Channels, Size

DropoutPosition = Literal["before-pooling", "after-pooling"]
Stage = Literal["both", "autoencoder", "classifier"]
EncoderInit = Literal["pretrained", "random"]
EncoderTraining = Literal["fine-tuned", "frozen"]
Keep = Literal["last", "best"]
Recipe = Literal["paper", "robust"]
Device = Literal["cpu", "cuda"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
LIMITS = {  # of integers, both included
    "latent_dim": (1, 65_536),
    "class_count": (2, 256),
    "batch_size": (1, 50_000),
    "epochs": (1, 10_000),
    "seed": (0, 2**32 - 1),
    "threads": (1, 1024),
    "labels": (1, 2**31),
    "steps_per_epoch": (1, 10_000),
    "patience": (1, 10_000),
    "teacher_epochs": (1, 10_000),
    "classifier_epochs": (1, 10_000),
    "view_epochs": (1, 10_000),
    "negatives": (1, 10_000_000),
}
OPTIONAL = ("labels", "patience", "steps_per_epoch")  # integers that may be None
# What the robust recipe uses of the paper's settings.
USED_BY_ROBUST = (
    "latent_dim", "class_count", "decoder_padding", "epochs", "seed", "device", "threads", "data", "class_weights",
)  # fmt: skip
# What came later than the paper's recipe: a description leaves it out where it has its default.
LATER = (
    "robust", "keep", "patience", "class_weights", "steps_per_epoch",
    "decoder_padding", "latent_activation", "decoder_relu", "channels", "size",
)  # fmt: skip
OPTIONS = {  # fmcae train's own names
    "encoder_init": " (--encoder)",
    "encoder_training": " (--freeze-encoder)",
    "autoencoder_from": " (--from)",
}
EDGE = 3  # the last rows and columns of a reconstruction, which no input reaches where the decoder's output is padded
FEWEST_IMAGES = 5_000  # of an epoch with few labels; with fewer it would end after a step or two
Config = TypeVar("Config", bound="NetworkConfig | RobustConfig | TrainConfig")


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of the networks."""

    latent_dim: int = 128  # the size of z; the paper's n
    dropout: float = 0.1  # the probability p in [0, 1) of every dropout layer
    dropout_position: DropoutPosition = "after-pooling"  # in the encoder
    output_dropout: bool = False  # of the decoder's sigmoid output too, which trains x_hat towards (1-p)·x
    pooling: bool = True  # in the encoder; without it (the paper's Appendix) the layers adapt their sizes
    class_count: int = 10  # the number of the classifier's logits
    channels: Channels = 1  # of the images: 3 for colour
    size: Size = 28  # pixels of the images' edges
    decoder_padding: bool = True  # of the transposed convolutions' output, which leaves an edge that no input reaches
    latent_activation: bool = True  # ReLU and dropout on z
    decoder_relu: bool = True  # after the decoder's hidden layers

    def __post_init__(self) -> None:
        _check_fields(self)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout (={self.dropout}) must be at least 0 and below 1")
        if not (self.pooling or self.decoder_padding):
            raise UsageError(
                "decoder_padding (=False) must come with pooling, without which there is none to leave out"
            )


@dataclass(frozen=True)
class RobustConfig:
    """How the robust recipe trains a teacher and then the classifier, after the paper's autoencoder.

    Both see the training images and negatives, mirrored or not, a share of them changed strongly, and half of the others
    tilted and stretched a little.
    """

    teacher_epochs: int = 40
    classifier_epochs: int = 160
    batch_size: int = 250
    teacher_learning_rate: float = 0.003  # the highest of a cycle, AdamW's
    classifier_learning_rate: float = 0.015
    weight_decay: float = 0.01
    strong_share: float = 0.2  # of the images, changed strongly
    negatives: int = 10_000  # pictures of nothing known, but no more than there are training images
    view_epochs: int = 4  # epochs of the classifier over the same changed images and their labels by the teacher
    distillation: float = 0.7  # the weight of the teacher's labels; the rest is the true labels'
    distillation_temperature: float = 2.0
    average_decay: float = 0.999  # of the moving average of weights, by step

    def __post_init__(self) -> None:
        _check_fields(self)
        for name in (
            "strong_share",
            "distillation",
            "average_decay",
            "teacher_learning_rate",
            "classifier_learning_rate",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{_shown(self, name)} must be from 0 to 1")
        if not self.distillation_temperature > 0:
            raise UsageError(f"{_shown(self, 'distillation_temperature')} must be above 0")


@dataclass(frozen=True)
class TrainConfig:
    """One run: the networks, how they are trained, and on what.

    Attributes:
        epochs: the epochs of each stage; of the autoencoder with the robust recipe.
        robust: the robust recipe's settings, None for the paper's recipe.
        encoder_init, encoder_training: where the classifier's encoder starts, and whether it is trained on.
        seed: the seed of weights, batch order and dropout.
        threads: PyTorch's CPU threads. The same seed, device, threads, versions and instruction set of the CPU give the
            same weights, bit for bit.
        data: the data folder that was named, None for Fashion-MNIST from where it is found.
        autoencoder_from: the run folder whose autoencoder the classifier starts from, None for the run's own.
        labels: how many labelled images the classifier is trained on, as many of each class as far as a class has them,
            drawn with the seed; None for all of train. The autoencoder needs no labels, and sees all images.
        keep: which epoch's weights each stage ends with: the last's, or the best's by validation, which is that of the
            lowest mean squared error or the highest accuracy, of two with the same accuracy the one with the lower
            cross-entropy, and the earlier one of two that are equal.
        patience: a stage stops after so many epochs in a row without a better one by validation; None trains them all.
        class_weights: whether an image counts in the classifier's loss by the inverse of its class's frequency.
        steps_per_epoch: the classifier's mini-batches of an epoch, None for as many as its ``passes`` have. It goes over
            its images again, or stops within them, to have so many.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    learning_rate: float = 0.001
    batch_size: int = 100
    epochs: int = 30
    encoder_init: EncoderInit = "pretrained"
    encoder_training: EncoderTraining = "fine-tuned"
    seed: int = 0
    device: Device = "cpu"
    threads: int = 1
    stage: Stage = "both"
    data: str | None = None
    autoencoder_from: str | None = None
    labels: int | None = None
    keep: Keep = "last"
    patience: int | None = None
    class_weights: bool = False
    steps_per_epoch: int | None = None
    robust: RobustConfig | None = None

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.robust is not None:
            self._check_robust()
        if not 0 < self.learning_rate <= 1:
            raise UsageError(f"learning_rate (={self.learning_rate}) must be above 0 and at most 1")
        if self.autoencoder_from is not None and (self.stage != "classifier" or self.encoder_init == "random"):
            raise UsageError(
                f"{_shown(self, 'autoencoder_from')} must come with stage=classifier "
                "and encoder_init=pretrained (--encoder)"
            )
        if self.stage == "classifier" and self.encoder_init == "pretrained" and self.autoencoder_from is None:
            raise UsageError(
                "stage (=classifier) must come with autoencoder_from (--from), a run to start from, "
                "or encoder_init=random (--encoder)"
            )
        if self.stage != "classifier" and self.encoder_init == "random":
            raise UsageError(f"{_shown(self, 'encoder_init')} must come with stage=classifier, not stage={self.stage}")
        if self.stage == "autoencoder":
            for name in ("encoder_training", "labels", "class_weights", "steps_per_epoch"):
                if getattr(self, name) != getattr(TrainConfig, name):  # its default
                    raise UsageError(f"{_shown(self, name)} must come with a classifier, not stage=autoencoder")

    def _check_robust(self) -> None:
        """The robust recipe has settings of its own; of the paper's, those that it does not use keep their defaults."""
        if self.autoencoder_from is not None:  # named before the stage, which follows from it
            raise UsageError(f"{_shown(self, 'autoencoder_from')} must come with recipe=paper, not recipe=robust")
        for config in (self, self.network):
            for item in fields(config):
                unused = item.name not in ("network", "robust", *USED_BY_ROBUST)
                if unused and getattr(config, item.name) != item.default:
                    raise UsageError(f"{_shown(config, item.name)} must come with recipe=paper, not recipe=robust")

    @property
    def recipe(self) -> Recipe:
        """The name of the recipe."""
        return "paper" if self.robust is None else "robust"

    @property
    def passes(self) -> int:
        """How often an epoch of the classifier goes over its images: with ``labels`` as often as it takes to see 5,000
        at most, and once at least.

        ``steps_per_epoch``, where it is set, decides instead.
        """
        return 1 if self.labels is None else max(1, FEWEST_IMAGES // self.labels)

    def images_of_epoch(self, stage: str, count: int) -> int:
        """How many images an epoch of a stage sees of the ``count`` that it has, those that it sees again included."""
        if stage == "classifier" and self.steps_per_epoch is not None:
            return self.steps_per_epoch * self.batch_size
        return count * (self.passes if stage == "classifier" else 1)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages to train, in order."""
        if self.robust is not None:
            return ("autoencoder", "teacher", "classifier")
        return ("autoencoder", "classifier") if self.stage == "both" else (self.stage,)

    def epochs_of(self, stage: str) -> int:
        """How many epochs a stage has, unless its patience ends before."""
        if self.robust is None or stage == "autoencoder":
            return self.epochs
        return self.robust.teacher_epochs if stage == "teacher" else self.robust.classifier_epochs

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values. What came later than the paper's recipe is left out where it has its default."""
        return {**_without_later(self), "network": _without_later(self.network)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """The inverse of :meth:`to_json`; a missing key takes its default.

        Raises:
            UsageError: an unknown key, or a value out of its range or of another type.
        """
        try:
            schema.check(values, _Values)
        except ValueError as error:
            raise UsageError(str(error)) from error
        nested: dict[str, Any] = {"network": _from_known_keys(NetworkConfig, values.get("network", {}))}
        if values.get("robust") is not None:
            nested["robust"] = _from_known_keys(RobustConfig, values["robust"])
        return _from_known_keys(cls, {**values, **nested})


class _Values(TypedDict, total=False):
    """What is not checked by the configuration itself."""

    network: dict[str, Any]
    robust: dict[str, Any] | None
    data: str | None
    autoencoder_from: str | None


def _without_later(config: "NetworkConfig | TrainConfig") -> dict[str, Any]:
    defaults = vars(type(config))
    return {name: value for name, value in asdict(config).items() if name not in LATER or value != defaults[name]}


def _from_known_keys(kind: type[Config], values: dict[str, Any]) -> Config:
    if unknown := sorted(set(values) - {item.name for item in fields(kind)}):
        raise UsageError(f"{kind.__name__} has no {', '.join(unknown)}")
    return kind(**values)


def _check_fields(config: "NetworkConfig | RobustConfig | TrainConfig") -> None:
    """Check every integer against its limits, every choice, number and switch."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if name in LIMITS and not (value is None and name in OPTIONAL):
            low, high = LIMITS[name]
            if type(value) is not int or not low <= value <= high:
                raise UsageError(f"{_shown(config, name)} must be an integer from {low:,} to {high:,}")
        elif get_origin(kind) is Literal and not any(
            value == choice and type(value) is type(choice) for choice in get_args(kind)
        ):
            raise UsageError(f"{_shown(config, name)} must be one of {', '.join(map(str, get_args(kind)))}")
        elif kind in (float, bool) and not isinstance(value, (int, float) if kind is float else bool):
            raise UsageError(f"{_shown(config, name)} must be a {kind.__name__}")


def _shown(config: "NetworkConfig | RobustConfig | TrainConfig", name: str) -> str:
    return f"{name}{OPTIONS.get(name, '')} (={getattr(config, name)})"


ROBUST = RobustConfig()  # last, because it checks itself
