from typing import Any

import pytest
import torch
from torch import nn

from fmcae.shape import SHAPES
from fmcae.train.config import EDGE, NetworkConfig
from fmcae.train.networks import Autoencoder, Classifier


@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("latent_dim", [1, 64])
def test_shapes(pooling: bool, latent_dim: int) -> None:
    config = NetworkConfig(latent_dim=latent_dim, pooling=pooling, class_count=7)
    autoencoder, classifier = Autoencoder(config).eval(), Classifier(config).eval()
    x = torch.rand(3, 1, 28, 28)
    z = autoencoder.encoder(x)
    assert z.shape == (3, latent_dim)
    assert z.min() >= 0
    x_hat = autoencoder(x)
    assert x_hat.shape == x.shape
    assert 0 <= x_hat.min() and x_hat.max() <= 1
    assert classifier(x).shape == (3, 7)


@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_every_size_and_colour_comes_back(channels: int, size: int, pooling: bool) -> None:
    config = NetworkConfig(latent_dim=2, pooling=pooling, channels=channels, size=size)  # type: ignore[arg-type]
    x = torch.rand(1, channels, size, size)
    assert Autoencoder(config).eval()(x).shape == x.shape
    assert Classifier(config).eval()(x).shape == (1, 10)


def test_the_layout_has_the_papers_parameters() -> None:
    encoder = Autoencoder(NetworkConfig()).encoder
    assert [tuple(p.shape) for p in encoder.parameters() if p.ndim > 1] == [(16, 1, 3, 3), (32, 16, 3, 3), (128, 800)]


def _order(module: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in module]


def test_the_open_readings_are_switches() -> None:
    before = Autoencoder(NetworkConfig(dropout_position="before-pooling"))
    after = Autoencoder(NetworkConfig(dropout_position="after-pooling", output_dropout=True))
    assert _order(before.encoder)[:4] == ["Conv2d", "ReLU", "Dropout", "MaxPool2d"]
    assert _order(after.encoder)[:4] == ["Conv2d", "ReLU", "MaxPool2d", "Dropout"]
    assert _order(before.decoder)[-1] == "Sigmoid"
    assert _order(after.decoder)[-1] == "Dropout"
    plain = Autoencoder(NetworkConfig(latent_activation=False, decoder_relu=False))
    assert _order(plain.encoder)[-1] == "Linear" and "ReLU" not in _order(plain.decoder)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in after.named_parameters()]
    dropouts = [layer for layer in after.modules() if isinstance(layer, nn.Dropout)]
    assert len(dropouts) == 6 and all(layer.p == 0.1 for layer in dropouts)


def _reached(config: NetworkConfig) -> torch.Tensor:
    """Which pixels of a reconstruction (S, S) depend on z at all, by the gradient of each."""
    torch.manual_seed(0)
    decoder = Autoencoder(config).decoder.eval()
    z = torch.rand(1, config.latent_dim)
    jacobian = torch.autograd.functional.jacobian(decoder, z)  # type: ignore[no-untyped-call]
    return jacobian.abs().sum(dim=(0, 1, 4, 5)) > 0  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [28, 56])
def test_the_interior_is_what_the_input_reaches_where_output_is_padded(size: int) -> None:
    reached = _reached(NetworkConfig(latent_dim=16, size=size))  # type: ignore[arg-type]
    assert reached[:-EDGE, :-EDGE].all() and reached.sum() == (size - EDGE) ** 2


@pytest.mark.parametrize(
    "settings", [{"decoder_padding": False}, {"decoder_padding": False, "size": 64}, {"pooling": False}]
)
def test_without_padding_the_input_reaches_every_pixel(settings: dict[str, Any]) -> None:
    assert _reached(NetworkConfig(latent_dim=16, **settings)).all()
