# mypy: disable-error-code="import-untyped"
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fmcae import Artefact, Model, Prediction
from fmcae.metrics import known_score
from fmcae.preprocess import scale
from fmcae.runtime.model import read_artefact, shipped_folder

if TYPE_CHECKING:
    from tests.conftest import Cli


@pytest.fixture
def image(tmp_path: Path, test_images: NDArray[np.uint8]) -> Path:
    path = tmp_path / "item.png"
    Image.fromarray(test_images[0]).save(path)
    return path


def test_a_line_per_image(cli: "Cli", image: Path, model: Model) -> None:
    result = cli("predict", "--threshold", "0", image)
    prediction = model.predict(image)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{image}: {prediction.label} {prediction.probability:.4f}\n"


def test_the_shipped_samples_get_their_names_and_so_do_mirrored_ones(cli: "Cli", shipped: Path, tmp_path: Path) -> None:
    samples = shipped.parent / "samples"
    for path in samples.glob("*.png"):
        ImageOps.mirror(Image.open(path)).save(tmp_path / path.name)
    predictions = json.loads(cli("predict", "--json", samples, tmp_path).stdout)["predictions"]
    assert len(predictions) == 20
    for item in predictions:
        stem = os.path.basename(item["path"]).removesuffix(".png")
        assert item["known"] and item["label"].lower().replace("/", "-").replace(" ", "-") == stem


def test_json_has_the_promised_keys(cli: "Cli", image: Path, shipped: Path) -> None:
    result = cli("predict", "--json", "--top-k", "3", image, image)
    values = json.loads(result.stdout)
    assert values["schema_version"] == 1
    first = values["predictions"][0]
    assert values["class_names"][first["index"]] == first["label"]
    assert set(first) == {
        "path", "label", "index", "probability", "known", "known_score", "probabilities", "provider", "model", "top_k",
    }  # fmt: skip
    assert first["probabilities"][first["index"]] == first["probability"]
    assert isinstance(first["known"], bool) and 0 <= first["known_score"] <= 1
    assert (first["provider"], first["model"]) == ("cpu", str(shipped / "classifier.onnx"))
    assert [item["probability"] for item in first["top_k"]] == sorted(first["probabilities"], reverse=True)[:3]
    assert len(values["predictions"]) == 2


