# mypy: disable-error-code="import-untyped"
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fmcae import Model

if TYPE_CHECKING:
    from tests.conftest import Cli


@pytest.fixture
def image(tmp_path: Path, test_images: NDArray[np.uint8]) -> Path:
    path = tmp_path / "item.png"
    Image.fromarray(test_images[0]).save(path)
    return path


def test_a_line_per_image(cli: "Cli", image: Path, model: Model) -> None:
    result = cli("predict", image)
    prediction = model.predict(image)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{image}: {prediction.label} {prediction.probability:.4f}\n"


def test_the_shipped_samples_get_their_names(cli: "Cli", shipped: Path) -> None:
    folder = shipped.parent / "samples"
    paths = sorted(folder.glob("*.png"))
    assert len(paths) == 10
    result = cli("predict", "--json", folder)
    for item in json.loads(result.stdout)["predictions"]:
        stem = os.path.basename(item["path"]).removesuffix(".png")
        assert item["label"].lower().replace("/", "-").replace(" ", "-") == stem


def test_json_has_the_promised_keys(cli: "Cli", image: Path, shipped: Path) -> None:
    result = cli("predict", "--json", "--top-k", "3", image, image)
    values = json.loads(result.stdout)
    assert values["schema_version"] == 1
    first = values["predictions"][0]
    assert set(first) == {
        "path", "label", "index", "probability", "probabilities", "provider", "model", "top_k",
    }  # fmt: skip
    assert first["probabilities"][first["index"]] == first["probability"]
    assert (first["provider"], first["model"]) == ("cpu", str(shipped / "classifier.onnx"))
    assert [item["probability"] for item in first["top_k"]] == sorted(first["probabilities"], reverse=True)[:3]
    assert len(values["predictions"]) == 2


