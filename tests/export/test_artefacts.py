import ast
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import fmcae
from fmcae.card import Kind
from fmcae.data import Dataset, Split, load_dataset
from fmcae.errors import ArtefactError, GateError, RunError, UsageError
from fmcae.export import artefacts
from fmcae.export.artefacts import export_run, golden_vectors, trained_networks
from fmcae.export.model_card import model_card
from fmcae.runtime import graph_rules
from fmcae.runtime.model import SHIPPED, artefact_files, read_artefact, read_artefacts, shipped_folder
from fmcae.runtime.session import Session
from fmcae.runtime.verify import verify
from fmcae.train.config import NetworkConfig, TrainConfig
from fmcae.train.loop import train
from fmcae.train.run import create_run, open_run
from fmcae.train.weights import save_weights

KINDS: tuple[Kind, ...] = ("encoder", "decoder", "classifier")


def test_files_are_whole_and_verify(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    companions = {"picture.onnx", "MODEL_CARD.md", "reliability.png", "config.json", "metrics.jsonl"}
    assert names == {*(f"{kind}.onnx" for kind in KINDS), *companions}
    for artefact in read_artefacts(exported).values():
        assert verify(artefact).passed


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_have_names_a_dynamic_batch_and_pinned_versions(exported: Path, kind: Kind) -> None:
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


def test_cards_carry_the_facts(exported: Path, trained_run: Path) -> None:
    card = read_artefact(exported / "classifier.onnx").card
    assert card.kind == "classifier"
    assert card.class_names[9] == "Ankle boot"
    assert card.input == {"name": "x", "shape": ["batch", 1, 28, 28], "dtype": "float32", "range": "[0, 1]"}
    assert card.output["shape"] == ["batch", 10]
    assert card.training["config"]["network"]["latent_dim"] == 32
    assert card.metrics["test_accuracy"] == open_run(trained_run).metrics()[-1]["test_accuracy"]
    assert (card.training["kept_epoch"], card.training.get("stopped_epoch")) == (4, None)
    assert set(card.metrics) == {"test_cross_entropy", "test_accuracy", "confusion"}
    assert card.parity["passed"] and card.parity["images"] == 400
    assert {item["batch_size"] for item in card.parity["comparisons"]} == {1, 2, 7, 400}
    assert str(trained_run.parent) not in card.to_json()


def test_golden_vectors_are_pytorchs_numbers(exported: Path, trained_run: Path) -> None:
    run = open_run(trained_run)
    golden = read_artefact(exported / "classifier.onnx").golden
    with torch.no_grad():
        assert np.array_equal(run.network("classifier")(torch.from_numpy(golden.inputs)).numpy(), golden.outputs)
    assert len(golden.labels) == len(golden.inputs) == 10


def test_the_same_run_exports_to_the_same_bytes(
    exported: Path, trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    export_run(open_run(trained_run), load_dataset(sample), tmp_path)
    for kind in KINDS:
        assert (tmp_path / f"{kind}.onnx").read_bytes() == (exported / f"{kind}.onnx").read_bytes()


def test_an_adopted_autoencoder_keeps_its_own_facts(trained_run: Path, sample: Path, tmp_path: Path) -> None:
    """The classifier's run has another learning rate, seed and number of epochs than the run of its autoencoder."""
    dataset = load_dataset(sample)
    source = open_run(trained_run)
    config = TrainConfig(
        source.config.network,
        learning_rate=0.01,
        epochs=1,
        seed=5,
        stage="classifier",
        autoencoder_from=str(trained_run),
    )
    run = create_run(tmp_path / "second", config, dataset, autoencoder_from=trained_run)
    train(run, dataset)
    export_run(run, dataset, tmp_path / "out")
    cards = {kind: artefact.card for kind, artefact in read_artefacts(tmp_path / "out").items()}
    first = read_artefact(tmp_path / "out" / "encoder.onnx").card
    assert first == cards["encoder"] and first.training == cards["decoder"].training
    assert first.name == trained_run.name and cards["classifier"].name == "second"
    assert (first.training["config"]["seed"], first.training["config"]["epochs"]) == (0, 4)
    assert (cards["classifier"].training["config"]["seed"], cards["classifier"].training["config"]["epochs"]) == (5, 1)
    assert cards["classifier"].training["autoencoder"] == first.training
    assert first.training["data"]["fingerprint"] == dataset.fingerprint
    records = source.metrics("autoencoder")
    assert first.metrics["test_mse"] == cards["decoder"].metrics["test_mse"] == records[-1]["test_mse"]
    assert "test_mse" not in cards["classifier"].metrics
    page = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert f"### Autoencoder, run {trained_run.name}" in page and "### Classifier, run second" in page
    assert f"test_mse: {records[-1]['test_mse']:.4f}\n" in page and "three rows and columns" in page
    assert "- type: mse\n" in page
    other = {kind: artefact for kind, artefact in read_artefacts(tmp_path / "out").items()}
    training = other["classifier"].card.training
    training["data"] = training["data"] | {"name": "pets", "fingerprint": "f" * 64}
    page = model_card(other)
    assert f"test_mse: {records[-1]['test_mse']:.4f}, of fashion-mnist-sample\n" in page and "type: mse" not in page


def test_a_file_is_sealed_once(
    exported: Path, trained_run: Path, sample: Path, to_onnx_once: Callable[..., bytes]
) -> None:
    """What parity was measured on is the file that is written, but for its metadata."""
    networks = trained_networks(open_run(trained_run))
    golden = golden_vectors(networks, load_dataset(sample))
    for kind, network in networks.items():
        model = onnx.load(exported / f"{kind}.onnx")
        del model.metadata_props[:]
        model.ClearField("doc_string")
        model.ClearField("model_version")
        assert model.SerializeToString(deterministic=True) == to_onnx_once(network, kind, golden[kind].inputs)


def test_other_tools_see_what_a_file_is(exported: Path, trained_run: Path) -> None:
    """As ONNX Runtime gives it to a program, and Netron to eyes."""
    found = {kind: Session(exported / f"{kind}.onnx").raw.get_modelmeta() for kind in KINDS}
    run = open_run(trained_run)
    assert {meta.version for meta in found.values()} == {int(run.started[:10].replace("-", ""))}
    described = found["classifier"].description
    assert described.startswith(
        f"The classifier of run {trained_run.name}, trained on {run.data['name']} and exported by"
    )
    assert "x (batch, 1, 28, 28) float32 in [0, 1] -> logits (batch, 10) float32" in described
    assert f"Test accuracy {run.metrics()[-1]['test_accuracy']:.4f}." in described
    names = ast.literal_eval(found["classifier"].custom_metadata_map["names"])  # as Ultralytics reads it
    assert names == dict(enumerate(run.data["class_names"]))
    assert "The encoder of" in found["encoder"].description and "names" not in found["encoder"].custom_metadata_map


@pytest.mark.parametrize("part", ["doc_string", "model_version", "names", "no names"])
def test_the_seal_covers_what_other_tools_see(exported: Path, tmp_path: Path, part: str) -> None:
    model = onnx.load(exported / "classifier.onnx")
    names = next(entry for entry in model.metadata_props if entry.key == "names")
    if part == "names":
        names.value = names.value.replace("Sandal", "Sandals")
    elif part == "no names":
        model.metadata_props.remove(names)
    else:
        setattr(model, part, {"doc_string": "Another classifier.", "model_version": 1}[part])
    onnx.save(model, tmp_path / "changed.onnx")
    changed = "its names" if "names" in part else "its graph or weights"
    with pytest.raises(ArtefactError, match=f"is not the file that was exported: {changed} changed since"):
        read_artefact(tmp_path / "changed.onnx")


def test_the_card_for_people_agrees_with_the_cards(exported: Path) -> None:
    text = (exported / "MODEL_CARD.md").read_text()
    card = read_artefact(exported / "classifier.onnx").card
    assert f"test_accuracy: {card.metrics['test_accuracy']:.4f}" in text
    header = text.split("---\n")[1]  # YAML, which model hubs read
    assert "pipeline_tag: image-classification" in header and f'name: "{card.name}"' in header
    assert f"- type: accuracy\n            value: {card.metrics['test_accuracy']:.4f}" in header
    assert "labels agree 100.00%" in text and "Ankle boot" in text
    assert f"{(exported / 'encoder.onnx').stat().st_size:,}" in text


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_as_an_export_writes_it(name: str) -> None:
    files = {kind: read_artefact(path) for kind, path in artefact_files(shipped_folder(name)).items()}
    text = (shipped_folder(name) / "MODEL_CARD.md").read_text()
    assert text == model_card(files)
    assert ("`com.microsoft.QLinearConv`" in text) == (name == "fashion-mnist-int8")
    assert not any(onnx.ModelProto.FromString(file.content).graph.value_info for file in files.values())


def test_without_parity_nothing_is_written(
    trained_run: Path, sample: Path, tmp_path: Path, to_onnx_once: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(network: nn.Module, kind: Kind, example: NDArray[np.float32]) -> bytes:
        model = onnx.load_from_string(to_onnx_once(network, kind, example))
        weight = next(item for item in model.graph.initializer if len(item.dims) == 2)
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] += 0.01
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        content: bytes = model.SerializeToString()
        return content

    monkeypatch.setattr(artefacts, "to_onnx", wrong)
    with pytest.raises(GateError, match="parity does not hold, nothing was written: .* differ"):
        export_run(open_run(trained_run), load_dataset(sample), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_finished_runs_are_exported(trained_run: Path, sample: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained_run, tmp_path / "run")
    (copy / "classifier.safetensors").unlink()
    with pytest.raises(RunError, match="is not finished; go on with  fmcae train --resume"):
        export_run(open_run(copy), load_dataset(sample), tmp_path / "out")


@pytest.mark.usefixtures("graphs_are_kept")
def test_only_an_earlier_export_is_overwritten(exported: Path, trained_run: Path, sample: Path, tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("graphs_are_kept")
def test_an_export_that_fails_half_way_leaves_the_old_one(
    exported: Path, trained_run: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shutil.copytree(exported, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    real, calls = os.fsync, list[int]()

    def full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        export_run(open_run(trained_run), load_dataset(sample), old)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_graphs_of_two_runs_are_not_loaded_together(exported: Path, shipped: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(exported, tmp_path / "mixed")
    shutil.copy(shipped / "decoder.onnx", mixed)
    with pytest.raises(ArtefactError, match=r"mixed: decoder\.onnx and encoder\.onnx come from different runs"):
        fmcae.load(mixed)


def test_damaged_weights_are_not_exported(trained_run: Path, sample: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained_run, tmp_path / "run")
    run = open_run(copy)
    save_weights(run.network("autoencoder"), run.weights("classifier"))
    with pytest.raises(RunError, match="does not fit the configuration"):
        export_run(run, load_dataset(sample), tmp_path / "out")


@pytest.mark.parametrize(
    "settings", [{"pooling": False}, {"decoder_padding": False, "latent_activation": False, "decoder_relu": False}]
)
def test_an_export_of_other_layers_and_with_other_classes(tmp_path: Path, settings: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    split = Split(generator.integers(0, 255, (20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 3)
    dataset = Dataset("noise", ("a", "b", "c"), split, split, split)
    config = TrainConfig(NetworkConfig(latent_dim=4, class_count=3, **settings), epochs=1, batch_size=10)
    run = create_run(tmp_path / "run", config, dataset)
    train(run, dataset)
    export_run(run, dataset, tmp_path / "out")
    model = fmcae.load(tmp_path / "out")
    assert model.class_names == ("a", "b", "c")
    assert "three rows and columns" not in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert model.reconstruct(np.zeros((2, 1, 28, 28), np.float32)).shape == (2, 1, 28, 28)
    ranges = model.artefacts["encoder"].card.output["range"], model.artefacts["decoder"].card.input["range"]
    assert set(ranges) == {"[0, inf)" if run.config.network.latent_activation else "(-inf, inf)"}


def test_an_export_that_would_be_refused_is_not_written(
    trained_run: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmcae.runtime.graph_rules.OPERATORS", graph_rules.OPERATORS - {("", "Relu")})
    with pytest.raises(GateError, match=r"\.onnx: is no artefact of fmcae: .*Relu.*; nothing was written"):
        export_run(open_run(trained_run), load_dataset(sample), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_test_image_is_enough(trained_run: Path, sample: Path) -> None:
    dataset = load_dataset(sample)
    alone = replace(dataset, test=Split(dataset.test.images[:1], dataset.test.labels[:1]))
    golden = golden_vectors({"classifier": open_run(trained_run).network("classifier")}, alone)["classifier"]
    assert len(golden.inputs) == 2 and (golden.outputs[0] == golden.outputs[1]).all()
