"""Measure how fast a graph runs, and what it takes to start it.

    cold   in a fresh process: session creation, first run of each batch size, peak memory
    warm   in this process: latency after a warm-up, all engines that are compared in turns, so that a change in the
           machine's load or clock falls on each of them alike

A series is one engine on one provider: "onnxruntime-cpu", "onnxruntime-cuda", "pytorch-cpu", ... Its arrays start and
end in host memory; with "-resident" behind its name they stay on the device, and the transfer is not in the time.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import FmcaeError, ProviderError, UsageError
from fmcae.precision import Provider
from fmcae.runtime.fresh import call_in_fresh_process
from fmcae.runtime.machine import cpu_times_ns, gpu_address, gpu_facts, peak_memory_mib
from fmcae.runtime.session import NVIDIA, Session, import_onnxruntime, short_reason

FloatArray = NDArray[np.float32]
Runner = Callable[[], object]

SIZE_CHANGES = 5  # how often a run after one of another batch size is timed
ROUNDS = 5  # turns of each series: the spread of a ratio is over these
# The limit of cpu_wait_share: idle it is below 0.06 (0.17 in 0.1 s), with one of two CPUs taken above 0.3.
CONTENDED = 0.2
_WARM_UP_SHARE = 0.2  # the warm-up as a share of the time that is then measured
_MIN_RUNS, _MAX_RUNS = 3, 5_000  # the limits of one round, however slow or fast a run is


@dataclass(frozen=True)
class Latency:
    """Times of one batch after warm-up; throughput is all images over all the time that they took."""

    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float


@dataclass(frozen=True)
class Ratio:
    """A series' median latency over the first series' (above 1: the first is faster): median and range of the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class FirstRun:
    """The first run of one batch size in a fresh process, in which smaller ones ran before it."""

    batch_size: int
    first_run_ms: float
    peak_memory_mib: float | None  # the process's resident memory until then; None where the system does not tell
    gpu_memory_mib: float | None  # the rise since before the session, all of the GPU's processes together


@dataclass(frozen=True)
class ColdStart:
    """A graph's start in a fresh process."""

    import_ms: float  # of ONNX Runtime, with numpy there already
    session_creation_ms: float  # from the file to a session, the provider's own start included
    base_memory_mib: float | None  # the peak resident memory with everything imported and no session
    first_runs: tuple[FirstRun, ...]


@dataclass(frozen=True)
class Case:
    """One batch size: the latency of every series, and the ratios to the first of them.

    ``cpu_wait_share`` is the share of the time in which this process's threads could run that they waited for a CPU:
    near 0 on an idle machine, 0.5 where two threads share one CPU. It is None where the system does not tell.

    ``after_other_size_ms`` is the median time of a run right after one of another batch size: CUDA plans the convolutions
    anew at each change, also back to a size that it has run before. It is None on the CPU, which plans nothing.
    """

    batch_size: int
    latencies: dict[str, Latency]
    ratios: dict[str, Ratio]
    cpu_wait_share: float | None = None
    after_other_size_ms: float | None = None

    @property
    def contended(self) -> bool:
        """Whether too few CPUs were free for a fair comparison."""
        return self.cpu_wait_share is not None and self.cpu_wait_share > CONTENDED


@dataclass(frozen=True)
class GraphTiming:
    """All that was measured of one graph.

    ``cuda_beats_cpu_from`` has, for each CUDA series, what :func:`beats_from` gives against onnxruntime-cpu.
    """

    graph: str
    file: str
    size_bytes: int
    provider: Provider
    threads: int
    nodes: dict[str, tuple[str, ...]]  # what node_placement gives
    cold: ColdStart
    cases: tuple[Case, ...]
    cuda_beats_cpu_from: dict[str, int | None]


