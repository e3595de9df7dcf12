"""The training step on a CPU, several times faster than PyTorch's own and equal to it but for rounding.

Where a plain step spends its time is memory and Python, not arithmetic: every layer's dropout, ReLU and pooling passes
over its array again, forward and backward. Here

- what stands between two matrix products is one pass, a kernel of :mod:`fmcae.train.kernels`;
- a batch is shared between threads once, from x to the gradients, instead of once in every operator;
- the encoder computes only what pooling keeps: 11×11 are pooled to 5×5 without their last row and column, so the second
  convolution gives 10×10 and the first block 12×12;
- a transposed convolution is one matrix product, whose columns are added up where its windows overlap.

The matrix products and the second convolution, nine tenths of the arithmetic, are PyTorch's (oneDNN, MKL). Each backward
pass stands below its forward pass, to be read side by side. The networks' definition stays
:mod:`fmcae.train.networks`; ``tests/train/test_fused.py`` compares losses, gradients and training steps with it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fmcae.train import kernels
from fmcae.train.networks import Autoencoder, Classifier, Decoder, Encoder

DROPOUT_LAYERS = 6  # three of the encoder, two of the decoder, and its output
EVALUATION_CHUNK = 250  # images at most, which fit a core's cache
Gradients = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class Dropout:
    """One step's dropout: which elements of a layer are kept follows from the layer's key (uint32) alone."""

    p: float
    keys: NDArray[np.uint32]  # (DROPOUT_LAYERS,)
    before_pooling: bool
    output: bool
    first: int = 0  # index in the batch of the first image at hand

    @property
    def scale(self) -> np.float32:
        scale: np.float32 = np.float32(1 / (1 - self.p))
        return scale

    def of(self, layer: int) -> tuple[int, np.uint32, np.uint32, np.float32]:
        """(first, key, threshold, scale), as the kernels take them."""
        return self.first, self.keys[layer], np.uint32(self.p * 2**32), self.scale


class FusedCompute:
    """Losses, gradients and outputs of a network, on ``threads`` threads of the CPU.

    The threads take a batch's images in fixed parts, so the same seed and number of threads give the same weights.
    """

    def __init__(self, network: Autoencoder | Classifier, threads: int) -> None:
        self.network = network
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads)

    def backward(self, x: Tensor, labels: Tensor, keys: NDArray[np.uint32]) -> Tensor:
        """The training loss, a scalar, of x (B, 1, 28, 28) and labels (B,); gradients go into ``parameter.grad``."""
        config = self.network.config
        dropout = Dropout(config.dropout, keys, config.dropout_position == "before-pooling", config.output_dropout)
        step: Any = _autoencoder_step if isinstance(self.network, Autoencoder) else _classifier_step

        def part(first: int, end: int) -> tuple[Tensor, Gradients]:
            of_part = replace(dropout, first=first)
            result: tuple[Tensor, Gradients] = step(self.network, x[first:end, 0], labels[first:end], len(x), of_part)
            return result

        (loss, gradients), *others = self._shared(part, len(x), -(-len(x) // self.threads))
        for other_loss, other in others:
            loss = loss + other_loss
            for name, gradient in gradients.items():
                gradient += other[name]
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                # PyTorch's fused Adam silently takes a gradient in another memory layout for one in the parameter's
                parameter.grad = gradients[name].contiguous()
        return loss

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs for x (N, 1, 28, 28) in evaluation mode: x_hat (N, 1, 28, 28) or logits (N, K)."""
        nothing = Dropout(0.0, np.zeros(DROPOUT_LAYERS, np.uint32), before_pooling=False, output=False)

        def part(first: int, end: int) -> Tensor:
            z = _encode(self.network.encoder, x[first:end, 0], nothing).z
            if isinstance(self.network, Autoencoder):
                return _decode(self.network.decoder, z, nothing).x_hat.unsqueeze(1)
            return self.network.linear(z)  # type: ignore[no-any-return]

        return torch.cat(self._shared(part, len(x), min(EVALUATION_CHUNK, -(-len(x) // self.threads))))

    def _shared(self, work: Callable[[int, int], T], count: int, size: int) -> list[T]:
        """``work(first, end)`` for each ``size`` of ``count`` images, shared between the threads; results in order."""
        guarded = torch.no_grad()(work)
        parts = [(first, min(first + size, count)) for first in range(0, count, size)]
        return list(self._executor.map(lambda part: guarded(*part), parts))


def _autoencoder_step(
    network: Autoencoder, x: Tensor, labels: Tensor, batch_size: int, dropout: Dropout
) -> tuple[Tensor, Gradients]:
    encoded = _encode(network.encoder, x, dropout)
    decoded = _decode(network.decoder, encoded.z, dropout)
    error = decoded.y - x
    loss = error.square().sum() / (batch_size * x[0].numel())
    grad_y = error * (2 / (batch_size * x[0].numel()))
    grad_z, decoder = _decode_backward(network.decoder, encoded.z, decoded, grad_y, dropout)
    encoder = _encode_backward(network.encoder, x, encoded, grad_z, dropout)
    return loss, _named(encoder=encoder, decoder=decoder)


def _classifier_step(
    network: Classifier, x: Tensor, labels: Tensor, batch_size: int, dropout: Dropout
) -> tuple[Tensor, Gradients]:
    linear = network.linear
    encoded = _encode(network.encoder, x, dropout)
    log_probabilities = F.log_softmax(linear(encoded.z), dim=1)
    loss = F.nll_loss(log_probabilities, labels, reduction="sum") / batch_size
    grad_logits = (log_probabilities.exp() - F.one_hot(labels, linear.out_features)) / batch_size
    gradients = _named(linear={"weight": grad_logits.t() @ encoded.z, "bias": grad_logits.sum(dim=0)})
    if next(network.encoder.parameters()).requires_grad:  # else the encoder is frozen
        gradients |= _named(encoder=_encode_backward(network.encoder, x, encoded, grad_logits @ linear.weight, dropout))
    return loss, gradients


# --- encoder -----------------------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """The encoder's output, and what its backward pass needs."""

    z: Tensor  # (N, latent_dim)
    y1: Tensor  # (N, 12, 12, 16), the first block's output, channels last
    where1: NDArray[np.uint8]  # (N, 12, 12, 16), which of its four each maximum is
    y2: Tensor  # (N, 800), the second block's
    where2: NDArray[np.uint8]  # (N, 25, 32)


def _encode(encoder: Encoder, x: Tensor, dropout: Dropout) -> Encoded:
    """x (N, 28, 28)."""
    conv1, conv2, linear = _layers(encoder)
    count = len(x)
    y1, where1 = torch.empty(count, 12, 12, 16), np.empty((count, 12, 12, 16), np.uint8)
    weight1 = conv1.weight.squeeze(1).permute(1, 2, 0).contiguous()  # (3, 3, 16)
    before = dropout.before_pooling
    kernels.conv1_forward(_np(x), _np(weight1), _np(conv1.bias), *dropout.of(0), before, _np(y1), where1)
    a2 = F.conv2d(y1.permute(0, 3, 1, 2), conv2.weight)  # (N, 32, 10, 10) in channels-last memory
    y2, where2 = torch.empty(count, 800), np.empty((count, 25, 32), np.uint8)
    a2 = a2.permute(0, 2, 3, 1).contiguous()
    kernels.pool2_forward(_np(a2), _np(conv2.bias), *dropout.of(1), before, _np(y2.view(count, 32, 25)), where2)
    z = linear(y2)
    kernels.relu_dropout(_np(z), *dropout.of(2))
    return Encoded(z, y1, where1, y2, where2)


def _encode_backward(encoder: Encoder, x: Tensor, encoded: Encoded, grad_z: Tensor, dropout: Dropout) -> Gradients:
    """The gradients of the encoder's parameters by name; ``grad_z`` (N, latent_dim) is overwritten."""
    _, conv2, linear = _layers(encoder)
    _, y1, where1, y2, where2 = encoded
    count, scale = len(x), dropout.scale
    kernels.relu_dropout_backward(_np(grad_z), _np(encoded.z), scale)
    grad_y2 = (grad_z @ linear.weight).view(count, 32, 25)
    grad_a2, grad_bias2 = torch.empty(count, 10, 10, 32), torch.empty(32)
    kernels.pool2_backward(_np(grad_y2), _np(y2.view(count, 32, 25)), where2, scale, _np(grad_a2), _np(grad_bias2))
    grad_y1, grad_weight2, _ = torch.ops.aten.convolution_backward(
        *(grad_a2.permute(0, 3, 1, 2), y1.permute(0, 3, 1, 2), conv2.weight, None),
        *([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]),  # stride 1, no padding, no bias
    )
    grad_y1 = grad_y1.permute(0, 2, 3, 1).contiguous()
    grad_weight1, grad_bias1 = torch.empty(3, 3, 16), torch.empty(16)
    kernels.conv1_backward(_np(x), _np(grad_y1), _np(y1), where1, scale, _np(grad_weight1), _np(grad_bias1))
    return {
        "0.weight": grad_weight1.permute(2, 0, 1).unsqueeze(1).contiguous(),
        "0.bias": grad_bias1,
        "4.weight": grad_weight2.contiguous(),
        "4.bias": grad_bias2,
        "9.weight": grad_z.t() @ y2,
        "9.bias": grad_z.sum(dim=0),
    }


# --- decoder -----------------------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """The decoder's output, and what its backward pass needs."""

    y: Tensor  # (N, 28, 28), the output; with output dropout, x_hat with some elements dropped
    x_hat: Tensor  # (N, 28, 28)
    y3: Tensor  # (N, 25, 32), the linear layer's output, channels last
    y4: Tensor  # (N, 13, 13, 16), the first transposed convolution's


def _decode(decoder: Decoder, z: Tensor, dropout: Dropout) -> Decoded:
    """z (N, latent_dim)."""
    linear, up1, up2 = _layers(decoder)
    count = len(z)
    y3 = torch.empty(count, 25, 32)
    kernels.unflatten(_np(linear(z).view(count, 32, 25)), *dropout.of(3), _np(y3))
    columns1 = y3.view(-1, 32) @ _by_columns(up1)  # (N·25, 256)
    y4 = torch.empty(count, 13, 13, 16)
    kernels.fold1(_np(columns1.view(count, 5, 5, 4, 64)), _np(up1.bias), *dropout.of(4), _np(y4))
    columns2 = up2.weight.view(16, 9).t() @ y4.view(-1, 16).t()  # (9, N·169)
    out = torch.empty(count, 28, 28)
    kernels.fold2(_np(columns2), np.float32(up2.bias.item()), _np(out))
    x_hat = y = out.sigmoid_()
    if dropout.output:
        y = x_hat.clone()
        kernels.relu_dropout(_np(y.view(count, 784)), *dropout.of(5))
    return Decoded(y, x_hat, y3, y4)


def _decode_backward(
    decoder: Decoder, z: Tensor, decoded: Decoded, grad_y: Tensor, dropout: Dropout
) -> tuple[Tensor, Gradients]:
    """The gradient of z, and the gradients of the decoder's parameters by name; ``grad_y`` (N, 28, 28) is overwritten."""
    linear, up1, up2 = _layers(decoder)
    y, x_hat, y3, y4 = decoded
    count, scale = len(z), dropout.scale
    if dropout.output:
        kernels.relu_dropout_backward(_np(grad_y.view(count, 784)), _np(y.view(count, 784)), scale)
    grad_out = torch.ops.aten.sigmoid_backward(grad_y, x_hat)
    grad_columns1 = torch.empty(count * 25, 256)
    grad_bias1, grad_weight2 = torch.empty(16), torch.empty(9, 16)
    weight2 = up2.weight.view(16, 9).t().contiguous()
    kernels.folds_backward(
        *(_np(grad_out), _np(y4), _np(weight2), scale),
        *(_np(grad_columns1.view(count, 5, 5, 4, 4, 16)), _np(grad_bias1), _np(grad_weight2)),
    )
    grad_weight1 = (y3.view(-1, 32).t() @ grad_columns1).view(32, 4, 4, 16)
    grad_y3 = (grad_columns1 @ _by_columns(up1).t()).view(count, 25, 32)
    grad_linear = torch.empty(count, 800)
    kernels.unflatten_backward(_np(grad_y3), _np(y3), scale, _np(grad_linear.view(count, 32, 25)))
    return grad_linear @ linear.weight, {
        "0.weight": grad_linear.t() @ z,
        "0.bias": grad_linear.sum(dim=0),
        "4.weight": grad_weight1.permute(0, 3, 1, 2).contiguous(),
        "4.bias": grad_bias1,
        "7.weight": grad_weight2.t().reshape(16, 1, 3, 3),
        "7.bias": grad_out.sum().view(1),
    }


def _by_columns(up: nn.ConvTranspose2d) -> Tensor:
    """The first transposed convolution's weight (32, 16, 4, 4) as (32, 4·4·16)."""
    return up.weight.permute(0, 2, 3, 1).reshape(32, 256)


def _layers(network: nn.Sequential) -> list[Any]:
    return [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]


def _named(**parts: Gradients) -> Gradients:
    return {f"{part}.{name}": gradient for part, gradients in parts.items() for name, gradient in gradients.items()}


def _np(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().numpy()
