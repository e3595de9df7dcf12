# mypy: disable-error-code="import-untyped"
import json
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fmcae.precision import PROVIDERS
from fmcae.runtime import doctor
from fmcae.runtime.doctor import (
    PROBE_MODEL,
    PROBE_X,
    PROBE_Y,
    Probe,
    diagnose,
    onnxruntime_distributions,
    onnxruntime_problems,
    probe_provider,
)
from fmcae.runtime.session import Session

WORKS = Probe("cpu", True, None, "1.30.0", "onnxruntime", ("CPUExecutionProvider",))


def test_a_fresh_process_creates_a_session_on_the_cpu() -> None:
    probe = probe_provider("cpu")
    assert probe.works and probe.reason is None
    assert probe.version == onnxruntime.__version__
    assert "CPUExecutionProvider" in probe.listed


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this is a GPU build")
def test_a_provider_that_is_not_there_says_how_to_get_it() -> None:
    probe = probe_provider("cuda")
    assert not probe.works
    assert "installed has no CUDAExecutionProvider" in str(probe.reason) and "pip install" in str(probe.reason)


def test_the_probe_gives_its_golden_output() -> None:
    y = Session(PROBE_MODEL).run(np.array(PROBE_X, np.float32))
    assert y.tolist() == PROBE_Y


@pytest.mark.train
def test_the_probe_is_made_as_its_comment_says() -> None:
    from onnx import TensorProto, helper, numpy_helper

    weights = {"k": [[[[1, -1], [0.5, 2]]]], "m": [[1, -1], [0, 1], [2, 3], [-1, -2]]}
    # as in the graphs that are exported; Core ML's ML programs have no Flatten
    nodes = [("Conv", "x k", "c"), ("Reshape", "c s", "f"), ("MatMul", "f m", "p"), ("Relu", "p", "y")]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs.split(), [output]) for operator, inputs, output in nodes],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.array(values, np.float32), name) for name, values in weights.items()]
        + [numpy_helper.from_array(np.array([-1, 4]), "s")],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, ir_version=7, opset_imports=opset, producer_name="fmcae")
    assert model.SerializeToString(deterministic=True) == PROBE_MODEL


