"""``fmcae bench``: how fast the exported graphs run here, cold and warm, beside PyTorch where it is installed."""

import io
import os
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmcae.cli.options import JsonOption, ModelOption, ProviderOption, ThreadsOption, note, print_json
from fmcae.errors import FmcaeError, UsageError, require_train_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from fmcae.runtime.model import Artefact
    from fmcae.runtime.timing import GraphTiming, Ratio

MAX_BATCH_SIZE = 65_536
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, with a style for each so that the series can be told apart in grey too.
PLOT_STYLES = {
    "onnxruntime-cpu": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "onnxruntime-cuda": {"color": "#009E73", "linestyle": "-", "marker": "s"},
    "onnxruntime-cuda-resident": {"color": "#009E73", "linestyle": "--", "marker": "^"},
    "pytorch-cpu": {"color": "#D55E00", "linestyle": "-", "marker": "D"},
    "pytorch-cuda": {"color": "#CC79A7", "linestyle": "-", "marker": "v"},
    "pytorch-cuda-resident": {"color": "#CC79A7", "linestyle": "--", "marker": "x"},
}
MEASURED = {
    "latency": "of one batch after warm-up, all series in turns, arrays in host memory, or on the device if resident",
    "ratios": "median latency over that of the first series; median, lowest and highest of the rounds",
    "cold": "session creation, first runs and memory: each graph in a fresh process, batch sizes in ascending order",
    "peak_memory": "peak resident memory of that process, Python and ONNX Runtime included",
    "cpu_wait_share": "of the time in which the process's threads could have run, what they waited for a CPU",
    "load_average": "of the last minute before the measurement, over all CPUs of the machine",
    "gpu_memory": "rise of the GPU's used memory by nvidia-smi since before the session, all its processes included",
}


def bench(
    model: ModelOption = None,
    provider: ProviderOption = "cpu",
    batch: Annotated[
        str, typer.Option("--batch", metavar="N,N,...", help="Batch sizes to measure.")
    ] = "1,4,16,64,256,1024",
    threads: ThreadsOption = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="Measuring time of each series at each batch size.")
    ] = 1.0,
    json_output: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the result, as PNG, SVG or PDF.")
    ] = None,
) -> None:
    """Time the exported graphs, cold and warm, and their memory.

    PyTorch, where it is installed, is timed in turns with ONNX Runtime and shown as ratios. With --provider cuda, so is
    the CPU, and the batch size from which CUDA beats it is named.
    """
    sizes = _batch_sizes(batch)
    if not 0 < seconds <= 3600:
        raise UsageError(f"seconds (={seconds:g}) must be above 0 and at most 3600")
    if plot is not None:
        _check_plot(plot)
    from fmcae.runtime.session import check_provider, check_threads, describe_machine

    check_provider(provider)
    check_threads(threads)
    from fmcae.runtime.model import read_artefacts
    from fmcae.runtime.timing import gpu_facts

    artefacts = list(read_artefacts(model).values())
    first = artefacts[0].session(provider, threads)  # a provider that does not run ends it here, before any measurement
    load = _load_average()
    graphs, notes = _measure(artefacts, first.provider, first.threads, sizes, seconds)
    report = {
        "provider": first.provider,
        "threads": first.threads,
        "seconds_per_series": seconds,
        "machine": describe_machine(),
        "gpu": gpu_facts() if first.provider == "cuda" else None,
        "measured": MEASURED,
        "load_average": load,
        "notes": notes + _waiting_notes(graphs),
        "graphs": [graph.to_json() for graph in graphs],
    }
    if plot is not None:
        draw(report, plot)
    if json_output:
        print_json(report)
    else:
        _print_tables(report, graphs)
    if plot is not None:
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
    """Whatever would keep the plot from being written is found before the measurement."""
    require_train_extra("matplotlib")
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"plot (={path}) must end in one of {', '.join(PLOT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"plot (={path}) must be in a folder that exists")


