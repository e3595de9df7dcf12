"""Single passes over memory, compiled by numba, that replace several of PyTorch's: what all layers have in common.

The kernels of the convolutions are in :mod:`fmcae.train.cpu.encoder_kernels` and :mod:`fmcae.train.cpu.decoder_kernels`.
Arrays are channels-last (N, H, W, C), so that an inner loop over 16 or 32 channels becomes a few vector instructions;
sums are collected in one scratch array for the same reason. No kernel takes the GIL or starts a thread.

Dropout draws no array of random numbers: an element is kept if a hash of its index and of a random key is at least
``threshold`` = p·2³². Index and key do not depend on how the threads divide a batch. An output above 0 was kept and
passed its ReLU, so outputs serve as the masks of the backward pass. ``scale`` is 1/(1 - p).
"""

# numba has its own view of types, so mypy does not check the kernels.
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"

from typing import Any

import numba
import numpy as np

ZERO, ONE = np.float32(0), np.float32(1)
BETA1_REST, BETA2, BETA2_REST, EPSILON = np.float32(0.1), np.float32(0.999), np.float32(0.001), np.float32(1e-8)


def compiled(function):
    """Compiled at the first call, and kept on disk for the next process."""
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"contract", "nsz", "nnan", "reassoc"},
    }
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**options)(function)


@numba.njit(inline="always")
def random_bits(index, key):
    """32 random bits. Source: C. Wellons, "Prospecting for Hash Functions" 2018, with the constants found since."""
    bits = np.uint32(np.uint32(index) * np.uint32(0x9E3779B1) + key)  # numba computes in 64 bits unless told each time
    bits = np.uint32((bits ^ (bits >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    bits = np.uint32((bits ^ (bits >> np.uint32(15))) * np.uint32(0x735A2D97))
    return np.uint32(bits ^ (bits >> np.uint32(15)))


@compiled
def dropout_mask(size, key, threshold):
    """(size,) bool: which elements a layer keeps. The kernels do the same in passing; this is for the tests."""
    mask = np.empty(size, np.bool_)
    for index in range(size):
        mask[index] = random_bits(index, key) >= threshold
    return mask


@compiled
def relu_dropout(a, first, key, threshold, scale):
    """ReLU and dropout of a (N, M) in place."""
    for n in range(a.shape[0]):
        for m in range(a.shape[1]):
            kept = a[n, m] > 0 and random_bits((first + n) * a.shape[1] + m, key) >= threshold
            a[n, m] = a[n, m] * scale if kept else ZERO


@compiled
def relu_dropout_backward(grad, y, scale):
    """The gradient of :func:`relu_dropout`, in place of grad (N, M); y is its output."""
    for n in range(grad.shape[0]):
        for m in range(grad.shape[1]):
            grad[n, m] = grad[n, m] * scale if y[n, m] > 0 else ZERO


@compiled
def adam(parameter, grad, exp_avg, exp_avg_sq, step_size, root_correction):
    """One step of Adam, beta (0.9, 0.999), eps 1e-8, on flat float32 arrays of one length, in place.

    ``step_size`` is the learning rate over 1 - 0.9^t, ``root_correction`` the root of 1 - 0.999^t, at the t-th step.
    Source: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1, with its parts in PyTorch's order.
    """
    for i in range(parameter.shape[0]):
        g = grad[i]
        exp_avg[i] += (g - exp_avg[i]) * BETA1_REST
        exp_avg_sq[i] = exp_avg_sq[i] * BETA2 + g * g * BETA2_REST
        parameter[i] -= step_size * exp_avg[i] / (np.sqrt(exp_avg_sq[i]) / root_correction + EPSILON)
