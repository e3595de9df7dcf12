import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmcae.errors import RunError
from fmcae.train.config import NetworkConfig
from fmcae.train.networks import Classifier
from fmcae.train.run import open_run
from fmcae.train.weights import load_checkpoint, load_weights, save_checkpoint


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained_run, tmp_path / "run")


def test_weights_of_another_shape_are_refused(run_copy: Path) -> None:
    path = open_run(run_copy).weights("classifier")
    with pytest.raises(RunError, match=r"does not fit the configuration: .* is torch.float32 .*, expected"):
        load_weights(Classifier(NetworkConfig(latent_dim=16)), path)
    tensors = load_file(path)
    save_file({**tensors, "extra": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="extra is in only one of the two"):
        open_run(run_copy).network("classifier")


def test_a_pickle_is_never_read(run_copy: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(tmp_path / "boom"), "w"))

    path = open_run(run_copy).weights("classifier")
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunError, match=r"classifier\.safetensors: is not a whole safetensors file"):
        open_run(run_copy).network("classifier")
    assert not (tmp_path / "boom").exists()
    path.unlink()
    with pytest.raises(RunError, match="does not exist"):
        open_run(run_copy).network("classifier")


def test_a_checkpoint_serves_its_own_stage(tmp_path: Path) -> None:
    network, path = Classifier(NetworkConfig(latent_dim=4)), tmp_path / "checkpoint.safetensors"
    assert load_checkpoint(path, "classifier", network, {}) == 0
    save_checkpoint(path, "classifier", 7, network, {})
    other = Classifier(NetworkConfig(latent_dim=4))
    assert load_checkpoint(path, "autoencoder", other, {}) == 0
    assert not torch.equal(other.linear.weight, network.linear.weight)
    assert load_checkpoint(path, "classifier", other, {}) == 7
    assert torch.equal(other.linear.weight, network.linear.weight)


@pytest.mark.parametrize("metadata", [{}, {"epoch": "-1"}, {"epoch": "0"}, {"epoch": "x"}, {"epoch": "9" * 20}])
def test_a_checkpoint_of_no_epoch_is_damaged(tmp_path: Path, metadata: dict[str, str]) -> None:
    path, network = tmp_path / "checkpoint.safetensors", Classifier(NetworkConfig(latent_dim=2))
    save_file(
        {f"network.{name}": value for name, value in network.state_dict().items()}, path, {"stage": "x", **metadata}
    )
    with pytest.raises(RunError, match="is damaged: its epoch"):
        load_checkpoint(path, "x", network, {})