def _measure(
    artefacts: "list[Artefact]", provider: str, threads: int, sizes: list[int], seconds: float
) -> "tuple[list[GraphTiming], list[str]]":
    from rich.console import Console
    from rich.progress import Progress

    from fmcae.runtime.timing import time_graph

    graphs, notes = [], []
    console = Console(stderr=True)
    # No refresh by itself: its thread would run during the measurement.
    with Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(artefacts) * (len(sizes) + 1), completed=-1)  # steps that are over
        for artefact in artefacts:

            def progress(step: str, kind: str = artefact.card.kind) -> None:
                bar.update(task, description=f"{kind}, {step}", advance=1, refresh=True)
                if not console.is_terminal:
                    note(f"{kind}, {step}")

            rivals, why_none = _pytorch(artefact, provider, threads)
            if why_none is not None and why_none not in notes:
                notes.append(why_none)
            timing = time_graph(
                artefact.card.kind,
                artefact.path,
                provider=provider,
                threads=threads,
                batch_sizes=sizes,
                seconds=seconds,
                rivals=rivals,
                progress=progress,
            )
            graphs.append(timing)
    return graphs, notes


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _waiting_notes(graphs: "list[GraphTiming]") -> list[str]:
    policy = os.environ.get("OMP_WAIT_POLICY")
    notes = [f"OMP_WAIT_POLICY={policy} is set; PASSIVE makes PyTorch slower on an idle machine"] if policy else []
    contended = [case for graph in graphs for case in graph.cases if case.contended]
    if contended:
        share = max(case.cpu_wait_share or 0 for case in contended)
        mark, purpose = ("? ", " for a fair comparison") if any(case.ratios for case in contended) else ("", "")
        line = (
            f"{mark}too few CPUs were free{purpose}: threads waited for one for up to {share:.0%} of their time; "
            "measure on an idle machine or with fewer --threads"
        )
        # Only advice: set here, it would put PyTorch's batch of 1 at a third of its speed on an idle machine.
        if not policy and any("pytorch-cpu" in case.ratios for case in contended):
            line += (
                "; PyTorch's threads, which spin while they wait for each other, lose most, "
                "and on a machine that stays busy OMP_WAIT_POLICY=PASSIVE lets them sleep instead"
            )
        notes.append(line)
    return notes


def _pytorch(artefact: "Artefact", provider: str, threads: int) -> "tuple[Callable[[Any], Any], str | None]":
    """PyTorch's runners, or none and the reason why."""
    if find_spec("torch") is None or find_spec("onnx") is None:
        return lambda x: {}, "no comparison with PyTorch: it is not installed"
    try:
        from fmcae.export.torch_timing import has_provider, pytorch_rivals

        if not has_provider(provider):
            return lambda x: {}, f"no comparison with PyTorch: it has no {provider} here"
        return pytorch_rivals(artefact, provider, threads), None
    except (ImportError, OSError, FmcaeError) as error:  # OSError: a library of an installed torch does not load
        return lambda x: {}, f"no comparison with PyTorch: {error}"


def _print_tables(report: dict[str, Any], graphs: "list[GraphTiming]") -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 120  # in a file or a pipe, nothing is cut
    machine, gpu = report["machine"], report["gpu"]
    console.print(
        f"{machine['cpu']}, {machine['available_cpus']} CPUs available; ONNX Runtime on {report['provider']}, "
        f"{_threads(report)}",
        highlight=False,
    )
    versions = [
        f"Python {machine['python']}",
        f"ONNX Runtime {machine['onnxruntime']} ({machine['onnxruntime_build']})",
    ]
    versions += [f"numpy {machine['numpy']}"] + ([f"PyTorch {machine['torch']}"] if machine["torch"] else [])
    console.print(f"fmcae {machine['fmcae']}; {', '.join(versions)}", highlight=False)
    if gpu is not None:
        console.print(f"{gpu['name']}, driver {gpu['driver']}, {gpu['memory_total_mib']:,.0f} MiB", highlight=False)
    for graph in graphs:
        console.print()
        _print_table(console, graph)
        for line in _facts(graph):
            console.print(line, highlight=False)
    console.print()
    console.print(
        "p50, p90, p99: latency of a batch after warm-up; × the first: p50 over the first series', median (range) of "
        "the rounds; above 1, the first series is faster",
        style="dim",
        highlight=False,
    )
    for line in report["notes"]:
        console.print(line, highlight=False)


def _print_table(console: "Console", graph: "GraphTiming") -> None:
    """No number is ever cut: a narrow terminal breaks the series' names, and wraps what is then still too wide."""
    from rich.console import Console

    width = console.width
    console.width = max(width, Console(width=1000).measure(_table(graph, "\n")).maximum)
    console.print(_table(graph, " "))
    console.width = width


