"""The two ways to compute a training step: PyTorch's own, and the fused one of :mod:`fmcae.train.cpu`."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fmcae.train.cpu import FusedAdam, FusedBackend, adam_state
from fmcae.train.networks import Autoencoder, Classifier, Teacher

CPU_CHUNK = 100  # images that PyTorch evaluates at a time on a CPU


class PlainBackend:
    """Losses, gradients and outputs of a network as PyTorch computes them, on any device.

    ``class_weights`` are as for :func:`training_loss`.
    """

    def __init__(self, network: Autoencoder | Classifier | Teacher, class_weights: Tensor | None = None) -> None:
        self.network, self.class_weights = network, class_weights

    def backward(self, x: Tensor, labels: Tensor, keys: NDArray[np.uint32]) -> Tensor:
        """The training loss, a scalar, of x (B, C, S, S) and labels (B,); gradients go into ``parameter.grad``.

        Dropout takes torch's generator instead of ``keys``.
        """
        loss = training_loss(self.network, x, labels, self.class_weights)
        self.network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs for x (N, C, S, S) in evaluation mode: x_hat (N, C, S, S) or logits (N, K)."""
        # on a CPU in parts whose activations fit the cache: without pooling twice as fast as all at once
        parts = torch.split(x, CPU_CHUNK) if x.device.type == "cpu" else (x,)
        return torch.cat([self.network(part) for part in parts])


Backend: TypeAlias = PlainBackend | FusedBackend
Optimizer: TypeAlias = FusedAdam | torch.optim.Adam


@contextmanager
def backend_for(
    network: Autoencoder | Classifier, device: torch.device, threads: int, class_weights: Tensor | None = None
) -> Iterator[Backend]:
    """The faster backend where there is one: the fused one on a CPU, for networks with pooling and images (1, 28, 28).

    A network with other layers than the paper's, such as another activation, goes to PyTorch.
    ``class_weights`` are as for :func:`training_loss`. On leaving, its threads are closed, and PyTorch's number of threads
    is what it was.
    """
    before = torch.get_num_threads()
    try:
        config = network.config
        is_fitting = config.pooling and (config.channels, config.size) == (1, 28) and _has_papers_layers(network)
        if device.type == "cpu" and is_fitting:
            torch.set_num_threads(1)  # the threads divide a batch, not its operators
            with closing(FusedBackend(network, threads, class_weights)) as backend:
                if _computes_the_same(backend, network):
                    yield backend
                    return
        torch.set_num_threads(threads)
        yield PlainBackend(network, class_weights)
    finally:
        torch.set_num_threads(before)


def _has_papers_layers(network: Autoencoder | Classifier) -> bool:
    """Whether the layers are, in their order and with all of their settings, those that the fused backend computes."""
    config = network.config
    relu, drop, pool = nn.ReLU(), nn.Dropout(config.dropout), nn.MaxPool2d(2)
    hidden = relu if config.decoder_relu else nn.Identity()
    block = [relu, drop, pool] if config.dropout_position == "before-pooling" else [relu, pool, drop]
    kernels, padding = ((4, 3), 1) if config.decoder_padding else ((5, 4), 0)
    with torch.device("meta"):  # without memory or random numbers
        wanted = [
            nn.Conv2d(1, 16, 3),
            *block,
            nn.Conv2d(16, 32, 3),
            *block,
            nn.Flatten(),
            nn.Linear(800, config.latent_dim),
        ]
        wanted += [relu, drop] if config.latent_activation else []
        if isinstance(network, Autoencoder):
            up1 = nn.ConvTranspose2d(32, 16, kernels[0], stride=2, output_padding=padding)
            up2 = nn.ConvTranspose2d(16, 1, kernels[1], stride=2, output_padding=padding)
            wanted += [nn.Linear(config.latent_dim, 800), hidden, drop, nn.Unflatten(1, (32, 5, 5))]
            wanted += [up1, hidden, drop, up2, nn.Sigmoid(), *([drop] if config.output_dropout else [])]
        else:
            wanted += [nn.Linear(config.latent_dim, config.class_count)]
    found = [*network.encoder, *(network.decoder if isinstance(network, Autoencoder) else [network.linear])]
    return type(network) in (Autoencoder, Classifier) and list(map(str, found)) == list(map(str, wanted))


@torch.no_grad()
def _computes_the_same(backend: FusedBackend, network: Autoencoder | Classifier) -> bool:
    """Whether the backend's outputs for one image are the network's: a changed ``forward`` shows in no layer."""
    x = torch.frac(0.618 * torch.arange(28 * 28)).reshape(1, 1, 28, 28)
    was_training = network.training
    wanted = network.eval()(x)
    network.train(was_training)
    atol = 1e-5 * max(1.0, float(wanted.abs().max()))
    return torch.allclose(backend.outputs(x), wanted, rtol=0, atol=atol, equal_nan=True)


def optimizer_for(backend: Backend, learning_rate: float) -> Optimizer:
    """Adam over the parameters that are trained."""
    if isinstance(backend, FusedBackend):
        return FusedAdam(backend, learning_rate)
    parameters = [parameter for parameter in backend.network.parameters() if parameter.requires_grad]
    on_cuda = parameters[0].device.type == "cuda"  # where the step may be captured
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True, capturable=on_cuda)
    for parameter in parameters:  # made at the first step otherwise, too late to be filled from a checkpoint
        optimizer.state[parameter] = adam_state(parameter)
    return optimizer


def training_loss(network: nn.Module, x: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The training loss, a scalar: mean squared error of an autoencoder, cross-entropy in nats of a classifier.

    With ``class_weights`` (K,) the cross-entropy is the weighted mean over the batch, as PyTorch defines it.
    """
    if isinstance(network, Autoencoder):
        return F.mse_loss(network(x), x)
    return F.cross_entropy(network(x), labels, class_weights)


def balanced_weights(labels: Tensor, class_count: int) -> Tensor:
    """The weight of each class (K,) float32: all images, divided by the classes that have any and by the class's images.

    So every class counts as much as another in a loss over labels (N,), and the mean weight of an image is 1. A class
    without an image has the weight 0.

    Source: scikit-learn's ``compute_class_weight("balanced")``; King and Zeng 2001, "Logistic regression in rare events
    data".
    """
    counts = torch.bincount(labels.cpu(), minlength=class_count).double()
    weights = len(labels) / ((counts > 0).sum() * counts.clamp_min(1))
    return torch.where(counts > 0, weights, 0).float().to(labels.device)
