"""A run folder: what one training leaves on disk, and how it is read back.

    config.json               the configuration, the data's identity, versions
    autoencoder.safetensors   final weights; present once the stage is done
    classifier.safetensors
    metrics.jsonl             one object per epoch and stage, then one for the test split
    *.png                     curves, confusion matrix, reconstructions
    checkpoint.safetensors    weights and Adam's state after the last whole epoch, while a stage is under way

Everything is written whole or not at all, and nothing is ever unpickled.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import fmcae
from fmcae.data import SPLIT_SEED, Dataset
from fmcae.errors import FmcaeError, RunError, UsageError
from fmcae.files import write_atomic
from fmcae.train.config import TrainConfig
from fmcae.train.networks import Autoencoder, Classifier

AdamState: TypeAlias = Mapping[Tensor, dict[str, Tensor]]  # by parameter

SCHEMA_VERSION = 1
CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
NETWORKS: dict[str, type[Autoencoder] | type[Classifier]] = {"autoencoder": Autoencoder, "classifier": Classifier}


@dataclass(frozen=True)
class Run:
    """A run on disk: its folder, its configuration and the identity of its data (name, class_names, fingerprint)."""

    folder: Path
    config: TrainConfig
    data: dict[str, Any]

    def weights(self, stage: str) -> Path:
        """Where the final weights of a stage ("autoencoder" or "classifier") lie, or will lie."""
        return self.folder / f"{stage}.safetensors"

    @property
    def finished(self) -> bool:
        """Whether every stage that the run was asked for is done."""
        return all(self.weights(stage).is_file() for stage in self.config.stages)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``; empty before the first epoch's end.

        Raises:
            RunError: a line is not JSON.
        """
        path = self.folder / METRICS
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise RunError(f"{path}: is damaged: {error}") from error

    def network(self, stage: str) -> Autoencoder | Classifier:
        """The trained network of a stage, on the CPU, in evaluation mode.

        Raises:
            RunError: the weights are missing, damaged or do not fit the configuration.
        """
        network = NETWORKS[stage](self.config.network)
        load_weights(network, self.weights(stage))
        return network.eval()


def create_run(folder: Path, config: TrainConfig, dataset: Dataset) -> Run:
    """Make a run folder with its ``config.json``.

    Raises:
        UsageError: the folder already holds something, or the configuration asks for more labels than there are.
    """
    if config.labels is not None and config.labels > len(dataset.train):
        raise UsageError(f"labels (={config.labels}) must be at most {len(dataset.train):,}, the images of train")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"out (={folder}) must be a new or empty folder; add --resume to go on with a run in it")
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "schema_version": SCHEMA_VERSION,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": config.to_json(),
        "data": {
            "name": dataset.name,
            "class_names": list(dataset.class_names),
            "counts": {"train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.test)},
            "split_seed": SPLIT_SEED,
            "fingerprint": dataset.fingerprint,
        },
        "versions": {
            "fmcae": fmcae.__version__,
            "python": platform.python_version(),
            "torch": version("torch"),
            "numpy": version("numpy"),
        },
    }
    write_atomic(folder / CONFIG, json.dumps(description, indent=2) + "\n")
    return open_run(folder)


def open_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: there is no run, or its ``config.json`` is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RunError(f"{folder}: is not a run folder: it has no {CONFIG}")
    try:
        values = json.loads(path.read_text())
        if values["schema_version"] != SCHEMA_VERSION:
            raise RunError(f"{path}: schema_version (={values['schema_version']}) must be {SCHEMA_VERSION}")
        return Run(folder, TrainConfig.from_json(values["config"]), dict(values["data"]))
    except RunError:
        raise
    except (FmcaeError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: is damaged: {error}") from error


def find_runs(parent: Path) -> list[Run]:
    """The runs in the folders directly below ``parent``, the newest last; damaged ones are left out."""
    runs = []
    for config in sorted(parent.glob(f"*/{CONFIG}"), key=lambda path: (path.stat().st_mtime_ns, path)):
        try:
            runs.append(open_run(config.parent))
        except RunError:
            continue
    return runs


def check_data(run: Run, dataset: Dataset) -> None:
    """Check that ``dataset`` is what the run was trained on.

    Raises:
        RunError: it is not.
    """
    if dataset.fingerprint != run.data["fingerprint"]:
        raise RunError(
            f"{run.folder}: was trained on {run.data['name']} with fingerprint {run.data['fingerprint'][:12]}…; "
            f"the data found now are {dataset.name} with {dataset.fingerprint[:12]}…: name the run's data with --data"
        )


# --- weights and checkpoints -------------------------------------------------------------------------------------


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, whole or not at all."""
    write_atomic(path, save(_on_cpu(network.state_dict())))


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill ``network`` from safetensors, once every name, shape and dtype in the file is seen to fit.

    Raises:
        RunError: the file is missing, damaged, or does not fit the network's configuration.
    """
    _load_tensors(network.state_dict(), path)


def save_checkpoint(path: Path, stage: str, epoch: int, network: nn.Module, adam: AdamState) -> None:
    """Write all that the next epoch depends on: weights, Adam's moments and steps, and how many epochs are done.

    There is no random state to keep: every epoch's generator is seeded from (seed, stage, epoch).
    """
    tensors = _checkpoint_tensors(network, adam)
    write_atomic(path, save(_on_cpu(tensors), metadata={"stage": stage, "epoch": str(epoch)}))


def load_checkpoint(path: Path, network: nn.Module, adam: AdamState) -> None:
    """Fill ``network`` and ``adam``, its optimizer's state, from a checkpoint.

    Raises:
        RunError: the file is damaged or does not fit.
    """
    _load_tensors(_checkpoint_tensors(network, adam), path)


def checkpoint_progress(path: Path) -> tuple[str, int] | None:
    """(stage, epochs done) of a checkpoint; None if there is none.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        return str(metadata["stage"]), int(metadata["epoch"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: is not a whole checkpoint: {error}") from error


def _checkpoint_tensors(network: nn.Module, adam: AdamState) -> dict[str, Tensor]:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in adam.get(parameter, {}).items():
            tensors[f"adam.{name}.{key}"] = value
    return tensors


def _load_tensors(into: dict[str, Tensor], path: Path) -> None:
    if not path.is_file():
        raise RunError(f"{path}: does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: is not a whole safetensors file: {error}") from error
    if set(found) != set(into):
        different = sorted(set(found) ^ set(into))
        raise RunError(f"{path}: does not fit the configuration: {different[0]} is in only one of the two")
    for name, tensor in into.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise RunError(
                f"{path}: does not fit the configuration: {name} is {found[name].dtype} {tuple(found[name].shape)}, "
                f"expected {tensor.dtype} {tuple(tensor.shape)}"
            )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(found[name])


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
