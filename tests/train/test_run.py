import errno
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fmcae
import fmcae.train.run as run_module
from fmcae.data import Dataset
from fmcae.errors import RunError, UsageError
from fmcae.files import write_atomic
from fmcae.train.config import NetworkConfig, TrainConfig
from fmcae.train.loop import train
from fmcae.train.run import Run, changes_since, check_data, create_run, find_runs, locked, open_run

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained_run, tmp_path / "run")


def classifier_on(source: Path, **values: Any) -> TrainConfig:
    return TrainConfig(
        NetworkConfig(latent_dim=32), epochs=1, seed=5, stage="classifier", autoencoder_from=str(source), **values
    )


def test_a_run_folder_holds_what_is_promised(trained_run: Path) -> None:
    names = {path.name for path in trained_run.iterdir()}
    assert names == {
        "config.json", "autoencoder.safetensors", "classifier.safetensors", "metrics.jsonl",
        "autoencoder_curves.png", "classifier_curves.png", "confusion.png", "reconstructions.png",
    }  # fmt: skip
    run = open_run(trained_run)
    assert run.finished
    assert run.data["name"] == "fashion-mnist-sample"


def test_a_run_records_what_decides_its_last_bits(trained_run: Path) -> None:
    run = open_run(trained_run)
    assert set(run.versions) - {"commit"} == {"fmcae", "python", "torch", "numpy", "numba"}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    if head.returncode == 0 and Path(fmcae.__file__).is_relative_to(REPOSITORY):
        commit, _, rest = run.versions["commit"].partition("-")
        assert head.stdout.startswith(commit) and len(commit) == 12 and rest in ("", "dirty")
    assert {"cpu", "cpu_model", "available_cpus", "memory_gib", "platform", "instruction_set"} <= set(run.machine)
    assert run.machine["instruction_set"].startswith(torch.backends.cpu.get_cpu_capability() + ", ")
    assert changes_since(run) == []
    other = replace(run, machine={**run.machine, "cpu": "Z80"}, versions={**run.versions, "numba": "0.1"})
    assert changes_since(other) == [
        f"numba was 0.1, is {run.versions['numba']}",
        f"cpu was Z80, is {run.machine['cpu']}",
    ]
    elsewhere = replace(run, config=replace(run.config, device="cuda"))  # to say so is the training's, not ours
    assert changes_since(elsewhere) == [] or torch.cuda.is_available()
    fewer = replace(run, machine={**run.machine, "available_cpus": 99, "platform": "CP/M"})
    assert changes_since(fewer) == [], "what decides nothing is not reported"


def test_metrics_have_every_epoch_and_then_test(trained_run: Path) -> None:
    run = open_run(trained_run)
    records = run.metrics()
    assert [record.get("epoch", record.get("split")) for record in records] == [1, 2, 3, 4, "test"] * 2
    assert set(records[0]) == {"stage", "epoch", "train_mse", "val_mse", "seconds", "images_per_second"}
    assert {"val_accuracy", "val_cross_entropy", "train_accuracy"} <= set(records[5])
    assert sum(map(sum, records[-1]["confusion"])) == 400
    assert (run.metrics("autoencoder"), run.metrics("classifier")) == (records[:5], records[5:])


def test_training_learns(trained_run: Path) -> None:
    records = open_run(trained_run).metrics()
    assert records[3]["val_mse"] < 0.8 * records[0]["val_mse"]
    assert records[-1]["test_accuracy"] > 0.5


def test_a_used_folder_is_not_overwritten(trained_run: Path, dataset: Dataset, tmp_path: Path) -> None:
    run = open_run(trained_run)
    for used in ("run", "file", "weights"):
        folder = tmp_path / used
        if used == "run":
            folder = trained_run
        elif used == "file":
            folder.touch()
        else:
            folder.mkdir()
            (folder / "autoencoder.safetensors").write_bytes(b"somebody's weights")
        with pytest.raises(UsageError, match=r"out \(=.*\) must be a new or empty folder; add --resume"):
            create_run(folder, run.config, dataset)
        with pytest.raises(UsageError, match=r"out \(=.*\) must be a new or empty folder; add --resume"):
            create_run(folder, classifier_on(trained_run), dataset, trained_run)


