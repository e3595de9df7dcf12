"""The forward and backward passes of encoder and decoder, from kernels and matrix products.

Each call of PyTorch, even for a view, gives up Python's lock and waits to get it back from the other threads: all but the
products and the second convolution is numpy.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fmcae.train.cpu import kernels
from fmcae.train.networks import Decoder, Encoder

DROPOUT_LAYERS = 6  # three of the encoder, two of the decoder, and its output
Floats: TypeAlias = NDArray[np.float32]
Gradients: TypeAlias = dict[str, Floats]  # by the parameter's name
LinearWeights: TypeAlias = tuple[Floats, Floats]  # the classifier's: weight (K, latent_dim) and bias (K,)


@dataclass(frozen=True)
class Dropout:
    """The dropout of one step: a layer's key (uint32) alone decides which of its elements are kept."""

    p: float
    keys: NDArray[np.uint32]  # (DROPOUT_LAYERS,)
    before_pooling: bool
    output: bool
    first: int = 0  # the index in the batch of the first image

    @property
    def scale(self) -> Any:  # np.float32
        return np.float32(1 / (1 - self.p))

    def arguments(self, layer: int) -> tuple[int, np.uint32, np.uint32, np.float32]:
        """(first, key, threshold, scale), as the kernels take them."""
        return self.first, self.keys[layer], np.uint32(self.p * 2**32), self.scale


def multiply(a: Floats, b: Floats) -> Floats:
    """The matrix product of a (N, M) and b (M, K)."""
    return torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def linear(a: Floats, weight: Floats, bias: Floats) -> Floats:
    """a (N, M), weight (K, M), bias (K,) -> (N, K)."""
    return torch.addmm(torch.from_numpy(bias), torch.from_numpy(a), torch.from_numpy(weight.T)).numpy()


def channels_first(a: Floats) -> Tensor:
    """(N, H, W, C) as (N, C, H, W) in the same memory, which PyTorch calls channels_last."""
    return torch.from_numpy(a.transpose(0, 3, 1, 2))


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """The same memory as an array."""
    return tensor.detach().numpy()


def weighted_layers(network: nn.Sequential) -> list[Any]:
    """The layers that have weights, in order."""
    return [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]


class EncoderWeights(NamedTuple):
    """The encoder's parameters as kernels and products take them: views, or copies made once a step."""

    conv1: Floats  # (3, 3, 16)
    conv1_bias: Floats
    conv2: Tensor  # (32, 16, 3, 3)
    conv2_bias: Floats
    linear: Floats  # (latent_dim, 800)
    linear_bias: Floats
    is_trained: bool
    latent_activation: bool

    @classmethod
    def from_network(cls, encoder: Encoder) -> "EncoderWeights":
        conv1, conv2, last = weighted_layers(encoder)
        weight1 = np.ascontiguousarray(as_numpy(conv1.weight)[:, 0].transpose(1, 2, 0))
        biases = [as_numpy(layer.bias) for layer in (conv1, conv2, last)]
        arrays = weight1, biases[0], conv2.weight.detach(), biases[1], as_numpy(last.weight), biases[2]
        return cls(*arrays, is_trained=last.weight.requires_grad, latent_activation=encoder[-1] is not last)


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
    kernels.conv1_forward(x, weights.conv1, weights.conv1_bias, *dropout.arguments(0), drop_first, y1, indices1)
    a2 = F.conv2d(channels_first(y1), weights.conv2).numpy().transpose(0, 2, 3, 1)  # (N, 10, 10, 32)
    y2, indices2 = np.empty((count, 32, 25), np.float32), np.empty((count, 25, 32), np.uint8)
    kernels.pool2_forward(np.ascontiguousarray(a2), weights.conv2_bias, *dropout.arguments(1), drop_first, y2, indices2)
    z = linear(y2.reshape(count, 800), weights.linear, weights.linear_bias)
    if weights.latent_activation:
        kernels.relu_dropout(z, *dropout.arguments(2))
    return Encoded(z, y1, indices1, y2, indices2)


