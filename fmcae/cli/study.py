"""``fmcae study``: the paper's whole grid: what it takes, running it, and the report on what came out."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmcae.cli.help import Verb, Verbs
from fmcae.cli.options import RUNS_FOLDER, DataOption, check_out_folder, echo, error_line, note, printable
from fmcae.errors import command_line, require_extra
from fmcae.study.grid import EPOCHS, PARTS, SEEDS, TRAIN_IMAGES, work
from fmcae.study.grid import plan as plan_tasks
from fmcae.train.config import Device, DeviceChoice

if TYPE_CHECKING:
    from fmcae.study.runner import StudyProgress

HELP = "Reproduce the study: plan, run and report."
study = typer.Typer(cls=Verbs, no_args_is_help=True, rich_markup_mode=None, help=HELP)
NEEDED = ("torch", "safetensors", "numba", "filelock", "matplotlib", "scipy", "jinja2")
STUDY_FOLDER = RUNS_FOLDER / "study"

PARTS_HELP = "A part of the paper, such as table-2; repeat it for more. [default: all; fmcae study plan names them]"
OnlyOption = Annotated[
    list[str] | None, typer.Option(metavar="PART", help=PARTS_HELP, autocompletion=lambda: list(PARTS))
]
SeedsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Train with the seeds 0 to N-1.")]
EpochsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Epochs of every run.")]
InteriorOption = Annotated[
    bool, typer.Option("--interior", help="Train autoencoders again whose results lack the error on the interior.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Runs at a time. [default: one for each CPU; 4 on a GPU]")
]
OutOption = Annotated[Path, typer.Option(metavar="DIR", help="The study's folder.")]


@study.command(cls=Verb)
def plan(
    only: OnlyOption = None,
    seeds: SeedsOption = SEEDS,
    epochs: EpochsOption = EPOCHS,
    workers: WorkersOption = None,
    interior: InteriorOption = False,
    out: OutOption = STUDY_FOLDER,
    list_runs: Annotated[bool, typer.Option("--list", help="Print each run's command, too.")] = False,
) -> None:
    """Print the runs and the time that they would take.

    The time is estimated from a second of training on one thread.
    """
    require_extra("train", *NEEDED)
    check_out_folder(out, writes=False)
    from fmcae.study.results import read
    from fmcae.study.runner import measure_rate, to_do

    results = read(out, missing_ok=True)
    train_images = results.data["counts"]["train"] if results.data else TRAIN_IMAGES
    parts = only or list(PARTS)
    rows = {part: plan_tasks([part], range(seeds), epochs, train_images) for part in parts}
    rows["each once"] = plan_tasks(parts, range(seeds), epochs, train_images)
    count = _workers(workers, "cpu")
    rate = measure_rate() * count
    echo(f"{'part':22}{'runs':>6}{'to do':>7}{'hours':>8}")
    for name, tasks in rows.items():
        left = to_do(out, tasks, results.known(interior))
        hours = sum(work(task.config) for task in left) / rate / 3600
        echo(f"{name:22}{len(tasks):6}{len(left):7}{hours:8.1f}")
    note(f"estimated for {count} run{'s' * (count > 1)} at a time on this machine's CPU; parts share runs")
    if list_runs:
        if results.data and results.data["name"] != "Fashion-MNIST":
            note(f"add --data with {printable(results.data['name'])} to these commands")
        for task in tasks:  # of the last row, which has every run
            echo(f"{'to do' if task in left else 'done':6} {command_line(*task.command(str(out / 'runs')))}")
    if only is None:
        note(f"parts: {', '.join(PARTS)}")


@study.command(cls=Verb)
def run(  # long for its options
    only: OnlyOption = None,
    seeds: SeedsOption = SEEDS,
    epochs: EpochsOption = EPOCHS,
    workers: WorkersOption = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="CPU threads of each run.")] = 1,
    device: Annotated[DeviceChoice, typer.Option(help="Where to train.")] = "auto",
    interior: InteriorOption = False,
    data: DataOption = None,
    out: OutOption = STUDY_FOLDER,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on this Ray cluster; its machines share --out and --data."),
    ] = None,
) -> None:
    """Train what is not done yet, several at a time.

    Stop it any way you like: the same command goes on where it was. A run that fails is named at the end, and the others
    go on.
    """
    require_extra("train", *NEEDED)
    if ray is not None:
        require_extra("ray", "ray")
    check_out_folder(out)
    parts = only or list(PARTS)
    plan_tasks(parts, [])  # an unknown part is said before torch is imported, which takes a second
    try:
        from fmcae.data import check_outside, load_dataset
        from fmcae.study.results import check_study, collect
        from fmcae.study.runner import cluster_device, executor, run_study

        folder = out.resolve()
        place = _device_here(device) if ray is None else cluster_device(ray, device)
        count = _workers(workers, place)
        data = str(Path(os.path.expanduser(data)).resolve()) if data else None
        dataset = load_dataset(data)
        check_outside(folder, data)
        tasks = plan_tasks(parts, range(seeds), epochs, len(dataset.train))
        if len(tasks) < len(plan_tasks(parts, range(seeds), epochs)):
            name = printable(dataset.name)
            note(f"the cells with {len(dataset.train):,} labels or more are left out: {name} has no more")
        known = check_study(folder, tasks, dataset, interior)
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        tasks = [replace(task, config=replace(task.config, device=place, threads=threads)) for task in tasks]
        collect(folder, dataset)  # what an earlier call left that was killed
        try:
            with executor(ray, count, threads, place, _tell) as submit, _watch() as changed:
                progress = run_study(folder, tasks, submit, count, data, changed, known)
        finally:
            collect(folder, dataset)
    except KeyboardInterrupt:
        note("stopped; the same command goes on")
        raise typer.Exit(130) from None
    done, failed = progress.in_state("done"), progress.in_state("failed")
    for status in failed:
        error_line(f"{status.task.name} ({status.task.title}): {status.reason}")
    echo(f"{len(done)} of {len(tasks)} runs are done, {len(failed)} failed")
    if done:
        epochs_option = [] if epochs == EPOCHS else ["--epochs", str(epochs)]
        echo(f"next: {command_line('fmcae', 'study', 'report', out, *epochs_option)}")
    if failed:
        raise typer.Exit(1)


@study.command(cls=Verb)
def report(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The study's folder.")] = STUDY_FOLDER,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"Epochs of the runs. [default: {EPOCHS}, or what they have]")
    ] = None,
) -> None:
    """Write the report on what was run.

    It has the paper's tables, figures and claims beside ours, in Markdown, PNG and SVG, from DIR/results.json alone.
    """
    check_out_folder(folder, "dir")
    from fmcae.study.results import read

    results = read(folder)  # a folder without any is said to be that whatever is installed
    require_extra("train", "matplotlib", "scipy", "jinja2")
    from fmcae.study.report import write_report

    for path in write_report(folder, results, epochs):
        echo(str(path))


def _device_here(device: str) -> Device:
    """The device on this machine; a GPU is tried in another process, so that this one takes nothing of it."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import torch

    from fmcae.train.loop import resolve_device

    if not torch.cuda.is_available():
        return resolve_device(device)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(resolve_device, device, note).result()


