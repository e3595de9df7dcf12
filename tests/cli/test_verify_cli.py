import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fmcae.errors import FmcaeError
from fmcae.runtime.model import read_artefact
from fmcae.runtime.session import Session

if TYPE_CHECKING:
    from tests.conftest import Cli


def test_what_ships_passes(cli: "Cli", shipped: Path) -> None:
    result = cli("verify")
    assert result.exit_code == 0
    assert result.stdout.count("pass") == 10
    assert "on cpu, 10 golden vectors, largest difference" in result.stdout
    assert cli("verify", shipped / "encoder.onnx").stdout.count("pass") == 1
    assert cli("verify", "fashion-mnist-int8").stdout.count("pass") == 2


def test_a_folder_stands_for_the_files_in_it(cli: "Cli", shipped: Path, tmp_path: Path) -> None:
    result = cli("verify", shipped, shipped / "encoder.onnx")
    assert (result.exit_code, result.stdout.count("pass")) == (0, 5)
    result = cli("verify", "--json", tmp_path, shipped)
    assert result.exit_code == 5 and "1 of 5 files failed" in result.stderr
    assert "holds none of encoder.onnx" in json.loads(result.stdout)["results"][0]["failure"]
    result = cli("info", shipped)
    assert result.exit_code == 0 and "kind: classifier" in result.stdout
    nothing = f"error: {tmp_path}: holds none of encoder.onnx, decoder.onnx, classifier.onnx\n"
    assert cli("info", tmp_path).stderr == nothing
    shutil.copy(shipped / "encoder.onnx", tmp_path)
    assert "kind: encoder" in cli("info", tmp_path).stdout


@pytest.mark.parametrize(("verb", "name"), [("verify", "PATH"), ("info", "FILE")])
def test_an_empty_path_is_named(cli: "Cli", verb: str, name: str) -> None:
    result = cli(verb, "")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {name} '' must not be empty\n")


