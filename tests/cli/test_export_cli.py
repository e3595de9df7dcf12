import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fmcae

pytestmark = pytest.mark.train


def test_an_export_leaves_nothing_on_stderr_and_its_sample_code_runs_without_fmcae(
    trained_run: Path, sample: Path, fifty_pictures: dict[str, bytes], tmp_path: Path
) -> None:
    """Libraries that PyTorch loads print what is not freed when the process ends, unless its memory is left to them."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fmcae", "export", str(trained_run), "--data", str(sample), "--sample-code"]
    command += ["--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "parity holds on 400 images" in result.stdout and "next: fmcae verify" in result.stdout
    assert f"python {out / 'predict.py'} IMAGE..." in result.stdout

    model, expected = fmcae.load(out / "classifier.onnx"), []
    for name, content in fifty_pictures.items():
        path = tmp_path / name
        path.write_bytes(content)
        prediction = model.predict(path)
        label = prediction.label if prediction.known else f"unknown, nearest {prediction.label}"
        expected.append(f"{path}: {label}, probability {prediction.probability:.4f}")
    without = (
        "import runpy, sys; sys.modules |= dict.fromkeys(('fmcae', 'torch', 'onnx')); runpy.run_path(sys.argv.pop(1))"
    )
    program = [sys.executable, "-I", "-c", without, str(out / "predict.py")]
    pictures = [line.split(": ")[0] for line in expected]
    result = subprocess.run([*program, *pictures], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == expected
    chunk = b"\0\0\0\0\x90\0\0\0"  # whose type is none: Pillow raises a SyntaxError
    (tmp_path / "broken.png").write_bytes(Path(pictures[0]).read_bytes()[:33] + chunk)
    command = [*program, str(tmp_path / "broken.png"), pictures[1]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, expected[1] + "\n")
    assert result.stderr.startswith(f"{tmp_path / 'broken.png'}: ") and result.stderr.count("\n") == 1
    (tmp_path / "日本.png").write_bytes(Path(pictures[0]).read_bytes())
    command = [sys.executable, str(out / "predict.py"), str(tmp_path / "日本.png"), pictures[1]]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=ascii_only, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1] == expected[1] and r"\u65e5\u672c.png: " in result.stdout


def test_where_and_how_is_checked_before_any_work(
    cli: Callable[..., Any], trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli("export", trained_run, "--precision", "int8", "--budget", "nan")
    assert (result.exit_code, result.stderr) == (2, "error: --budget nan must be from 0 to 100\n")
    monkeypatch.setattr(
        "os.access", lambda _, mode: not mode & os.W_OK
    )  # as on a file system that is mounted read-only
    result = cli("export", trained_run)
    assert result.exit_code == 2 and f"{trained_run / 'onnx'} must be where this user may write" in result.stderr


def test_an_export_goes_where_it_takes_nothing_away(
    cli: Callable[..., Any],
    trained_run: Path,
    exported: Path,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    (out / "predict.py").write_text("print('of my own')")
    assert cli("export", trained_run, "--data", sample, "--out", out).exit_code == 0
    assert (out / "predict.py").read_text() == "print('of my own')"
    monkeypatch.chdir(out)
    result = cli("export", trained_run, "--data", sample, "--out", ".")
    assert result.exit_code == 2 and "--out . must not hold the current folder" in result.stderr
    result = cli("export", out, "--data", sample)
    assert result.exit_code == 1 and "is an export, not a run: name the run that it comes from" in result.stderr
    folders = tmp_path / "folders"
    for name in ("a", "b"):
        (folders / name).mkdir(parents=True)
        for index in range(8):
            Image.new("L", (28, 28), index).save(folders / name / f"{index}.png")
    result = cli("export", trained_run, "--data", folders, "--out", folders / "model")
    assert result.exit_code == 2 and "where its pictures would be read next time" in result.stderr


def test_sample_code_needs_a_picture_to_run(cli: Callable[..., Any], sample: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--stage", "autoencoder", "--latent-dim", "4", "--epochs", "1", "--threads", "1")
    assert cli("train", "--data", sample, *options, "--out", run).exit_code == 0
    result = cli("export", run, "--sample-code")
    assert result.exit_code == 2
    assert "--sample-code must come with a classifier, whose picture.onnx predict.py runs" in result.stderr
    assert not (run / "onnx").exists()
