import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmcae.cli.study import _device_here
from fmcae.errors import ProviderError

pytestmark = pytest.mark.train

FINAL_MODEL = ("--only", "final-model", "--seeds", "1", "--epochs", "1")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_plan_run_and_report_as_a_user_would(cli: Callable[..., Any], sample: Path) -> None:
    result = cli("study", "plan", *FINAL_MODEL, "--list")
    assert result.exit_code == 0
    assert "final-model                2      2" in result.stdout
    assert "to do  fmcae train --stage classifier --from runs/study/runs/autoencoder-" in result.stdout
    result = cli("study", "run", *FINAL_MODEL, "--data", sample)
    assert result.exit_code == 0 and "2 of 2 runs are done, 0 failed" in result.stdout
    assert "next: fmcae study report runs/study --epochs 1" in result.stdout
    assert "done: classifier n=128, p=0.1, lr=0.001, seed 0 (2/2, " in result.stderr
    assert "final-model                2      0     0.0" in cli("study", "plan", *FINAL_MODEL).stdout
    result = cli("study", "run", *FINAL_MODEL, "--data", sample)
    assert result.exit_code == 0 and "2 runs, 2 of them done before" in result.stderr
    result = cli("study", "report", "--epochs", "1")
    assert result.exit_code == 0 and "runs/study/report.md" in result.stdout
    assert "| Table 1, n=64 | 0.034 | not run |" in Path("runs/study/report.md").read_text()


