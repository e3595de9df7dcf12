import pytest
import torch

import fmcae
from fmcae.data import load_dataset
from fmcae.errors import GateError
from fmcae.export.artefacts import trained_networks
from fmcae.export.parity import BATCH_SIZES, measure_parity
from fmcae.train.config import NetworkConfig
from fmcae.train.networks import Encoder
from fmcae.train.run import open_run


@pytest.fixture
def networks(trained_run):
    return trained_networks(open_run(trained_run))


@pytest.fixture(scope="module")
def test_split(sample):
    return load_dataset(sample).test


def test_the_export_agrees_with_pytorch(networks, exported, test_split):
    parity = measure_parity(networks, fmcae.load(exported), test_split)
    assert parity.passed
    assert {(item.output, item.batch_size) for item in parity.comparisons} == {
        (output, size) for output in ("logits", "z", "x_hat") for size in BATCH_SIZES
    }
    assert all(item.label_agreement == 1 for item in parity.comparisons if item.output == "logits")
    assert 0 < max(item.difference.max_abs for item in parity.comparisons) < 1e-4
    assert parity.to_json()["passed"] is True


def test_other_weights_do_not(networks, exported, test_split):
    with torch.no_grad():
        networks["classifier"].linear.bias[3] += 0.5
    parity = measure_parity(networks, fmcae.load(exported), test_split)
    assert not parity.passed
    assert "differ" in parity.failure


def test_a_small_difference_fails_by_the_tolerance(networks, exported, test_split):
    with torch.no_grad():
        networks["decoder"][-2].bias += 0.01
    parity = measure_parity(networks, fmcae.load(exported), test_split)
    assert parity.failure.startswith("x_hat differs by up to")


def test_another_latent_size_is_named(networks, exported, test_split):
    networks["encoder"] = Encoder(NetworkConfig(latent_dim=16)).eval()
    with pytest.raises(GateError, match=r"parity does not hold: z is \(400, 32\), PyTorch's \(400, 16\)"):
        measure_parity(networks, fmcae.load(exported), test_split)