@pytest.mark.parametrize(
    ("distributions", "cpu", "what", "command"),
    [
        (  # after `pip install .` where only the GPU build was
            {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"},
            WORKS,
            "the files of onnxruntime-gpu 1.31.1 were overwritten by those of onnxruntime "
            "(those there now: onnxruntime 1.30.0)",
            "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1",
        ),
        (
            {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"},
            Probe("cpu", False, "its process crashed (exit code -11): no message"),
            "were overwritten",
            "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1",
        ),
        (
            {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1", "onnxruntime-openvino": "1.24.1"},
            Probe("cpu", True, None, "1.24.1", "onnxruntime-openvino"),
            "are installed and overwrite each other's files (those there now: onnxruntime-openvino 1.24.1)",
            "pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-openvino && pip install onnxruntime",
        ),
        (  # after `pip uninstall onnxruntime` where both were installed
            {"onnxruntime-gpu": "1.31.1"},
            Probe("cpu", False, "its files are incomplete"),
            "ONNX Runtime does not work on the CPU: its files are incomplete",
            "pip install --force-reinstall onnxruntime-gpu",
        ),
        (
            {},
            Probe("cpu", False, "No module named 'onnxruntime'"),
            "No module named",
            "pip install --force-reinstall onnxruntime",
        ),
        (
            {"onnxruntime-gpu": "1.31.1"},
            WORKS,
            "onnxruntime-gpu 1.31.1 is installed, but the files there are those of onnxruntime 1.30.0",
            "pip uninstall -y onnxruntime-gpu && pip install --force-reinstall onnxruntime-gpu",
        ),
        (
            {"onnxruntime": "1.17.3"},
            Probe("cpu", True, None, "1.17.3"),
            "onnxruntime (=1.17.3) must be at least 1.19",
            "pip install --upgrade onnxruntime",
        ),
    ],
)
def test_a_bad_installation_is_named_with_the_command_that_mends_it(
    distributions: dict[str, str], cpu: Probe, what: str, command: str
) -> None:
    (problem,) = onnxruntime_problems(distributions, cpu)
    assert what in problem.what
    assert problem.command == command


@pytest.mark.parametrize(
    ("distributions", "cpu"),
    [
        ({"onnxruntime": "1.30.0"}, WORKS),
        ({"onnxruntime": "1.19.0"}, Probe("cpu", True, None, "1.19.0", None)),  # 1.19's files do not say whose they are
        ({}, WORKS),  # installed by conda or built from source
        ({"onnxruntime": "1.31.0.dev1"}, Probe("cpu", True, None, "1.31.0.dev1", "onnxruntime")),
        (  # the GPU build over the CPU build, which pip leaves alone
            {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"},
            Probe("cpu", True, None, "1.31.1", "onnxruntime-gpu"),
        ),
    ],
)
def test_a_good_installation_has_no_problem(distributions: dict[str, str], cpu: Probe) -> None:
    assert onnxruntime_problems(distributions, cpu) == []


def test_only_distributions_that_bring_the_module_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str, version: str, *files: str) -> SimpleNamespace:
        return SimpleNamespace(metadata={"Name": name}, version=version, files=[PurePosixPath(file) for file in files])

    installed = [
        distribution("onnxruntime_gpu", "1.31.1", "onnxruntime/__init__.py"),
        distribution("onnxruntime", "1.30.0", "onnxruntime/capi/x.so", "onnxruntime/__init__.py"),
        distribution("onnxruntime-extensions", "0.13", "onnxruntime_extensions/__init__.py"),
        distribution("numpy", "2.0", "numpy/__init__.py"),
        SimpleNamespace(metadata={"Name": None}, version="0", files=None),  # a broken record
    ]
    monkeypatch.setattr(metadata, "distributions", lambda: installed)
    assert onnxruntime_distributions() == {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"}


def test_a_probe_that_crashes_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    crashed = subprocess.CompletedProcess([], -11, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: crashed)
    reason = "the fresh process crashed (exit code -11): no message"
    assert probe_provider("cuda") == Probe("cuda", False, reason)

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(subprocess, "run", hang)
    assert probe_provider("cuda").reason == "the fresh process hangs: no answer in 120 s"


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('my own')")
    monkeypatch.chdir(tmp_path)
    assert probe_provider("cpu").works


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"PROBE_Y": [[0.0, 0.0]]}, "it computes [[2.75, 1.6875]] where [[0.0, 0.0]] is right"),
        ({"PROBE_MODEL": b"damaged"}, "the model of 7 bytes is no ONNX model"),
        ({"import_onnxruntime": lambda: 1 / 0}, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_goes_wrong_in_the_fresh_process_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, wrong: dict[str, Any], reason: str
) -> None:
    for name, value in wrong.items():
        monkeypatch.setattr(doctor, name, value)
    doctor._probe_child("cpu")
    facts = json.loads(capsys.readouterr().out)
    assert facts["works"] is False and reason in facts["reason"]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``only("cpu")``: from now on that provider works and the other does not."""

    def install(name: str) -> None:
        probes = {known: Probe(known, known == name, None, onnxruntime.__version__) for known in PROVIDERS}
        monkeypatch.setattr(doctor, "probe_provider", probes.__getitem__)

    return install


def test_the_diagnosis_has_everything(only: Callable[[str], None]) -> None:
    only("cpu")
    diagnosis = diagnose()
    assert diagnosis.usable
    assert [probe.provider for probe in diagnosis.probes] == list(PROVIDERS)
    whole, alone = ["encoder", "decoder", "classifier"], ["classifier"]
    kinds = [*whole, "picture", *alone, "picture", *alone, *whole]
    assert [item.kind for item in diagnosis.artefacts] == kinds
    assert all(item.problem is None for item in diagnosis.artefacts)
    assert diagnosis.packages["numpy"] == np.__version__
    assert diagnosis.problems == ()
    assert json.loads(json.dumps(diagnosis.to_json()))["usable"] is True


def test_without_the_cpu_it_is_not_usable(only: Callable[[str], None]) -> None:
    only("cuda")
    assert not diagnose().usable


def test_missing_artefacts_are_one_problem(
    only: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fmcae.runtime.model.shipped_folder", lambda name: tmp_path / name)
    only("cpu")
    diagnosis = diagnose()
    assert all("No such file" in str(item.problem) for item in diagnosis.artefacts)
    (problem,) = diagnosis.problems
    assert "encoder.onnx" in problem.what and "pip install --force-reinstall" in problem.command