def test_json_lines_are_the_predictions_one_a_line(cli: "Cli", image: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    arguments = ("--top-k", "3", image, tmp_path / "bad.png")
    lines = cli("predict", "--jsonl", *arguments).stdout.splitlines()
    assert [json.loads(line) for line in lines] == json.loads(cli("predict", "--json", *arguments).stdout)[
        "predictions"
    ]


def test_a_redirected_csv_is_utf_8_whatever_the_systems_encoding_is(image: Path, tmp_path: Path) -> None:
    shutil.copy(image, tmp_path / "日本.png")
    command = [sys.executable, "-m", "fmcae", "predict", "--csv", str(tmp_path / "日本.png")]
    windows = os.environ | {"PYTHONIOENCODING": "cp1252"}
    printed = subprocess.run(command, env=windows, stdout=subprocess.PIPE, check=True).stdout.decode("utf-8")
    assert next(csv.DictReader(io.StringIO(printed)))["path"].endswith("日本.png")


def test_csv(cli: "Cli", image: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    result = cli("predict", "--csv", "--top-k", "2", image, tmp_path / "bad.png")
    good, bad = csv.DictReader(io.StringIO(result.stdout))
    assert good["path"] == str(image) and float(good["probability"]) >= float(good["probability_2"])
    assert good["known"] in ("true", "false") and 0 <= float(good["known_score"]) <= 1
    assert bad["label"] == bad["known"] == bad["known_score"] == "" and "bad.png" in bad["error"]
    assert result.exit_code == 1


@pytest.fixture
def unknown(image: Path, model: Model, test_images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> Prediction:
    """From now on the classifier's threshold is above the known score of ``image``, whose prediction this is."""
    least = int(known_score(model.classify(scale(test_images))).argmin())
    Image.fromarray(test_images[least]).save(image)
    prediction = model.predict(image)
    threshold = min(1, prediction.known_score + 1e-3)

    def read(path: Path) -> Artefact:
        artefact = read_artefact(path)
        calibration = {**artefact.card.calibration, "threshold": threshold}
        return replace(artefact, card=replace(artefact.card, calibration=calibration))

    monkeypatch.setattr("fmcae.runtime.model.read_artefact", read)
    return prediction


def test_what_is_unknown_comes_with_its_nearest_label(cli: "Cli", image: Path, unknown: Prediction) -> None:
    nearest = f"{unknown.label} {unknown.probability:.4f}"
    assert cli("predict", image).stdout == f"{image}: unknown (nearest: {nearest})\n"
    assert cli("predict", image, "--threshold", "0").stdout == f"{image}: {nearest}\n"
    line = cli("predict", image, "--top-k", "2").stdout
    assert line.startswith(f"{image}: unknown (nearest: {nearest}  ") and line.endswith(")\n")


def test_programs_read_that_it_is_unknown(cli: "Cli", image: Path, unknown: Prediction) -> None:
    for threshold, known in (((), False), (("--threshold", "0"), True)):
        (values,) = json.loads(cli("predict", "--json", image, *threshold).stdout)["predictions"]
        assert (values["known"], values["label"]) == (known, unknown.label)
        assert values["known_score"] == pytest.approx(unknown.known_score)
        (row,) = csv.DictReader(io.StringIO(cli("predict", "--csv", image, *threshold).stdout))
        assert (row["known"], row["label"]) == (str(known).lower(), unknown.label)
        assert float(row["known_score"]) == pytest.approx(values["known_score"], abs=5e-7)


def test_a_blank_picture_is_said_to_show_no_item(cli: "Cli", tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), "ivory").save(tmp_path / "blank.png")
    assert cli("predict", tmp_path / "blank.png").stdout.startswith(
        f"{tmp_path / 'blank.png'}: unknown (no item; nearest: "
    )
    assert cli("predict", tmp_path / "blank.png", "--threshold", "0").stdout.endswith(" (no item)\n")


@pytest.mark.parametrize("output", [(), ("--json",), ("--csv", "--top-k", "3")])
def test_show_draws_what_can_be_read_beside_any_output(
    cli: "Cli", image: Path, tmp_path: Path, output: tuple[str, ...]
) -> None:
    bad, out = tmp_path / "bad.png", tmp_path / "out" / "sheet.PNG"
    bad.write_bytes(b"")
    out.parent.mkdir()
    for _ in range(2):  # the second time it replaces the first
        result = cli("predict", image, bad, "-", *output, "--show", out, stdin=image.read_bytes())
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert result.stdout == cli("predict", image, bad, "-", *output, stdin=image.read_bytes()).stdout
        with Image.open(out) as picture:
            assert (picture.format, picture.size) == ("PNG", (10 + 2 * (284 + 10), 10 + 186))
    assert [path.name for path in out.parent.iterdir()] == ["sheet.PNG"]


def test_show_overwrites_no_input(cli: "Cli", image: Path, tmp_path: Path) -> None:
    content = image.read_bytes()
    for source in (image, tmp_path, tmp_path / "*.png"):
        result = cli("predict", source, "--show", image)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"error: --show {image} must not be an input image\n"
    assert image.read_bytes() == content
    result = cli("predict", image, "--show", tmp_path)
    assert result.exit_code == 2 and result.stderr == f"error: --show {tmp_path} must end in .png\n"


def test_show_says_what_it_leaves_out(cli: "Cli", image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmcae.runtime.contact_sheet.MAX_TILES", 2)
    out = tmp_path / "out.png"
    result = cli("predict", image, image, image, "--show", out)
    assert (result.exit_code, result.stderr) == (0, f"{out}: shows the first 2 of 3 pictures\n")
    out.unlink()
    result = cli("predict", tmp_path / "missing.png", "--show", out)
    assert result.exit_code == 1 and not out.exists()
    assert f"{out}: not written, because no picture could be read\n" in result.stderr


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
    assert [row["path"] for row in rows[:2]] == ["missing.png", "two\\nlines.png"] and len(rows) == 4


def test_an_empty_path_is_named(cli: "Cli", image: Path) -> None:
    result = cli("predict", "", image)
    assert (result.exit_code, result.stderr) == (1, "error: PATH '' must not be empty\n")
    assert result.stdout.startswith(str(image))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--top-k", "11"], 2, "error: --top-k 11 must be an integer from 1 to 10, the number of classes"),
        (["--json", "--csv"], 2, "--json must not come with --csv"),
        (["--csv", "--jsonl"], 2, "--jsonl must not come with --csv"),
        (["--threshold", "2"], 2, "--threshold 2.0 must be a number from 0 to 1; 0 turns it off"),
        (["--threshold", "nan"], 2, "--threshold nan must be a number from 0 to 1"),
        (["--show", "sheet.jpg"], 2, "--show sheet.jpg must end in .png"),
        (["--show", "nowhere/sheet.png"], 2, "--show nowhere/sheet.png must be a file in a folder that exists"),
        (["--model", ""], 2, "--model '' must not be empty"),
        (["--out", "out"], 2, "--out out must come with --ray"),
        (["--ray", "local"], 2, "--ray local must come with --out"),
        (
            ["--ray", "auto", "--out", "out", "--json"],
            2,
            "--ray auto must not come with --json: the predictions go to --out",
        ),
        (["--ray", "auto", "--out", "out", "--csv"], 2, "--ray auto must not come with --csv"),
        (["--ray", "auto", "--out", "out", "--show", "a.png"], 2, "--ray auto must not come with --show"),
        (["--ray", "auto", "--out", "out", "-"], 2, "--ray auto must not come with -, because"),
        (["--ray", "auto", "--out", "out", "--provider", "cuda"], 2, "--provider cuda must be cpu with --ray"),
        (["--ray", "auto", "--out", "out", "--max-pixels", "9"], 2, "--max-pixels 9 must not come with --ray"),
        (["--max-pixels", "783"], 1, "has 28×28 pixels; 1 to 783 are read"),
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
    assert "--provider cuda must be cpu, which int8 is made for" in result.stderr


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


def test_the_input_is_not_overwritten(cli: "Cli", image: Path, tmp_path: Path) -> None:
    content = image.read_bytes()
    (tmp_path / "link.png").symlink_to(image)
    for out in (image, tmp_path / "link.png"):
        result = cli("reconstruct", image, "-o", out)
        assert (result.exit_code, result.stderr) == (2, f"error: --out {out} must not be an input image\n")
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


def test_noise_a_blank_picture_and_a_page_of_text_are_unknown(cli: "Cli", tmp_path: Path) -> None:
    from PIL import ImageDraw, ImageFont

    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.new("RGB", (200, 200), "white").save(tmp_path / "blank.png")
    page = Image.new("L", (400, 400), 255)
    lines = "\n".join(["the quick brown fox jumps over the lazy dog"] * 20)
    ImageDraw.Draw(page).multiline_text((20, 20), lines, 0, ImageFont.load_default(16))
    page.save(tmp_path / "text.png")
    lines_out = cli("predict", tmp_path).stdout.splitlines()
    assert len(lines_out) == 3 and all(re.search(r": unknown \((no item; )?nearest: ", line) for line in lines_out)


@pytest.mark.train
def test_foreign_text_does_not_steer_the_terminal(
    cli: "Cli", shipped: Path, tmp_path: Path, image: Path, resealed: Callable[..., bytes]
) -> None:
    hostile = "\x1b]52;c;cm0=\x07\nerror: forged\u202e\x9b2J"
    names = tuple(f"{hostile}{index}" for index in range(10))
    folder = tmp_path / hostile.replace("/", "")
    folder.mkdir()
    content = resealed(shipped / "classifier.onnx", name=hostile, class_names=names, metrics={hostile: 0.5})
    (folder / "classifier.onnx").write_bytes(content)
    assert cli("predict", image, "--model", folder).exit_code == 0
    shutil.copy(image, folder / f"{hostile}.png")
    (folder / f"{hostile}2.png").write_bytes(b"x")
    shutil.copytree(folder, tmp_path / "data" / f"{hostile}0")
    shutil.copytree(folder, tmp_path / "other" / f"{hostile}z")
    for arguments in (
        ("predict", folder, "--model", folder),
        ("predict", folder, "--model", folder, "--csv", "--top-k", "2"),
        ("predict", folder, "--model", folder, "--json"),
        ("evaluate", folder, tmp_path / "data", "--out", tmp_path / hostile / "out"),
        ("evaluate", folder, tmp_path / "data", "--json"),
        ("evaluate", folder, tmp_path / "other"),
        ("info", folder),
        ("verify", folder),
        ("info", folder / f"{hostile}2.png"),
        ("predict", folder / hostile),
        ("export", "--onnx", folder),
    ):
        result = cli(*arguments)
        output = result.stdout + result.stderr
        assert output and not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]", output), arguments
        assert "\nerror: forged" not in output


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_counts_pictures_while_predictions_go_elsewhere() -> None:
    import pty

    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "fmcae", "predict", str(shipped_folder("samples")), "nothing.png"]
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=end, env={**os.environ, "TERM": "xterm"}, check=False
        )
        shown = os.read(terminal, 2**20).decode()
    finally:
        os.close(end)
        os.close(terminal)
    assert result.returncode == 1 and len(result.stdout.splitlines()) == 10
    assert "11 pictures" in shown and "nothing.png: cannot be read" in shown


