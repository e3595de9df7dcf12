"""The training step on a CPU, several times faster than PyTorch's own and equal to it but for rounding.

Where a plain step spends its time is memory and Python, not arithmetic: every layer's dropout, ReLU and pooling passes
over its array again, forward and backward. Here

- what stands between two matrix products is one pass, a kernel of :mod:`fmcae.train.kernels`;
- a batch is shared between threads once, from x to the gradients, instead of once in every operator;
- the encoder computes only what pooling keeps: 11×11 are pooled to 5×5 without their last row and column, so the second
  convolution gives 10×10 and the first block 12×12;
- a transposed convolution is one matrix product, whose columns are added up where its windows overlap.

The matrix products and the second convolution, nine tenths of the arithmetic, are PyTorch's (oneDNN, MKL). All else is
numpy: each call of PyTorch, be it for a view, gives up Python's lock and waits to get it back from the other threads.
Each backward pass stands below its forward pass, to be read side by side. The networks' definition stays
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
from fmcae.train.networks import Autoencoder, Classifier

DROPOUT_LAYERS = 6  # three of the encoder, two of the decoder, and its output
EVALUATION_CHUNK = 250  # images at most, which fit a core's cache
Floats = NDArray[np.float32]
Gradients = dict[str, Floats]
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
        self._executor = ThreadPoolExecutor(max(1, threads - 1))

    def backward(self, x: Tensor, labels: Tensor, keys: NDArray[np.uint32]) -> Tensor:
        """The training loss, a scalar, of x (B, 1, 28, 28) and labels (B,); gradients go into ``parameter.grad``."""
        config = self.network.config
        dropout = Dropout(config.dropout, keys, config.dropout_position == "before-pooling", config.output_dropout)
        step: Any = _autoencoder_step if isinstance(self.network, Autoencoder) else _classifier_step
        weights, images, classes = Weights.of(self.network), _np(x)[:, 0], _np(labels)

        def part(first: int, end: int) -> tuple[float, Gradients]:
            of_part = replace(dropout, first=first)
            result: tuple[float, Gradients] = step(weights, images[first:end], classes[first:end], len(images), of_part)
            return result

        (loss, gradients), *others = self.shared(part, len(images), -(-len(images) // self.threads))
        for other_loss, other in others:
            loss += other_loss
            for name, gradient in gradients.items():
                gradient += other[name]
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                # Adam takes a gradient to lie in memory as its parameter does: fused, PyTorch's does not even check
                parameter.grad = torch.from_numpy(np.ascontiguousarray(gradients[name]))
        return torch.tensor(loss)

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs for x (N, 1, 28, 28) in evaluation mode: x_hat (N, 1, 28, 28) or logits (N, K)."""
        nothing = Dropout(0.0, np.zeros(DROPOUT_LAYERS, np.uint32), before_pooling=False, output=False)
        weights, images = Weights.of(self.network), _np(x)[:, 0]

        def part(first: int, end: int) -> Floats:
            z = _encode(weights, images[first:end], nothing).z
            if isinstance(self.network, Autoencoder):
                return _decode(weights, z, nothing).x_hat[:, np.newaxis]
            return _linear(z, weights.head, weights.head_bias)

        size = min(EVALUATION_CHUNK, -(-len(images) // self.threads))
        return torch.from_numpy(np.concatenate(self.shared(part, len(images), size)))

    def shared(self, work: Callable[[int, int], T], count: int, size: int) -> list[T]:
        """``work(first, end)`` for each ``size`` of ``count`` images, shared between the threads; results in order."""
        parts = [(first, min(first + size, count)) for first in range(0, count, size)]

        def share(thread: int) -> list[T]:
            return [work(*part) for part in parts[thread :: self.threads]]

        others = [self._executor.submit(share, thread) for thread in range(1, min(self.threads, len(parts)))]
        shares = [share(0), *(other.result() for other in others)]  # the first is this thread's own
        return [shares[index % self.threads][index // self.threads] for index in range(len(parts))]


class FusedAdam:
    """Adam over the parameters that are trained, shared between the threads of ``compute``.

    What is kept of it has the names that :class:`torch.optim.Adam` has for it, whose construction alone imports
    PyTorch's compiler for a second.
    """

    def __init__(self, compute: FusedCompute, learning_rate: float) -> None:
        self.parameters = [parameter for parameter in compute.network.parameters() if parameter.requires_grad]
        self.state: dict[Tensor, dict[str, Tensor]] = {p: adam_state(p) for p in self.parameters}
        self._arrays = [
            [_np(tensor).reshape(-1) for tensor in (p, state["exp_avg"], state["exp_avg_sq"], state["step"])]
            for p, state in self.state.items()
        ]  # the same memory
        self._compute = compute
        self._learning_rate = learning_rate

    def step(self) -> None:
        """Take one step along each ``parameter.grad``."""
        gradients = [_np(parameter.grad).reshape(-1) for parameter in self.parameters]  # type: ignore[arg-type]
        for *_, step in self._arrays:
            step += 1
        count = int(step[0])
        step_size = np.float32(self._learning_rate / (1 - 0.9**count))
        root_correction = np.float32((1 - 0.999**count) ** 0.5)
        threads = self._compute.threads

        def part(thread: int, _: int) -> None:
            for gradient, (parameter, exp_avg, exp_avg_sq, _step) in zip(gradients, self._arrays, strict=True):
                size = -(-len(parameter) // threads)
                own = slice(thread * size, (thread + 1) * size)
                kernels.adam(parameter[own], gradient[own], exp_avg[own], exp_avg_sq[own], step_size, root_correction)

        self._compute.shared(part, threads, 1)


def adam_state(parameter: Tensor) -> dict[str, Tensor]:
    """What Adam knows of a parameter before its first step."""
    return {
        "step": torch.zeros((), device=parameter.device),  # where PyTorch's fused Adam keeps it
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


class Weights(NamedTuple):
    """A network's parameters as the kernels and products take them: views, or copies made once a step."""

    conv1: Floats  # (3, 3, 16)
    conv1_bias: Floats
    conv2: Tensor  # (32, 16, 3, 3)
    conv2_bias: Floats
    linear: Floats  # (latent_dim, 800)
    linear_bias: Floats
    is_trained: bool  # the encoder; else it is frozen
    head: Floats  # (K, latent_dim) of a classifier, (800, latent_dim) of a decoder
    head_bias: Floats
    up1: Floats  # (32, 4·4·16), the first transposed convolution's; empty in a classifier, like the rest
    up1_bias: Floats
    up2: Floats  # (9, 16), the second's
    up2_bias: np.float32

    @classmethod
    def of(cls, network: Autoencoder | Classifier) -> "Weights":
        conv1, conv2, linear = _layers(network.encoder)
        encoder = (
            *(np.ascontiguousarray(_np(conv1.weight)[:, 0].transpose(1, 2, 0)), _np(conv1.bias)),
            *(conv2.weight.detach(), _np(conv2.bias), _np(linear.weight), _np(linear.bias)),
            linear.weight.requires_grad,
        )
        if isinstance(network, Classifier):
            nothing = np.empty(0, np.float32)
            decoder = (nothing, nothing, nothing, np.float32(0))
            return cls(*encoder, _np(network.linear.weight), _np(network.linear.bias), *decoder)
        head, up1, up2 = _layers(network.decoder)
        by_columns = np.ascontiguousarray(_np(up1.weight).transpose(0, 2, 3, 1)).reshape(32, 256)
        columns2 = np.ascontiguousarray(_np(up2.weight).reshape(16, 9).T)
        up2_bias = _np(up2.bias)[0]
        return cls(*encoder, _np(head.weight), _np(head.bias), by_columns, _np(up1.bias), columns2, up2_bias)


def _autoencoder_step(
    weights: Weights, x: Floats, labels: NDArray[np.int64], batch_size: int, dropout: Dropout
) -> tuple[float, Gradients]:
    encoded = _encode(weights, x, dropout)
    decoded = _decode(weights, encoded.z, dropout)
    grad_out = np.empty_like(x)
    kept = dropout.scale if dropout.output else np.float32(1)
    loss, grad_bias = kernels.squared_error(x, decoded.y, decoded.x_hat, kept, np.float32(1 / batch_size), grad_out)
    grad_z, decoder = _decode_backward(weights, encoded.z, decoded, grad_out, dropout)
    decoder["7.bias"] = np.array([grad_bias], np.float32)
    encoder = _encode_backward(weights, x, encoded, grad_z, dropout)
    return loss, _named(encoder=encoder, decoder=decoder)


def _classifier_step(
    weights: Weights, x: Floats, labels: NDArray[np.int64], batch_size: int, dropout: Dropout
) -> tuple[float, Gradients]:
    z = (encoded := _encode(weights, x, dropout)).z
    log_probabilities = F.log_softmax(torch.from_numpy(_linear(z, weights.head, weights.head_bias)), dim=1).numpy()
    rows = np.arange(len(x))
    loss = float(-log_probabilities[rows, labels].sum(dtype=np.float64) / batch_size)
    grad_logits = np.exp(log_probabilities)
    grad_logits[rows, labels] -= 1
    grad_logits /= batch_size
    gradients = _named(linear={"weight": _mm(grad_logits.T, z), "bias": grad_logits.sum(axis=0)})
    if weights.is_trained:
        grad_z = _mm(grad_logits, weights.head)
        gradients |= _named(encoder=_encode_backward(weights, x, encoded, grad_z, dropout))
    return loss, gradients


# --- encoder -----------------------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """The encoder's output, and what its backward pass needs."""

    z: Floats  # (N, latent_dim)
    y1: Floats  # (N, 12, 12, 16), the first block's output, channels last
    where1: NDArray[np.uint8]  # (N, 12, 12, 16), which of its four each maximum is
    y2: Floats  # (N, 32, 25), the second block's
    where2: NDArray[np.uint8]  # (N, 25, 32)


def _encode(weights: Weights, x: Floats, dropout: Dropout) -> Encoded:
    """x (N, 28, 28)."""
    count, before = len(x), dropout.before_pooling
    y1, where1 = np.empty((count, 12, 12, 16), np.float32), np.empty((count, 12, 12, 16), np.uint8)
    kernels.conv1_forward(x, weights.conv1, weights.conv1_bias, *dropout.of(0), before, y1, where1)
    a2 = F.conv2d(_channels_first(y1), weights.conv2).numpy().transpose(0, 2, 3, 1)  # (N, 10, 10, 32)
    y2, where2 = np.empty((count, 32, 25), np.float32), np.empty((count, 25, 32), np.uint8)
    kernels.pool2_forward(np.ascontiguousarray(a2), weights.conv2_bias, *dropout.of(1), before, y2, where2)
    z = _linear(y2.reshape(count, 800), weights.linear, weights.linear_bias)
    kernels.relu_dropout(z, *dropout.of(2))
    return Encoded(z, y1, where1, y2, where2)


def _encode_backward(weights: Weights, x: Floats, encoded: Encoded, grad_z: Floats, dropout: Dropout) -> Gradients:
    """The gradients of the encoder's parameters by name; ``grad_z`` (N, latent_dim) is overwritten."""
    z, y1, where1, y2, where2 = encoded
    count, scale = len(x), dropout.scale
    kernels.relu_dropout_backward(grad_z, z, scale)
    grad_y2 = _mm(grad_z, weights.linear).reshape(count, 32, 25)
    grad_a2, grad_bias2 = np.empty((count, 10, 10, 32), np.float32), np.empty(32, np.float32)
    kernels.pool2_backward(grad_y2, y2, where2, scale, grad_a2, grad_bias2)
    grad_y1, grad_weight2, _ = torch.ops.aten.convolution_backward(
        *(_channels_first(grad_a2), _channels_first(y1), weights.conv2, None),
        *([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]),  # stride 1, no padding, no bias
    )
    grad_y1 = np.ascontiguousarray(grad_y1.numpy().transpose(0, 2, 3, 1))
    grad_weight1, grad_bias1 = np.empty((3, 3, 16), np.float32), np.empty(16, np.float32)
    kernels.conv1_backward(x, grad_y1, y1, where1, scale, grad_weight1, grad_bias1)
    return {
        "0.weight": grad_weight1.transpose(2, 0, 1)[:, np.newaxis],
        "0.bias": grad_bias1,
        "4.weight": grad_weight2.numpy(),
        "4.bias": grad_bias2,
        "9.weight": _mm(grad_z.T, y2.reshape(count, 800)),
        "9.bias": grad_z.sum(axis=0),
    }


# --- decoder -----------------------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """The decoder's output, and what its backward pass needs."""

    y: Floats  # (N, 28, 28), the output; with output dropout, x_hat with some elements dropped
    x_hat: Floats  # (N, 28, 28)
    y3: Floats  # (N·25, 32), the linear layer's output, channels last
    y4: Floats  # (N, 13, 13, 16), the first transposed convolution's


def _decode(weights: Weights, z: Floats, dropout: Dropout) -> Decoded:
    """z (N, latent_dim)."""
    count = len(z)
    y3 = np.empty((count * 25, 32), np.float32)
    linear = _linear(z, weights.head, weights.head_bias).reshape(count, 32, 25)
    kernels.unflatten(linear, *dropout.of(3), y3.reshape(count, 25, 32))
    columns1 = _mm(y3, weights.up1).reshape(count, 5, 5, 4, 64)
    y4 = np.empty((count, 13, 13, 16), np.float32)
    kernels.fold1(columns1, weights.up1_bias, *dropout.of(4), y4)
    columns2 = _mm(weights.up2, y4.reshape(-1, 16).T)  # (9, N·169)
    out = np.empty((count, 28, 28), np.float32)
    kernels.fold2(columns2, weights.up2_bias, out)
    torch.from_numpy(out).sigmoid_()
    x_hat = y = out
    if dropout.output:
        y = x_hat.copy()
        kernels.relu_dropout(y.reshape(count, 784), *dropout.of(5))
    return Decoded(y, x_hat, y3, y4)


def _decode_backward(
    weights: Weights, z: Floats, decoded: Decoded, grad_out: Floats, dropout: Dropout
) -> tuple[Floats, Gradients]:
    """The gradient of z, and those of the decoder's parameters by name, for grad_out (N, 28, 28) before the sigmoid."""
    count, scale = len(z), dropout.scale
    grad_columns1 = np.empty((count * 25, 256), np.float32)
    grad_bias1, grad_weight2 = np.empty(16, np.float32), np.empty((9, 16), np.float32)
    kernels.folds_backward(
        *(grad_out, decoded.y4, weights.up2, scale),
        *(grad_columns1.reshape(count, 5, 5, 4, 4, 16), grad_bias1, grad_weight2),
    )
    grad_weight1 = _mm(decoded.y3.T, grad_columns1).reshape(32, 4, 4, 16)
    grad_y3 = _mm(grad_columns1, weights.up1.T).reshape(count, 25, 32)
    grad_linear = np.empty((count, 800), np.float32)
    kernels.unflatten_backward(grad_y3, decoded.y3.reshape(count, 25, 32), scale, grad_linear.reshape(count, 32, 25))
    return _mm(grad_linear, weights.head), {
        "0.weight": _mm(grad_linear.T, z),
        "0.bias": grad_linear.sum(axis=0),
        "4.weight": grad_weight1.transpose(0, 3, 1, 2),
        "4.bias": grad_bias1,
        "7.weight": grad_weight2.T.reshape(16, 1, 3, 3),
    }


def _mm(a: Floats, b: Floats) -> Floats:
    product: Floats = torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return product


def _linear(a: Floats, weight: Floats, bias: Floats) -> Floats:
    """a (N, M), weight (K, M), bias (K,) -> (N, K)."""
    result: Floats = torch.addmm(torch.from_numpy(bias), torch.from_numpy(a), torch.from_numpy(weight.T)).numpy()
    return result


def _channels_first(a: Floats) -> Tensor:
    """(N, H, W, C) as (N, C, H, W) in the same memory, which PyTorch calls channels_last."""
    return torch.from_numpy(a.transpose(0, 3, 1, 2))


def _layers(network: nn.Sequential) -> list[Any]:
    return [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]


def _named(**parts: Gradients) -> Gradients:
    return {f"{part}.{name}": gradient for part, gradients in parts.items() for name, gradient in gradients.items()}


def _np(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().numpy()