def test_a_flipped_weight_byte_a_foreign_file_and_a_missing_one_fail(cli: "Cli", shipped: Path, tmp_path: Path) -> None:
    content = bytearray((shipped / "classifier.onnx").read_bytes())
    content[len(content) // 3] ^= 0x10
    (tmp_path / "flipped.onnx").write_bytes(content)
    (tmp_path / "text.onnx").write_text("hello")
    shutil.copy(shipped / "decoder.onnx", tmp_path)
    names = ("flipped.onnx", "text.onnx", "missing.onnx", "decoder.onnx")
    result = cli("verify", "--json", *(tmp_path / name for name in names))
    assert result.exit_code == 5
    assert "3 of 4 files failed" in result.stderr and "flipped.onnx" in result.stderr
    values = json.loads(result.stdout)
    assert [item["passed"] for item in values["results"]] == [False, False, False, True]
    assert [item.get("failure") is None for item in values["results"]] == [False, False, False, True]
    assert values["schema_version"] == 1


def test_a_file_that_fails_while_it_runs_does_not_stop_the_others(
    cli: "Cli", shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: Session, x: Any) -> Any:
        if session.input_name == "z":
            raise FmcaeError("ONNX Runtime failed on cpu: Reshape")
        return run(session, x)

    run = Session.run
    monkeypatch.setattr(Session, "run", fail)
    files = [shipped / name for name in ("decoder.onnx", "encoder.onnx")]
    result = cli("verify", *files)
    assert result.exit_code == 5 and "1 of 2 files failed" in result.stderr
    first, second = result.stdout.splitlines()
    assert first.startswith("FAIL") and f"{files[0]}: ONNX Runtime failed" in first and second.startswith("pass")


def test_a_name_that_no_file_can_have_does_not_stop_the_others(cli: "Cli", shipped: Path) -> None:
    result = cli("verify", "a" * 300, shipped / "encoder.onnx")
    assert result.exit_code == 5 and result.stderr.startswith("error: 1 of 2 files failed; the first: aaa")
    assert result.stdout.splitlines()[1].startswith("pass")


def test_a_folder_of_two_exports_is_named(cli: "Cli", shipped: Path, tmp_path: Path) -> None:
    for name in ("encoder", "decoder", "classifier"):
        shutil.copy(shipped / f"{name}.onnx", tmp_path)
    shutil.copy(shipped.parent / "fashion-mnist-int8" / "picture.onnx", tmp_path)
    result = cli("verify", tmp_path)
    assert result.exit_code == 5 and result.stdout.count("pass") == 4
    assert result.stderr.endswith("classifier.onnx and picture.onnx come from different exports\n")
    shutil.copy(shipped / "picture.onnx", tmp_path)
    assert cli("verify", tmp_path).exit_code == 0
    shutil.copy(shipped.parent / "fashion-mnist-paper" / "encoder.onnx", tmp_path)
    result = cli("verify", tmp_path)
    assert result.exit_code == 5 and "decoder.onnx and encoder.onnx come from different runs" in result.stderr


@pytest.mark.train
def test_a_swapped_label_list_and_a_model_of_others_are_named(cli: "Cli", shipped: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(shipped / "classifier.onnx")
    for entry in model.metadata_props:
        if entry.key == "fmcae.card":
            entry.value = entry.value.replace('"Sandal",\n  "Shirt"', '"Shirt",\n  "Sandal"')
    onnx.save(model, tmp_path / "swapped.onnx")
    result = cli("verify", tmp_path / "swapped.onnx")
    assert result.exit_code == 5 and "its card (labels, metrics, ...) changed" in result.stdout
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    result = cli("verify", tmp_path / "foreign.onnx")
    assert result.exit_code == 5 and "is an ONNX model, but not one that fmcae exported" in result.stdout


@pytest.mark.train
def test_a_resealed_label_swap_is_caught_by_the_golden_labels(
    cli: "Cli", shipped: Path, tmp_path: Path, resealed: Callable[..., bytes]
) -> None:
    names = read_artefact(shipped / "classifier.onnx").card.class_names
    (tmp_path / "swapped.onnx").write_bytes(resealed(shipped / "classifier.onnx", class_names=names[::-1]))
    result = cli("verify", tmp_path / "swapped.onnx")
    assert result.exit_code == 5 and "labels differ from the golden ones" in result.stdout


def test_json_of_outputs_that_are_no_numbers_is_valid(
    cli: "Cli", shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = read_artefact(shipped / "classifier.onnx")
    golden = replace(artefact.golden, outputs=np.full_like(artefact.golden.outputs, np.nan)).to_text()
    monkeypatch.setattr("fmcae.runtime.verify.read_artefact", lambda path: replace(artefact, golden_text=golden))
    result = cli("verify", "--json", "x.onnx")
    (values,) = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))["results"]
    assert (values["passed"], values["max_abs"], values["max_rel"]) == (False, None, None)


def test_what_ships_for_another_provider_is_left_out_unless_it_is_named(
    cli: "Cli", monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: list[str] = []

    def pass_all(file: str, artefact: Any, provider: str, threads: int | None) -> dict[str, object]:
        replayed.append(file)
        return {"file": file, "passed": True, "failure": None}

    monkeypatch.setattr("fmcae.cli.verify._replayed", pass_all)
    result = cli("verify", "--provider", "cuda")
    assert result.exit_code == 0 and len(replayed) == 7 and not any("int8" in file for file in replayed)
    monkeypatch.undo()
    result = cli("verify", "fashion-mnist-int8", "--provider", "cuda")
    assert result.exit_code == 4 and "which int8 is made for" in result.stderr


def test_info_names_the_providers_and_shows_the_parity(cli: "Cli", shipped: Path) -> None:
    assert "\nmade for: cpu, cuda, openvino, tensorrt, dml, coreml\n" in cli("info", shipped).stdout
    assert "\nparity holds on 10,000 images, provider cpu\n" in cli("info", shipped).stdout
    assert "\nmade for: cpu\n" in cli("info", "fashion-mnist-int8").stdout
    assert json.loads(cli("info", "fashion-mnist-int8", "--json").stdout)["made_for"] == ["cpu"]


def test_info_prints_the_card(cli: "Cli", shipped: Path) -> None:
    result = cli("info", shipped / "classifier.onnx")
    assert result.exit_code == 0
    for words in ("kind: classifier", "Ankle boot", "test_accuracy", "latent_dim: 128", "seal holds"):
        assert words in result.stdout
    values = json.loads(cli("info", "--json").stdout)
    assert values["card"]["kind"] == "classifier" and values["schema_version"] == 1


def test_info_shows_the_calibration_without_its_bins(
    cli: "Cli", shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = read_artefact(shipped / "classifier.onnx")
    bins = [{"confidence": 0.9, "accuracy": 0.8, "count": 7}]
    calibration = {"temperature": 1.25, "threshold": 0.5, "reliability": bins}
    card = replace(artefact.card, calibration=calibration)
    monkeypatch.setattr("fmcae.runtime.model.read_artefact", lambda path: replace(artefact, card=card))
    result = cli("info", shipped)
    assert "\ncalibration\n  temperature: 1.25\n  threshold: 0.5\n" in result.stdout
    assert "reliability" not in result.stdout
    assert json.loads(cli("info", shipped, "--json").stdout)["card"]["calibration"] == calibration
    monkeypatch.undo()
    assert "\ncalibration\n" not in cli("info", shipped / "encoder.onnx").stdout


def test_info_on_what_is_no_artefact(cli: "Cli", tmp_path: Path) -> None:
    result = cli("info", tmp_path / "missing.onnx")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {tmp_path}/missing.onnx: cannot be read: No such file or directory\n"
