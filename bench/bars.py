"""Draw bars of medians with their ranges, a panel for each comparison; fmcae's are hatched, to be seen in grey print."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Bar:
    median: float
    low: float
    high: float
    note: str  # beside the bar
    is_own: bool


def draw(
    panels: Mapping[str, Mapping[str, Bar]], columns: int, label: str, path: Path, mark: float | None = None
) -> None:
    """Write a PNG; bars are sorted, the smallest on top. ``mark`` is a value to draw a line at."""
    rows = -(-len(panels) // columns)
    height = sum(max(len(bars) for bars in list(panels.values())[i * columns :][:columns]) for i in range(rows))
    figure = Figure(figsize=(5.5 * columns, 0.28 * height + 0.6 * rows + 0.4), layout="constrained")
    ratios = [max(len(bars) for bars in list(panels.values())[i * columns :][:columns]) + 1 for i in range(rows)]
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    for axes, (title, bars) in zip(grid.flat, panels.items(), strict=False):
        ordered = sorted(bars.items(), key=lambda item: -item[1].median)
        for place, (_, bar) in enumerate(ordered):
            axes.barh(
                place, bar.median, xerr=[[bar.median - bar.low], [bar.high - bar.median]],
                color="#0072B2" if bar.is_own else "#E1BE6A", edgecolor="black", linewidth=0.6,
                hatch="//" if bar.is_own else None, error_kw={"linewidth": 0.8, "capsize": 2},
            )  # fmt: skip
            axes.annotate(
                bar.note, (bar.high, place), (4, 0), textcoords="offset points", va="center", fontsize=7
            )  # fmt: skip
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=8)
        axes.set_xlim(0, 1.25 * max(bar.high for bar in bars.values()))
        axes.set_title(title, fontsize=10)
        if mark is not None:
            axes.axvline(mark, color="black", linewidth=0.8)
    figure.supxlabel(label, fontsize=9)
    figure.savefig(path, dpi=110)
