import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fmcae.train.backend import Backend, PlainBackend, backend_for, optimizer_for, training_loss
from fmcae.train.config import DropoutPosition, NetworkConfig
from fmcae.train.cpu import DROPOUT_LAYERS, FusedAdam, FusedBackend
from fmcae.train.cpu.kernels import dropout_mask
from fmcae.train.measure import scale
from fmcae.train.networks import Autoencoder, Classifier

Network = Autoencoder | Classifier
NETWORKS: dict[str, Callable[[NetworkConfig], Network]] = {"autoencoder": Autoencoder, "classifier": Classifier}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's own threads wait for each other, which takes long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def x(test_images: NDArray[np.uint8]) -> Tensor:
    return scale(torch.from_numpy(np.array(test_images[:13])))


LABELS = torch.arange(13) % 10


def dropout_keys(seed: int) -> NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 2**32, DROPOUT_LAYERS, np.uint32)


def masked_loss(network: Network, x: Tensor, keys: NDArray[np.uint32]) -> Tensor:
    """The training loss by plain PyTorch, each dropout layer's mask drawn as the kernels draw it."""
    config = network.config
    threshold = np.uint32(config.dropout * 2**32)

    def drop(y: Tensor, layer: int, order: list[int]) -> Tensor:  # order: the axes as the kernel counts them
        shape = [y.shape[axis] for axis in order]
        mask = dropout_mask(y.numel(), keys[layer], threshold).reshape(shape)
        return y * torch.from_numpy(mask).permute([order.index(axis) for axis in range(y.ndim)]) / (1 - config.dropout)

    def block(y: Tensor, layer: int, size: int) -> Tensor:
        y = y.relu()[:, :, : 2 * size, : 2 * size]  # the rest is pooled away, here or by the next block
        if config.dropout_position == "before-pooling":
            return F.max_pool2d(drop(y, layer, [0, 2, 3, 1]), 2)
        return drop(F.max_pool2d(y, 2), layer, [0, 2, 3, 1])

    encoder = network.encoder
    y = block(encoder[4](block(encoder[0](x), 0, 12)), 1, 5)
    z = encoder[9](y.flatten(1))
    z = drop(z.relu(), 2, [0, 1]) if config.latent_activation else z
    if isinstance(network, Classifier):
        return F.cross_entropy(network.linear(z), LABELS)
    decoder = network.decoder
    activation = F.relu if config.decoder_relu else torch.clone
    y = drop(activation(decoder[0](z)).reshape(-1, 32, 5, 5), 3, [0, 2, 3, 1])
    y = drop(activation(decoder[4](y)), 4, [0, 2, 3, 1])
    x_hat = decoder[7](y).sigmoid()
    return F.mse_loss(drop(x_hat, 5, [0, 1, 2, 3]) if config.output_dropout else x_hat, x)


def check_gradients(network: Network, expected_loss: Tensor, loss: Tensor, tolerance: float = 1e-4) -> None:
    assert float(loss) == pytest.approx(expected_loss.item(), rel=1e-5)
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(expected_loss, [dict(network.named_parameters())[name] for name in names])
    for name, wanted in zip(names, expected, strict=True):
        found = network.get_parameter(name).grad
        assert found is not None and found.shape == wanted.shape
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max(), name


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2, 3, 20])
def test_without_dropout_losses_and_gradients_are_pytorchs(x: Tensor, kind: str, threads: int) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind](NetworkConfig(dropout=0.0, latent_dim=24))
    loss = FusedBackend(network, threads).backward(x, LABELS, dropout_keys(0))
    check_gradients(network, training_loss(network, x, LABELS), loss)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("position", ["after-pooling", "before-pooling"])
@pytest.mark.parametrize("output_dropout", [False, True])
def test_with_the_same_masks_losses_and_gradients_are_pytorchs(
    x: Tensor, kind: str, position: DropoutPosition, output_dropout: bool
) -> None:
    torch.manual_seed(1)
    config = NetworkConfig(dropout=0.3, dropout_position=position, output_dropout=output_dropout)
    network = NETWORKS[kind](config)
    loss = FusedBackend(network, 2).backward(x, LABELS, dropout_keys(1))
    check_gradients(network, masked_loss(network, x, dropout_keys(1)), loss)


OTHER_LAYERS = [{"decoder_padding": False}, {"latent_activation": False}, {"decoder_relu": False}]


