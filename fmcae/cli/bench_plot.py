"""The plot of ``fmcae bench``."""

import io
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fmcae.cli.bench_tables import threads_text
from fmcae.files import write_atomic

# Okabe and Ito's colours, with a style for each so that the series can be told apart in grey too.
STYLES: dict[str, dict[str, Any]] = {
    "onnxruntime-cpu": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "onnxruntime-cuda": {"color": "#009E73", "linestyle": "-", "marker": "s"},
    "onnxruntime-cuda-resident": {"color": "#009E73", "linestyle": "--", "marker": "^"},
    "pytorch-cpu": {"color": "#D55E00", "linestyle": "-", "marker": "D"},
    "pytorch-cuda": {"color": "#CC79A7", "linestyle": "-", "marker": "v"},
    "pytorch-cuda-resident": {"color": "#CC79A7", "linestyle": "--", "marker": "x"},
}


@matplotlib.style.context("default")  # whatever a matplotlibrc says
def draw(report: dict[str, Any], path: Path) -> None:
    """Draw latency and throughput over batch size, a column for each graph, from what ``--json`` prints.

    Raises:
        OSError: the file cannot be written.
    """
    graphs = report["graphs"]
    figure = Figure(figsize=(max(7.5, 1.2 + 3.9 * len(graphs)), 6.6), layout="constrained")
    grid = figure.subplots(2, len(graphs), sharex=True, sharey="row", squeeze=False)
    for graph, (top, bottom) in zip(graphs, grid.T, strict=True):
        _draw_graph(graph, top, bottom)
    grid[0, 0].set_ylabel("latency of a batch (ms), p50 to p99")
    grid[1, 0].set_ylabel("images per second")
    grid[0, 0].legend(frameon=False)
    machine = report["machine"]
    title = f"{machine['cpu']}, {threads_text(report)}\nONNX Runtime {machine['onnxruntime']} on {report['provider']}"
    title += f", {report['gpu']['name']}" if report["gpu"] else ""
    if any(name.startswith("pytorch") for graph in graphs for name in graph["cases"][0]["latencies"]):
        title += f"; PyTorch {machine['torch']}"
    figure.suptitle(title, fontsize=10)
    width = int(figure.get_figwidth() * 15)  # characters of the notes' size
    lines = [line for text in report["notes"] for line in wrap(text.removeprefix("? "), width)]  # no ratio to mark here
    figure.supxlabel("\n".join(lines), fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower().lstrip("."), dpi=150)
    write_atomic(path, buffer.getvalue())


def _draw_graph(graph: dict[str, Any], top: Axes, bottom: Axes) -> None:
    sizes = [case["batch_size"] for case in graph["cases"]]
    for series in graph["cases"][0]["latencies"]:
        latencies = [case["latencies"][series] for case in graph["cases"]]
        style = STYLES.get(series, STYLES["onnxruntime-cuda"])  # of the providers beside the CPU there is only one
        p50, p99, images_per_s = ([item[key] for item in latencies] for key in ("p50_ms", "p99_ms", "images_per_s"))
        top.plot(sizes, p50, label=series, markersize=4, **style)
        top.fill_between(sizes, p50, p99, color=style["color"], alpha=0.15, linewidth=0)
        bottom.plot(sizes, images_per_s, markersize=4, **style)
    top.set(title=graph["graph"], xscale="log", yscale="log")
    bottom.set(xlabel="batch size", xscale="log", yscale="log")
    bottom.set_xticks(sizes, [f"{size:,}" for size in sizes])
    bottom.xaxis.set_minor_locator(NullLocator())
    for axes in (top, bottom):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
