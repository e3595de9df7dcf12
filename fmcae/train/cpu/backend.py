"""The fused step: the threads divide a batch, and each takes its part forward and back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fmcae.train.cpu.decoder import DecoderWeights, decode, decode_backward
from fmcae.train.cpu.encoder import EncoderWeights, encode, encode_backward
from fmcae.train.cpu.layers import DROPOUT_LAYERS, Dropout, Floats, Gradients, as_numpy, linear, multiply
from fmcae.train.networks import Autoencoder, Classifier

EVALUATION_CHUNK = 250  # images at most, which fit a core's cache
T = TypeVar("T")


class FusedBackend:
    """Losses, gradients and outputs of a network, on ``threads`` threads of the CPU until it is closed.

    The threads take fixed parts of a batch, so the same seed and number of threads give the same weights.
    """

    def __init__(self, network: Autoencoder | Classifier, threads: int) -> None:
        self.network = network
        self.threads = threads
        # PyTorch's number of threads is each thread's own. At its default, a product in a new thread of ours may be divided
        # between more threads, which changes its last bits.
        self._executor = ThreadPoolExecutor(max(1, threads - 1), initializer=torch.set_num_threads, initargs=(1,))

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()

    def backward(self, x: Tensor, labels: Tensor, keys: NDArray[np.uint32]) -> Tensor:
        """The training loss, a scalar, of x (B, 1, 28, 28) and labels (B,); gradients go into ``parameter.grad``."""
        config = self.network.config
        dropout = Dropout(config.dropout, keys, config.dropout_position == "before-pooling", config.output_dropout)
        encoder, head = _weights(self.network)  # here and not in the threads, like every call of PyTorch that can be
        images, classes = as_numpy(x)[:, 0], as_numpy(labels)

        def step(first: int, end: int) -> tuple[float, Gradients]:
            part, own_dropout = images[first:end], replace(dropout, first=first)
            if isinstance(head, DecoderWeights):
                return _autoencoder_step(encoder, head, part, len(images), own_dropout)
            return _classifier_step(encoder, head, part, classes[first:end], len(images), own_dropout)

        (loss, gradients), *others = self.run_parts(step, len(images), -(-len(images) // self.threads))
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
        no_dropout = Dropout(0.0, np.zeros(DROPOUT_LAYERS, np.uint32), before_pooling=False, output=False)
        images = as_numpy(x)[:, 0]
        encoder, head = _weights(self.network)

        def outputs(first: int, end: int) -> Floats:
            z = encode(encoder, images[first:end], no_dropout).z
            if isinstance(head, DecoderWeights):
                return decode(head, z, no_dropout).x_hat[:, np.newaxis]
            return linear(z, head.weight, head.bias)

        size = min(EVALUATION_CHUNK, -(-len(images) // self.threads))
        return torch.from_numpy(np.concatenate(self.run_parts(outputs, len(images), size)))

    def run_parts(self, work: Callable[[int, int], T], count: int, size: int) -> list[T]:
        """The results in order of ``work(first, end)`` for each ``size`` of ``count`` images, on all threads."""
        parts = [(first, min(first + size, count)) for first in range(0, count, size)]

        def run_thread(thread: int) -> list[T]:
            return [work(*part) for part in parts[thread :: self.threads]]

        others = [self._executor.submit(run_thread, thread) for thread in range(1, min(self.threads, len(parts)))]
        results = [run_thread(0), *(other.result() for other in others)]  # the first part is this thread's own
        return [results[index % self.threads][index // self.threads] for index in range(len(parts))]


class _LinearWeights(NamedTuple):
    weight: Floats  # (K, latent_dim)
    bias: Floats


def _weights(network: Autoencoder | Classifier) -> tuple[EncoderWeights, DecoderWeights | _LinearWeights]:
    encoder = EncoderWeights.from_network(network.encoder)
    if isinstance(network, Autoencoder):
        return encoder, DecoderWeights.from_network(network.decoder)
    return encoder, _LinearWeights(as_numpy(network.linear.weight), as_numpy(network.linear.bias))


def _autoencoder_step(
    encoder: EncoderWeights, decoder: DecoderWeights, x: Floats, batch_size: int, dropout: Dropout
) -> tuple[float, Gradients]:
    encoded = encode(encoder, x, dropout)
    decoded = decode(decoder, encoded.z, dropout)
    loss, grad_z, gradients = decode_backward(decoder, encoded.z, x, decoded, batch_size, dropout)
    gradients |= encode_backward(encoder, x, encoded, grad_z, dropout)
    return loss, gradients


def _classifier_step(
    encoder: EncoderWeights,
    head: _LinearWeights,
    x: Floats,
    labels: NDArray[np.int64],
    batch_size: int,
    dropout: Dropout,
) -> tuple[float, Gradients]:
    encoded = encode(encoder, x, dropout)
    logits = linear(encoded.z, head.weight, head.bias)
    log_probabilities = F.log_softmax(torch.from_numpy(logits), dim=1).numpy()
    rows = np.arange(len(x))
    loss = float(-log_probabilities[rows, labels].sum(dtype=np.float64) / batch_size)
    grad_logits = np.exp(log_probabilities)
    grad_logits[rows, labels] -= 1
    grad_logits /= batch_size
    gradients = {"linear.weight": multiply(grad_logits.T, encoded.z), "linear.bias": grad_logits.sum(axis=0)}
    if encoder.is_trained:
        gradients |= encode_backward(encoder, x, encoded, multiply(grad_logits, head.weight), dropout)
    return loss, gradients
