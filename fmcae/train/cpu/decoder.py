"""The decoder's forward and backward pass."""

from typing import NamedTuple

import numpy as np
import torch

from fmcae.train.cpu import decoder_kernels, kernels
from fmcae.train.cpu.layers import Dropout, Floats, Gradients, as_numpy, linear, multiply, weighted_layers
from fmcae.train.networks import Decoder


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
        return cls(
            linear=as_numpy(first.weight),
            linear_bias=as_numpy(first.bias),
            up1=np.ascontiguousarray(as_numpy(up1.weight).transpose(0, 2, 3, 1)).reshape(32, 256),
            up1_bias=as_numpy(up1.bias),
            up2=np.ascontiguousarray(as_numpy(up2.weight).reshape(16, 9).T),
            up2_bias=as_numpy(up2.bias)[0],
        )


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
    decoder_kernels.unflatten(flat, *dropout.arguments(3), y3.reshape(count, 25, 32))
    columns1 = multiply(y3, weights.up1).reshape(count, 5, 5, 4, 64)
    y4 = np.empty((count, 13, 13, 16), np.float32)
    decoder_kernels.fold1(columns1, weights.up1_bias, *dropout.arguments(4), y4)
    columns2 = multiply(weights.up2, y4.reshape(-1, 16).T)  # (9, N·169)
    out = np.empty((count, 28, 28), np.float32)
    decoder_kernels.fold2(columns2, weights.up2_bias, out)
    torch.from_numpy(out).sigmoid_()
    x_hat = y = out
    if dropout.output:
        y = x_hat.copy()
        kernels.relu_dropout(y.reshape(count, 784), *dropout.arguments(5))
    return Decoded(y, x_hat, y3, y4)


def decode_backward(
    weights: DecoderWeights, z: Floats, x: Floats, decoded: Decoded, batch_size: int, dropout: Dropout
) -> tuple[float, Floats, Gradients]:
    """The images' share in the loss of a batch, the gradient of z (N, latent_dim), and the parameters' by name."""
    count, scale = len(z), dropout.scale
    grad_out = np.empty_like(x)
    output_scale = scale if dropout.output else np.float32(1)
    loss, grad_bias2 = decoder_kernels.squared_error(
        x, decoded.y, decoded.x_hat, output_scale, np.float32(1 / batch_size), grad_out
    )
    grad_columns1 = np.empty((count * 25, 256), np.float32)
    grad_bias1, grad_weight2 = np.empty(16, np.float32), np.empty((9, 16), np.float32)
    decoder_kernels.folds_backward(
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
    decoder_kernels.unflatten_backward(
        grad_y3, decoded.y3.reshape(count, 25, 32), scale, grad_linear.reshape(count, 32, 25)
    )
    gradients = {
        "decoder.0.weight": multiply(grad_linear.T, z),
        "decoder.0.bias": grad_linear.sum(axis=0),
        "decoder.4.weight": grad_weight1.transpose(0, 3, 1, 2),
        "decoder.4.bias": grad_bias1,
        "decoder.7.weight": grad_weight2.T.reshape(16, 1, 3, 3),
        "decoder.7.bias": np.array([grad_bias2], np.float32),
    }
    return loss, multiply(grad_linear, weights.linear), gradients
