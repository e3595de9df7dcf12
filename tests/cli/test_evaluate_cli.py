import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import fmcae
from fmcae.data import FASHION_MNIST_CLASSES
from fmcae.runtime.model import read_artefact

if TYPE_CHECKING:
    from tests.conftest import Cli

FILES = ["confusion.png", "errors.png", "evaluation.json", "reliability.png"]


@pytest.fixture
def pictures(tmp_path: Path, shipped: Path) -> Path:
    """A folder by class: the ten samples, one of them twice and once in a wrong class, and a blank picture as unknown."""
    folder = tmp_path / "pictures"
    for sample in (shipped.parent / "samples").glob("*.png"):
        (folder / sample.stem).mkdir(parents=True)
        (folder / sample.stem / "a.png").write_bytes(sample.read_bytes())
    (folder / "bag" / "b.png").write_bytes((folder / "bag" / "a.png").read_bytes())
    (folder / "coat" / "b.png").write_bytes((folder / "bag" / "a.png").read_bytes())
    (folder / "unknown").mkdir()
    Image.new("RGB", (99, 99), "white").save(folder / "unknown" / "blank.png")
    return folder


def test_it_reports_accuracy_classes_and_mistakes(cli: "Cli", pictures: Path, shipped: Path) -> None:
    result = cli("evaluate", pictures)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        f"model              {shipped / 'classifier.onnx'} on cpu",
        f"pictures           {pictures}: 12 of its classes, 1 unknown",
    ]
    assert "accuracy           91.67%, 95% interval 64.61% to 98.51% (Wilson): 11 of 12" in lines
    assert f"unknown refused    100.00% at the threshold {fmcae.load().threshold:.4f}" in lines
    assert "AUROC              1.0000 of the known score, known from unknown" in lines
    assert "Coat                2       50.0%     100.0%   66.7%     0.0%" in lines
    assert "Bag                 2      100.0%      66.7%   80.0%     0.0%" in lines
    assert lines[-2] == "1 mistake; the most confident"
    assert lines[-1].startswith(f"  {pictures / 'coat' / 'b.png'}: Bag ") and lines[-1].endswith(", is Coat")


def test_json_has_every_number_and_out_writes_it_beside_pictures(cli: "Cli", pictures: Path, tmp_path: Path) -> None:
    (pictures / "coat" / "broken.png").touch()
    out = tmp_path / "new" / "out"
    for _ in range(2):  # the second time it replaces the first
        result = cli("evaluate", pictures, "--json", "--out", out)
        assert (result.exit_code, result.stderr) == (0, f"error: {pictures / 'coat' / 'broken.png'}: is empty\n")
    values = json.loads(result.stdout)
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "evaluation.json").read_text()) == values
    assert next(iter(values)) == "schema_version" and values["provider"] == "cpu" and values["split"] is None
    counts = [values[f"images_{name}"] for name in ("known", "unknown", "right", "unreadable")]
    assert counts == [12, 1, 11, 1] and values["mistakes_count"] == 1
    assert values["accuracy"] == pytest.approx(11 / 12) and len(values["accuracy_wilson_interval_95"]) == 2
    assert [row["label"] for row in values["classes"]] == list(FASHION_MNIST_CLASSES)
    assert [sum(row) for row in values["confusion"]] == [row["images"] for row in values["classes"]]
    assert (values["mistakes"][0]["label"], values["mistakes"][0]["truth"]) == ("Bag", "Coat")
    assert values["unreadable"] == [{"path": str(pictures / "coat" / "broken.png"), "error": result.stderr[7:-1]}]
    for name in FILES:
        if name.endswith(".png"):
            with Image.open(out / name) as picture:
                assert picture.format == "PNG"


def test_the_card_is_confirmed_on_its_own_data(cli: "Cli", sample: Path, shipped: Path, model: Any) -> None:
    values = json.loads(cli("evaluate", sample, "--json").stdout)
    assert (values["data"], values["split"], values["images_known"]) == (sample.name, "test", 400)
    card = read_artefact(shipped / "classifier.onnx").card
    low, high = values["accuracy_wilson_interval_95"]
    assert low < card.metrics["test_accuracy"] < high


@pytest.mark.parametrize("names", [["DATA"], ["MODEL", "DATA"], ["fashion-mnist", "DATA"], ["FILE", "DATA"]])
def test_one_name_alone_is_data(cli: "Cli", pictures: Path, shipped: Path, names: list[str]) -> None:
    places = {"DATA": pictures, "MODEL": shipped, "FILE": shipped / "classifier.onnx"}
    result = cli("evaluate", *(places.get(name, name) for name in names))
    assert result.exit_code == 0 and "11 of 12" in result.stdout


