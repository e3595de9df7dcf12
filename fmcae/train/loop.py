"""Training: the paper's two stages, each the same loop.

Stage 1 trains the autoencoder on the mean squared error, stage 2 the classifier, whose encoder starts from the
autoencoder's, on the cross-entropy. Adam on shuffled mini-batches; after each epoch the train and val splits are
measured in evaluation mode, with gradients and dropout off; after the last, test (§2.1, §2.2). What is kept, and tested,
are the last epoch's weights, or the best's by validation (``keep``); ``patience`` ends a stage that gets no better.

Every epoch's random numbers (batch order, dropout) come from a generator seeded with (seed, stage, epoch). So a run
that goes on from a checkpoint repeats the uninterrupted one bit for bit on the same device, number of threads, versions
and instruction set of the CPU.
"""

import copy
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmcae.data import Dataset
from fmcae.data.split import draw_labels
from fmcae.errors import ProviderError, RunError, UsageError
from fmcae.train import robust
from fmcae.train.backend import Backend, Optimizer, PlainBackend, backend_for, balanced_weights, optimizer_for
from fmcae.train.config import EDGE, Device, TrainConfig
from fmcae.train.cpu import DROPOUT_LAYERS
from fmcae.train.cuda import captured
from fmcae.train.measure import DeviceSplit, epoch_seed, evaluate, scale
from fmcae.train.networks import Autoencoder, Classifier
from fmcae.train.progress import Progress
from fmcae.train.run import METRICS, Run, check_data
from fmcae.train.weights import checkpoint_stage, load_checkpoint, load_weights, save_checkpoint, save_weights

# By stage: the metrics whose best epoch is the best, of which a later one decides where all before are equal; and whether
# more of them is better (1) or less (-1).
BEST = {"autoencoder": {"val_mse": -1}, "classifier": {"val_accuracy": 1, "val_cross_entropy": -1}}
_NO_GPU, _NO_CUDA = "PyTorch finds no CUDA GPU", "this build of PyTorch has no CUDA"
TrainStep: TypeAlias = Callable[[Tensor, NDArray[np.uint32]], Tensor]  # indices of a batch, dropout's keys -> the loss


def resolve_device(
    device: str, note: Callable[[str], object] = lambda text: None, advice: str = "run on --device cpu"
) -> Device:
    """The device, "cpu" or "cuda"; "auto" is cuda where PyTorch computes on a GPU.

    ``note`` is told where there is a GPU that "auto" cannot take, and an error ends with ``advice``.

    Raises:
        ProviderError: cuda was asked for, and PyTorch does not compute on a GPU.
        UsageError: another name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device (={device}) must be one of auto, cpu, cuda")
    if device == "cpu":
        return "cpu"
    if (obstacle := _cuda_obstacle()) is None:
        return "cuda"
    if device == "cuda":
        raise ProviderError(f"device (=cuda) is not available: {obstacle}; {advice}")
    if obstacle not in (_NO_GPU, _NO_CUDA):
        note(f"training on the CPU: {obstacle}")
    return "cpu"


def _cuda_obstacle() -> str | None:
    """What keeps PyTorch from computing on a GPU; None if it does. That it finds one does not say that it has kernels."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if not is_available and said:  # such as of a driver that is too old
        text = str(said[0].message).splitlines()[0].partition(" (Triggered")[0].removeprefix("CUDA initialization: ")
        code = re.search(r"Error \d+: .*", text)  # behind questions that PyTorch asks
        return f"PyTorch finds a GPU but cannot compute on it ({code[0] if code else text.partition('. ')[0]})"
    if not is_available:
        return _NO_GPU if torch.version.cuda else _NO_CUDA
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own about an old GPU has many lines
            float(torch.ones(1, device="cuda"))
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"PyTorch finds a GPU but cannot compute on it ({reason})"
    return None


