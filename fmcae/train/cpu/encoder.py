"""The encoder's forward and backward pass."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fmcae.train.cpu import encoder_kernels, kernels
from fmcae.train.cpu.layers import (
    Dropout,
    Floats,
    Gradients,
    as_numpy,
    channels_first,
    linear,
    multiply,
    weighted_layers,
)
from fmcae.train.networks import Encoder


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
        return cls(
            conv1=np.ascontiguousarray(as_numpy(conv1.weight)[:, 0].transpose(1, 2, 0)),
            conv1_bias=as_numpy(conv1.bias),
            conv2=conv2.weight.detach(),
            conv2_bias=as_numpy(conv2.bias),
            linear=as_numpy(last.weight),
            linear_bias=as_numpy(last.bias),
            is_trained=last.weight.requires_grad,
        )


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
    encoder_kernels.conv1_forward(x, weights.conv1, weights.conv1_bias, *dropout.arguments(0), drop_first, y1, indices1)
    a2 = F.conv2d(channels_first(y1), weights.conv2).numpy().transpose(0, 2, 3, 1)  # (N, 10, 10, 32)
    y2, indices2 = np.empty((count, 32, 25), np.float32), np.empty((count, 25, 32), np.uint8)
    encoder_kernels.pool2_forward(
        np.ascontiguousarray(a2), weights.conv2_bias, *dropout.arguments(1), drop_first, y2, indices2
    )
    z = linear(y2.reshape(count, 800), weights.linear, weights.linear_bias)
    kernels.relu_dropout(z, *dropout.arguments(2))
    return Encoded(z, y1, indices1, y2, indices2)


def encode_backward(
    weights: EncoderWeights, x: Floats, encoded: Encoded, grad_z: Floats, dropout: Dropout
) -> Gradients:
    """The gradients of the encoder's parameters by name. It overwrites ``grad_z`` (N, latent_dim)."""
    z, y1, indices1, y2, indices2 = encoded
    count, scale = len(x), dropout.scale
    kernels.relu_dropout_backward(grad_z, z, scale)
    grad_y2 = multiply(grad_z, weights.linear).reshape(count, 32, 25)
    grad_a2, grad_bias2 = np.empty((count, 10, 10, 32), np.float32), np.empty(32, np.float32)
    encoder_kernels.pool2_backward(grad_y2, y2, indices2, scale, grad_a2, grad_bias2)
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
    encoder_kernels.conv1_backward(x, grad_y1, y1, indices1, scale, grad_weight1, grad_bias1)
    return {
        "encoder.0.weight": grad_weight1.transpose(2, 0, 1)[:, np.newaxis],
        "encoder.0.bias": grad_bias1,
        "encoder.4.weight": grad_weight2.numpy(),
        "encoder.4.bias": grad_bias2,
        "encoder.9.weight": multiply(grad_z.T, y2.reshape(count, 800)),
        "encoder.9.bias": grad_z.sum(axis=0),
    }
