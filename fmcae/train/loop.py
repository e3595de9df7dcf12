"""Training: the paper's two stages, each the same loop.

Stage 1 trains the autoencoder on the mean squared error, stage 2 the classifier, whose encoder starts from the
autoencoder's, on the cross-entropy. Adam on shuffled mini-batches; after each epoch the train and val splits are
measured in evaluation mode, with gradients and dropout off; after the last, test (§2.1, §2.2).

Every epoch's random numbers (batch order, dropout) come from a generator seeded with (seed, stage, epoch). So a run
that goes on from a checkpoint repeats the uninterrupted one bit for bit on the same device and number of threads.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fmcae import metrics
from fmcae.data import Dataset, Split
from fmcae.data.split import draw_labels
from fmcae.errors import ProviderError, RunError, UsageError
from fmcae.files import write_atomic
from fmcae.train.config import TrainConfig
from fmcae.train.fused import DROPOUT_LAYERS, FusedAdam, FusedCompute, adam_state
from fmcae.train.networks import Autoencoder, Classifier
from fmcae.train.progress import Progress
from fmcae.train.run import (
    CHECKPOINT,
    METRICS,
    Run,
    check_data,
    checkpoint_progress,
    load_checkpoint,
    load_weights,
    open_run,
    save_checkpoint,
    save_weights,
)

EVALUATION_BATCH = 1000  # images; the result does not depend on it
CPU_CHUNK = 100  # images of it at a time through PyTorch on a CPU
STAGE_INDEX = {"autoencoder": 0, "classifier": 1}


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the training device: images (N, 28, 28) uint8, labels (N,) int64."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, split: Split, device: torch.device) -> "DeviceSplit":
        return cls(
            torch.from_numpy(np.array(split.images)).to(device),
            torch.from_numpy(split.labels.astype(np.int64)).to(device),
        )


def resolve_device(device: str) -> str:
    """ "cpu" or "cuda" for "auto", "cpu" or "cuda".

    Raises:
        ProviderError: cuda was asked for and PyTorch has none.
        UsageError: another name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device (={device}) must be one of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError("device (=cuda) is not available: PyTorch finds no CUDA GPU; run on --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def train(run: Run, dataset: Dataset, progress: Progress | None = None) -> None:
    """Train every stage of ``run`` that is not done yet, from its checkpoint if it has one.

    Raises:
        RunError: the data are not the run's, or a file of the run is damaged.
        ProviderError: the run's device is not available.
    """
    progress = progress or Progress()
    check_data(run, dataset)
    config = run.config
    device = torch.device(resolve_device(config.device))
    with _deterministic(device, config.threads):
        splits = {name: DeviceSplit.of(getattr(dataset, name), device) for name in ("train", "val", "test")}
        for stage in config.stages:
            if not run.weights(stage).is_file():
                _train_stage(run, stage, splits, device, progress)
    (run.folder / CHECKPOINT).unlink(missing_ok=True)


def _train_stage(
    run: Run, stage: str, splits: dict[str, DeviceSplit], device: torch.device, progress: Progress
) -> None:
    config = run.config
    torch.manual_seed(_seed(config, stage, epoch=0))
    network = _build_network(run, stage).to(device)
    compute = compute_for(network, device, config.threads)
    optimizer = optimizer_for(compute, config.learning_rate)
    checkpoint = run.folder / CHECKPOINT
    epochs_done = 0
    at = checkpoint_progress(checkpoint)
    if at is not None and at[0] == stage:
        load_checkpoint(checkpoint, network, optimizer.state)
        epochs_done = at[1]
    # a run stopped between its metrics and its checkpoint has one record too many
    records = [
        record for record in run.metrics() if record["stage"] != stage or record.get("epoch", np.inf) <= epochs_done
    ]
    passes = 1
    if stage == "classifier":
        splits = splits | {"train": _labelled(splits["train"], config)}
        passes = config.passes
    images = passes * len(splits["train"].labels)
    progress.stage(stage, config.epochs, epochs_done + 1, images)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        torch.manual_seed(_seed(config, stage, epoch))
        started = time.perf_counter()
        train_epoch(compute, optimizer, splits["train"], config.batch_size, progress, passes)
        seconds = time.perf_counter() - started
        record = {"stage": stage, "epoch": epoch}
        for name in ("train", "val"):
            record |= {f"{name}_{metric}": value for metric, value in evaluate(compute, splits[name])[0].items()}
        record |= {"seconds": round(seconds, 3), "images_per_second": round(images / seconds)}
        records.append(record)
        _write_metrics(run.folder, records)
        save_checkpoint(checkpoint, stage, epoch, network, optimizer.state)
        progress.record(record)
    values, outputs = evaluate(compute, splits["test"])
    record = {"stage": stage, "split": "test"} | {f"test_{metric}": value for metric, value in values.items()}
    if isinstance(network, Classifier):
        record["confusion"] = metrics.confusion(outputs, splits["test"].labels.cpu().numpy()).tolist()
    records.append(record)
    _write_metrics(run.folder, records)
    from fmcae.train import figures  # matplotlib: not before the first step

    figures.draw_run(run.folder, records, stage, run.data["class_names"])
    if isinstance(network, Autoencoder):
        figures.draw_reconstructions(run.folder, splits["test"].images.cpu().numpy(), outputs)
    save_weights(network, run.weights(stage))  # last: its presence says that the stage is done
    progress.record(record)


def train_epoch(
    compute: "Compute", optimizer: "Optimizer", split: DeviceSplit, batch_size: int, progress: Progress, passes: int = 1
) -> None:
    """Go over ``split`` in shuffled mini-batches; random numbers come from torch's global generators."""
    compute.network.train()
    order = torch.cat([torch.randperm(len(split.labels)) for _ in range(passes)]).to(split.labels.device)
    batches = torch.split(order, batch_size)
    dropout_keys = torch.randint(2**32, (len(batches), DROPOUT_LAYERS)).numpy().astype(np.uint32)
    for batch, keys in zip(batches, dropout_keys, strict=True):
        x = scale(torch.index_select(split.images, 0, batch))  # (B, 1, 28, 28); indexing takes ten times as long
        loss = compute.backward(x, split.labels[batch], keys)
        optimizer.step()
        progress.step(len(batch), loss)


class PlainCompute:
    """Losses, gradients and outputs of a network as PyTorch computes them, on any device."""

    def __init__(self, network: Autoencoder | Classifier) -> None:
        self.network = network

    def backward(self, x: Tensor, labels: Tensor, keys: NDArray[np.uint32]) -> Tensor:
        """The training loss, a scalar, of x (B, 1, 28, 28) and labels (B,); gradients go into ``parameter.grad``.

        Dropout takes torch's generator instead of ``keys``.
        """
        loss = loss_of(self.network, x, labels)
        self.network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs for x (N, 1, 28, 28) in evaluation mode: x_hat (N, 1, 28, 28) or logits (N, K)."""
        # on a CPU in parts whose activations fit the cache: without pooling twice as fast as all at once
        parts = torch.split(x, CPU_CHUNK) if x.device.type == "cpu" else (x,)
        return torch.cat([self.network(part) for part in parts])


Compute = PlainCompute | FusedCompute


def compute_for(network: Autoencoder | Classifier, device: torch.device, threads: int) -> Compute:
    """The faster way to compute where there is one: on a CPU, for the networks with pooling."""
    if device.type == "cpu" and network.config.pooling:
        torch.set_num_threads(1)  # the threads share a batch, not its operators
        return FusedCompute(network, threads)
    return PlainCompute(network)


Optimizer = FusedAdam | torch.optim.Adam


def optimizer_for(compute: Compute, learning_rate: float) -> Optimizer:
    """Adam over the parameters that are trained."""
    if isinstance(compute, FusedCompute):
        return FusedAdam(compute, learning_rate)
    parameters = [parameter for parameter in compute.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    for parameter in parameters:  # made at the first step otherwise, too late to be filled from a checkpoint
        optimizer.state[parameter] = adam_state(parameter)
    return optimizer


def loss_of(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The training loss, a scalar: mean squared error of an autoencoder, cross-entropy in nats of a classifier."""
    if isinstance(network, Autoencoder):
        return F.mse_loss(network(x), x)
    return F.cross_entropy(network(x), labels)


@torch.no_grad()
def evaluate(compute: Compute, split: DeviceSplit) -> tuple[dict[str, float], np.ndarray[Any, Any]]:
    """A split's metrics in evaluation mode, and the outputs (N, ...) float32 that they were taken from.

    An autoencoder has ``mse``; a classifier ``cross_entropy`` (nats) and ``accuracy``.
    """
    compute.network.eval()
    is_autoencoder = isinstance(compute.network, Autoencoder)
    outputs, errors = [], []
    for images in torch.split(split.images, EVALUATION_BATCH):
        x = scale(images)
        output = compute.outputs(x).cpu().numpy()
        if is_autoencoder:
            errors.append(metrics.squared_error(x.cpu().numpy(), output))
        outputs.append(output)
    output = np.concatenate(outputs)
    if is_autoencoder:
        return {"mse": float(np.concatenate(errors).mean())}, output
    labels = split.labels.cpu().numpy()
    return {
        "cross_entropy": metrics.cross_entropy(output, labels),
        "accuracy": metrics.accuracy(output, labels),
    }, output


def scale(images: Tensor) -> Tensor:
    """uint8 (N, 28, 28) -> float32 (N, 1, 28, 28) in [0, 1]: ``fmcae.preprocess.scale`` on the device, bit for bit."""
    return images.unsqueeze(1).float().div_(255)


def _labelled(split: DeviceSplit, config: TrainConfig) -> DeviceSplit:
    if config.labels is None:
        return split
    drawn = torch.from_numpy(draw_labels(split.labels.cpu().numpy(), config.labels, config.seed)).to(
        split.labels.device
    )
    return DeviceSplit(split.images[drawn], split.labels[drawn])


def _build_network(run: Run, stage: str) -> Autoencoder | Classifier:
    config = run.config
    if stage == "autoencoder":
        return Autoencoder(config.network)
    classifier = Classifier(config.network)
    if config.encoder_init == "pretrained":
        autoencoder = Autoencoder(config.network)
        load_weights(autoencoder, run.weights("autoencoder"))
        classifier.encoder.load_state_dict(autoencoder.encoder.state_dict())
    if config.encoder_training == "frozen":
        classifier.encoder.requires_grad_(False)
    return classifier


def adopt_autoencoder(run: Run, source: Path) -> None:
    """Copy the trained autoencoder of the run in ``source`` into ``run``, so that ``run`` is complete by itself.

    Raises:
        RunError: ``source`` has no finished autoencoder, or one of another shape.
    """
    other = open_run(source)
    autoencoder = Autoencoder(run.config.network)
    try:
        load_weights(autoencoder, other.weights("autoencoder"))
    except RunError as error:
        raise RunError(f"the autoencoder to start from cannot be used: {error}") from error
    save_weights(autoencoder, run.weights("autoencoder"))


def _seed(config: TrainConfig, stage: str, epoch: int) -> int:
    """One 64-bit seed for an epoch; epoch 0 is the initial weights'. SeedSequence keeps neighbours unrelated."""
    return int(np.random.SeedSequence([config.seed, STAGE_INDEX[stage], epoch]).generate_state(1, np.uint64)[0])


def _write_metrics(folder: Path, records: list[dict[str, Any]]) -> None:
    write_atomic(folder / METRICS, "".join(json.dumps(record) + "\n" for record in records))


@contextmanager
def _deterministic(device: torch.device, threads: int) -> Iterator[None]:
    """Make results repeatable, and leave the process's random state and settings as they were."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.set_num_threads(threads)
        if device.type == "cuda":  # on the CPU all that is used is repeatable, and the call would import for a second
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may vary between runs
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            if device.type == "cuda":
                torch.use_deterministic_algorithms(before[1])
