"""The fused step: the threads divide a batch, and each takes its part forward and back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcae.train.cpu import kernels, passes
from fmcae.train.cpu.passes import DecoderWeights, Dropout, EncoderWeights, Floats, Gradients, LinearWeights, as_numpy
from fmcae.train.networks import Autoencoder, Classifier

EVALUATION_CHUNK = 250  # images at most, which fit a core's cache
T = TypeVar("T")


class FusedBackend:
    """Losses, gradients and outputs of a network, on ``threads`` threads of the CPU until it is closed.

    The threads take fixed parts of a batch, so the same seed and number of threads give the same weights. In the loss of a
    classifier, an image counts as ``class_weights`` (K,) have it; all count the same without them.
    """

    def __init__(self, network: Autoencoder | Classifier, threads: int, class_weights: Tensor | None = None) -> None:
        self.network = network
        self.threads = threads
        self._class_weights = None if class_weights is None else as_numpy(class_weights)
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
        encoder, head = self._weights()  # here and not in the threads, like every call of PyTorch that can be
        images, classes = as_numpy(x)[:, 0], as_numpy(labels)
        weights = np.ones(len(images), np.float32) if self._class_weights is None else self._class_weights[classes]
        total = float(weights.sum())

        def step(first: int, end: int) -> tuple[float, Gradients]:
            part, own_dropout = images[first:end], replace(dropout, first=first)
            if isinstance(head, DecoderWeights):
                return passes.autoencoder_step(encoder, head, part, len(images), own_dropout)
            own_classes, own_weights = classes[first:end], weights[first:end]
            return passes.classifier_step(encoder, head, part, own_classes, own_weights, total, own_dropout)

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
        no_dropout = Dropout(0.0, np.zeros(passes.DROPOUT_LAYERS, np.uint32), before_pooling=False, output=False)
        images = as_numpy(x)[:, 0]
        encoder, head = self._weights()

        def outputs(first: int, end: int) -> Floats:
            z = passes.encode(encoder, images[first:end], no_dropout).z
            if isinstance(head, DecoderWeights):
                return passes.decode(head, z, no_dropout).x_hat[:, np.newaxis]
            return passes.linear(z, *head)

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

    def _weights(self) -> tuple[EncoderWeights, DecoderWeights | LinearWeights]:
        network = self.network
        encoder = EncoderWeights.from_network(network.encoder)
        if isinstance(network, Autoencoder):
            return encoder, DecoderWeights.from_network(network.decoder)
        return encoder, (as_numpy(network.linear.weight), as_numpy(network.linear.bias))


class FusedAdam:
    """Adam over the parameters that are trained, on the threads of ``backend``.

    Its state has the names of :class:`torch.optim.Adam`'s, whose construction alone imports PyTorch's compiler for a
    second.
    """

    def __init__(self, backend: FusedBackend, learning_rate: float) -> None:
        self._backend, self._learning_rate = backend, learning_rate
        parameters = [parameter for parameter in backend.network.parameters() if parameter.requires_grad]
        self.state: dict[Tensor, dict[str, Tensor]] = {parameter: adam_state(parameter) for parameter in parameters}
        self._arrays = [[_flat(tensor) for tensor in (key, *state.values())] for key, state in self.state.items()]

    def step(self) -> None:
        """Take one step along each ``parameter.grad``."""
        gradients = [_flat(parameter.grad) for parameter in self.state]
        for _, step, *_ in self._arrays:
            step += 1
        count = int(step[0])
        step_size = np.float32(self._learning_rate / (1 - 0.9**count))
        root_correction = np.float32((1 - 0.999**count) ** 0.5)
        threads = self._backend.threads

        def step_part(thread: int, _: int) -> None:
            for gradient, (parameter, _step, *moments) in zip(gradients, self._arrays, strict=True):
                size = -(-len(parameter) // threads)
                own = slice(thread * size, (thread + 1) * size)
                kernels.adam(
                    parameter[own], gradient[own], *(moment[own] for moment in moments), step_size, root_correction
                )

        self._backend.run_parts(step_part, threads, 1)


def adam_state(parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter before the first step."""
    step = torch.zeros((), device=parameter.device)  # where PyTorch's fused Adam keeps it
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def _flat(tensor: Any) -> NDArray[Any]:
    return as_numpy(tensor).reshape(-1)  # the same memory
