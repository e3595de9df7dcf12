"""Training: the paper's two stages, each the same loop.

Stage 1 trains the autoencoder on the mean squared error, stage 2 the classifier, whose encoder starts from the
autoencoder's, on the cross-entropy. Adam on shuffled mini-batches; after each epoch the train and val splits are
measured in evaluation mode, with gradients and dropout off; after the last, test (§2.1, §2.2).

Every epoch's random numbers (batch order, dropout) come from a generator seeded with (seed, stage, epoch). So a run
that goes on from a checkpoint repeats the uninterrupted one bit for bit on the same device, number of threads, versions
and instruction set of the CPU.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmcae.data import Dataset
from fmcae.data.split import draw_labels
from fmcae.errors import ProviderError, UsageError
from fmcae.train import robust
from fmcae.train.backend import Backend, Optimizer, PlainBackend, backend_for, optimizer_for
from fmcae.train.config import Device
from fmcae.train.cpu import DROPOUT_LAYERS
from fmcae.train.cuda import captured
from fmcae.train.measure import DeviceSplit, epoch_seed, evaluate, scale
from fmcae.train.networks import Autoencoder, Classifier
from fmcae.train.progress import Progress
from fmcae.train.run import Run, check_data
from fmcae.train.weights import checkpoint_stage, load_checkpoint, load_weights, save_checkpoint, save_weights

TrainStep: TypeAlias = Callable[[Tensor, NDArray[np.uint32]], Tensor]  # indices of a batch, dropout's keys -> the loss


def resolve_device(device: str) -> Device:
    """The device, "cpu" or "cuda"; "auto" is cuda where PyTorch has it.

    Raises:
        ProviderError: cuda was asked for and PyTorch has none.
        UsageError: another name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device (={device}) must be one of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError("device (=cuda) is not available: PyTorch finds no CUDA GPU; run on --device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def train(run: Run, dataset: Dataset, progress: Progress | None = None) -> None:
    """Train every stage of ``run`` that is not done yet, from its checkpoint if it has one, and draw its pictures.

    Raises:
        RunError: the data are not the run's, or a file of the run is damaged.
        ProviderError: the run's device is not available.
    """
    check_data(run, dataset)
    device = torch.device(resolve_device(run.config.device))
    with _deterministic(device):
        splits = {name: DeviceSplit.from_split(getattr(dataset, name), device) for name in ("train", "val", "test")}
        under_way = checkpoint_stage(run.checkpoint)
        for stage in run.config.stages:
            if not (done := run.weights(stage).is_file()):
                torch.manual_seed(epoch_seed(run.config, stage, epoch=0))
                train_one = _train_robust if run.config.robust and stage != "autoencoder" else _train_plain
                network = train_one(run, stage, splits, progress or Progress())
                save_weights(network, run.weights(stage))  # its presence says that the stage is done
            if not done or stage == under_way:  # a run may have been stopped between the weights and the pictures
                _draw(run, stage, splits["test"], progress or Progress())
    run.checkpoint.unlink(missing_ok=True)


def _train_robust(run: Run, stage: str, splits: dict[str, DeviceSplit], progress: Progress) -> nn.Module:
    network = robust.train_stage(run, stage, splits, progress)
    records = [old for old in run.metrics() if old["stage"] != stage or "epoch" in old]
    _test(run, stage, PlainBackend(network), splits["test"], records)
    progress.record(records[-1])
    return network


def _train_plain(run: Run, stage: str, splits: dict[str, DeviceSplit], progress: Progress) -> nn.Module:
    device = splits["train"].labels.device
    network = _build_network(run, stage).to(device)
    with backend_for(network, device, run.config.threads) as backend:
        _train_stage(run, stage, backend, splits, progress)
    return network


def _train_stage(run: Run, stage: str, backend: Backend, splits: dict[str, DeviceSplit], progress: Progress) -> None:
    config, network = run.config, backend.network
    optimizer = optimizer_for(backend, config.learning_rate)
    epochs_done = load_checkpoint(run.checkpoint, stage, network, optimizer.state)
    # a run stopped between its metrics and its checkpoint has one record too many
    records = [old for old in run.metrics() if old["stage"] != stage or old.get("epoch", np.inf) <= epochs_done]
    passes = 1
    if stage == "classifier" and config.labels is not None:
        train_split, passes = splits["train"], config.passes
        drawn = draw_labels(train_split.labels.cpu().numpy(), config.labels, config.seed)
        indices = torch.from_numpy(drawn).to(train_split.labels.device)
        splits = splits | {"train": DeviceSplit(train_split.images[indices], train_split.labels[indices])}
    images = passes * len(splits["train"].labels)
    progress.stage(stage, config.epochs, epochs_done + 1, images)
    step = step_for(backend, optimizer, splits["train"], config.batch_size, progress)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        torch.manual_seed(epoch_seed(config, stage, epoch))
        started = time.perf_counter()
        train_epoch(step, network, splits["train"], config.batch_size, progress, passes)
        seconds = time.perf_counter() - started
        record: dict[str, Any] = {"stage": stage, "epoch": epoch}
        for name in ("train", "val"):
            record |= {f"{name}_{metric}": value for metric, value in evaluate(backend, splits[name])[0].items()}
        record |= {"seconds": round(seconds, 3), "images_per_second": round(images / seconds)}
        records.append(record)
        run.write_metrics(records)
        save_checkpoint(run.checkpoint, stage, epoch, network, optimizer.state)
        progress.record(record)
    _test(run, stage, backend, splits["test"], records)
    progress.record(records[-1])


def _test(run: Run, stage: str, backend: Backend, split: DeviceSplit, records: list[dict[str, Any]]) -> None:
    """Measure the test split, and add its record."""
    values, confusion = evaluate(backend, split)
    own = {f"test_{metric}": value for metric, value in values.items()}
    counts = {} if confusion is None else {"confusion": confusion.tolist()}
    records.append({"stage": stage, "split": "test", **own, **counts})
    run.write_metrics(records)


def _draw(run: Run, stage: str, split: DeviceSplit, progress: Progress) -> None:
    """Draw the stage's pictures; the run goes on without one that cannot be drawn."""
    try:
        from fmcae.train import figures  # matplotlib: not before the first step

        figures.draw_run(run.folder, run.metrics(), stage, run.data["class_names"])
        if stage == "autoencoder":
            images = split.images[: figures.RECONSTRUCTIONS]
            with torch.no_grad():
                x_hat = run.network(stage).to(images.device)(scale(images))
            figures.draw_reconstructions(run.folder, images.cpu().numpy(), x_hat.cpu().numpy())
    except Exception as error:
        progress.warn(f"a picture of the {stage} cannot be drawn: {error}")


def step_for(
    backend: Backend, optimizer: Optimizer, split: DeviceSplit, batch_size: int, progress: Progress
) -> TrainStep:
    """Return what trains once on the images of ``split`` at indices (B,) int64, and returns the loss, a scalar."""

    def step(batch: Tensor, keys: NDArray[np.uint32]) -> Tensor:
        x = scale(torch.index_select(split.images, 0, batch))  # (B, 1, 28, 28); indexing takes ten times as long
        loss = backend.backward(x, torch.index_select(split.labels, 0, batch), keys)
        optimizer.step()
        return loss

    if split.labels.device.type == "cpu":
        return step
    unused = np.zeros(DROPOUT_LAYERS, np.uint32)
    backend.network.train()
    state = [
        *backend.network.state_dict().values(),
        *(value for own in optimizer.state.values() for value in own.values()),
    ]
    on_device = captured(lambda batch: step(batch, unused), state, batch_size, progress)
    return lambda batch, keys: on_device(batch)


def train_epoch(
    step: TrainStep, network: nn.Module, split: DeviceSplit, batch_size: int, progress: Progress, passes: int = 1
) -> None:
    """Go over ``split`` in shuffled mini-batches; random numbers come from torch's global generators."""
    network.train()
    order = torch.cat([torch.randperm(len(split.labels)) for _ in range(passes)]).to(split.labels.device)
    batches = torch.split(order, batch_size)
    dropout_keys = torch.randint(2**32, (len(batches), DROPOUT_LAYERS)).numpy().astype(np.uint32)
    for batch, keys in zip(batches, dropout_keys, strict=True):
        loss = step(batch, keys)
        progress.step(len(batch), loss)
    if order.device.type == "cuda":
        torch.cuda.synchronize(order.device)  # or its time would end before its work


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


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Make results repeatable, and leave the process's random state and settings as they were."""
    if device.type == "cpu":  # all that is used there is repeatable; no GPU is woken
        with torch.random.fork_rng(devices=[]):
            yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may vary between runs
    settings: list[tuple[Any, str, Any]] = [
        (torch.utils.deterministic, "fill_uninitialized_memory", False),  # a kernel for every new tensor
        # PyTorch's default for convolutions is TF32, which keeps 10 bits
        (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        (torch.backends.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    ]
    before = [getattr(owner, name) for owner, name, _ in settings]
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        torch.use_deterministic_algorithms(True)
        for owner, name, value in settings:
            setattr(owner, name, value)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic)
            for (owner, name, _), value in zip(settings, before, strict=True):
                setattr(owner, name, value)