def time_graph(
    graph: str,
    path: Path,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    batch_sizes: Sequence[int] = (1,),
    seconds: float = 1.0,
    baselines: Callable[[FloatArray], Mapping[str, Runner]] = lambda x: {},
    progress: Callable[[str], None] = lambda step: None,
) -> GraphTiming:
    """Measure one ONNX file.

    Args:
        graph: the graph's name in the result.
        seconds: the measuring time of each series at each batch size, warm-up not counted.
        baselines: gives other engines' runners for an input x, by series, to be timed in turns with ONNX Runtime.
        progress: called with each step's name before it starts.

    Raises:
        ProviderError: ``provider`` is not the one that would run.
        ArtefactError: the file cannot be loaded.
        UsageError: a batch size that the graph does not take.
    """
    session = Session(path, provider=provider, threads=threads)  # first: it fails before anything is measured
    on_cuda, sizes = session.provider == "cuda", sorted(set(batch_sizes))
    on_cpu = None if session.provider == "cpu" else Session(path, threads=threads)
    progress("cold start")
    cold = cold_start(path, session.provider, session.threads, sizes)
    cases = []
    for size in sizes:
        progress(f"batch {size}")
        x = random_input(session, size)
        runners: dict[str, Runner] = {f"onnxruntime-{session.provider}": partial(session.run, x)}
        if on_cuda:
            runners["onnxruntime-cuda-resident"] = resident_runner(session, x)
        if on_cpu is not None:
            runners["onnxruntime-cpu"] = partial(on_cpu.run, x)
        case = time_in_turns({**runners, **baselines(x)}, size, seconds)
        cases.append(replace(case, after_other_size_ms=after_other_size_ms(session, x)) if on_cuda else case)
    cuda_series = ("onnxruntime-cuda", "onnxruntime-cuda-resident") if on_cuda else ()
    return GraphTiming(
        graph=graph,
        file=path.name,
        size_bytes=path.stat().st_size,
        provider=session.provider,
        threads=session.threads,
        nodes=node_placement(path, session.provider, session.threads),
        cold=cold,
        cases=tuple(cases),
        cuda_beats_cpu_from={series: beats_from(cases, series, "onnxruntime-cpu") for series in cuda_series},
    )


def time_in_turns(runners: Mapping[str, Runner], batch_size: int, seconds: float) -> Case:
    """Warm every runner up, then time them in turns for ``seconds`` each; every second round goes backwards."""
    for run in runners.values():
        _run_for(run, seconds * _WARM_UP_SHARE)
    rounds: dict[str, list[NDArray[np.float64]]] = {name: [] for name in runners}
    before = cpu_times_ns()
    for index in range(ROUNDS):
        for name in list(runners)[:: 1 if index % 2 == 0 else -1]:
            runners[name]()  # brings back what the one before pushed out of the caches
            rounds[name].append(_run_for(runners[name], seconds / ROUNDS))
    ran, waited = (now - then for now, then in zip(cpu_times_ns(), before, strict=True))
    latencies = {name: _latency(np.concatenate(times), batch_size) for name, times in rounds.items()}
    medians = {name: np.array([np.median(times) for times in series]) for name, series in rounds.items()}
    first, *others = runners
    ratios = {name: medians[name] / medians[first] for name in others}
    summary = {name: Ratio(float(np.median(r)), float(r.min()), float(r.max())) for name, r in ratios.items()}
    return Case(batch_size, latencies, summary, cpu_wait_share=waited / (ran + waited) if ran > 0 else None)


def after_other_size_ms(session: Session, x: FloatArray) -> float:
    """The median time of a run of ``x`` right after a run of one image more."""
    other = np.concatenate([x, x[:1]])
    times = []
    for _ in range(SIZE_CHANGES):
        session.run(other)
        began = time.perf_counter()
        session.run(x)
        times.append((time.perf_counter() - began) * 1e3)
    return float(np.median(times))


def resident_runner(session: Session, x: FloatArray) -> Runner:
    """Make a runner whose input and output stay on the session's device, through ONNX Runtime's I/O binding.

    Raises:
        ProviderError: I/O binding fails, or gives another output than an ordinary run.

    Source: https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
    """
    ort, raw, device = import_onnxruntime(), session.raw, session.provider
    expected = session.run(x)

    def run() -> None:
        raw.run_with_iobinding(binding)
        binding.synchronize_outputs()  # a run is over when its output is there

    try:
        device_y = ort.OrtValue.ortvalue_from_shape_and_type(list(expected.shape), np.float32, device, 0)
        binding = raw.io_binding()
        binding.bind_ortvalue_input(session.input_name, ort.OrtValue.ortvalue_from_numpy(x, device, 0))
        binding.bind_ortvalue_output(session.output_name, device_y)
        run()
        found = device_y.numpy()
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        raise ProviderError(f"I/O binding does not work on {device}: {short_reason(error)}") from error
    if not np.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise ProviderError(f"{device} gives another output through I/O binding than without it")
    return run


