"""The decoder's forward and backward pass."""

from typing import NamedTuple

import numpy as np
import torch

from fmcae.train.cpu.layers import (
    ONE,
    ZERO,
    Dropout,
    Floats,
    Gradients,
    as_numpy,
    compiled,
    linear,
    multiply,
    random_bits,
    relu_dropout,
    weighted_layers,
)
from fmcae.train.networks import Decoder


@compiled
def unflatten(a, first, key, threshold, scale, y):  # type: ignore[no-untyped-def]
    """ReLU and dropout of a (N, 32, 25), flattened as PyTorch does, into y (N, 25, 32)."""
    s = np.empty((25, 32), np.float32)
    for n in range(a.shape[0]):
        s[:] = a[n].T
        for p in range(25):
            at = ((first + n) * 25 + p) * 32
            for c in range(32):
                kept = s[p, c] > 0 and random_bits(at + c, key) >= threshold
                y[n, p, c] = s[p, c] * scale if kept else ZERO


@compiled
def unflatten_backward(grad, y, scale, grad_a):  # type: ignore[no-untyped-def]
    """grad (N, 25, 32) of :func:`unflatten`'s y -> grad_a (N, 32, 25)."""
    for n in range(grad.shape[0]):
        for c in range(32):
            for p in range(25):
                grad_a[n, c, p] = grad[n, p, c] * scale if y[n, p, c] > 0 else ZERO


@compiled
def fold1(columns, bias, first, key, threshold, scale, y):  # type: ignore[no-untyped-def]
    """The first transposed convolution's columns, overlapped and added, then bias, ReLU and dropout.

    columns (N, 5, 5, 4, 64), what each of 5×5 elements adds to each of 4×4×16 -> y (N, 13, 13, 16).
    """
    row = np.empty(13 * 16, np.float32)
    for n in range(columns.shape[0]):
        for r in range(13):
            for s in range(13):
                for c in range(16):
                    row[16 * s + c] = bias[c]
            for k in range(r % 2, 4, 2):
                i = (r - k) // 2
                if 0 <= i < 5:  # no element reaches the last row and column, which output_padding adds
                    for j in range(5):
                        for q in range(64):
                            row[32 * j + q] += columns[n, i, j, k, q]
            at = ((first + n) * 13 + r) * 13 * 16
            for s in range(13):
                for c in range(16):
                    value = row[16 * s + c]
                    kept = value > 0 and random_bits(at + 16 * s + c, key) >= threshold
                    y[n, r, s, c] = value * scale if kept else ZERO


@compiled
def fold2(columns, bias, out):  # type: ignore[no-untyped-def]
    """The second transposed convolution's columns (9, N·169), overlapped and added onto the bias -> out (N, 28, 28)."""
    for n in range(out.shape[0]):
        out[n] = bias
        for k in range(9):
            for i in range(13):
                at = (n * 13 + i) * 13
                for j in range(13):
                    out[n, 2 * i + k // 3, 2 * j + k % 3] += columns[k, at + j]


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
    """Back through the second transposed convolution and :func:`fold1`.

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
                    masked[i, j, c] = value * scale if y[n, i, j, c] > 0 else ZERO
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


class DecoderWeights(NamedTuple):
    """The decoder's parameters as kernels and products take them: views, or copies made once a step."""

    linear: Floats  # (800, latent_dim)
    linear_bias: Floats
    up1: Floats  # (32, 4·4·16), the first transposed convolution's
    up1_bias: Floats
    up2: Floats  # (9, 16), the second's
    up2_bias: np.float32

    @classmethod
    def from_network(cls, decoder: Decoder) -> "DecoderWeights":
        first, up1, up2 = weighted_layers(decoder)
        weight1 = np.ascontiguousarray(as_numpy(up1.weight).transpose(0, 2, 3, 1)).reshape(32, 256)
        weight2 = np.ascontiguousarray(as_numpy(up2.weight).reshape(16, 9).T)
        biases = [as_numpy(layer.bias) for layer in (first, up1, up2)]
        return cls(as_numpy(first.weight), biases[0], weight1, biases[1], weight2, biases[2][0])


class Decoded(NamedTuple):
    """The decoder's output, and what its backward pass needs."""

    y: Floats  # (N, 28, 28), the output; with output dropout, x_hat with some elements dropped
    x_hat: Floats  # (N, 28, 28)
    y3: Floats  # (N·25, 32), the linear layer's output, channels last
    y4: Floats  # (N, 13, 13, 16), the first transposed convolution's


def decode(weights: DecoderWeights, z: Floats, dropout: Dropout) -> Decoded:
    """The decoder's output for z (N, latent_dim)."""
    count = len(z)
    y3 = np.empty((count * 25, 32), np.float32)
    flat = linear(z, weights.linear, weights.linear_bias).reshape(count, 32, 25)
    unflatten(flat, *dropout.arguments(3), y3.reshape(count, 25, 32))
    columns1 = multiply(y3, weights.up1).reshape(count, 5, 5, 4, 64)
    y4 = np.empty((count, 13, 13, 16), np.float32)
    fold1(columns1, weights.up1_bias, *dropout.arguments(4), y4)
    columns2 = multiply(weights.up2, y4.reshape(-1, 16).T)  # (9, N·169)
    out = np.empty((count, 28, 28), np.float32)
    fold2(columns2, weights.up2_bias, out)
    torch.from_numpy(out).sigmoid_()
    x_hat = y = out
    if dropout.output:
        y = x_hat.copy()
        relu_dropout(y.reshape(count, 784), *dropout.arguments(5))
    return Decoded(y, x_hat, y3, y4)


def decode_backward(
    weights: DecoderWeights, z: Floats, x: Floats, decoded: Decoded, batch_size: int, dropout: Dropout
) -> tuple[float, Floats, Gradients]:
    """The images' share in the loss of a batch, the gradient of z (N, latent_dim), and the parameters' by name."""
    count, scale = len(z), dropout.scale
    grad_out = np.empty_like(x)
    output_scale = scale if dropout.output else np.float32(1)
    loss, grad_bias2 = squared_error(x, decoded.y, decoded.x_hat, output_scale, np.float32(1 / batch_size), grad_out)
    grad_columns1 = np.empty((count * 25, 256), np.float32)
    grad_bias1, grad_weight2 = np.empty(16, np.float32), np.empty((9, 16), np.float32)
    folds_backward(
        grad_out,
        decoded.y4,
        weights.up2,
        scale,
        grad_columns1.reshape(count, 5, 5, 4, 4, 16),
        grad_bias1,
        grad_weight2,
    )
    grad_weight1 = multiply(decoded.y3.T, grad_columns1).reshape(32, 4, 4, 16)
    grad_y3 = multiply(grad_columns1, weights.up1.T).reshape(count, 25, 32)
    grad_linear = np.empty((count, 800), np.float32)
    unflatten_backward(grad_y3, decoded.y3.reshape(count, 25, 32), scale, grad_linear.reshape(count, 32, 25))
    gradients = {
        "decoder.0.weight": multiply(grad_linear.T, z),
        "decoder.0.bias": grad_linear.sum(axis=0),
        "decoder.4.weight": grad_weight1.transpose(0, 3, 1, 2),
        "decoder.4.bias": grad_bias1,
        "decoder.7.weight": grad_weight2.T.reshape(16, 1, 3, 3),
        "decoder.7.bias": np.array([grad_bias2], np.float32),
    }
    return loss, multiply(grad_linear, weights.linear), gradients
