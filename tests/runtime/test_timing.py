# mypy: disable-error-code="import-untyped"
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from fmcae.errors import ArtefactError, FmcaeError, ProviderError, UsageError
from fmcae.runtime import timing
from fmcae.runtime.doctor import PROBE_MODEL
from fmcae.runtime.machine import peak_memory_mib
from fmcae.runtime.session import Session
from fmcae.runtime.timing import (
    ROUNDS,
    SIZE_CHANGES,
    Case,
    ColdStart,
    FirstRun,
    Latency,
    Runner,
    beats_from,
    cold_start,
    node_placement,
    random_input,
    resident_runner,
    time_graph,
    time_in_turns,
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timing") / "probe.onnx"
    path.write_bytes(PROBE_MODEL)
    return path


def test_a_graph_is_measured_cold_and_warm(probe: Path) -> None:
    steps: list[str] = []
    timed = time_graph(
        "probe", probe, threads=1, batch_sizes=(4, 1, 4), seconds=0.01, baselines=baseline, progress=steps.append
    )
    assert steps == ["cold start", "batch 1", "batch 4"]
    assert (timed.provider, timed.threads, timed.file) == ("cpu", 1, "probe.onnx")
    assert timed.size_bytes == len(PROBE_MODEL)
    assert [case.batch_size for case in timed.cases] == [1, 4]
    assert [run.batch_size for run in timed.cold.first_runs] == [1, 4]
    assert timed.cold.session_creation_ms > 0 and timed.cold.import_ms > 0
    for case in timed.cases:
        assert list(case.latencies) == ["onnxruntime-cpu", "baseline-cpu"]
        assert list(case.ratios) == ["baseline-cpu"]
        assert case.after_other_size_ms is None
    assert timed.cuda_beats_cpu_from == {}
    values = json.loads(json.dumps(asdict(timed)))
    assert values["cases"][0]["latencies"]["onnxruntime-cpu"]["p50_ms"] > 0
    assert values["cold"]["first_runs"][0]["gpu_memory_mib"] is None


def baseline(x: NDArray[np.float32]) -> dict[str, Runner]:
    assert x.dtype == np.float32
    return {"baseline-cpu": lambda: x.sum()}


def _peaks(cold: ColdStart) -> list[float | None]:
    return [run.peak_memory_mib for run in cold.first_runs]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")
def test_peak_memory_is_the_fresh_processs_own_and_never_falls(probe: Path) -> None:
    ballast = np.ones(2**26, np.uint8)  # a parent that is larger by 64 MiB
    cold = cold_start(probe, "cpu", 1, (1, 100_000))
    base, *after, own = (memory or 0 for memory in (cold.base_memory_mib, *_peaks(cold), peak_memory_mib()))
    assert 0 < base <= after[0]
    assert after[1] - after[0] > 3, "the larger batch's arrays are 3.4 MiB and more"
    assert base < own
    del ballast


def test_what_fails_in_the_fresh_process_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing.onnx"
    with pytest.raises(FmcaeError) as caught:
        cold_start(path, "cpu", 1, (1,))
    assert str(caught.value) == f"missing.onnx: {path}: No such file or directory"


def test_a_fresh_process_that_is_killed_is_named(probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(FmcaeError, match=r"probe\.onnx: the fresh process crashed \(exit code -9\): no message"):
        cold_start(probe, "cpu", 1, (1,))


def test_nothing_is_measured_when_the_file_or_the_provider_does_not_run(probe: Path, tmp_path: Path) -> None:
    def unreachable(step: str) -> None:
        raise AssertionError(step)

    with pytest.raises(ArtefactError):
        time_graph("x", tmp_path / "missing.onnx", progress=unreachable)
    with pytest.raises(UsageError, match=r"provider \(=tpu\)"):
        time_graph("x", probe, provider="tpu", progress=unreachable)


def test_runners_take_turns_and_every_second_round_goes_backwards() -> None:
    calls = []
    runners = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    case = time_in_turns(runners, 10, seconds=1e-9)  # so short that each turn is its fewest runs
    warm_up, turns = calls[:6], calls[6:]
    assert "".join(warm_up) == "aaabbb"
    assert "".join(turns[::4]) == "abba" * (ROUNDS // 2) + "ab" * (ROUNDS % 2)  # a run that is not timed, and three
    assert len(turns) == ROUNDS * 2 * 4
    assert case.latencies["a"].runs == ROUNDS * 3


def test_latencies_and_ratios_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock.now)

    def takes(milliseconds: int) -> Runner:
        def run() -> None:
            clock.now += int(milliseconds * 1e6)

        return run

    case = time_in_turns({"fast": takes(2), "slow": takes(5)}, 8, seconds=1.0)
    fast, slow = case.latencies["fast"], case.latencies["slow"]
    assert (fast.p50_ms, fast.p90_ms, fast.p99_ms) == (2, 2, 2)
    assert (fast.runs, slow.runs) == (500, 200)
    assert fast.images_per_s == pytest.approx(4000) and slow.images_per_s == pytest.approx(1600)
    ratio = case.ratios["slow"]
    assert (ratio.median, ratio.low, ratio.high) == (2.5, 2.5, 2.5)
    assert "fast" not in case.ratios


@pytest.mark.parametrize(
    ("cpu_ns", "share", "contended"),
    [
        (((5, 0), (105, 0)), 0, False),
        (((5, 10), (80, 35)), 0.25, True),
        (((0, 0), (0, 0)), None, False),  # a system that does not tell
    ],
)
def test_waiting_for_a_cpu_is_told(
    monkeypatch: pytest.MonkeyPatch, cpu_ns: tuple[tuple[int, ...], ...], share: float | int | None, contended: bool
) -> None:
    answers = iter(cpu_ns)
    monkeypatch.setattr(timing, "cpu_times_ns", lambda: next(answers))
    case = time_in_turns({"a": lambda: None}, 1, seconds=1e-9)
    assert (case.cpu_wait_share, case.contended) == (share, contended)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="schedstat is Linux's")
def test_threads_that_share_a_cpu_wait_for_it() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "from fmcae.runtime.timing import time_in_turns\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "other = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "try: print(time_in_turns({'a': lambda: sum(range(1000))}, 1, seconds=1.0).cpu_wait_share)\n"
        "finally: other.kill()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.1 < float(result.stdout) < 0.95


def test_input_and_output_stay_bound_on_the_device() -> None:
    session = Session(PROBE_MODEL)
    x = random_input(session, 5)
    run = resident_runner(session, x)
    assert run() is None
    run()


def test_a_bound_run_with_another_output_is_not_trusted() -> None:
    session = Session(PROBE_MODEL)
    session._run = lambda names, feed, options: [np.full((2, 2), 7, np.float32)]
    with pytest.raises(ProviderError, match="cpu gives another output through I/O binding"):
        resident_runner(session, random_input(session, 2))


def test_a_binding_that_fails_is_a_provider_error() -> None:
    session = Session(PROBE_MODEL)
    session.provider = "cuda"  # on a CPU build: there is no such device
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ProviderError, match="I/O binding does not work on cuda"):
            resident_runner(session, random_input(session, 2))