def node_placement(path: Path, provider: str, threads: int | None = None) -> dict[str, tuple[str, ...]]:
    """The optimized graph's operator types by ONNX Runtime's name of the provider that runs them, in order.

    They are read from ONNX Runtime's own profile of one run.
    """
    with tempfile.TemporaryDirectory(prefix="fmcae-profile-") as folder:
        session = Session(path, provider=provider, threads=threads, profile_prefix=f"{folder}/profile")
        session.run(random_input(session, 1))
        events = json.loads(Path(session.raw.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[str, tuple[str, ...]] = {}
    for event in sorted(events, key=lambda event: event.get("ts", 0)):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            facts = event["args"]
            nodes[facts["provider"]] = (*nodes.get(facts["provider"], ()), facts["op_name"])
    return nodes


def beats_from(cases: Sequence[Case], series: str, other: str) -> int | None:
    """The batch size from which ``series`` has the lower median latency at every size measured; None if at no size."""
    largest_first = sorted(cases, key=lambda case: -case.batch_size)
    faster = takewhile(lambda case: case.latencies[series].p50_ms < case.latencies[other].p50_ms, largest_first)
    return min((case.batch_size for case in faster), default=None)


def cold_start(path: Path, provider: Provider, threads: int, batch_sizes: Sequence[int]) -> ColdStart:
    """Start a fresh Python that loads the file and runs each batch size once, the smallest first.

    Raises:
        FmcaeError: the process fails, for example because the memory does not suffice.
    """
    # asked for here: in the fresh process that would start the driver before the session does
    gpu = gpu_address() if provider in NVIDIA else None
    task = json.dumps([str(path), provider, threads, sorted(batch_sizes), gpu])
    try:
        facts = call_in_fresh_process("fmcae.runtime.timing", "_cold_child", task)
    except FmcaeError as error:
        raise FmcaeError(f"{path.name}: {error}") from error
    return ColdStart(**{**facts, "first_runs": tuple(FirstRun(**item) for item in facts["first_runs"])})


def _cold_child(task: str) -> None:
    path, provider, threads, batch_sizes, gpu = json.loads(task)
    began = time.perf_counter()
    import_onnxruntime()
    import_ms = (time.perf_counter() - began) * 1e3
    base_memory = peak_memory_mib()
    gpu_before = gpu_facts(gpu) if gpu else None

    began = time.perf_counter()
    session = Session(path, provider=provider, threads=threads)
    creation_ms = (time.perf_counter() - began) * 1e3

    first_runs = []
    for size in batch_sizes:
        x = random_input(session, size)
        began = time.perf_counter()
        session.run(x)
        first_run_ms = (time.perf_counter() - began) * 1e3
        gpu_now = gpu_facts(gpu) if gpu_before else None
        before, now = (facts["memory_used_mib"] if facts else None for facts in (gpu_before, gpu_now))
        rise = now - before if now is not None and before is not None else None
        first_runs.append(asdict(FirstRun(size, first_run_ms, peak_memory_mib(), rise)))
    facts = {"import_ms": import_ms, "session_creation_ms": creation_ms, "base_memory_mib": base_memory}
    print(json.dumps({**facts, "first_runs": first_runs}))


def random_input(session: Session, batch_size: int) -> FloatArray:
    """Uniform random float32 in [0, 1) of the graph's input shape, with ``batch_size`` as first axis; always the same.

    Raises:
        UsageError: the graph's batch size is fixed at another one.
    """
    batch, *sizes = session.raw.get_inputs()[0].shape
    if isinstance(batch, int) and batch != batch_size:
        raise UsageError(f"batch (={batch_size}) must be {batch}: this graph's batch size is fixed")
    return np.random.default_rng(0).random((batch_size, *sizes), dtype=np.float32)


def _run_for(run: Runner, seconds: float) -> NDArray[np.float64]:
    """Run for ``seconds`` and return the runs' times in ms."""
    times: list[int] = []
    previous = time.perf_counter_ns()
    end = previous + int(seconds * 1e9)
    while len(times) < _MIN_RUNS or (previous < end and len(times) < _MAX_RUNS):
        run()
        now = time.perf_counter_ns()
        times.append(now - previous)
        previous = now
    return np.array(times) / 1e6


def _latency(times_ms: NDArray[np.float64], batch_size: int) -> Latency:
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99]).tolist()
    return Latency(len(times_ms), p50, p90, p99, images_per_s=float(batch_size * len(times_ms) / times_ms.sum() * 1e3))
