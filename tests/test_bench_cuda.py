"""How ``bench/cuda.py`` judges what it tries; the rest of it is tried over the stubs and on GPUs."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "cuda.py"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(BENCH))


@pytest.mark.parametrize(
    ("line", "passed"),
    [
        ("autoencoder 1/2: mse 0.1", True),
        ("warning: training goes on without a CUDA graph, and slower: out of memory", False),
        ("2026-11-26 [E:onnxruntime:Default, cuda_call.cc:154]", False),
    ],
)
def test_a_step_fails_by_what_nobody_may_read(bench: dict[str, Any], tmp_path: Path, line: str, passed: bool) -> None:
    trial = bench["Trial"](tmp_path, "cpu", {})
    assert trial.step("a step", sys.executable, "-c", f"import sys; sys.stderr.write({line!r})") is passed
    trial.log.close()
    (step,) = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert (step["passed"], step.get("foreign_lines_on_stderr")) == (passed, None if passed else [line])


def test_steps_have_the_environment_of_a_user(bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in bench["environment"]()


@pytest.mark.train
def test_the_stage_of_a_checkpoint_is_read_without_torch(bench: dict[str, Any], tmp_path: Path) -> None:
    from torch import nn

    from fmcae.train.weights import save_checkpoint

    path = tmp_path / "checkpoint.safetensors"
    assert bench["checkpoint_stage"](path) is None
    save_checkpoint(path, "teacher", 1, nn.Linear(2, 2), {})
    assert bench["checkpoint_stage"](path) == "teacher"


def test_weights_that_are_not_there_are_not_equal(bench: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        with pytest.raises(SystemExit, match="there are no weights, or not the same ones"):
            bench["check_equal"](None, first, second)
        (folder / "classifier.safetensors").write_text("x")
    bench["check_equal"](None, first, second)
    (second / "classifier.safetensors").write_text("y")
    with pytest.raises(SystemExit, match="the classifier's weights differ"):
        bench["check_equal"](None, first, second)


def test_a_step_without_an_end_keeps_the_result_of_before(bench: dict[str, Any], tmp_path: Path) -> None:
    trial = bench["Trial"](tmp_path, "cpu", {})
    (tmp_path / "step.json").write_text("before")
    assert not trial.step("a step", sys.executable, "-c", "import time; time.sleep(60)", limit=1, keep="step.json")
    assert (tmp_path / "step.json").read_text() == "before"
    trial.log.close()
