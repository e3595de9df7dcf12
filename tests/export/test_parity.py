from pathlib import Path
from typing import Any

import pytest
import torch

import fmcae
from fmcae.card import KINDS, Kind
from fmcae.data import Split, load_dataset
from fmcae.errors import GateError
from fmcae.export.artefacts import TOLERANCE, trained_networks
from fmcae.export.parity import BATCH_SIZES, measure_parity
from fmcae.runtime.session import Session
from fmcae.train.config import NetworkConfig
from fmcae.train.networks import Encoder
from fmcae.train.run import open_run

Networks = dict[Kind, Any]
Sessions = dict[Kind, Session]


@pytest.fixture
def networks(trained_run: Path) -> Networks:
    return trained_networks(open_run(trained_run))


@pytest.fixture
def sessions(exported: Path) -> Sessions:
    model = fmcae.load(exported)
    return {kind: model.session(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def test_split(sample: Path) -> Split:
    return load_dataset(sample).test


def test_the_export_agrees_with_pytorch(networks: Networks, sessions: Sessions, test_split: Split) -> None:
    parity = measure_parity(networks, sessions, test_split, TOLERANCE)
    assert parity.passed
    assert {(item.output, item.batch_size) for item in parity.comparisons} == {
        (output, min(size, 400)) for output in ("logits", "z", "x_hat") for size in BATCH_SIZES
    }
    assert all(item.label_agreement == 1 for item in parity.comparisons if item.output == "logits")
    assert 0 < max(item.difference.max_abs for item in parity.comparisons) < 1e-4
    assert parity.to_json()["passed"] is True


def test_other_weights_do_not(networks: Networks, sessions: Sessions, test_split: Split) -> None:
    with torch.no_grad():
        networks["classifier"].linear.bias[3] += 0.5
    parity = measure_parity(networks, sessions, test_split, TOLERANCE)
    assert not parity.passed
    assert "differ" in str(parity.failure)


def test_a_small_difference_fails_by_the_tolerance(networks: Networks, sessions: Sessions, test_split: Split) -> None:
    with torch.no_grad():
        networks["decoder"][-2].bias += 0.01
    parity = measure_parity(networks, sessions, test_split, TOLERANCE)
    assert str(parity.failure).startswith("x_hat differs by up to")


def test_another_latent_size_is_named(networks: Networks, sessions: Sessions, test_split: Split) -> None:
    networks["encoder"] = Encoder(NetworkConfig(latent_dim=16)).eval()
    with pytest.raises(GateError, match=r"parity does not hold: z is \(400, 32\), PyTorch's \(400, 16\)"):
        measure_parity(networks, sessions, test_split, TOLERANCE)