@pytest.mark.parametrize(("name", "value"), [("class_count", 9), ("channels", 3), ("size", 56)])
def test_networks_that_do_not_fit_the_data_leave_no_folder(
    dataset: Dataset, tmp_path: Path, name: str, value: int
) -> None:
    right = {"class_count": 10, "channels": 1, "size": 28}[name]
    config = TrainConfig(NetworkConfig(**{name: value}))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=rf"{name} \(={value}\) must be {right}, as fashion-mnist-sample has it"):
        create_run(tmp_path / "run", config, dataset)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_classes_were_renamed_is_named(dataset: Dataset, run_copy: Path) -> None:
    path = run_copy / "config.json"
    path.write_text(path.read_text().replace('"Bag"', '"Sack"'))
    with pytest.raises(
        RunError, match=r"config\.json: is damaged: its class_names are not those of fashion-mnist-sample"
    ):
        check_data(open_run(run_copy), dataset)


def test_what_is_not_a_run_is_named(tmp_path: Path, run_copy: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.json"):
        open_run(tmp_path)
    config = run_copy / "config.json"
    values = json.loads(config.read_text())
    changes: list[dict[str, Any]] = [
        {"config": {"wings": 1}}, {"config": {"network": []}}, {"config": {"data": 5}}, {"config": []}, {"data": 1},
        {"data": {**values["data"], "class_names": None}}, {"data": {**values["data"], "fingerprint": 5}},
        {"versions": {"torch": []}}, {"machine": {"cpu": {}}}, {"autoencoder": {"name": "x"}}, {"started": None},
        {"started": "\ud800"}, {"schema_version": "1"},
    ]  # fmt: skip
    for damaged in ("{", "[]", "[" * 100_000, *(json.dumps(values | change) for change in changes)):
        config.write_text(damaged)
        with pytest.raises(RunError, match=r"config\.json: is damaged"):
            open_run(run_copy)
    config.write_text(json.dumps({**values, "schema_version": 2}))
    with pytest.raises(RunError, match=r"schema_version \(=2\) must be 1"):
        open_run(run_copy)
    assert find_runs(tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "null", "[" * 100_000, '{"epoch": 1}', '{"stage": 1}', '{"stage": "classifier", "epoch": "1"}',
        '{"stage": "classifier", "epoch": -1}', '{"stage": "classifier", "train_mse": {}}',
        '{"stage": "classifier", "confusion": [[1]]}', '{"stage": "classifier", "confusion": "x"}',
    ],
)  # fmt: skip
def test_damaged_metrics_are_named(run_copy: Path, line: str) -> None:
    run = open_run(run_copy)
    with (run_copy / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl: is damaged"):
        run.metrics()


def test_an_export_beside_runs_is_none(run_copy: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    shutil.copy(run_copy / "config.json", export)
    (export / "classifier.onnx").touch()
    (run_copy / "other.onnx").touch()  # somebody's own
    assert [found.folder for found in find_runs(tmp_path)] == [run_copy]


def test_runs_are_found_newest_last_by_when_they_started(dataset: Dataset, tmp_path: Path) -> None:
    names = ["b", "d", "a", "c"]  # all within one second
    for name in names:
        create_run(tmp_path / name, TrainConfig(), dataset)
    (tmp_path / "b" / "config.json").touch()  # as a copy or a checkout does
    assert [run.folder.name for run in find_runs(tmp_path)] == names


# --- adoption ----------------------------------------------------------------------------------------------------


def test_an_adopted_autoencoder_brings_its_facts_and_records(
    trained_run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    source = open_run(trained_run)
    other_data = replace(dataset, test=dataset.val)
    run = create_run(tmp_path / "run", classifier_on(trained_run), other_data, trained_run)
    assert run.metrics() == source.metrics("autoencoder")
    train(run, other_data)
    assert run.metrics("autoencoder") == source.metrics("autoencoder")
    assert [record.get("epoch", record.get("split")) for record in run.metrics("classifier")] == [1, "test"]
    facts = open_run(run.folder).facts("autoencoder")
    assert facts == source.facts("autoencoder")
    assert set(facts) == {"name", "started", "config", "data", "versions", "machine"}
    assert facts["name"] == trained_run.name and facts["data"]["fingerprint"] == dataset.fingerprint
    assert facts["config"]["epochs"] == 4 and not {"data", "autoencoder_from"} & set(facts["config"])
    own = run.facts("classifier")
    assert own["name"] == "run" and own["config"]["epochs"] == 1 and own["started"] == run.started
    assert own["data"]["fingerprint"] == other_data.fingerprint


def test_a_chain_of_adoptions_hands_the_facts_on(trained_run: Path, dataset: Dataset, tmp_path: Path) -> None:
    first = create_run(tmp_path / "first", classifier_on(trained_run), dataset, trained_run)
    second = create_run(tmp_path / "second", classifier_on(first.folder), dataset, first.folder)
    source = open_run(trained_run)
    assert second.facts("autoencoder") == source.facts("autoencoder")
    assert second.metrics("autoencoder") == source.metrics("autoencoder")
    assert second.weights("autoencoder").read_bytes() == source.weights("autoencoder").read_bytes()


def test_an_autoencoder_that_cannot_be_adopted_leaves_no_folder(
    trained_run: Path, run_copy: Path, dataset: Dataset, tmp_path: Path
) -> None:
    config = replace(classifier_on(trained_run), network=NetworkConfig(latent_dim=99))
    with pytest.raises(RunError, match=r"the autoencoder to start from cannot be used: .* has latent_dim=\d+, not 99"):
        create_run(tmp_path / "new", config, dataset, trained_run)
    linear = replace(
        classifier_on(trained_run), network=replace(open_run(trained_run).config.network, decoder_relu=False)
    )
    with pytest.raises(RunError, match="has decoder_relu=True, not False"):  # its weights have the same shapes
        create_run(tmp_path / "new", linear, dataset, trained_run)
    (run_copy / "autoencoder.safetensors").unlink()
    with pytest.raises(RunError, match="the autoencoder to start from cannot be used: .* does not exist"):
        create_run(tmp_path / "new", classifier_on(run_copy), dataset, run_copy)
    with pytest.raises(RunError, match="is not a run folder"):
        create_run(tmp_path / "new", classifier_on(tmp_path), dataset, tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_path_that_is_not_utf8_is_refused_before_anything_is_written(dataset: Dataset, tmp_path: Path) -> None:
    odd = "caf\udce9"
    with pytest.raises(UsageError, match=r"^out \(=.*\) must be a path in UTF-8"):
        create_run(tmp_path / odd, TrainConfig(), dataset)
    with pytest.raises(UsageError, match=r"^data \(=.*\) must be a path in UTF-8"):
        create_run(tmp_path / "new", TrainConfig(data=odd), dataset)
    assert list(tmp_path.iterdir()) == []


def test_a_run_below_a_read_only_file_system_has_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(codes.pop(), "No space")

    codes = [errno.ENOSPC, errno.EROFS]
    monkeypatch.setattr("fmcae.train.run.FileLock.acquire", refuse)
    with locked(tmp_path / "run"):
        pass
    with pytest.raises(OSError, match="No space"), locked(tmp_path / "run"):
        pytest.fail("a full disk is no reason to go on")


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_an_adoption_that_was_killed_between_two_steps_can_be_repeated(
    trained_run: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    written: list[str] = []

    def write_until_killed(path: Path, data: bytes | str) -> None:
        if len(written) == step:
            (path.parent / f".{path.name}.a1b2c3d4.part").write_bytes(b"half")  # what a kill inside the write leaves
            raise KeyboardInterrupt
        write_atomic(path, data)
        written.append(path.name)

    def create() -> Run:
        return create_run(tmp_path / "run", classifier_on(trained_run), dataset, trained_run)

    monkeypatch.setattr(run_module, "write_atomic", write_until_killed)
    if step < 3:
        with pytest.raises(KeyboardInterrupt):
            create()
        with pytest.raises(RunError, match="is not a run folder"):
            open_run(tmp_path / "run")
        monkeypatch.setattr(run_module, "write_atomic", write_atomic)
    run = create()
    assert run.metrics() == open_run(trained_run).metrics("autoencoder")
    assert run.weights("autoencoder").read_bytes() == open_run(trained_run).weights("autoencoder").read_bytes()