def test_without_its_extra_ray_exits_3_with_the_command(
    cli: "Cli", image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = cli("predict", image, "--ray", "auto", "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert "needs ray, which is not installed: run  pip install '.[ray]'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cluster would do is done in this process; a shard with a picture called fail.png fails."""
    pytest.importorskip("pyarrow", reason="needs the [ray] extra")
    from fmcae.runtime import predict_job
    from fmcae.runtime.predict_job import PredictJob, ShardResult
    from fmcae.runtime.storage import write_file

    def run(job: PredictJob, address: str) -> Iterator[ShardResult]:
        write_file(f"{job.work.out}/{predict_job.MANIFEST}", json.dumps(job.manifest).encode())
        for index, packed in job.missing.items():
            found = predict_job.unpacked(packed)
            if address == "stop" and index == 1:
                raise KeyboardInterrupt
            if address == "fail" and index == 1:
                yield ShardResult(index, failure="out of luck")
                continue
            images, errors = predict_job.predict_shard(job.work, index, found)
            yield ShardResult(index, images, tuple(errors))

    monkeypatch.setattr(predict_job, "run_job", run)
    monkeypatch.setattr(predict_job.open_job, "__defaults__", (1, None, None, 16))


def test_a_job_goes_on_where_it_was_and_says_when_it_is_done(
    cli: "Cli", image: Path, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"bad")
    paths = [image] * 20

    def predict(address: str, *more: object) -> tuple[int, str, str]:
        result = cli("predict", *paths, *more, "--ray", address, "--out", "out")
        return result.exit_code, result.stdout, result.stderr

    assert predict("stop") == (130, "", "stopped; the same command goes on\n")
    note = "1 of 2 files are there already\n"
    failure = "error: part-00001.parquet: out of luck\n1 of 2 files are missing; the same command tries them again\n"
    assert predict("fail") == (1, "", note + failure)
    done = "out: 20 pictures in 2 files, 0 of them unreadable\n"
    assert predict("auto") == (0, done, note)
    assert predict("auto") == (0, done, "the job is done already\n")
    code, stdout, stderr = predict("auto", "--threshold", "0.5")
    assert (code, stdout) == (2, "")
    assert stderr == "error: --out out must be a new folder: its job is of another --threshold\n"
    result = cli("predict", tmp_path / "bad.png", image, "--ray", "auto", "--out", "other")
    assert (result.exit_code, result.stdout) == (1, "other: 2 pictures in 1 file, 1 of them unreadable\n")
    assert result.stderr.startswith(f"error: {tmp_path}/bad.png: is not an image") and result.stderr.count("\n") == 1
    (tmp_path / "file").touch()
    result = cli("predict", image, "--ray", "auto", "--out", "file/x")
    assert (result.exit_code, result.stderr) == (2, "error: --out file/x must be a folder; file is a file\n")
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    result = cli("predict", image, "--ray", "auto", "--out", "Z:/x")
    assert (result.exit_code, result.stderr) == (2, "error: --out Z:/x must be a folder on a drive that exists\n")
