"""``fmcae bench``: how fast the exported graphs run here, cold and warm, beside PyTorch where it is installed."""

import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcae.cli.options import JsonOption, ModelOption, ProviderOption, ThreadsOption, check_out, note, print_json
from fmcae.errors import FmcaeError, UsageError, require_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from fmcae.runtime.model import Artefact
    from fmcae.runtime.timing import FloatArray, GraphTiming, Runner

MAX_BATCH_SIZE = 65_536
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
MEASURED = {
    "latency": "time of a batch after warm-up, all series in turns, arrays in host memory, or on the device if resident",
    "ratios": "median latency over that of the first series; median, lowest and highest of the rounds",
    "after_other_size": "median time of a run after one of another batch size, when CUDA plans the convolutions anew",
    "cold": "session creation, first runs and memory: each graph in a fresh process, batch sizes in ascending order",
    "peak_memory": "peak resident memory of that process, Python and ONNX Runtime included",
    "cpu_wait_share": "share of the time in which the process's threads could run that they waited for a CPU",
    "load_average": "the last minute's before the measurement, over all CPUs of the machine",
    "gpu_memory": "rise of the GPU's used memory by nvidia-smi since before the session, all its processes included",
}


def bench(  # long, because its options are listed here
    model: ModelOption = None,
    provider: ProviderOption = "cpu",
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes to measure.")] = "1,4,16,64,256,1024",
    threads: ThreadsOption = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0.001, max=3600, help="Measuring time of each series at each batch size.")
    ] = 1.0,
    json_output: JsonOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the result, as PNG, SVG or PDF.")] = None,
) -> None:
    """Time the exported graphs, cold and warm, and their memory.

    PyTorch, where it is installed, is timed in turns with ONNX Runtime and shown as ratios. With another provider, so is
    the CPU, and the batch size from which CUDA beats it is named.
    """
    sizes = _batch_sizes(batch)
    if seconds != seconds:  # NaN is in every range
        raise UsageError("seconds (=nan) must be a number from 0.001 to 3600")
    if plot is not None:
        _check_plot(plot)
    from fmcae.runtime.machine import describe_machine, gpu_facts
    from fmcae.runtime.model import read_artefacts
    from fmcae.runtime.session import NVIDIA

    artefacts = list(read_artefacts(model).values())
    for artefact in artefacts:
        artefact.check_made_for(provider)
    first = artefacts[0].session(provider, threads)  # a provider that does not run is found before any measurement
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    graphs, notes = _measure(artefacts, first.provider, first.threads, sizes, seconds)
    report = {
        "provider": first.provider,
        "threads": first.threads,
        "seconds_per_series": seconds,
        "machine": describe_machine(),
        "gpu": gpu_facts() if first.provider in NVIDIA else None,
        "measured": MEASURED,
        "load_average": load,
        "notes": notes + _waiting_notes(graphs),
        "graphs": [asdict(graph) for graph in graphs],
    }
    if json_output:
        print_json(report)
    else:
        from fmcae.cli.bench_tables import print_tables

        print_tables(report, graphs)
    if plot is not None:
        from fmcae.cli.bench_plot import draw

        draw(report, plot)
        note(f"drawn in {plot}")


def _batch_sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"batch (={text}) must be whole numbers with commas between them, such as 1,16,256") from None
    for size in sizes:
        if not 1 <= size <= MAX_BATCH_SIZE:
            raise UsageError(f"batch (={size}) must be from 1 to {MAX_BATCH_SIZE:,}")
    return sizes


def _check_plot(path: Path) -> None:
    require_extra("plot", "matplotlib")
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"plot (={path}) must end in one of {', '.join(PLOT_SUFFIXES)}")
    check_out(path, "plot")


def _measure(
    artefacts: "list[Artefact]", provider: str, threads: int, sizes: list[int], seconds: float
) -> "tuple[list[GraphTiming], list[str]]":
    from rich.console import Console
    from rich.progress import Progress

    from fmcae.runtime.timing import time_graph

    graphs, notes = [], list[str]()
    console = Console(stderr=True)
    # No refresh by itself: its thread would run during the measurement.
    with Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(artefacts) * (len(sizes) + 1), completed=-1)  # steps that are over
        for artefact in artefacts:

            def progress(step: str, kind: str = artefact.card.kind) -> None:
                bar.update(task, description=f"{kind}, {step}", advance=1, refresh=True)
                if not console.is_terminal:
                    note(f"{kind}, {step}")

            timing = time_graph(
                artefact.card.kind,
                artefact.path,
                provider=provider,
                threads=threads,
                batch_sizes=sizes,
                seconds=seconds,
                baselines=_pytorch_baselines(artefact, provider, threads, notes),
                progress=progress,
            )
            graphs.append(timing)
    return graphs, list(dict.fromkeys(notes))


def _pytorch_baselines(
    artefact: "Artefact", provider: str, threads: int, notes: list[str]
) -> "Callable[[FloatArray], dict[str, Runner]]":
    """PyTorch's runners, or none and a note on the reason."""
    try:
        if find_spec("torch") is None or find_spec("onnx") is None:
            raise FmcaeError("it is not installed")
        from fmcae.export.torch_timing import pytorch_baselines

        return pytorch_baselines(artefact, provider, threads)
    except (ImportError, OSError, FmcaeError) as error:  # OSError: a library of an installed torch does not load
        notes.append(f"no comparison with PyTorch: {error}")
        return lambda x: {}


def _waiting_notes(graphs: "list[GraphTiming]") -> list[str]:
    policy = os.environ.get("OMP_WAIT_POLICY")
    notes = [f"OMP_WAIT_POLICY={policy} is set; PASSIVE makes PyTorch slower on an idle machine"] if policy else []
    contended = [case for graph in graphs for case in graph.cases if case.contended]
    if contended:
        share = max(case.cpu_wait_share or 0 for case in contended)
        mark, purpose = ("? ", " for a fair comparison") if any(case.ratios for case in contended) else ("", "")
        advice = "measure on an idle machine or with fewer --threads"
        # Only advice: set here, it would put PyTorch's batch of 1 at a third of its speed on an idle machine.
        if not policy and any("pytorch-cpu" in case.ratios for case in contended):
            advice += (
                "; PyTorch's threads, which spin while they wait for each other, lose most, "
                "and on a machine that stays busy OMP_WAIT_POLICY=PASSIVE lets them sleep instead"
            )
        waited = f"threads waited for one for up to {share:.0%} of their time"
        notes.append(f"{mark}too few CPUs were free{purpose}: {waited}; {advice}")
    return notes
