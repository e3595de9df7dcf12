import os
import shutil

import numpy as np
import onnx
import pytest
import torch

import fmcae
from fmcae.data import load_dataset
from fmcae.errors import ArtefactError, GateError, RunError, UsageError
from fmcae.export import artefacts
from fmcae.export.artefacts import export_run
from fmcae.runtime.model import read_artefact, read_artefacts
from fmcae.runtime.verify import verify
from fmcae.train.run import open_run
from fmcae.train.weights import save_weights

KINDS = ("encoder", "decoder", "classifier")


def test_files_are_whole_and_verify(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {*(f"{kind}.onnx" for kind in KINDS), "MODEL_CARD.md", "config.json", "metrics.jsonl"}
    for artefact in read_artefacts(exported).values():
        assert verify(artefact).passed


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_have_names_a_dynamic_batch_and_pinned_versions(exported, kind):
    model = onnx.load(exported / f"{kind}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [(item.domain, item.version) for item in model.opset_import]) == (8, [("", 18)])
    names = {"encoder": ("x", "z"), "decoder": ("z", "x_hat"), "classifier": ("x", "logits")}
    assert ([item.name for item in model.graph.input], [item.name for item in model.graph.output]) == (
        [names[kind][0]],
        [names[kind][1]],
    )
    for item in (model.graph.input[0], model.graph.output[0]):
        assert item.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    assert not any("Dropout" in node.op_type for node in model.graph.node)


def test_cards_carry_the_facts(exported, trained_run):
    card = read_artefact(exported / "classifier.onnx").card
    assert card.kind == "classifier"
    assert card.class_names[9] == "Ankle boot"
    assert card.input == {"name": "x", "shape": ["batch", 1, 28, 28], "dtype": "float32", "range": "[0, 1]"}
    assert card.output["shape"] == ["batch", 10]
    assert card.training["config"]["network"]["latent_dim"] == 32
    assert card.metrics["test_accuracy"] == open_run(trained_run).metrics()[-1]["test_accuracy"]
    assert card.parity["passed"] and card.parity["images"] == 400
    assert {item["batch_size"] for item in card.parity["comparisons"]} == {1, 2, 7, 1000}
    assert str(trained_run) not in card.to_json()


def test_golden_vectors_are_pytorchs_numbers(exported, trained_run):
    run = open_run(trained_run)
    golden = read_artefact(exported / "classifier.onnx").golden
    with torch.no_grad():
        assert np.array_equal(run.network("classifier")(torch.from_numpy(golden.inputs)).numpy(), golden.outputs)
    assert len(golden.labels) == len(golden.inputs) == 10


def test_the_same_run_exports_to_the_same_bytes(exported, trained_run, sample, tmp_path):
    export_run(open_run(trained_run), load_dataset(sample), tmp_path)
    for kind in KINDS:
        assert (tmp_path / f"{kind}.onnx").read_bytes() == (exported / f"{kind}.onnx").read_bytes()


def test_the_card_for_people_agrees_with_the_cards(exported):
    text = (exported / "MODEL_CARD.md").read_text()
    card = read_artefact(exported / "classifier.onnx").card
    assert f"test_accuracy: {card.metrics['test_accuracy']:.4f}" in text
    assert "400 of 400" in text and "Ankle boot" in text
    assert f"{(exported / 'encoder.onnx').stat().st_size:,}" in text


def test_without_parity_nothing_is_written(trained_run, sample, tmp_path, monkeypatch):
    real = artefacts.to_onnx

    def wrong(network, kind, example):
        model = real(network, kind, example)
        weight = next(item for item in model.graph.initializer if len(item.dims) == 2)
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] += 0.01
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model

    monkeypatch.setattr(artefacts, "to_onnx", wrong)
    with pytest.raises(GateError, match="parity does not hold, nothing was written: .* differ"):
        export_run(open_run(trained_run), load_dataset(sample), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_finished_runs_are_exported(trained_run, sample, tmp_path):
    copy = shutil.copytree(trained_run, tmp_path / "run")
    (copy / "classifier.safetensors").unlink()
    with pytest.raises(RunError, match="is not finished; go on with  fmcae train --resume"):
        export_run(open_run(copy), load_dataset(sample), tmp_path / "out")


def test_only_an_earlier_export_is_overwritten(exported, trained_run, sample, tmp_path):
    run, dataset = open_run(trained_run), load_dataset(sample)
    beginning = tmp_path / "run"  # of another run: a configuration and nothing else yet
    beginning.mkdir()
    shutil.copy(trained_run / "config.json", beginning)
    notes = shutil.copytree(exported, tmp_path / "notes")
    (notes / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for folder, reason in ((beginning, "holds config.json"), (notes, "holds notes.txt"), (tmp_path / "file", "a file")):
        with pytest.raises(UsageError, match=rf"out \(=.*\) must be .*{reason}"):
            export_run(run, dataset, folder)
    export_run(run, dataset, exported)


def test_an_export_that_fails_half_way_leaves_the_old_one(exported, trained_run, sample, tmp_path, monkeypatch):
    old = shutil.copytree(exported, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    real, calls = os.fsync, []

    def full_disk(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        export_run(open_run(trained_run), load_dataset(sample), old)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_graphs_of_two_runs_are_not_loaded_together(exported, shipped, tmp_path):
    mixed = shutil.copytree(exported, tmp_path / "mixed")
    shutil.copy(shipped / "decoder.onnx", mixed)
    with pytest.raises(ArtefactError, match=r"mixed: decoder\.onnx and encoder\.onnx come from different runs"):
        fmcae.load(mixed)


def test_damaged_weights_are_not_exported(trained_run, sample, tmp_path):
    copy = shutil.copytree(trained_run, tmp_path / "run")
    run = open_run(copy)
    save_weights(run.network("autoencoder"), run.weights("classifier"))
    with pytest.raises(RunError, match="does not fit the configuration"):
        export_run(run, load_dataset(sample), tmp_path / "out")


def test_an_export_without_pooling_and_with_other_classes(tmp_path):
    from fmcae.data import Dataset, Split
    from fmcae.train.config import NetworkConfig, TrainConfig
    from fmcae.train.loop import train
    from fmcae.train.run import create_run

    generator = np.random.default_rng(0)
    split = Split(generator.integers(0, 255, (20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 3)
    dataset = Dataset("noise", ("a", "b", "c"), split, split, split)
    config = TrainConfig(NetworkConfig(latent_dim=4, pooling=False, class_count=3), epochs=1, batch_size=10)
    run = create_run(tmp_path / "run", config, dataset)
    train(run, dataset)
    export_run(run, dataset, tmp_path / "out")
    model = fmcae.load(tmp_path / "out")
    assert model.class_names == ("a", "b", "c")
    assert model.reconstruct(np.zeros((2, 1, 28, 28), np.float32)).shape == (2, 1, 28, 28)
