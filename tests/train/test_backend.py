import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fmcae.shape import SHAPES
from fmcae.train.backend import PlainBackend, backend_for, balanced_weights
from fmcae.train.config import NetworkConfig
from fmcae.train.cpu import FusedBackend
from fmcae.train.networks import Autoencoder, Classifier, Encoder

CPU = torch.device("cpu")


def test_only_networks_with_pooling_have_a_fused_step() -> None:
    with backend_for(Autoencoder(NetworkConfig()), CPU, 2) as backend:
        assert isinstance(backend, FusedBackend)
    with backend_for(Autoencoder(NetworkConfig(pooling=False)), CPU, 2) as backend:
        assert isinstance(backend, PlainBackend) and torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("part", "index", "layer"),
    [
        ("encoder", 1, nn.GELU()),
        ("encoder", 10, nn.Sigmoid()),  # which the decoder has in another place
        ("encoder", 1, nn.Identity()),
        ("encoder", 3, nn.Dropout2d(0.1)),
        ("encoder", 4, nn.Conv2d(16, 32, kernel_size=3, padding=1, dilation=2)),  # of the same kind and shapes
        ("encoder", 7, nn.Dropout(0.9)),
        ("encoder", 9, nn.Linear(800, 128, bias=False)),
        ("decoder", 7, nn.ConvTranspose2d(16, 1, kernel_size=5, stride=2, padding=1, output_padding=1)),
        ("decoder", 8, nn.ReLU()),
    ],
)
def test_a_layer_that_the_fused_step_does_not_compute_is_trained_by_pytorch(
    part: str, index: int, layer: nn.Module
) -> None:
    torch.manual_seed(0)
    network = Autoencoder(NetworkConfig())
    getattr(network, part)[index] = layer
    with backend_for(network, CPU, 1) as backend:
        assert isinstance(backend, PlainBackend) and network.training


class NoisyAutoencoder(Autoencoder):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x) if self.training else x)


def test_a_network_that_goes_another_way_through_its_layers_is_trained_by_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with backend_for(NoisyAutoencoder(NetworkConfig()), CPU, 1) as backend:
        assert isinstance(backend, PlainBackend)
    torch.manual_seed(0)
    network = Classifier(NetworkConfig())
    monkeypatch.setattr(Encoder, "forward", lambda self, x: nn.Sequential.forward(self, x / 2))  # type: ignore[no-untyped-call]
    with backend_for(network, CPU, 1) as backend:
        assert isinstance(backend, PlainBackend) and network.training


@pytest.mark.parametrize(
    "values",
    [
        {"dropout_position": "before-pooling"},
        {"output_dropout": True},
        {"latent_activation": False},
        {"decoder_relu": False},
        {"decoder_padding": False},
    ],
)
def test_every_reading_of_the_papers_networks_has_a_fused_step(values: dict[str, Any]) -> None:
    for network in (Autoencoder(NetworkConfig(**values)), Classifier(NetworkConfig(**values))):
        with backend_for(network, CPU, 1) as backend:
            assert isinstance(backend, FusedBackend)


@pytest.mark.parametrize(("channels", "size"), SHAPES[1:])
def test_images_of_another_shape_have_pytorchs_step(channels: int, size: int) -> None:
    config = NetworkConfig(latent_dim=2, channels=channels, size=size)  # type: ignore[arg-type]
    with backend_for(Autoencoder(config), CPU, 1) as backend:
        assert isinstance(backend, PlainBackend)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("pooling", [True, False])
def test_no_thread_is_left_and_pytorch_has_its_number_again(fails: bool, pooling: bool) -> None:
    before, torch_threads = set(threading.enumerate()), torch.get_num_threads()
    torch.set_num_threads(5)
    network = Autoencoder(NetworkConfig(pooling=pooling))
    try:
        with backend_for(network, CPU, 3) as backend:
            backend.outputs(torch.zeros(3, 1, 28, 28))
            started = len(set(threading.enumerate()) - before)
            # A pool starts its second thread only where the first one has not finished yet.
            assert started in (1, 2) if pooling else started == 0
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert set(threading.enumerate()) <= before
    assert torch.get_num_threads() == 5
    torch.set_num_threads(torch_threads)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=300))
def test_balanced_weights_are_scikit_learns(labels: list[int]) -> None:
    weights = balanced_weights(torch.tensor(labels), 11).numpy()
    present, counts = np.unique(labels, return_counts=True)
    assert weights[present] == pytest.approx(len(labels) / (len(present) * counts))  # compute_class_weight("balanced")
    assert set(np.flatnonzero(weights)) == set(present)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