def encode_backward(
    weights: EncoderWeights, x: Floats, encoded: Encoded, grad_z: Floats, dropout: Dropout
) -> Gradients:
    """The gradients of the encoder's parameters by name. It overwrites ``grad_z`` (N, latent_dim)."""
    z, y1, indices1, y2, indices2 = encoded
    count, scale = len(x), dropout.scale
    if weights.latent_activation:
        kernels.relu_dropout_backward(grad_z, z, scale)
    grad_y2 = multiply(grad_z, weights.linear).reshape(count, 32, 25)
    grad_a2, grad_bias2 = np.empty((count, 10, 10, 32), np.float32), np.empty(32, np.float32)
    kernels.pool2_backward(grad_y2, y2, indices2, scale, grad_a2, grad_bias2)
    operands = (channels_first(grad_a2), channels_first(y1), weights.conv2)
    # no bias, stride 1, padding 0, dilation 1, not transposed, no output padding, one group; whose gradients are wanted
    settings = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
    grad_y1, grad_weight2, _ = torch.ops.aten.convolution_backward(*operands, *settings)
    grad_y1 = np.ascontiguousarray(grad_y1.numpy().transpose(0, 2, 3, 1))
    grad_weight1, grad_bias1 = np.empty((3, 3, 16), np.float32), np.empty(16, np.float32)
    kernels.conv1_backward(x, grad_y1, y1, indices1, scale, grad_weight1, grad_bias1)
    return {
        "encoder.0.weight": grad_weight1.transpose(2, 0, 1)[:, np.newaxis],
        "encoder.0.bias": grad_bias1,
        "encoder.4.weight": grad_weight2.numpy(),
        "encoder.4.bias": grad_bias2,
        "encoder.9.weight": multiply(grad_z.T, y2.reshape(count, 800)),
        "encoder.9.bias": grad_z.sum(axis=0),
    }


class DecoderWeights(NamedTuple):
    """The decoder's parameters as kernels and products take them: views, or copies made once a step."""

    linear: Floats  # (800, latent_dim)
    linear_bias: Floats
    up1: Floats  # (32, 4·4·16), the first transposed convolution's; 5·5·16 without output padding
    up1_bias: Floats
    up2: Floats  # (9, 16), the second's; (16, 16) without output padding
    up2_bias: np.float32
    sizes: tuple[int, int]  # of the two's kernels
    relu: bool

    @classmethod
    def from_network(cls, decoder: Decoder) -> "DecoderWeights":
        first, up1, up2 = weighted_layers(decoder)
        weight1 = np.ascontiguousarray(as_numpy(up1.weight).transpose(0, 2, 3, 1)).reshape(32, -1)
        weight2 = np.ascontiguousarray(as_numpy(up2.weight).reshape(16, -1).T)
        biases = [as_numpy(layer.bias) for layer in (first, up1, up2)]
        sizes, relu = (up1.kernel_size[0], up2.kernel_size[0]), isinstance(decoder[1], nn.ReLU)
        return cls(as_numpy(first.weight), biases[0], weight1, biases[1], weight2, biases[2][0], sizes, relu)


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
    kernels.unflatten(flat, *dropout.arguments(3), weights.relu, y3.reshape(count, 25, 32))
    size1, size2 = weights.sizes
    columns1 = multiply(y3, weights.up1).reshape(count, 5, 5, size1, size1 * 16)
    y4 = np.empty((count, 13, 13, 16), np.float32)
    kernels.fold1(columns1, weights.up1_bias, *dropout.arguments(4), weights.relu, y4)
    columns2 = multiply(weights.up2, y4.reshape(-1, 16).T)  # (9, N·169)
    out = np.empty((count, 28, 28), np.float32)
    kernels.fold2(columns2, size2, weights.up2_bias, out)
    torch.from_numpy(out).sigmoid_()
    y = out
    if dropout.output:
        y = out.copy()
        kernels.relu_dropout(y.reshape(count, 784), *dropout.arguments(5))
    return Decoded(y, out, y3, y4)