def train(run: Run, dataset: Dataset, progress: Progress | None = None) -> None:
    """Train every stage of ``run`` that is not done yet, from its checkpoint if it has one, and draw its pictures.

    Raises:
        RunError: the data are not the run's, or a file of the run is damaged.
        ProviderError: the run's device is not available.
    """
    check_data(run, dataset)
    is_begun = run.checkpoint.exists() or any(run.weights(stage).exists() for stage in run.config.stages)
    elsewhere = f"{run.folder} was begun on a GPU: go on where there is one, or train into another folder"
    advice = elsewhere if is_begun else "run on --device cpu"
    device = torch.device(resolve_device(run.config.device, advice=advice))
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
                _draw(run, stage, splits["val"], progress or Progress())
    run.checkpoint.unlink(missing_ok=True)


def _train_robust(run: Run, stage: str, splits: dict[str, DeviceSplit], progress: Progress) -> nn.Module:
    network = robust.train_stage(run, stage, splits, progress)
    records = [old for old in run.metrics() if old["stage"] != stage or "epoch" in old]
    _test(run, stage, PlainBackend(network), splits["test"], records, {"kept_epoch": run.config.epochs_of(stage)})
    progress.record(records[-1])
    return network


def _train_plain(run: Run, stage: str, splits: dict[str, DeviceSplit], progress: Progress) -> nn.Module:
    config, device, class_weights = run.config, splits["train"].labels.device, None
    if stage == "classifier":
        splits = splits | {"train": _labelled(splits["train"], config)}
        if config.class_weights:
            class_weights = balanced_weights(splits["train"].labels, config.network.class_count)
    network = _build_network(run, stage).to(device)
    with backend_for(network, device, config.threads, class_weights) as backend:
        _train_stage(run, stage, backend, splits, progress)
    return network


def _labelled(train: DeviceSplit, config: TrainConfig) -> DeviceSplit:
    """The training images whose labels the classifier sees."""
    if config.labels is None:
        return train
    drawn = draw_labels(train.labels.cpu().numpy(), config.labels, config.seed)
    indices = torch.from_numpy(drawn).to(train.labels.device)
    return DeviceSplit(train.images[indices], train.labels[indices])


def _train_stage(run: Run, stage: str, backend: Backend, splits: dict[str, DeviceSplit], progress: Progress) -> None:
    config, network = run.config, backend.network
    optimizer = optimizer_for(backend, config.learning_rate)
    best = copy.deepcopy(network) if config.keep == "best" else None
    in_checkpoint = network if best is None else nn.ModuleDict({"network": network, "best": best})
    epochs_done = load_checkpoint(run.checkpoint, stage, in_checkpoint, optimizer.state)
    # a run stopped between its metrics and its checkpoint has one record too many
    records = [old for old in run.metrics() if old["stage"] != stage or old.get("epoch", np.inf) <= epochs_done]
    images = config.images_of_epoch(stage, len(splits["train"].labels))
    _check_records(run, stage, records, epochs_done)
    progress.stage(stage, config.epochs, epochs_done + 1, images)
    step = step_for(backend, optimizer, splits["train"], min(config.batch_size, images), progress)
    for epoch in range(epochs_done + 1, config.epochs + 1):
        if config.patience and epochs_done and epochs_done - best_epoch(records, stage) >= config.patience:
            break
        torch.manual_seed(epoch_seed(config, stage, epoch))
        started = time.perf_counter()
        train_epoch(step, network, splits["train"], config.batch_size, progress, images)
        seconds = time.perf_counter() - started
        record: dict[str, Any] = {"stage": stage, "epoch": epoch}
        for name in ("train", "val"):
            record |= {f"{name}_{metric}": value for metric, value in evaluate(backend, splits[name])[0].items()}
        record |= {"seconds": round(seconds, 3), "images_per_second": round(images / seconds)}
        records.append(record)
        if best is not None and best_epoch(records, stage) == epoch:
            best.load_state_dict(network.state_dict())
        run.write_metrics(records)
        save_checkpoint(run.checkpoint, stage, epoch, in_checkpoint, optimizer.state)
        progress.record(record)
        epochs_done = epoch
    kept = {"kept_epoch": epochs_done}
    if best is not None:
        kept["kept_epoch"] = best_epoch(records, stage)
        network.load_state_dict(best.state_dict())
    if epochs_done < config.epochs:
        kept["stopped_epoch"] = epochs_done
        progress.note(
            f"{stage}: stopped after epoch {epochs_done} of {config.epochs}: none better by validation than "
            f"epoch {best_epoch(records, stage)} in {config.patience} more; epoch {kept['kept_epoch']} is kept"
        )
    _test(run, stage, backend, splits["test"], records, kept)
    progress.record(records[-1])


