"""What a run is: small frozen dataclasses that check themselves and travel as JSON.

The defaults are the paper's optimum (n=128, p=0.1, lr=0.001, batches of 100, 30 epochs; §3.2). Where its text leaves a
reading open (dropout before or after pooling, the decoder's output dropped or not), the default is the reading that
comes closest to its numbers, and the other is a switch.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from fmcae.errors import UsageError

DropoutPosition = Literal["before-pooling", "after-pooling"]
Stage = Literal["both", "autoencoder", "classifier"]
EncoderInit = Literal["pretrained", "random"]
EncoderTraining = Literal["fine-tuned", "frozen"]
FEWEST_IMAGES = 5_000  # of an epoch with few labels; with fewer it would end after a step or two


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of the networks.

    Attributes:
        latent_dim: size of z; the paper's n.
        dropout: probability p in [0, 1) of every dropout layer.
        dropout_position: before or after max pooling in the encoder.
        output_dropout: whether the decoder's sigmoid output is dropped too. It trains x_hat towards (1-p)·x.
        pooling: max pooling in the encoder; without it (the paper's Appendix) the layers adapt their sizes.
        class_count: number of the classifier's logits.
    """

    latent_dim: int = 128
    dropout: float = 0.1
    dropout_position: DropoutPosition = "after-pooling"
    output_dropout: bool = False
    pooling: bool = True
    class_count: int = 10

    def __post_init__(self) -> None:
        _check_integer("latent_dim", self.latent_dim, 1, 65_536)
        _check_number("dropout", self.dropout, lambda p: 0 <= p < 1, "at least 0 and below 1")
        _check_choice("dropout_position", self.dropout_position, get_args(DropoutPosition))
        _check_integer("class_count", self.class_count, 2, 256)


@dataclass(frozen=True)
class TrainConfig:
    """One run: the networks, how they are trained, and on what.

    Attributes:
        epochs: of each stage.
        encoder_init: where the classifier's encoder starts: from the autoencoder, or at random.
        encoder_training: whether the classifier's encoder is trained on with the linear layer, or kept as it is.
        seed: of weights, batch order and dropout.
        device: "cpu" or "cuda"; "auto" is resolved before a run starts.
        threads: PyTorch's CPU threads. The same seed, device and threads give the same weights, bit for bit.
        stage: which stages to train.
        data: the data folder that was named, None for Fashion-MNIST from where it is found.
        autoencoder_from: the run folder whose autoencoder the classifier starts from, None for the run's own.
        labels: how many labelled images the classifier is trained on, as many of each class, drawn with the seed; None
            for all of train. The autoencoder needs no labels, and sees them all.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    learning_rate: float = 0.001
    batch_size: int = 100
    epochs: int = 30
    encoder_init: EncoderInit = "pretrained"
    encoder_training: EncoderTraining = "fine-tuned"
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    stage: Stage = "both"
    data: str | None = None
    autoencoder_from: str | None = None
    labels: int | None = None

    def __post_init__(self) -> None:
        _check_number("learning_rate", self.learning_rate, lambda lr: 0 < lr <= 1, "above 0 and at most 1")
        _check_integer("batch_size", self.batch_size, 1, 50_000)
        _check_integer("epochs", self.epochs, 1, 10_000)
        # Where fmcae train has another name for a parameter, its messages have both.
        _check_choice("encoder_init (--encoder)", self.encoder_init, get_args(EncoderInit))
        _check_choice("encoder_training (--freeze-encoder)", self.encoder_training, get_args(EncoderTraining))
        _check_integer("seed", self.seed, 0, 2**32 - 1)
        _check_choice("device", self.device, ("cpu", "cuda"))
        _check_integer("threads", self.threads, 1, 1024)
        _check_choice("stage", self.stage, get_args(Stage))
        if self.autoencoder_from is not None and (self.stage != "classifier" or self.encoder_init == "random"):
            raise UsageError(
                f"autoencoder_from (--from) (={self.autoencoder_from}) must come with stage=classifier "
                "and encoder_init=pretrained (--encoder)"
            )
        if self.stage == "classifier" and self.encoder_init == "pretrained" and self.autoencoder_from is None:
            raise UsageError(
                "stage (=classifier) must come with autoencoder_from (--from), a run to start from, "
                "or encoder_init=random (--encoder)"
            )
        if self.stage != "classifier" and self.encoder_init == "random":
            raise UsageError(
                f"encoder_init (--encoder) (=random) must come with stage=classifier, not stage={self.stage}"
            )
        if self.stage == "autoencoder" and self.encoder_training == "frozen":
            raise UsageError(
                "encoder_training (--freeze-encoder) (=frozen) must come with a classifier, not stage=autoencoder"
            )

        if self.labels is not None:
            _check_integer("labels", self.labels, 1, 2**31)
            if self.stage == "autoencoder":
                raise UsageError(f"labels (={self.labels}) must come with a classifier, not stage=autoencoder")

    @property
    def passes(self) -> int:
        """How often an epoch of the classifier goes over its images: with few labels until it has seen 5,000."""
        return 1 if self.labels is None else max(1, FEWEST_IMAGES // self.labels)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages to train, in order."""
        return ("autoencoder", "classifier") if self.stage == "both" else (self.stage,)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """The inverse of :meth:`to_json`.

        Raises:
            UsageError: an unknown or missing key, or a value out of its range.
        """
        network = _checked_keys(NetworkConfig, values.get("network", {}))
        return cls(**{**_checked_keys(cls, {"labels": None, **values}), "network": NetworkConfig(**network)})


def _checked_keys(kind: type, values: Any) -> dict[str, Any]:
    known = {item.name for item in fields(kind)}
    if not isinstance(values, dict) or set(values) != known:
        found = sorted(values) if isinstance(values, dict) else values
        raise UsageError(f"{kind.__name__} must have the keys {sorted(known)}; it has {found}")
    return values


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name} (={value}) must be an integer from {low:,} to {high:,}")


def _check_number(name: str, value: float, holds: Callable[[float], bool], rule: str) -> None:
    if not isinstance(value, int | float) or not holds(value):
        raise UsageError(f"{name} (={value}) must be {rule}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} (={value}) must be one of {', '.join(choices)}")
