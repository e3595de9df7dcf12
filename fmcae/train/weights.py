"""Weights and checkpoints as safetensors: written whole or not at all, and never unpickled."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fmcae.errors import RunError
from fmcae.files import write_atomic

AdamState: TypeAlias = Mapping[Tensor, dict[str, Tensor]]  # by parameter


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights."""
    write_atomic(path, save(_on_cpu(network.state_dict())))


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill ``network`` once every name, shape and dtype in the file is seen to fit.

    Raises:
        RunError: the file is missing, damaged, or does not fit the network's configuration.
    """
    if not path.is_file():
        raise RunError(f"{path}: does not exist")
    _fill(network.state_dict(), _read(path)[0], path)


def save_checkpoint(path: Path, stage: str, epoch: int, network: nn.Module, adam: AdamState) -> None:
    """Write all that the next epoch depends on: weights, Adam's moments and steps, and how many epochs are done.

    There is no random state to keep: every epoch's generator is seeded from (seed, stage, epoch).
    """
    tensors = _on_cpu(_checkpoint_tensors(network, adam))
    write_atomic(path, save(tensors, metadata={"stage": stage, "epoch": str(epoch)}))


def load_checkpoint(path: Path, stage: str, network: nn.Module, adam: AdamState) -> int:
    """Fill ``network`` and ``adam``, its optimizer's state, and return how many epochs of ``stage`` are done.

    Without a checkpoint of that stage nothing is filled and 0 are done.

    Raises:
        RunError: the file is damaged or does not fit.
    """
    if not path.is_file():
        return 0
    tensors, metadata = _read(path)
    if metadata.get("stage") != stage:
        return 0
    epoch = metadata.get("epoch", "")
    if not re.fullmatch("[1-9][0-9]{0,8}", epoch):
        raise RunError(f"{path}: is damaged: its epoch (={epoch!a}) must be a number from 1")
    _fill(_checkpoint_tensors(network, adam), tensors, path)
    return int(epoch)


def checkpoint_stage(path: Path) -> str | None:
    """The stage that a checkpoint is of; None without one.

    Raises:
        RunError: the file is damaged.
    """
    return _read(path)[1].get("stage") if path.is_file() else None


def _checkpoint_tensors(network: nn.Module, adam: AdamState) -> dict[str, Tensor]:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in adam.get(parameter, {}).items():
            tensors[f"adam.{name}.{key}"] = value
    return tensors


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: is not a whole safetensors file: {error}") from error


def _fill(into: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    if different := sorted(set(found) ^ set(into)):
        raise RunError(f"{path}: does not fit the configuration: {different[0]} is in only one of the two")
    for name, tensor in into.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            kinds = [f"{kind.dtype} {tuple(kind.shape)}" for kind in (found[name], tensor)]
            raise RunError(f"{path}: does not fit the configuration: {name} is {kinds[0]}, expected {kinds[1]}")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(found[name])


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