def _tell(warning: str) -> None:
    note(printable(warning))


def _workers(workers: int | None, device: str) -> int:
    from fmcae.runtime.machine import available_cpus

    return workers or (4 if device == "cuda" else available_cpus())


@contextmanager
def _watch() -> "Iterator[Callable[[StudyProgress], None]]":
    """Show a line for each run that ends or fails, and on a terminal a live table of those that run."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    states: dict[str, str] = {}  # at the last change, by task
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def changed(progress: "StudyProgress") -> None:
            done, runs = len(progress.in_state("done")), len(progress.statuses)
            if not states:
                console.print(f"{runs} runs, {done} of them done before; {progress.workers} at a time")
            left = _time_left(progress)
            for name, status in progress.statuses.items():
                if status.state in ("done", "failed") and states.get(name, status.state) != status.state:
                    reason = f": {printable(status.reason)}" if status.reason else ""
                    console.print(f"{status.state}: {status.task.title}{reason} ({done}/{runs}, {left})")
                states[name] = status.state
            live.update(_table(progress, left), refresh=True)

        yield changed


def _table(progress: "StudyProgress", left: str) -> Any:
    from rich.console import Group
    from rich.table import Column, Table

    counts = ", ".join(f"{len(progress.in_state(state))} {state}" for state in ("done", "running", "waiting", "failed"))
    table = Table("running", Column("epoch", justify="right"))
    for status in progress.in_state("running"):
        table.add_row(status.task.title, f"{progress.epochs_done(status)}/{status.task.config.epochs}")
    return Group(f"{counts}; {left}", table)


def _time_left(progress: "StudyProgress") -> str:
    seconds = progress.seconds_left()
    if seconds is None:
        return "an unknown time left"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min left" if hours else f"{minutes} min left"