@pytest.mark.parametrize(
    "settings", [*OTHER_LAYERS, {name: value for one in OTHER_LAYERS for name, value in one.items()}]
)
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_other_layers_have_pytorchs_losses_gradients_and_outputs(
    x: Tensor, kind: str, dropout: float, settings: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    network = NETWORKS[kind](NetworkConfig(latent_dim=24, dropout=dropout, **settings))
    backend = FusedBackend(network, 2)
    loss = backend.backward(x, LABELS, dropout_keys(1))
    check_gradients(network, masked_loss(network, x, dropout_keys(1)), loss)
    with torch.no_grad():
        torch.testing.assert_close(backend.outputs(x), network.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_gets_no_gradients(x: Tensor) -> None:
    network = Classifier(NetworkConfig(dropout=0.0))
    network.encoder.requires_grad_(False)
    loss = FusedBackend(network, 2).backward(x, LABELS, dropout_keys(0))
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    check_gradients(network, training_loss(network, x, LABELS), loss)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_with_class_weights_losses_and_gradients_are_pytorchs(x: Tensor, threads: int, is_frozen: bool) -> None:
    torch.manual_seed(0)
    network, weights = Classifier(NetworkConfig(dropout=0.0, latent_dim=24)), torch.rand(10) * 3
    network.encoder.requires_grad_(not is_frozen)
    loss = FusedBackend(network, threads, weights).backward(x, LABELS, dropout_keys(0))
    expected = F.cross_entropy(network(x), LABELS, weight=weights)
    assert loss != pytest.approx(F.cross_entropy(network(x), LABELS).item(), rel=1e-4)
    check_gradients(network, expected, loss)
    plain = PlainBackend(network, weights).backward(x, LABELS, dropout_keys(0))
    check_gradients(network, F.cross_entropy(network(x), LABELS, weight=weights), plain)


@pytest.mark.parametrize("kind", NETWORKS)
def test_training_steps_are_pytorchs(x: Tensor, kind: str) -> None:
    torch.manual_seed(2)
    network = NETWORKS[kind](NetworkConfig(dropout=0.0))
    plain = copy.deepcopy(network)
    backends: tuple[Backend, Backend] = FusedBackend(network, 2), PlainBackend(plain)
    optimizers = [optimizer_for(backend, 0.001) for backend in backends]
    losses: list[list[float]] = [[], []]
    for step in range(30):
        for backend, optimizer, history in zip(backends, optimizers, losses, strict=True):
            history.append(backend.backward(x, LABELS, dropout_keys(step)).item())
            optimizer.step()
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


@pytest.mark.parametrize("threads", [1, 3])
def test_adams_steps_are_pytorchs(threads: int) -> None:
    torch.manual_seed(3)
    network = Autoencoder(NetworkConfig(latent_dim=24))
    reference = copy.deepcopy(network)
    adam = FusedAdam(FusedBackend(network, threads), 0.01)
    plain = torch.optim.Adam(reference.parameters(), lr=0.01)
    for _ in range(20):
        for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
            theirs.grad = torch.randn_like(theirs)
            ours.grad = theirs.grad.clone()
        adam.step()
        plain.step()
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        for name, value in plain.state[theirs].items():
            torch.testing.assert_close(adam.state[ours][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_are_pytorchs(x: Tensor, kind: str) -> None:
    network = NETWORKS[kind](NetworkConfig()).eval()
    with torch.no_grad():
        torch.testing.assert_close(FusedBackend(network, 2).outputs(x), network(x), rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_changes_no_mask(x: Tensor) -> None:
    network = Autoencoder(NetworkConfig(dropout=0.5))
    losses = [float(FusedBackend(network, threads).backward(x, LABELS, dropout_keys(2))) for threads in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_the_first_step_of_new_threads_is_the_same_bit_for_bit(test_images: NDArray[np.uint8]) -> None:
    """Where a new thread had PyTorch's default number of threads, one in ten differed."""
    images = scale(torch.from_numpy(np.array(test_images[:100])))
    labels = torch.arange(100) % 10
    torch.manual_seed(4)
    network = Classifier(NetworkConfig())
    seen = set()
    for _ in range(150):
        with backend_for(network, torch.device("cpu"), 4) as backend:
            backend.backward(images, labels, dropout_keys(3))
        seen.add(b"".join(p.grad.numpy().tobytes() for p in network.parameters() if p.grad is not None))
    assert len(seen) == 1


@settings(max_examples=25)
@given(st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_masks_drop_the_share_asked_for_independently(p: float, key: int) -> None:
    size = 60_000
    threshold = np.uint32(p * 2**32)
    mask = dropout_mask(size, np.uint32(key), threshold)
    tolerance = 6 * np.sqrt(p * (1 - p) / size) + 1e-9
    assert abs((~mask).mean() - p) <= tolerance
    other = dropout_mask(size, np.uint32(key ^ 1), threshold)
    for left, right in ((mask[:-1], mask[1:]), (mask[:-16], mask[16:]), (mask, other)):  # neighbours, layers
        assert (
            abs((~left & ~right).mean() - p * p) <= 6 * np.sqrt(p * p * (1 - p * p) / size) + 2 * p * tolerance + 1e-9
        )