def _table(graph: "GraphTiming", name_break: str) -> "Table":
    from rich import box
    from rich.table import Table

    title = f"{graph.graph}  {graph.size_bytes / 1024:,.0f} KiB"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("batch", justify="right")
    table.add_column("series")
    for header in ("p50 ms", "p90 ms", "p99 ms", "images/s", "× the first"):
        table.add_column(header, justify="right", no_wrap=True)
    for case in graph.cases:
        for name, latency in case.latencies.items():
            ratio = case.ratios.get(name)
            table.add_row(
                "" if ratio else f"{case.batch_size:,}",
                name.replace("-resident", f"{name_break}resident"),
                *(_digits(value) for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)),
                f"{latency.images_per_s:,.0f}",
                _ratio_text(ratio) + " ?" * case.contended if ratio else "",
            )
    return table


def _ratio_text(ratio: "Ratio") -> str:
    return f"{_digits(ratio.median, 2)} ({_digits(ratio.low, 2)}–{_digits(ratio.high, 2)})"


def _digits(value: float, digits: int = 3) -> str:
    """Before and behind the point ``digits`` digits together, but all of those before it."""
    before = len(str(int(value))) if value >= 1 else 0
    return f"{value:,.{max(0, digits - before)}f}"


def _facts(graph: "GraphTiming") -> list[str]:
    cold = graph.cold
    lines = [
        f"fresh process: ONNX Runtime imported in {cold.import_ms:.0f} ms, session created in "
        f"{_digits(cold.session_creation_ms)} ms, {_mib(cold.base_memory_mib)} MiB before it"
    ]
    first_runs = "; ".join(
        f"{run.batch_size:,}: {_digits(run.first_run_ms)} ms, {_mib(run.peak_memory_mib)} MiB"
        + (f", {_mib(run.gpu_memory_mib)} MiB GPU" if graph.provider == "cuda" else "")
        for run in cold.first_runs
    )
    lines.append(f"first run and peak memory there, by batch size: {first_runs}")
    for name, nodes in graph.nodes.items():
        lines.append(f"nodes on {name}: {', '.join(nodes)}")
    for series, size in graph.cuda_beats_cpu_from.items():
        when = "at no batch size measured" if size is None else f"from batch size {size:,}"
        lines.append(f"{series} beats onnxruntime-cpu {when}")
    return lines


def _threads(report: dict[str, Any]) -> str:
    return f"{report['threads']} thread{'s' * (report['threads'] > 1)}"


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw latency and throughput over batch size, a column for each graph, from what ``--json`` prints.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from fmcae.files import write_atomic

    graphs = report["graphs"]
    drawn = {series for graph in graphs for case in graph["cases"] for series in case["latencies"]}
    figure = Figure(figsize=(max(7.5, 1.2 + 3.9 * len(graphs)), 6.6), layout="constrained")
    grid = figure.subplots(2, len(graphs), sharex=True, sharey="row", squeeze=False)
    for column, graph in enumerate(graphs):
        top, bottom = grid[:, column]
        sizes = [case["batch_size"] for case in graph["cases"]]
        for series in graph["cases"][0]["latencies"]:
            latencies = [case["latencies"][series] for case in graph["cases"]]
            style = PLOT_STYLES[series]
            p50, p99 = ([latency[key] for latency in latencies] for key in ("p50_ms", "p99_ms"))
            top.plot(sizes, p50, label=series, markersize=4, **style)
            top.fill_between(sizes, p50, p99, color=style["color"], alpha=0.15, linewidth=0)
            bottom.plot(sizes, [latency["images_per_s"] for latency in latencies], markersize=4, **style)
        top.set(title=graph["graph"], xscale="log", yscale="log")
        bottom.set(xlabel="batch size", xscale="log", yscale="log")
        bottom.set_xticks(sizes, [f"{size:,}" for size in sizes])
        bottom.xaxis.set_minor_locator(NullLocator())
        for axes in (top, bottom):
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("latency of a batch (ms), p50 to p99")
    grid[1, 0].set_ylabel("images per second")
    grid[0, 0].legend(frameon=False)
    machine = report["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {_threads(report)}\nONNX Runtime {machine['onnxruntime']} on {report['provider']}"
        + (f", {report['gpu']['name']}" if report["gpu"] else "")
        + (f"; PyTorch {machine['torch']}" if any(name.startswith("pytorch") for name in drawn) else ""),
        fontsize=10,
    )
    width = int(figure.get_figwidth() * 15)  # characters of the notes' size
    lines = [line for text in report["notes"] for line in wrap(text.removeprefix("? "), width)]  # no ratio to mark here
    figure.supxlabel("\n".join(lines), fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower().lstrip("."), dpi=150)
    write_atomic(path, buffer.getvalue())
