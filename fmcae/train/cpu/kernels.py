"""The step's kernels: each is one pass over memory, compiled by numba, in the place of several of PyTorch's.

Some are long, because two functions would be two passes. Arrays are channels-last (N, H, W, C), so that an inner loop over
16 or 32 channels becomes a few vector instructions; sums are collected in one scratch array for the same reason. No
kernel takes the GIL or starts a thread.

Dropout draws no array of random numbers: an element is kept if a hash of its index and of a random key is at least
``threshold`` = p·2³². Index and key do not depend on how the threads divide a batch: ``first`` is the index in the batch of
the first image. An output that is not 0 was kept and passed its ReLU, so outputs serve as the masks of the backward pass.
``scale`` is 1/(1 - p), and ``relu`` whether there is a ReLU.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

ZERO, ONE = np.float32(0), np.float32(1)
BETA1_REST, BETA2, BETA2_REST, EPSILON = np.float32(0.1), np.float32(0.999), np.float32(0.001), np.float32(1e-8)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel at its first call, and keep it on disk for the next process."""
    fast = {"contract", "nsz", "nnan", "reassoc"}
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fast)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True, error_model="numpy", fastmath=fast)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into each kernel that calls it."""
    return numba.njit(inline="always")(function)


@inlined
def random_bits(index, key):  # type: ignore[no-untyped-def]
    """32 random bits. Source: C. Wellons, "Prospecting for Hash Functions" 2018, with the constants found since."""
    bits = np.uint32(np.uint32(index) * np.uint32(0x9E3779B1) + key)  # numba computes in 64 bits unless told each time
    bits = np.uint32((bits ^ (bits >> np.uint32(16))) * np.uint32(0x21F0AAAD))
    bits = np.uint32((bits ^ (bits >> np.uint32(15))) * np.uint32(0x735A2D97))
    return np.uint32(bits ^ (bits >> np.uint32(15)))


@inlined
def activated(value, index, key, threshold, scale, relu):  # type: ignore[no-untyped-def]
    """ReLU and dropout of one element."""
    return value * scale if (value > 0 or not relu) and random_bits(index, key) >= threshold else ZERO


@inlined
def pooled(v0, v1, v2, v3, corner, right, below, at, key, threshold, scale, drop_first):  # type: ignore[no-untyped-def]
    """ReLU, max pooling and dropout of a window of four elements: the result, and which of the four is the largest.

    Dropout counts them as ``corner``, ``right`` and ``below`` it, and the result as ``at``.
    """
    if drop_first:
        v0 = v0 if random_bits(corner, key) >= threshold else ZERO
        v1 = v1 if random_bits(corner + right, key) >= threshold else ZERO
        v2 = v2 if random_bits(corner + below, key) >= threshold else ZERO
        v3 = v3 if random_bits(corner + below + right, key) >= threshold else ZERO
    largest, index = v0, np.uint8(0)
    if v1 > largest:
        largest, index = v1, np.uint8(1)
    if v2 > largest:
        largest, index = v2, np.uint8(2)
    if v3 > largest:
        largest, index = v3, np.uint8(3)
    kept = largest > 0 and (drop_first or random_bits(at, key) >= threshold)
    return largest * scale if kept else ZERO, index


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
            a[n, m] = activated(a[n, m], (first + n) * a.shape[1] + m, key, threshold, scale, True)


@compiled
def relu_dropout_backward(grad, y, scale):  # type: ignore[no-untyped-def]
    """The gradient of :func:`relu_dropout`, in place of grad (N, M); y is its output."""
    for n in range(grad.shape[0]):
        for m in range(grad.shape[1]):
            grad[n, m] = grad[n, m] * scale if y[n, m] > 0 else ZERO


@compiled
def conv1_forward(x, weight, bias, first, key, threshold, scale, drop_first, y, indices):  # type: ignore[no-untyped-def]
    """Convolution, ReLU, pooling and dropout of the encoder's first block, for the part of it that is used.

    x (N, 28, 28), weight (3, 3, 16), bias (16,) -> y (N, 12, 12, 16) and indices (N, 12, 12, 16) uint8, which of a
    window's four elements is the largest. ``first`` is the index in the batch of the first image; ``drop_first`` puts
    dropout before pooling.
    """
    s = np.empty((10, 16), np.float32)  # 9 rows with the weight, 1 with the bias
    for k in range(9):
        s[k] = weight[k // 3, k % 3]
    s[9] = bias
    windows = np.empty((4, 12, 16), np.float32)  # the four elements of each window of a row
    for n in range(x.shape[0]):
        for i in range(12):
            for p in range(4):
                r = 2 * i + p // 2
                for j in range(12):
                    q = 2 * j + p % 2
                    a0, a1, a2 = x[n, r, q], x[n, r, q + 1], x[n, r, q + 2]
                    b0, b1, b2 = x[n, r + 1, q], x[n, r + 1, q + 1], x[n, r + 1, q + 2]
                    c0, c1, c2 = x[n, r + 2, q], x[n, r + 2, q + 1], x[n, r + 2, q + 2]
                    for c in range(16):
                        windows[p, j, c] = (
                            (a0 * s[0, c] + a1 * s[1, c] + a2 * s[2, c])
                            + (b0 * s[3, c] + b1 * s[4, c] + b2 * s[5, c])
                            + (c0 * s[6, c] + c1 * s[7, c] + c2 * s[8, c])
                            + s[9, c]
                        )
            for j in range(12):
                at = (((first + n) * 12 + i) * 12 + j) * 16
                corner = (((first + n) * 24 + 2 * i) * 24 + 2 * j) * 16
                for c in range(16):
                    v0, v1, v2, v3 = windows[0, j, c], windows[1, j, c], windows[2, j, c], windows[3, j, c]
                    y[n, i, j, c], indices[n, i, j, c] = pooled(
                        v0, v1, v2, v3, corner + c, 16, 384, at + c, key, threshold, scale, drop_first
                    )


@compiled
def conv1_backward(x, grad, y, indices, scale, grad_weight, grad_bias):  # type: ignore[no-untyped-def]
    """The gradients of ``weight`` (3, 3, 16) and ``bias`` (16,) of :func:`conv1_forward`, for grad (N, 12, 12, 16)."""
    s = np.zeros((14, 16), np.float32)  # 4 rows for the four elements of a window, 9 for the weight, 1 for the bias
    for n in range(x.shape[0]):
        for i in range(12):
            for j in range(12):
                for c in range(16):
                    value = grad[n, i, j, c] * scale if y[n, i, j, c] > 0 else ZERO
                    index = indices[n, i, j, c]
                    for k in range(4):
                        s[k, c] = value if index == k else ZERO
                r, q = 2 * i, 2 * j
                a0, a1, a2, a3 = x[n, r, q], x[n, r, q + 1], x[n, r, q + 2], x[n, r, q + 3]
                b0, b1, b2, b3 = x[n, r + 1, q], x[n, r + 1, q + 1], x[n, r + 1, q + 2], x[n, r + 1, q + 3]
                c0, c1, c2, c3 = x[n, r + 2, q], x[n, r + 2, q + 1], x[n, r + 2, q + 2], x[n, r + 2, q + 3]
                d0, d1, d2, d3 = x[n, r + 3, q], x[n, r + 3, q + 1], x[n, r + 3, q + 2], x[n, r + 3, q + 3]
                for c in range(16):
                    v0, v1, v2, v3 = s[0, c], s[1, c], s[2, c], s[3, c]
                    s[4, c] += v0 * a0 + v1 * a1 + v2 * b0 + v3 * b1
                    s[5, c] += v0 * a1 + v1 * a2 + v2 * b1 + v3 * b2
                    s[6, c] += v0 * a2 + v1 * a3 + v2 * b2 + v3 * b3
                    s[7, c] += v0 * b0 + v1 * b1 + v2 * c0 + v3 * c1
                    s[8, c] += v0 * b1 + v1 * b2 + v2 * c1 + v3 * c2
                    s[9, c] += v0 * b2 + v1 * b3 + v2 * c2 + v3 * c3
                    s[10, c] += v0 * c0 + v1 * c1 + v2 * d0 + v3 * d1
                    s[11, c] += v0 * c1 + v1 * c2 + v2 * d1 + v3 * d2
                    s[12, c] += v0 * c2 + v1 * c3 + v2 * d2 + v3 * d3
                    s[13, c] += v0 + v1 + v2 + v3
    for k in range(9):
        grad_weight[k // 3, k % 3] = s[4 + k]
    grad_bias[:] = s[13]


@compiled
def pool2_forward(a, bias, first, key, threshold, scale, drop_first, y, indices):  # type: ignore[no-untyped-def]
    """Bias, ReLU, pooling and dropout of the encoder's second block.

    a (N, 10, 10, 32), the convolution's output -> y (N, 32, 25), flattened as PyTorch does, and indices (N, 25, 32).
    """
    s = np.empty((25, 32), np.float32)
    for n in range(a.shape[0]):
        for i in range(5):
            for j in range(5):
                at = (((first + n) * 5 + i) * 5 + j) * 32
                corner = (((first + n) * 10 + 2 * i) * 10 + 2 * j) * 32
                for c in range(32):
                    v0, v1 = a[n, 2 * i, 2 * j, c] + bias[c], a[n, 2 * i, 2 * j + 1, c] + bias[c]
                    v2, v3 = a[n, 2 * i + 1, 2 * j, c] + bias[c], a[n, 2 * i + 1, 2 * j + 1, c] + bias[c]
                    s[5 * i + j, c], indices[n, 5 * i + j, c] = pooled(
                        v0, v1, v2, v3, corner + c, 32, 320, at + c, key, threshold, scale, drop_first
                    )
        for c in range(32):
            for p in range(25):
                y[n, c, p] = s[p, c]


@compiled
def pool2_backward(grad, y, indices, scale, grad_a, grad_bias):  # type: ignore[no-untyped-def]
    """grad (N, 32, 25) of :func:`pool2_forward`'s y -> grad_a (N, 10, 10, 32) and grad_bias (32,)."""
    s = np.zeros((26, 32), np.float32)
    for n in range(y.shape[0]):
        for c in range(32):
            for p in range(25):
                s[p, c] = grad[n, c, p] * scale if y[n, c, p] > 0 else ZERO
        for i in range(5):
            for j in range(5):
                p = 5 * i + j
                for c in range(32):
                    value, index = s[p, c], indices[n, p, c]
                    for k in range(4):
                        grad_a[n, 2 * i + k // 2, 2 * j + k % 2, c] = value if index == k else ZERO
                for c in range(32):
                    s[25, c] += s[p, c]
    grad_bias[:] = s[25]


@compiled
def unflatten(a, first, key, threshold, scale, relu, y):  # type: ignore[no-untyped-def]
    """ReLU and dropout of a (N, 32, 25), flattened as PyTorch does, into y (N, 25, 32)."""
    s = np.empty((25, 32), np.float32)
    for n in range(a.shape[0]):
        s[:] = a[n].T
        for p in range(25):
            at = ((first + n) * 25 + p) * 32
            for c in range(32):
                y[n, p, c] = activated(s[p, c], at + c, key, threshold, scale, relu)


@compiled
def unflatten_backward(grad, y, scale, grad_a):  # type: ignore[no-untyped-def]
    """grad (N, 25, 32) of :func:`unflatten`'s y -> grad_a (N, 32, 25)."""
    for n in range(grad.shape[0]):
        for c in range(32):
            for p in range(25):
                grad_a[n, c, p] = grad[n, p, c] * scale if y[n, p, c] != 0 else ZERO


@compiled
def fold1(columns, bias, first, key, threshold, scale, relu, y):  # type: ignore[no-untyped-def]
    """The first transposed convolution's columns, overlapped and added, then bias, ReLU and dropout.

    columns (N, 5, 5, K, 16·K), what each of 5×5 elements adds to each of K×K×16, for a kernel of K=4 with output padding or
    of K=5 without -> y (N, 13, 13, 16).
    """
    size, width = columns.shape[3], columns.shape[4]
    row = np.empty(13 * 16, np.float32)
    for n in range(columns.shape[0]):
        for r in range(13):
            for s in range(13):
                for c in range(16):
                    row[16 * s + c] = bias[c]
            for k in range(r % 2, size, 2):
                i = (r - k) // 2
                if 0 <= i < 5:  # no element reaches a last row and column that output_padding adds
                    for j in range(5):
                        for q in range(width):
                            row[32 * j + q] += columns[n, i, j, k, q]
            at = ((first + n) * 13 + r) * 13 * 16
            for s in range(13):
                for c in range(16):
                    y[n, r, s, c] = activated(row[16 * s + c], at + 16 * s + c, key, threshold, scale, relu)


@compiled
def fold2(columns, size, bias, out):  # type: ignore[no-untyped-def]
    """The second transposed convolution's columns (K·K, N·169), overlapped and added onto the bias -> out (N, 28, 28).

    ``size`` is the kernel's, K=3 with output padding or K=4 without.
    """
    for n in range(out.shape[0]):
        out[n] = bias
        for k in range(size * size):
            for i in range(13):
                at = (n * 13 + i) * 13
                for j in range(13):
                    out[n, 2 * i + k // size, 2 * j + k % size] += columns[k, at + j]


@compiled
def squared_error(x, y, x_hat, scale, weight, grad):  # type: ignore[no-untyped-def]
    """The loss of the output y (N, 28, 28), and its gradient before the sigmoid that gave x_hat.

    y is x_hat, with some elements dropped and the others times ``scale`` indices the output has dropout.

    Returns:
        (sum over images of the mean squared error times ``weight``, the sum of grad (N, 28, 28)).
    """
    total = 0.0
    grad_sum = 0.0
    factor = np.float32(2 / 784) * weight
    for n in range(x.shape[0]):
        image_total, image_grad = ZERO, ZERO
        for i in range(28):
            for j in range(28):
                error = y[n, i, j] - x[n, i, j]
                image_total += error * error
                slope = x_hat[n, i, j] * (ONE - x_hat[n, i, j]) * factor
                value = error * slope * scale if y[n, i, j] > 0 else ZERO
                grad[n, i, j] = value
                image_grad += value
        total += image_total
        grad_sum += image_grad
    return total * weight / 784, grad_sum


@compiled
def folds_backward(grad, y, weight, scale, grad_columns, grad_bias, grad_weight):  # type: ignore[no-untyped-def]
    """Back through the second transposed convolution and :func:`fold1`, both with output padding.

    grad (N, 28, 28) is the gradient of :func:`fold2`'s output, y (N, 13, 13, 16) the output of fold1, weight (9, 16) the
    second convolution's -> grad_columns (N, 5, 5, 4, 4, 16) and grad_bias (16,) of the first, grad_weight (9, 16) of the
    second.
    """
    w = np.empty((9, 16), np.float32)  # a copy that nothing writes to stays in registers
    w[:] = weight
    s = np.zeros((10, 16), np.float32)  # 9 rows for the weight's gradient, 1 for the bias's
    masked = np.empty((13, 13, 16), np.float32)
    for n in range(grad.shape[0]):
        for i in range(13):
            r = 2 * i
            for j in range(13):
                q = 2 * j
                a0, a1, a2 = grad[n, r, q], grad[n, r, q + 1], grad[n, r, q + 2]
                b0, b1, b2 = grad[n, r + 1, q], grad[n, r + 1, q + 1], grad[n, r + 1, q + 2]
                c0, c1, c2 = grad[n, r + 2, q], grad[n, r + 2, q + 1], grad[n, r + 2, q + 2]
                for c in range(16):
                    value = (
                        (a0 * w[0, c] + a1 * w[1, c] + a2 * w[2, c])
                        + (b0 * w[3, c] + b1 * w[4, c] + b2 * w[5, c])
                        + (c0 * w[6, c] + c1 * w[7, c] + c2 * w[8, c])
                    )
                    masked[i, j, c] = value * scale if y[n, i, j, c] != 0 else ZERO
            for j in range(13):
                q = 2 * j
                a0, a1, a2 = grad[n, r, q], grad[n, r, q + 1], grad[n, r, q + 2]
                b0, b1, b2 = grad[n, r + 1, q], grad[n, r + 1, q + 1], grad[n, r + 1, q + 2]
                c0, c1, c2 = grad[n, r + 2, q], grad[n, r + 2, q + 1], grad[n, r + 2, q + 2]
                for c in range(16):
                    value = y[n, i, j, c]
                    s[0, c] += a0 * value
                    s[1, c] += a1 * value
                    s[2, c] += a2 * value
                    s[3, c] += b0 * value
                    s[4, c] += b1 * value
                    s[5, c] += b2 * value
                    s[6, c] += c0 * value
                    s[7, c] += c1 * value
                    s[8, c] += c2 * value
                    s[9, c] += masked[i, j, c]
        for i in range(5):
            for j in range(5):
                for k in range(4):
                    for m in range(4):
                        for c in range(16):
                            grad_columns[n, i, j, k, m, c] = masked[2 * i + k, 2 * j + m, c]
    grad_weight[:] = s[:9]
    grad_bias[:] = s[9]


@compiled
def adam(parameter, grad, exp_avg, exp_avg_sq, step_size, root_correction):  # type: ignore[no-untyped-def]
    """One step of Adam, beta (0.9, 0.999), eps 1e-8, on flat float32 arrays of one length, in place.

    ``step_size`` is the learning rate over 1 - 0.9^t, ``root_correction`` the root of 1 - 0.999^t, at the t-th step.
    Source: Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1, with its parts in PyTorch's order.
    """
    for i in range(parameter.shape[0]):
        g = grad[i]
        exp_avg[i] += (g - exp_avg[i]) * BETA1_REST
        exp_avg_sq[i] = exp_avg_sq[i] * BETA2 + g * g * BETA2_REST
        parameter[i] -= step_size * exp_avg[i] / (np.sqrt(exp_avg_sq[i]) / root_correction + EPSILON)