def test_csv(cli: "Cli", image: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    result = cli("predict", "--csv", "--top-k", "2", image, tmp_path / "bad.png")
    good, bad = csv.DictReader(io.StringIO(result.stdout))
    assert good["path"] == str(image) and float(good["probability"]) >= float(good["probability_2"])
    assert bad["label"] == "" and "bad.png" in bad["error"]
    assert result.exit_code == 1


def test_one_unreadable_file_gets_its_line_and_the_rest_goes_on(cli: "Cli", image: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    result = cli("predict", bad, image)
    assert result.exit_code == 1
    assert result.stdout.startswith(str(image))
    assert result.stderr.startswith(f"error: {bad}: ") and result.stderr.count("\n") == 1
    result = cli("predict", "--json", bad, image)
    first, second = json.loads(result.stdout)["predictions"]
    assert set(first) == {"path", "error"} and "label" in second
    assert result.exit_code == 1


def test_stdin(cli: "Cli", image: Path) -> None:
    by_path = cli("predict", image).stdout.removeprefix(str(image))
    assert cli("predict", "-", stdin=image.read_bytes()).stdout == "-" + by_path
    empty = cli("predict", "-")
    assert (empty.exit_code, empty.stdout, empty.stderr) == (1, "", "error: stdin: is empty\n")


def test_stdin_that_is_closed_or_has_no_end(cli: "Cli", monkeypatch: pytest.MonkeyPatch) -> None:
    closed = subprocess.run(["sh", "-c", '"$0" -m fmcae predict - <&-', sys.executable], capture_output=True, text=True)
    assert (closed.returncode, closed.stdout, closed.stderr) == (1, "", "error: stdin: is closed\n")
    monkeypatch.setattr("fmcae.images.MAX_FILE_BYTES", 1 << 20)
    endless = cli("predict", "-", stdin=bytes(2 << 20))
    assert endless.exit_code == 1
    assert endless.stderr == "error: stdin: cannot be read: it has more than 1 MiB\n"


ODD_NAMES = ("two\nlines.png", "\N{DRESS}.png", "\udcff.png")  # the last is no valid UTF-8


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_any_name_can_be_printed_in_any_encoding(image: Path, tmp_path: Path, encoding: str) -> None:
    for name in ODD_NAMES:
        (tmp_path / name).write_bytes(image.read_bytes())

    def printed(*options: str) -> str:
        command = [sys.executable, "-m", "fmcae", "predict", *options, "missing.png", *ODD_NAMES]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        result = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
        assert result.returncode == 1
        assert result.stderr == b"error: missing.png: cannot be read: No such file or directory\n"
        return result.stdout.decode("utf-8" if encoding == "ascii" else encoding)  # typer takes ASCII for a mistake

    lines = printed().splitlines()
    assert len(lines) == 3 and lines[0].startswith("two\\nlines.png: ") and lines[2].startswith("\\udcff.png: ")
    paths = [item["path"] for item in json.loads(printed("--json"))["predictions"]]
    assert paths == ["missing.png", "two\nlines.png", "\N{DRESS}.png", "\\udcff.png"]
    rows = list(csv.DictReader(io.StringIO(printed("--csv"), newline="")))
    assert [row["path"] for row in rows[:2]] == ["missing.png", "two\nlines.png"] and len(rows) == 4


def test_an_empty_path_is_named(cli: "Cli", image: Path) -> None:
    result = cli("predict", "", image)
    assert (result.exit_code, result.stderr) == (1, "error: path (=) must not be empty\n")
    assert result.stdout.startswith(str(image))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--top-k", "11"], 2, "top_k (=11)"),
        (["--json", "--csv"], 2, "json (=True) must not come with csv"),
        (["--model", ""], 2, "path (=) must not be empty"),
        (["--model", "missing.onnx"], 1, "missing.onnx: cannot be read: No such file"),
    ],
)
def test_bad_options_are_named_in_one_line(
    cli: "Cli", image: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    result = cli("predict", image, *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_provider_that_the_precision_is_not_made_for_exits_4(cli: "Cli", image: Path) -> None:
    result = cli("predict", image, "--model", "fashion-mnist-int8", "--provider", "cuda")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (4, "", 1)
    assert "provider (=cuda) must be cpu, which int8 is made for" in result.stderr


def test_cuda_without_cuda_exits_4(cli: "Cli", image: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine may have a working CUDA provider")
    result = cli("predict", image, "--provider", "cuda")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "onnxruntime-gpu" in result.stderr


def test_reconstruct_draws_both(cli: "Cli", image: Path, tmp_path: Path) -> None:
    out = tmp_path / "pair.png"
    result = cli("reconstruct", image, "-o", out)
    assert result.exit_code == 0 and "mean squared error 0.0" in result.stdout
    with Image.open(out) as picture:
        assert picture.size == (570, 280)
        left = picture.crop((0, 0, 280, 280)).resize((28, 28), Image.Resampling.NEAREST)
    with Image.open(image) as original:
        assert left.tobytes() == original.tobytes()
    result = cli("reconstruct", image, "-o", tmp_path / "pair.xyz")
    assert (result.exit_code, "must end in a picture format's suffix" in result.stderr) == (2, True)
    result = cli("reconstruct", image, "-o", tmp_path / "nowhere" / "pair.png")
    assert result.exit_code == 1 and "pair.png: No such file" in result.stderr


def test_the_input_is_not_overwritten(cli: "Cli", image: Path, tmp_path: Path) -> None:
    content = image.read_bytes()
    (tmp_path / "link.png").symlink_to(image)
    for out in (image, tmp_path / "link.png"):
        result = cli("reconstruct", image, "-o", out)
        assert (result.exit_code, result.stderr) == (2, f"error: out (={out}) must not be an input image\n")
    array = tmp_path / "image.npy"
    array.write_bytes(content)
    assert cli("encode", image, array, "-o", array).exit_code == 2
    assert image.read_bytes() == array.read_bytes() == content


def test_reconstruct_reads_stdin(cli: "Cli", image: Path, tmp_path: Path) -> None:
    result = cli("reconstruct", "-", "-o", tmp_path / "pair.png", stdin=image.read_bytes())
    assert result.exit_code == 0 and (tmp_path / "pair.png").exists()
    assert cli("reconstruct", "-", "-o", tmp_path / "pair.png").stderr == "error: stdin: is empty\n"


def test_encode_writes_latents(cli: "Cli", image: Path, tmp_path: Path, model: Model) -> None:
    out = tmp_path / "z.npy"
    result = cli("encode", image, image, "-o", out)
    assert result.exit_code == 0
    z = np.load(out, allow_pickle=False)
    assert z.shape == (2, 128) and z.dtype == np.float32
    assert result.stdout.splitlines()[:2] == [f"0: {image}", f"1: {image}"]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    out.unlink()
    result = cli("encode", image, bad, "-o", out)
    assert result.exit_code == 1 and "bad.png" in result.stderr and not out.exists()
    assert cli("encode", image, "-o", tmp_path / "z.txt").exit_code == 2