def test_every_node_of_the_optimized_graph_has_its_provider(probe: Path) -> None:
    placement = node_placement(probe, "cpu")
    assert set(placement) == {"CPUExecutionProvider"}
    assert placement["CPUExecutionProvider"][0] == "Conv"
    assert "MatMul" in placement["CPUExecutionProvider"]


def case_of(size: int, **medians: float) -> Case:
    return Case(size, {name: Latency(1, p50, p50, p50, 1) for name, p50 in medians.items()}, {})


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ((1, 1, 1), 1),
        ((3, 1, 1), 16),
        ((1, 3, 1), 256),  # the win at batch 1 does not hold on
        ((1, 1, 3), None),
        ((2, 2, 2), None),  # equal is not faster
    ],
)
def test_cuda_beats_the_cpu_from_where_it_stays_faster(cuda: tuple[int, ...], expected: int | None) -> None:
    cases = [case_of(size, cuda=p50, cpu=2) for size, p50 in zip((1, 16, 256), cuda, strict=True)]
    assert beats_from(cases, "cuda", "cpu") == expected
    assert beats_from(cases[::-1], "cuda", "cpu") == expected


@pytest.mark.parametrize(
    ("provider", "others"), [("cuda", ["onnxruntime-cuda-resident"]), ("openvino", [])], ids=["cuda", "openvino"]
)
def test_another_provider_is_timed_beside_the_cpu_and_cuda_without_transfer_too(
    probe: Path, monkeypatch: pytest.MonkeyPatch, provider: str, others: list[str]
) -> None:
    class Elsewhere(Session):
        """A session on the CPU that says another provider: this machine may have none."""

        def __init__(self, model: Path, *, provider: Any = "cpu", **options: Any) -> None:
            super().__init__(model, provider="cpu", **options)
            self.provider = provider

    cold = ColdStart(1, 1, 1, (FirstRun(1, 1, 1, 1), FirstRun(2, 1, 1, 1)))
    monkeypatch.setattr(timing, "Session", Elsewhere)
    monkeypatch.setattr(timing, "cold_start", lambda *_: cold)
    monkeypatch.setattr(timing, "resident_runner", lambda session, x: lambda: session.run(x))
    timed = time_graph(
        "probe", probe, provider=provider, threads=1, batch_sizes=(1, 2), seconds=0.01, baselines=baseline
    )
    assert timed.provider == provider
    for case in timed.cases:
        assert list(case.latencies) == [f"onnxruntime-{provider}", *others, "onnxruntime-cpu", "baseline-cpu"]
        assert (case.after_other_size_ms is not None) == (provider == "cuda")
    cuda = {"onnxruntime-cuda", "onnxruntime-cuda-resident"}
    assert set(timed.cuda_beats_cpu_from) == (cuda if provider == "cuda" else set())


def test_a_change_of_the_batch_size_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sizes = SimpleNamespace(now=0.0), list[int]()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)

    def run(x: NDArray[np.float32]) -> None:
        clock.now += 1 if sizes[-1:] == [len(x)] else 7e-3 if len(x) == 4 else 1
        sizes.append(len(x))

    found = timing.after_other_size_ms(cast(Session, SimpleNamespace(run=run)), np.zeros((4, 2), np.float32))
    assert found == pytest.approx(7) and sizes == [5, 4] * SIZE_CHANGES


def test_inputs_are_always_the_same_and_fit_the_graph() -> None:
    session = Session(PROBE_MODEL)
    x = random_input(session, 3)
    assert x.shape == (3, 1, 3, 3) and x.dtype == np.float32 and x.min() >= 0 and x.max() < 1
    np.testing.assert_array_equal(x, random_input(session, 3))
    fixed = SimpleNamespace(raw=SimpleNamespace(get_inputs=lambda: [SimpleNamespace(shape=[4, 2])]))
    assert random_input(cast(Session, fixed), 4).shape == (4, 2)
    with pytest.raises(UsageError, match=r"batch \(=3\) must be 4: this graph's batch size is fixed"):
        random_input(cast(Session, fixed), 3)
