"""``fmcae study``: the paper's whole grid: what it takes, running it, and the report on what came out."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmcae.cli.options import RUNS_FOLDER, DataOption, error_line, note
from fmcae.errors import UsageError, require_train_extra

if TYPE_CHECKING:
    from fmcae.study.grid import Task
    from fmcae.study.runner import Board

study = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Reproduce the study: plan, run and report.",
)
NEEDED = ("torch", "safetensors", "numba", "matplotlib", "scipy")
STUDY_FOLDER = RUNS_FOLDER / "study"

OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="PART",
        help="A part of the paper, such as table-2; again for more. [default: all; fmcae study plan names them]",
    ),
]
SeedsOption = Annotated[int, typer.Option("--seeds", metavar="N", help="Seeds 0 to N-1.")]
EpochsOption = Annotated[int, typer.Option("--epochs", metavar="N", help="Epochs of every run.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", help="Runs at a time. [default: one for each CPU; 4 on a GPU]"),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="The study's folder.")]


@study.command()
def plan(
    only: OnlyOption = None,
    seeds: SeedsOption = 3,
    epochs: EpochsOption = 30,
    workers: WorkersOption = None,
    out: OutOption = STUDY_FOLDER,
    list_runs: Annotated[bool, typer.Option("--list", help="Print each run's command, too.")] = False,
) -> None:
    """Print the runs and the time that they would take.

    The time is estimated from a second of training on one thread.
    """
    require_train_extra(*NEEDED)
    from fmcae.study.grid import PARTS, work
    from fmcae.study.grid import plan as plan_tasks
    from fmcae.study.results import known_runs
    from fmcae.study.runner import to_do

    known = known_runs(out)
    tasks = _tasks(only, seeds, epochs)
    count = _workers(workers, "cpu")
    rate = _measure_rate() * count
    typer.echo(f"{'part':16}{'runs':>6}{'to do':>7}{'hours':>8}")
    for part in _parts(only):
        of_part = plan_tasks([part], range(seeds), epochs)
        left = to_do(out, of_part, known)
        hours = sum(work(task.config) for task in left) / rate / 3600
        typer.echo(f"{part:16}{len(of_part):6}{len(left):7}{hours:8.1f}")
    left = to_do(out, tasks, known)
    total = sum(work(task.config) for task in left) / rate / 3600
    typer.echo(f"{'each once':16}{len(tasks):6}{len(left):7}{total:8.1f}")
    note(f"estimated for {count} run{'s' * (count > 1)} at a time on this machine's CPU; parts share runs")
    if list_runs:
        for task in tasks:
            typer.echo(f"{'to do' if task in left else 'done':6} {' '.join(task.command(out / 'runs'))}")
    if only is None:
        note(f"parts: {', '.join(PARTS)}")


@study.command()
def run(
    only: OnlyOption = None,
    seeds: SeedsOption = 3,
    epochs: EpochsOption = 30,
    workers: WorkersOption = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="CPU threads of each run.")] = 1,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="auto|cpu|cuda",
            help="Where to train.",
            autocompletion=lambda: ["auto", "cpu", "cuda"],
        ),
    ] = "auto",
    data: DataOption = None,
    out: OutOption = STUDY_FOLDER,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on this Ray cluster; its machines share --out and --data."),
    ] = None,
) -> None:
    """Train what is not done yet, several at a time.

    Stop it any way you like: the same command goes on where it was. A run that fails is named at the end, and the others
    go on.
    """
    require_train_extra(*NEEDED)
    tasks = _tasks(only, seeds, epochs)
    _workers(workers, device)  # before torch is imported, which takes a second
    if ray is not None:
        from fmcae.errors import require_extra

        require_extra("ray", "ray")
    try:
        from fmcae.data import load_dataset
        from fmcae.runtime.session import check_threads
        from fmcae.study.results import collect, known_runs
        from fmcae.study.runner import executor, run_study
        from fmcae.train.loop import resolve_device

        device = resolve_device(device)
        count = _workers(workers, device)
        check_threads(threads)
        data = str(Path(data).expanduser().resolve()) if data else None
        load_dataset(data)  # what is wrong with it is said once, before anything starts
        folder = out.resolve()
        known = known_runs(folder)
        if folder.is_file():
            raise UsageError(f"out (={folder}) must be a folder; it is a file")
        (folder / "runs").mkdir(parents=True, exist_ok=True)  # what is wrong with it is said once, too
        tasks = [replace(task, config=replace(task.config, device=device, threads=threads)) for task in tasks]
        with executor(ray, count, threads, device) as submit, _watch() as changed:
            board = run_study(folder, tasks, submit, count, data, changed, known)
    except KeyboardInterrupt:
        note("stopped; the same command goes on")
        raise typer.Exit(130) from None
    failed = board.of("failed")
    for status in failed:
        error_line(f"{status.task.name} ({status.task.title}): {status.reason}")
    if board.of("done"):
        collect(folder, data)
    typer.echo(f"{len(board.of('done'))} of {len(tasks)} runs are done, {len(failed)} failed")
    typer.echo(f"next: fmcae study report {out}")
    if failed:
        raise typer.Exit(1)


@study.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The study's folder.")] = STUDY_FOLDER,
    epochs: EpochsOption = 30,
    data: DataOption = None,
) -> None:
    """Write the report on what was run.

    It has the paper's tables, figures and claims beside ours, in Markdown, PNG and SVG. It reads DIR/results.json, which it
    makes anew first if DIR has runs.
    """
    require_train_extra(*NEEDED)
    from fmcae.study.report import write_report
    from fmcae.study.results import collect, read

    results = collect(folder, data) if (folder / "runs").is_dir() else read(folder)
    for path in write_report(folder, results, epochs):
        typer.echo(path)


def _parts(only: list[str] | None) -> list[str]:
    from fmcae.study.grid import PARTS

    return list(PARTS) if only is None else only


def _tasks(only: list[str] | None, seeds: int, epochs: int) -> "list[Task]":
    from fmcae.study.grid import plan as plan_tasks

    if seeds < 1:
        raise UsageError(f"seeds (={seeds}) must be at least 1")
    return plan_tasks(_parts(only), range(seeds), epochs)


def _workers(workers: int | None, device: str) -> int:
    from fmcae.runtime.machine import available_cpus

    if workers is not None and workers < 1:
        raise UsageError(f"workers (={workers}) must be at least 1")
    return workers or (4 if device == "cuda" else available_cpus())


def _measure_rate() -> float:
    """Multiply-adds a second of one run on one thread of this machine."""
    import time

    import torch

    from fmcae.study.grid import autoencoder, multiply_adds
    from fmcae.train.loop import DeviceSplit, compute_for, optimizer_for, train_epoch
    from fmcae.train.networks import Autoencoder
    from fmcae.train.progress import Progress

    config = autoencoder(0).config
    compute = compute_for(Autoencoder(config.network), torch.device("cpu"), threads=1)
    optimizer = optimizer_for(compute, config.learning_rate)
    images = torch.randint(256, (5_000, 28, 28), dtype=torch.uint8)
    split = DeviceSplit(images, torch.zeros(len(images), dtype=torch.int64))
    for _ in range(2):  # the first time also compiles
        began = time.perf_counter()
        train_epoch(compute, optimizer, split, config.batch_size, Progress())
        seconds = time.perf_counter() - began
    return 3 * len(images) * multiply_adds(config) / seconds


@contextmanager
def _watch() -> "Iterator[Callable[[Board], None]]":
    """A live table on a terminal's stderr; elsewhere a line for each run that starts, ends or fails."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        lines = _Lines(lambda text: live.console.print(text, highlight=False, soft_wrap=True))

        def changed(board: "Board") -> None:
            lines(board)
            live.update(_table(board), refresh=True)

        yield changed


class _Lines:
    def __init__(self, write: Callable[[str], None] = note) -> None:
        self.write = write
        self.shown: dict[str, str] = {}

    def __call__(self, board: "Board") -> None:
        is_first = not self.shown
        for name, status in board.statuses.items():
            if self.shown.get(name) == status.state:
                continue
            self.shown[name] = status.state
            if status.state in ("done", "failed") and not is_first:
                done = len(board.of("done"))
                left = _duration(board.seconds_left())
                reason = f": {status.reason}" if status.reason else ""
                self.write(f"{status.state}: {status.task.title}{reason} ({done}/{len(board.statuses)}, {left} left)")
        if is_first:
            done = len(board.of("done"))
            self.write(f"{len(board.statuses)} runs, {done} of them done before; {board.workers} at a time")


def _table(board: "Board") -> Any:
    from rich.console import Group
    from rich.table import Table

    counts = ", ".join(f"{len(board.of(state))} {state}" for state in ("done", "running", "waiting", "failed"))
    table = Table("running")
    table.add_column("epoch", justify="right")
    for status in board.of("running"):
        table.add_row(status.task.title, f"{board.epochs_done(status)}/{status.task.config.epochs}")
    return Group(f"{counts}; {_duration(board.seconds_left())} left", table)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