@pytest.mark.parametrize("name", ["MODEL", "FILE", "fashion-mnist-int8", "missing.onnx"])
def test_one_name_alone_may_be_a_model(
    cli: "Cli", sample: Path, shipped: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMCAE_DATA", str(sample))
    places = {"MODEL": shipped, "FILE": shipped / "classifier.onnx"}
    result = cli("evaluate", places.get(name, name))
    if name == "missing.onnx":
        assert (result.exit_code, result.stderr) == (
            1,
            "error: missing.onnx: cannot be read: No such file or directory\n",
        )
    else:
        assert result.exit_code == 0 and "400 of its classes" in result.stdout


def test_a_run_that_is_not_exported_is_no_data(cli: "Cli", tmp_path: Path) -> None:
    run = tmp_path / "the run"
    run.mkdir()
    for name in ("config.json", "classifier.safetensors"):
        (run / name).touch()
    result = cli("evaluate", run)
    assert result.exit_code == 1 and f"is not exported into its folder onnx: run  fmcae export '{run}'" in result.stderr


def test_the_threshold_moves_what_is_refused_and_not_the_accuracy(cli: "Cli", pictures: Path) -> None:
    rows = [json.loads(cli("evaluate", pictures, "--json", "--threshold", value).stdout) for value in ("0", "1")]
    assert [row["unknown_refused"] for row in rows] == [0, 1] and [row["threshold"] for row in rows] == [0, 1]
    assert rows[0]["known_kept"] == 1 > rows[1]["known_kept"]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert [mistake["truth"] for mistake in rows[0]["mistakes"]] == ["Coat", "unknown"]


def test_a_label_of_a_truth_file_that_is_no_class_is_named(cli: "Cli", pictures: Path) -> None:
    rows = "bag/a.png,Bag\ncoat/a.png,Teapot\x1b[2J\nunknown/blank.png,unknown\n"
    (pictures / "truth.csv").write_text("file,label\n" + rows)
    result = cli("evaluate", pictures)
    assert result.stderr == "counted as unknown, because the model has no such class: Teapot\\x1b[2J\n"
    assert result.exit_code == 0 and ": 1 of its classes, 2 unknown" in result.stdout


def test_the_folder_that_was_trained_on_is_noticed(
    cli: "Cli", pictures: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = read_artefact(shipped / "classifier.onnx")
    data = {**artefact.card.training["data"], "name": "pictures", "counts": {"train": 9, "val": 2, "test": 2}}
    card = replace(artefact.card, training={**artefact.card.training, "data": data})
    monkeypatch.setattr("fmcae.runtime.model.read_artefact", lambda _: replace(artefact, card=card))
    assert "the pictures that the model was trained on" in cli("evaluate", pictures).stderr
    (pictures / "coat" / "b.png").unlink()
    assert cli("evaluate", pictures).stderr == ""
    for split in ("train", "val", "test"):
        shutil.copytree(pictures, pictures.with_name("copy") / split)
    copy = pictures.with_name("copy")
    data |= {"name": "copy", "counts": {"train": 12, "val": 12, "test": 12}}
    noticed = {split: bool(cli("evaluate", copy, "--split", split).stderr) for split in ("train", "val", "test")}
    assert noticed == {"train": True, "val": True, "test": False}
    data |= {"counts": {"train": 10, "val": 2, "test": 12}}  # where a sixth of train was drawn for val
    assert cli("evaluate", copy, "--split", "train").stderr


def test_without_mistakes_the_sheet_says_so(cli: "Cli", pictures: Path, tmp_path: Path) -> None:
    (pictures / "coat" / "b.png").unlink()
    result = cli("evaluate", pictures, "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "") and "11 of 11" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("Ankle boot")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["nowhere"], 2, "DATA nowhere must be an existing folder"),
        (["", "pictures"], 2, "MODEL '' must not be empty"),
        (["fashion-mnist", ""], 2, "DATA '' must be an existing folder"),
        (
            ["pictures", "--split", "val"],
            2,
            "--split val must not be given: pictures has no folders train, val or test",
        ),
        (["pictures", "--threshold", "2"], 2, "--threshold 2.0 must be a number from 0 to 1"),
        (["pictures", "--out", "file"], 2, "--out file must be a folder; it is a file"),
        (
            ["pictures", "--out", "pictures/out"],
            2,
            "must not be in DATA (pictures), where its pictures would be evaluated next",
        ),
        (
            ["fashion-mnist-int8", "pictures", "--provider", "cuda"],
            4,
            "--provider cuda must be cpu, which int8 is made",
        ),
    ],
)
def test_bad_options_are_named_in_one_line(
    cli: "Cli", pictures: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], exit_code: int, message: str
) -> None:
    monkeypatch.chdir(pictures.parent)
    Path("file").touch()
    result = cli("evaluate", *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (exit_code, "", 1)
    assert message in result.stderr


def test_the_folder_of_the_environment_variable_is_no_place_for_the_report(
    cli: "Cli", pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMCAE_DATA", str(pictures))
    result = cli("evaluate", "--out", pictures / "out")
    assert result.exit_code == 2 and "must not be in DATA" in result.stderr


def test_a_run_or_an_export_is_no_place_for_the_report(
    cli: "Cli", pictures: Path, shipped: Path, tmp_path: Path
) -> None:
    shutil.copytree(shipped, tmp_path / "model")
    result = cli("evaluate", tmp_path / "model", pictures, "--out", tmp_path / "model")
    assert result.exit_code == 2 and "must not be a run or an export" in result.stderr
    assert cli("evaluate", "fashion-mnist", pictures, "--out", tmp_path / "report").exit_code == 0


def test_a_folder_that_is_no_class_is_refused_with_the_classes(cli: "Cli", pictures: Path) -> None:
    (pictures / "tea\u202epot").mkdir()
    result = cli("evaluate", pictures)
    assert (result.exit_code, result.stdout) == (2, "")
    classes = ", ".join(FASHION_MNIST_CLASSES)
    assert result.stderr.endswith(f"must hold the model's classes or unknown; tea\\u202epot is none of: {classes}\n")


def test_only_a_classifier_is_evaluated(cli: "Cli", pictures: Path, shipped: Path) -> None:
    result = cli("evaluate", shipped / "encoder.onnx", pictures)
    assert result.exit_code == 1 and "this needs classifier.onnx" in result.stderr


def test_nothing_heavy_is_imported(pictures: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom fmcae.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'matplotlib', 'onnx', 'pooch', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    arguments = ["evaluate", str(pictures), "--out", str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
