"""What the passes of encoder and decoder have in common: dropout, matrix products, views of PyTorch's memory."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

DROPOUT_LAYERS = 6  # three of the encoder, two of the decoder, and its output
Floats: TypeAlias = NDArray[np.float32]
Gradients: TypeAlias = dict[str, Floats]  # by the parameter's name


@dataclass(frozen=True)
class Dropout:
    """The dropout of one step: a layer's key (uint32) alone decides which of its elements are kept."""

    p: float
    keys: NDArray[np.uint32]  # (DROPOUT_LAYERS,)
    before_pooling: bool
    output: bool
    first: int = 0  # the index in the batch of the first image

    @property
    def scale(self) -> np.float32:
        scale: np.float32 = np.float32(1 / (1 - self.p))
        return scale

    def arguments(self, layer: int) -> tuple[int, np.uint32, np.uint32, np.float32]:
        """(first, key, threshold, scale), as the kernels take them."""
        return self.first, self.keys[layer], np.uint32(self.p * 2**32), self.scale


def multiply(a: Floats, b: Floats) -> Floats:
    """The matrix product of a (N, M) and b (M, K)."""
    product: Floats = torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return product


def linear(a: Floats, weight: Floats, bias: Floats) -> Floats:
    """a (N, M), weight (K, M), bias (K,) -> (N, K)."""
    result: Floats = torch.addmm(torch.from_numpy(bias), torch.from_numpy(a), torch.from_numpy(weight.T)).numpy()
    return result


def channels_first(a: Floats) -> Tensor:
    """(N, H, W, C) as (N, C, H, W) in the same memory, which PyTorch calls channels_last."""
    return torch.from_numpy(a.transpose(0, 3, 1, 2))


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """The same memory as an array."""
    return tensor.detach().numpy()


def weighted_layers(network: nn.Sequential) -> list[Any]:
    """The layers that have weights, in order."""
    return [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