def decode_backward(
    weights: DecoderWeights, z: Floats, x: Floats, decoded: Decoded, batch_size: int, dropout: Dropout
) -> tuple[float, Floats, Gradients]:
    """The images' share in the loss of a batch, the gradient of z (N, latent_dim), and the parameters' by name."""
    count, scale = len(z), dropout.scale
    grad_out = np.empty_like(x)
    output_scale = scale if dropout.output else np.float32(1)
    loss, grad_bias2 = kernels.squared_error(
        x, decoded.y, decoded.x_hat, output_scale, np.float32(1 / batch_size), grad_out
    )
    size1, size2 = weights.sizes
    if (size1, size2) == (4, 3):
        grad_columns = np.empty((count, 5, 5, 4, 4, 16), np.float32)
        grad_bias1, grad_weight2 = np.empty(16, np.float32), np.empty((9, 16), np.float32)
        kernels.folds_backward(grad_out, decoded.y4, weights.up2, scale, grad_columns, grad_bias1, grad_weight2)
    else:
        grad_columns, grad_bias1, grad_weight2 = _folds_backward(weights, grad_out, decoded.y4, scale)
    grad_columns1 = grad_columns.reshape(count * 25, -1)
    grad_weight1 = multiply(decoded.y3.T, grad_columns1).reshape(32, size1, size1, 16)
    grad_y3 = multiply(grad_columns1, weights.up1.T).reshape(count, 25, 32)
    grad_linear = np.empty((count, 800), np.float32)
    kernels.unflatten_backward(grad_y3, decoded.y3.reshape(count, 25, 32), scale, grad_linear.reshape(count, 32, 25))
    gradients = {
        "decoder.0.weight": multiply(grad_linear.T, z),
        "decoder.0.bias": grad_linear.sum(axis=0),
        "decoder.4.weight": grad_weight1.transpose(0, 3, 1, 2),
        "decoder.4.bias": grad_bias1,
        "decoder.7.weight": grad_weight2.T.reshape(16, 1, size2, size2),
        "decoder.7.bias": np.array([grad_bias2], np.float32),
    }
    return loss, multiply(grad_linear, weights.linear), gradients


def _folds_backward(weights: DecoderWeights, grad: Floats, y: Floats, scale: Any) -> tuple[Floats, Floats, Floats]:
    """What :func:`kernels.folds_backward` gives, for kernels of any size, by matrix products."""
    size1, size2 = weights.sizes
    grad_columns2 = _windows(grad, size2).reshape(-1, size2 * size2)  # (N·169, K·K)
    grad_y = multiply(grad_columns2, weights.up2).reshape(y.shape)
    masked = np.where(y != 0, grad_y * scale, np.float32(0))
    grad_columns = _windows(masked, size1).transpose(0, 1, 2, 4, 5, 3)  # (N, 5, 5, K, K, 16)
    grad_weight2 = multiply(grad_columns2.T, y.reshape(-1, 16))
    return np.ascontiguousarray(grad_columns), masked.sum(axis=(0, 1, 2)), grad_weight2


def _windows(a: Floats, size: int) -> Floats:
    """a (N, H, W, ...) -> (N, I, J, ..., size, size): every other window of a row and of a column."""
    return sliding_window_view(a, (size, size), axis=(1, 2))[:, ::2, ::2]


def autoencoder_step(
    encoder: EncoderWeights, decoder: DecoderWeights, x: Floats, batch_size: int, dropout: Dropout
) -> tuple[float, Gradients]:
    """The share in a batch's loss of its images x (N, 28, 28), and the gradients."""
    encoded = encode(encoder, x, dropout)
    decoded = decode(decoder, encoded.z, dropout)
    loss, grad_z, gradients = decode_backward(decoder, encoded.z, x, decoded, batch_size, dropout)
    return loss, gradients | encode_backward(encoder, x, encoded, grad_z, dropout)


def classifier_step(
    encoder: EncoderWeights,
    head: LinearWeights,
    x: Floats,
    labels: NDArray[np.int64],
    weights: Floats,
    total: float,
    dropout: Dropout,
) -> tuple[float, Gradients]:
    """The share in a batch's loss of its images x (N, 28, 28) and labels (N,), and the gradients.

    The images count by ``weights`` (N,), of which those of the batch sum up to ``total``.
    """
    encoded = encode(encoder, x, dropout)
    log_probabilities = F.log_softmax(torch.from_numpy(linear(encoded.z, *head)), dim=1).numpy()
    rows = np.arange(len(x))
    loss = float(-(weights * log_probabilities[rows, labels]).sum(dtype=np.float64) / total)
    grad_logits = np.exp(log_probabilities)
    grad_logits[rows, labels] -= 1
    grad_logits *= weights[:, np.newaxis]
    grad_logits /= total
    gradients = {"linear.weight": multiply(grad_logits.T, encoded.z), "linear.bias": grad_logits.sum(axis=0)}
    if encoder.is_trained:
        gradients |= encode_backward(encoder, x, encoded, multiply(grad_logits, head[0]), dropout)
    return loss, gradients