def best_epoch(records: list[dict[str, Any]], stage: str) -> int:
    """The epoch of the stage with the best validation, as BEST compares them, the earlier one of two that are equal.

    A value that is not a number is worse than any other.
    """
    own = [record for record in records if record["stage"] == stage]
    values = [np.nan_to_num([sign * record[name] for name, sign in BEST[stage].items()], nan=-np.inf) for record in own]
    return max(range(len(own)), key=lambda index: tuple(values[index])) + 1  # the first such


def _check_records(run: Run, stage: str, records: list[dict[str, Any]], epochs_done: int) -> None:
    """Check that ``metrics.jsonl`` has every epoch of the checkpoint, where it decides what comes next."""
    if run.config.keep == "best" or run.config.patience:
        own = [
            old
            for old in records
            if old["stage"] == stage and all(isinstance(old.get(name), float) for name in BEST[stage])
        ]
        if [old.get("epoch") for old in own] != list(range(1, epochs_done + 1)):
            raise RunError(f"{run.folder / METRICS}: is damaged: it lacks some of the {stage}'s {epochs_done} epochs")


def _test(
    run: Run, stage: str, backend: Backend, split: DeviceSplit, records: list[dict[str, Any]], kept: dict[str, int]
) -> None:
    """Measure the test split, and add its record, which says too which epoch is kept."""
    values, confusion = evaluate(backend, split, run.config.network.size - EDGE)
    own = {f"test_{metric}": value for metric, value in values.items()}
    counts = {} if confusion is None else {"confusion": confusion.tolist()}
    records.append({"stage": stage, "split": "test", **kept, **own, **counts})
    run.write_metrics(records)


def _draw(run: Run, stage: str, split: DeviceSplit, progress: Progress) -> None:
    """Draw the stage's pictures; the run goes on without one that cannot be drawn."""
    try:
        from fmcae.train import figures  # matplotlib: not before the first step

        figures.draw_run(run.folder, run.metrics(), stage, run.data["class_names"])
        if stage == "autoencoder":
            labels = split.labels.cpu().numpy()
            chosen = figures.examples(labels)
            images = split.images[torch.from_numpy(chosen).to(split.images.device)]
            with torch.no_grad():
                x_hat = run.network(stage).to(images.device)(scale(images))
            captions = [run.data["class_names"][label] for label in labels[chosen]]
            figures.draw_reconstructions(run.folder, images.cpu().numpy(), x_hat.cpu().numpy(), captions)
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
    step: TrainStep,
    network: nn.Module,
    split: DeviceSplit,
    batch_size: int,
    progress: Progress,
    image_count: int | None = None,
) -> None:
    """Go over ``split`` in shuffled mini-batches, once or until ``image_count`` images are seen.

    Random numbers come from torch's global generators.
    """
    network.train()
    passes = -(-(image_count or len(split.labels)) // len(split.labels))
    order = torch.cat([torch.randperm(len(split.labels)) for _ in range(passes)])[:image_count]
    order = order.to(split.labels.device)
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
        if not any(record["stage"] == "autoencoder" and "split" in record for record in run.metrics()):
            raise RunError(
                f"{run.folder / METRICS}: lacks the records of the autoencoder that the classifier starts from"
            )
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
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        torch.use_deterministic_algorithms(True)
        for owner, name, value in settings:
            setattr(owner, name, value)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
            for (owner, name, _), value in zip(settings, before, strict=True):
                setattr(owner, name, value)