@pytest.mark.usefixtures("in_this_process")
def test_interior_trains_again_what_lacks_its_error(cli: Callable[..., Any], sample: Path) -> None:
    assert cli("study", "run", *FINAL_MODEL, "--data", sample).exit_code == 0
    file = Path("runs/study/results.json")
    results = json.loads(file.read_text())
    before = {name: dict(run["test"]) for name, run in results["runs"].items()}
    (name,) = (name for name, test in before.items() if "interior_mse" in test)
    del results["runs"][name]["test"]["interior_mse"]  # as the first edition's results are, whose runs are not there
    file.write_text(json.dumps(results))
    shutil.rmtree("runs/study/runs")
    assert "final-model                2      0" in cli("study", "plan", *FINAL_MODEL).stdout
    assert "final-model                2      1" in cli("study", "plan", *FINAL_MODEL, "--interior").stdout
    result = cli("study", "run", *FINAL_MODEL, "--data", sample, "--interior")
    assert result.exit_code == 0 and "2 runs, 1 of them done before" in result.stderr
    after = {name: run["test"] for name, run in json.loads(file.read_text())["runs"].items()}
    assert after == before  # the same seed, threads and versions give the same numbers
    result = cli("study", "run", *FINAL_MODEL, "--data", sample, "--interior")
    assert "2 runs, 2 of them done before" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("plan", "--only", "table-9"), 2, "--only table-9 must be one of table-1, "),
        (("run", "--only", "table-9"), 2, "--only table-9 must be one of table-1, "),
        (("run", "--data", "missing"), 2, "missing must be an existing folder"),
    ],
)
def test_what_is_wrong_is_named_in_one_line_and_leaves_nothing(
    cli: Callable[..., Any], arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    result = cli("study", *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "option", [("--seeds", "0"), ("--workers", "0"), ("--threads", "0"), ("--epochs", "0"), ("--device", "tpu")]
)
def test_a_bad_option_is_named(cli: Callable[..., Any], option: tuple[str, str]) -> None:
    result = cli("study", "run", *option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert option[0] in result.stderr and option[1] in result.stderr and list(Path().iterdir()) == []


def test_another_data_set_is_refused_before_anything_trains(cli: Callable[..., Any], sample: Path) -> None:
    from fmcae.data import idx, load_dataset
    from fmcae.study import grid, runner

    runner.run_task(Path("runs/study"), grid.autoencoder(0, epochs=1), str(sample))
    before = sorted(Path("runs").rglob("*"))
    other = Path("other")
    other.mkdir()
    for path in sample.glob("*.gz"):
        array = idx.parse(idx.read_bytes(path), path.name)
        idx.write(other / path.name, array[: len(array) // 2])
    result = cli("study", "run", "--only", "table-1", "--seeds", "1", "--epochs", "1", "--data", other)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.count("\n") == 1
    for dataset in (load_dataset(sample), load_dataset(other)):
        assert f"{dataset.name} (fingerprint {dataset.fingerprint[:12]}…)" in result.stderr
    assert sorted(Path("runs").rglob("*")) == before


def run_of(results: Path) -> set[str]:
    return set(json.loads(results.read_text())["runs"]) if results.is_file() else set()


@pytest.mark.parametrize(("error", "exit_code"), [(KeyboardInterrupt, 130), (OSError, 1)])
def test_results_are_collected_however_it_ends(
    cli: Callable[..., Any], sample: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], exit_code: int
) -> None:
    from fmcae.study import runner

    results = Path("here/results.json")
    seen = []

    def train_one_then_stop(folder: Path, tasks: list[Any], submit: object, count: int, data: str, *_: object) -> None:
        seen.append(run_of(results))
        left = [task for task in tasks if not runner.is_done(folder, task)]
        runner.run_task(folder, left[0], data)
        raise error("enough")

    monkeypatch.setattr(runner, "run_study", train_one_then_stop)
    command = ("study", "run", *FINAL_MODEL, "--data", sample, "--out", "here")
    assert cli(*command).exit_code == exit_code
    assert len(run_of(results)) == 1
    results.unlink()  # as if that call had been killed
    assert cli(*command).exit_code == exit_code
    assert [len(names) for names in seen] == [0, 1] and len(run_of(results)) == 2


def test_what_comes_next_is_quoted_and_only_said_if_there_is_something(
    cli: Callable[..., Any], sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmcae.study import runner

    def pretend(state: runner.State) -> Callable[..., runner.StudyProgress]:
        def run_study(folder: Path, tasks: list[Any], *_: object) -> runner.StudyProgress:
            return runner.StudyProgress(folder, {task.name: runner.TaskStatus(task, state) for task in tasks}, 1)

        return run_study

    command = ("study", "run", "--only", "labels", "--seeds", "1", "--data", sample, "--out", "my study")
    monkeypatch.setattr(runner, "run_study", pretend("done"))
    result = cli(*command)
    assert result.exit_code == 0 and result.stdout.endswith("next: fmcae study report 'my study'\n")
    assert "the cells with 1,000 labels or more are left out: fashion-mnist-sample has no more" in result.stderr
    monkeypatch.setattr(runner, "run_study", pretend("failed"))
    result = cli(*command)
    assert result.exit_code == 1 and result.stdout == "0 of 7 runs are done, 7 failed\n"


@pytest.mark.usefixtures("in_this_process")  # but for the process that is stopped
def test_ctrl_c_stops_it_and_the_same_command_goes_on(cli: Callable[..., Any], sample: Path) -> None:
    part = ["study", "run", "--only", "final-model", "--seeds", "1", "--epochs", "10", "--data", str(sample)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fmcae", *part], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics: list[Path] = []
    deadline = time.monotonic() + 60
    while not metrics and time.monotonic() < deadline:
        metrics = list(Path("runs/study/runs").glob("*/metrics.jsonl"))
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stderr.splitlines()[-1] == "stopped; the same command goes on"
    assert "Traceback" not in stderr
    result = cli(*part)
    assert result.exit_code == 0 and "2 of 2 runs" in result.stdout


@pytest.mark.usefixtures("in_this_process")
def test_a_run_that_fails_is_named(cli: Callable[..., Any], sample: Path) -> None:
    part = ("--only", "table-1", "--seeds", "1", "--epochs", "1", "--data", sample)
    assert cli("study", "run", *part).exit_code == 0
    broken = sorted(Path("runs/study/runs").glob("autoencoder-*"))[0]
    (broken / "autoencoder.safetensors").unlink()
    (broken / "config.json").write_text("{")
    Path("runs/study/results.json").unlink()  # which has the run's results, so that it need not run again
    result = cli("study", "run", *part)
    assert result.exit_code == 1 and "3 of 4 runs are done, 1 failed" in result.stdout
    assert f"error: {broken.name} (autoencoder n=" in result.stderr and "is damaged" in result.stderr


def test_a_folder_without_results_is_said_to_be_that_before_what_is_missing(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = cli("study", "report", "missing")
    assert result.exit_code == 1 and "missing: has no results.json" in result.stderr


def test_without_ray_its_extra_is_named(cli: Callable[..., Any], sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmcae import errors

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else object())
    assert errors.INSTALL.format(extra="ray") == "pip install '.[ray]'  in fmcae's checkout"
    result = cli("study", "run", "--ray", "localhost:1", "--data", sample)
    assert result.exit_code == 3 and "needs ray, which is not installed: run  pip install '.[ray]'" in result.stderr


def test_a_gpu_is_tried_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("fmcae.train.loop._cuda_obstacle", lambda: pytest.fail("the GPU was tried in this process"))
    assert _device_here("cpu") == "cpu"
    if torch.cuda.device_count() == 0:
        assert _device_here("auto") == "cpu"
        with pytest.raises(ProviderError, match="cuda"):
            _device_here("cuda")
