import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmcae.errors import RunError, UsageError
from fmcae.train.config import NetworkConfig
from fmcae.train.networks import Classifier
from fmcae.train.run import create_run, find_runs, load_weights, open_run


@pytest.fixture
def run_copy(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def test_a_run_folder_holds_what_is_promised(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    assert names == {
        "config.json", "autoencoder.safetensors", "classifier.safetensors", "metrics.jsonl",
        "autoencoder_curves.png", "classifier_curves.png", "confusion.png", "reconstructions.png",
    }  # fmt: skip
    run = open_run(trained_run)
    assert run.finished
    assert run.data["name"] == "fashion-mnist-sample"


def test_metrics_have_every_epoch_and_then_test(trained_run):
    records = open_run(trained_run).metrics()
    assert [record.get("epoch", record.get("split")) for record in records] == [1, 2, 3, 4, "test"] * 2
    assert set(records[0]) == {"stage", "epoch", "train_mse", "val_mse", "seconds", "images_per_second"}
    assert {"val_accuracy", "val_cross_entropy", "train_accuracy"} <= set(records[5])
    assert sum(map(sum, records[-1]["confusion"])) == 400


def test_training_learns(trained_run):
    records = open_run(trained_run).metrics()
    assert records[3]["val_mse"] < 0.8 * records[0]["val_mse"]
    assert records[-1]["test_accuracy"] > 0.5


def test_a_used_folder_is_not_overwritten(trained_run, sample):
    from fmcae.data import load_dataset

    run = open_run(trained_run)
    with pytest.raises(UsageError, match=r"out \(=.*\) must be a new or empty folder; add --resume"):
        create_run(trained_run, run.config, load_dataset(sample))


def test_what_is_not_a_run_is_named(tmp_path, run_copy):
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.json"):
        open_run(tmp_path)
    config = run_copy / "config.json"
    values = json.loads(config.read_text())
    for damaged in ("{", "[]", json.dumps({**values, "config": {"epochs": 1}})):
        config.write_text(damaged)
        with pytest.raises(RunError, match=r"config\.json: is damaged"):
            open_run(run_copy)
    config.write_text(json.dumps({**values, "schema_version": 2}))
    with pytest.raises(RunError, match=r"schema_version \(=2\) must be 1"):
        open_run(run_copy)
    assert find_runs(tmp_path) == []


def test_runs_are_found_newest_last(trained_run, tmp_path):
    import os

    for name, age in (("old", 1000), ("new", 2000)):
        shutil.copytree(trained_run, tmp_path / name)
        os.utime(tmp_path / name / "config.json", (age, age))
    assert [run.folder.name for run in find_runs(tmp_path)] == ["old", "new"]


def test_weights_of_another_shape_are_refused(run_copy):
    path = open_run(run_copy).weights("classifier")
    with pytest.raises(RunError, match=r"does not fit the configuration: .* is torch.float32 .*, expected"):
        load_weights(Classifier(NetworkConfig(latent_dim=16)), path)
    tensors = load_file(path)
    save_file({**tensors, "extra": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="extra is in only one of the two"):
        open_run(run_copy).network("classifier")


def test_a_pickle_is_never_read(run_copy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    path = open_run(run_copy).weights("classifier")
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunError, match=r"classifier\.safetensors: is not a whole safetensors file"):
        open_run(run_copy).network("classifier")
    assert not (tmp_path / "boom").exists()
    path.unlink()
    with pytest.raises(RunError, match="does not exist"):
        open_run(run_copy).network("classifier")
