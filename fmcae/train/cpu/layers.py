"""What encoder and decoder have in common: compiled kernels, dropout, matrix products, views of PyTorch's memory.

A kernel is a single pass over memory, compiled by numba, that replaces several of PyTorch's; some are long, because two
functions would be two passes. Arrays are channels-last (N, H, W, C), so that an inner loop over 16 or 32 channels
becomes a few vector instructions; sums are collected in one scratch array for the same reason. No kernel takes the GIL
or starts a thread.

Dropout draws no array of random numbers: an element is kept if a hash of its index and of a random key is at least
``threshold`` = p·2³². Index and key do not depend on how the threads divide a batch. An output above 0 was kept and
passed its ReLU, so outputs serve as the masks of the backward pass. ``scale`` is 1/(1 - p).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ZERO, ONE = np.float32(0), np.float32(1)
DROPOUT_LAYERS = 6  # three of the encoder, two of the decoder, and its output
Floats: TypeAlias = NDArray[np.float32]
Gradients: TypeAlias = dict[str, Floats]  # by the parameter's name


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel at its first call, and keep it on disk for the next process."""
    fast = {"contract", "nsz", "nnan", "reassoc"}
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fast)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True, error_model="numpy", fastmath=fast)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into each kernel that calls it.

    numba looks for changes in the kernel's own file: after a change in another file, remove ``__pycache__``.
    """
    return numba.njit(inline="always")(function)


@inlined
def random_bits(index, key):  # type: ignore[no-untyped-def]
    """32 random bits. Source: C. Wellons, "Prospecting for Hash Functions" 2018, with the constants found since."""
    bits = np.uint32(np.uint32(index) * np.uint32(0x9E3779B1) + key)  # numba computes in 64 bits unless told each time
    bits = np.uint32((bits ^ (bits >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    bits = np.uint32((bits ^ (bits >> np.uint32(15))) * np.uint32(0x735A2D97))
    return np.uint32(bits ^ (bits >> np.uint32(15)))


@compiled
def dropout_mask(size, key, threshold):  # type: ignore[no-untyped-def]
    """(size,) bool: which elements a layer keeps. The kernels do the same in passing; this is for the tests."""
    mask = np.empty(size, np.bool_)
    for index in range(size):
        mask[index] = random_bits(index, key) >= threshold
    return mask


@compiled
def relu_dropout(a, first, key, threshold, scale):  # type: ignore[no-untyped-def]
    """ReLU and dropout of a (N, M) in place."""
    for n in range(a.shape[0]):
        for m in range(a.shape[1]):
            kept = a[n, m] > 0 and random_bits((first + n) * a.shape[1] + m, key) >= threshold
            a[n, m] = a[n, m] * scale if kept else ZERO


@compiled
def relu_dropout_backward(grad, y, scale):  # type: ignore[no-untyped-def]
    """The gradient of :func:`relu_dropout`, in place of grad (N, M); y is its output."""
    for n in range(grad.shape[0]):
        for m in range(grad.shape[1]):
            grad[n, m] = grad[n, m] * scale if y[n, m] > 0 else ZERO


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
