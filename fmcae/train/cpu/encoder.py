"""The encoder's forward and backward pass."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fmcae.train.cpu.layers import (
    ZERO,
    Dropout,
    Floats,
    Gradients,
    as_numpy,
    channels_first,
    compiled,
    inlined,
    linear,
    multiply,
    random_bits,
    relu_dropout,
    relu_dropout_backward,
    weighted_layers,
)
from fmcae.train.networks import Encoder


@inlined
def _largest(v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    largest, index = v0, np.uint8(0)
    if v1 > largest:
        largest, index = v1, np.uint8(1)
    if v2 > largest:
        largest, index = v2, np.uint8(2)
    if v3 > largest:
        largest, index = v3, np.uint8(3)
    return largest, index


@inlined
def _dropped(value, index, key, threshold):  # type: ignore[no-untyped-def]
    return value if random_bits(index, key) >= threshold else ZERO


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
                    if drop_first:
                        v0 = _dropped(v0, corner + c, key, threshold)
                        v1 = _dropped(v1, corner + c + 16, key, threshold)
                        v2 = _dropped(v2, corner + c + 384, key, threshold)
                        v3 = _dropped(v3, corner + c + 400, key, threshold)
                    largest, index = _largest(v0, v1, v2, v3)
                    kept = largest > 0 and (drop_first or random_bits(at + c, key) >= threshold)
                    y[n, i, j, c] = largest * scale if kept else ZERO
                    indices[n, i, j, c] = index


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
                    s[0, c] = value if index == 0 else ZERO
                    s[1, c] = value if index == 1 else ZERO
                    s[2, c] = value if index == 2 else ZERO
                    s[3, c] = value if index == 3 else ZERO
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
                for c in range(32):
                    v0, v1 = a[n, 2 * i, 2 * j, c] + bias[c], a[n, 2 * i, 2 * j + 1, c] + bias[c]
                    v2, v3 = a[n, 2 * i + 1, 2 * j, c] + bias[c], a[n, 2 * i + 1, 2 * j + 1, c] + bias[c]
                    if drop_first:
                        corner = (((first + n) * 10 + 2 * i) * 10 + 2 * j) * 32 + c
                        v0 = _dropped(v0, corner, key, threshold)
                        v1 = _dropped(v1, corner + 32, key, threshold)
                        v2 = _dropped(v2, corner + 320, key, threshold)
                        v3 = _dropped(v3, corner + 352, key, threshold)
                    largest, index = _largest(v0, v1, v2, v3)
                    kept = largest > 0 and (drop_first or random_bits(at + c, key) >= threshold)
                    s[5 * i + j, c] = largest * scale if kept else ZERO
                    indices[n, 5 * i + j, c] = index
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
                    grad_a[n, 2 * i, 2 * j, c] = value if index == 0 else ZERO
                    grad_a[n, 2 * i, 2 * j + 1, c] = value if index == 1 else ZERO
                    grad_a[n, 2 * i + 1, 2 * j, c] = value if index == 2 else ZERO
                    grad_a[n, 2 * i + 1, 2 * j + 1, c] = value if index == 3 else ZERO
                for c in range(32):
                    s[25, c] += s[p, c]
    grad_bias[:] = s[25]


class EncoderWeights(NamedTuple):
    """The encoder's parameters as kernels and products take them: views, or copies made once a step."""

    conv1: Floats  # (3, 3, 16)
    conv1_bias: Floats
    conv2: Tensor  # (32, 16, 3, 3)
    conv2_bias: Floats
    linear: Floats  # (latent_dim, 800)
    linear_bias: Floats
    is_trained: bool

    @classmethod
    def from_network(cls, encoder: Encoder) -> "EncoderWeights":
        conv1, conv2, last = weighted_layers(encoder)
        weight1 = np.ascontiguousarray(as_numpy(conv1.weight)[:, 0].transpose(1, 2, 0))
        biases = [as_numpy(layer.bias) for layer in (conv1, conv2, last)]
        is_trained = last.weight.requires_grad
        return cls(weight1, biases[0], conv2.weight.detach(), biases[1], as_numpy(last.weight), biases[2], is_trained)


class Encoded(NamedTuple):
    """The encoder's output, and what its backward pass needs."""

    z: Floats  # (N, latent_dim)
    y1: Floats  # (N, 12, 12, 16), the first block's output, channels last
    indices1: NDArray[np.uint8]  # (N, 12, 12, 16), of max pooling: which of its four elements each maximum is
    y2: Floats  # (N, 32, 25), the second block's output
    indices2: NDArray[np.uint8]  # (N, 25, 32)


def encode(weights: EncoderWeights, x: Floats, dropout: Dropout) -> Encoded:
    """The encoder's output for x (N, 28, 28)."""
    count, drop_first = len(x), dropout.before_pooling
    y1, indices1 = np.empty((count, 12, 12, 16), np.float32), np.empty((count, 12, 12, 16), np.uint8)
    conv1_forward(x, weights.conv1, weights.conv1_bias, *dropout.arguments(0), drop_first, y1, indices1)
    a2 = F.conv2d(channels_first(y1), weights.conv2).numpy().transpose(0, 2, 3, 1)  # (N, 10, 10, 32)
    y2, indices2 = np.empty((count, 32, 25), np.float32), np.empty((count, 25, 32), np.uint8)
    pool2_forward(np.ascontiguousarray(a2), weights.conv2_bias, *dropout.arguments(1), drop_first, y2, indices2)
    z = linear(y2.reshape(count, 800), weights.linear, weights.linear_bias)
    relu_dropout(z, *dropout.arguments(2))
    return Encoded(z, y1, indices1, y2, indices2)


def encode_backward(
    weights: EncoderWeights, x: Floats, encoded: Encoded, grad_z: Floats, dropout: Dropout
) -> Gradients:
    """The gradients of the encoder's parameters by name. It overwrites ``grad_z`` (N, latent_dim)."""
    z, y1, indices1, y2, indices2 = encoded
    count, scale = len(x), dropout.scale
    relu_dropout_backward(grad_z, z, scale)
    grad_y2 = multiply(grad_z, weights.linear).reshape(count, 32, 25)
    grad_a2, grad_bias2 = np.empty((count, 10, 10, 32), np.float32), np.empty(32, np.float32)
    pool2_backward(grad_y2, y2, indices2, scale, grad_a2, grad_bias2)
    grad_y1, grad_weight2, _ = torch.ops.aten.convolution_backward(
        channels_first(grad_a2),
        channels_first(y1),
        weights.conv2,
        bias_sizes=None,
        stride=[1, 1],
        padding=[0, 0],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[True, True, False],  # the gradients of input and weight, not of a bias
    )
    grad_y1 = np.ascontiguousarray(grad_y1.numpy().transpose(0, 2, 3, 1))
    grad_weight1, grad_bias1 = np.empty((3, 3, 16), np.float32), np.empty(16, np.float32)
    conv1_backward(x, grad_y1, y1, indices1, scale, grad_weight1, grad_bias1)
    return {
        "encoder.0.weight": grad_weight1.transpose(2, 0, 1)[:, np.newaxis],
        "encoder.0.bias": grad_bias1,
        "encoder.4.weight": grad_weight2.numpy(),
        "encoder.4.bias": grad_bias2,
        "encoder.9.weight": multiply(grad_z.T, y2.reshape(count, 800)),
        "encoder.9.bias": grad_z.sum(axis=0),
    }
