import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.train


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_plan_run_and_report_as_a_user_would(cli, sample):
    part = ("--only", "final-model", "--seeds", "1", "--epochs", "1")
    result = cli("study", "plan", *part, "--list")
    assert result.exit_code == 0
    assert "final-model          2      2" in result.stdout
    assert "to do  fmcae train --stage classifier --from runs/study/runs/autoencoder-" in result.stdout
    result = cli("study", "run", *part, "--data", sample)
    assert result.exit_code == 0 and "2 of 2 runs are done, 0 failed" in result.stdout
    assert "done: classifier n=128, p=0.1, lr=0.001, seed 0 (2/2, " in result.stderr
    assert "final-model          2      0     0.0" in cli("study", "plan", *part).stdout
    again = cli("study", "run", *part, "--data", sample)
    assert again.exit_code == 0 and "2 runs, 2 of them done before" in again.stderr
    result = cli("study", "report", "--epochs", "1", "--data", sample)
    assert result.exit_code == 0 and "runs/study/report.md" in result.stdout
    assert "| n=64 | 0.034 | not run |" in Path("runs/study/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("plan", "--only", "table-9"), 2, "only (=table-9) must be one of table-1, "),
        (("run", "--only", "table-9"), 2, "only (=table-9) must be one of table-1, "),
        (("run", "--seeds", "0"), 2, "seeds (=0) must be at least 1"),
        (("run", "--workers", "0"), 2, "workers (=0) must be at least 1"),
        (("run", "--threads", "0"), 2, "threads (=0) must be an integer from 1"),
        (("run", "--epochs", "0"), 2, "epochs (=0) must be an integer from 1"),
        (("run", "--device", "tpu"), 2, "device (=tpu) must be one of auto, cpu, cuda"),
        (("run", "--data", "missing"), 2, "missing) must be an existing folder"),
        (
            ("report", "missing"),
            1,
            "missing: has neither finished runs nor results.json: start with  fmcae study run --out missing",
        ),
    ],
)
def test_bad_options_are_named_in_one_line_and_leave_nothing(cli, arguments, exit_code, message):
    result = cli("study", *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_ctrl_c_stops_it_and_the_same_command_goes_on(cli, sample):
    part = ["study", "run", "--only", "final-model", "--seeds", "1", "--epochs", "40", "--data", str(sample)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fmcae", *part], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics, deadline = [], time.monotonic() + 60
    while not metrics and time.monotonic() < deadline:
        metrics = list(Path("runs/study/runs").glob("*/metrics.jsonl"))
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stderr.splitlines()[-1] == "stopped; the same command goes on"
    assert "Traceback" not in stderr
    assert cli(*part).exit_code == 0
    assert "2 of 2 runs" in cli(*part).stdout


def test_a_file_is_no_folder_for_a_study(cli, sample):
    Path("file").write_text("mine")
    result = cli("study", "run", "--only", "table-1", "--data", sample, "--out", "file")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "file) must be a folder; it is a file" in result.stderr and Path("file").read_text() == "mine"


def test_a_run_that_fails_is_named(cli, sample):
    part = ("--only", "table-1", "--seeds", "1", "--epochs", "1", "--data", sample)
    assert cli("study", "run", *part).exit_code == 0
    broken = sorted(Path("runs/study/runs").glob("autoencoder-*"))[0]
    (broken / "autoencoder.safetensors").unlink()
    (broken / "config.json").write_text("{")
    Path("runs/study/results.json").unlink()  # which has the run's results, so that it need not run again
    result = cli("study", "run", *part)
    assert result.exit_code == 1 and "3 of 4 runs are done, 1 failed" in result.stdout
    assert f"error: {broken.name} (autoencoder n=" in result.stderr and "is damaged" in result.stderr


def test_without_ray_its_extra_is_named(cli, sample, monkeypatch):
    from fmcae import errors

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else object())
    assert errors.INSTALL.format(extra="ray") == "pip install '.[ray]'  in fmcae's checkout"
    result = cli("study", "run", "--ray", "localhost:1", "--data", sample)
    assert result.exit_code == 3 and "needs ray, which is not installed: run  pip install '.[ray]'" in result.stderr
