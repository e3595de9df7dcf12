import pytest
import torch
from torch import nn

from fmcae.shape import SHAPES
from fmcae.train.config import NetworkConfig
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
    dropouts = [layer for layer in after.modules() if isinstance(layer, nn.Dropout)]
    assert len(dropouts) == 6 and all(layer.p == 0.1 for layer in dropouts)
