"""The tables of ``fmcae bench`` for a terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fmcae.runtime.session import NVIDIA
from fmcae.runtime.timing import GraphTiming

LEGEND = (
    "p50, p90, p99: latency of a batch after warm-up; × the first: p50 over the first series', median (range) of "
    "the rounds; above 1, the first series is faster"
)


def print_tables(report: dict[str, Any], graphs: list[GraphTiming]) -> None:
    """Print the machine, a table for each graph, and the report's notes."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # in a file or a pipe, nothing is cut
    machine, gpu = report["machine"], report["gpu"]
    cpus = f"{machine['cpu']}, {machine['available_cpus']} CPUs available"
    console.print(f"{cpus}; ONNX Runtime on {report['provider']}, {threads_text(report)}")
    versions = f"Python {machine['python']}, ONNX Runtime {machine['onnxruntime']} ({machine['onnxruntime_build']})"
    torch = f", PyTorch {machine['torch']}" if machine["torch"] else ""
    console.print(f"fmcae {machine['fmcae']}; {versions}, numpy {machine['numpy']}{torch}")
    if gpu is not None:
        total = gpu["memory_total_mib"]
        memory = f", {total:,.0f} MiB" if total is not None else ""
        console.print(f"{gpu['name']}, driver {gpu['driver']}{memory}")
    for graph in graphs:
        console.print()
        print_table(console, graph)
        console.print("\n".join(_facts(graph)))
    console.print(f"\n{LEGEND}", style="dim")
    for line in report["notes"]:
        console.print(line)


def print_table(console: Console, graph: GraphTiming) -> None:
    """Print a graph's table without cutting a number: a narrow terminal breaks the series' names, then wraps lines."""
    width = console.width
    console.width = max(width, Console(width=1000).measure(_table(graph, "\n")).maximum)
    console.print(_table(graph, " "))
    console.width = width


def threads_text(report: dict[str, Any]) -> str:
    """The report's number of threads in words."""
    return f"{report['threads']} thread{'s' * (report['threads'] > 1)}"


def digits(value: float, count: int = 3) -> str:
    """A number with ``count`` digits before and behind the point together, but all of those before it."""
    before = len(str(int(value))) if value >= 1 else 0
    return f"{value:,.{max(0, count - before)}f}"


def _table(graph: GraphTiming, name_break: str) -> Table:
    title = f"{graph.graph}  {graph.size_bytes / 1024:,.0f} KiB"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("batch", justify="right")
    table.add_column("series")
    for header in ("p50 ms", "p90 ms", "p99 ms", "images/s", "× the first"):
        table.add_column(header, justify="right", no_wrap=True)
    for case in graph.cases:
        for name, latency in case.latencies.items():
            ratio = case.ratios.get(name)
            mark = " ?" * case.contended
            table.add_row(
                "" if ratio else f"{case.batch_size:,}",
                name.replace("-resident", f"{name_break}resident"),
                *(digits(value) for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)),
                f"{latency.images_per_s:,.0f}",
                f"{digits(ratio.median, 2)} ({digits(ratio.low, 2)}–{digits(ratio.high, 2)}){mark}" if ratio else "",
            )
    return table


def _facts(graph: GraphTiming) -> list[str]:
    cold = graph.cold
    first_runs = [
        f"{run.batch_size:,}: {digits(run.first_run_ms)} ms, {_mib(run.peak_memory_mib)}"
        + (f", {_mib(run.gpu_memory_mib)} GPU" if graph.provider in NVIDIA else "")
        for run in cold.first_runs
    ]
    start = (
        f"ONNX Runtime imported in {cold.import_ms:.0f} ms, session created in {digits(cold.session_creation_ms)} ms"
    )
    lines = [f"fresh process: {start}, {_mib(cold.base_memory_mib)} before it"]
    lines += [f"first run and peak memory there, by batch size: {'; '.join(first_runs)}"]
    changes = [(case.batch_size, case.after_other_size_ms) for case in graph.cases]
    if after := [f"{size:,}: {digits(time)} ms" for size, time in changes if time is not None]:
        lines += [f"after a run of another batch size, when CUDA plans the convolutions anew: {', '.join(after)}"]
    lines += [f"nodes on {name}: {', '.join(nodes)}" for name, nodes in graph.nodes.items()]
    for series, size in graph.cuda_beats_cpu_from.items():
        when = "at no batch size measured" if size is None else f"from batch size {size:,}"
        lines.append(f"{series} beats onnxruntime-cpu {when}")
    return lines


def _mib(value: float | None) -> str:
    return "unknown MiB" if value is None else f"{value:,.0f} MiB"
