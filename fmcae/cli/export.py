"""``fmcae export``: a run becomes sealed ONNX files, if a gate holds."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcae.cli.options import (
    RUNS_FOLDER,
    ProviderOption,
    RunDataOption,
    check_out_folder,
    complete_run,
    echo,
    echo_parity,
    echo_verdict,
    status,
)
from fmcae.errors import EXPORT_PACKAGES, RunError, UsageError, command_line, require_extra
from fmcae.precision import Precision

if TYPE_CHECKING:
    from fmcae.export.tradeoff import Tradeoff
    from fmcae.train.run import Run

RUN_HELP = "A run folder. [default: the newest finished one in runs/]"
OUT_HELP = "The folder to write. [default: RUN/onnx, or RUN/onnx-int8, RUN/onnx-fp16, RUN/onnx-teacher]"
PRECISION_HELP = "int8 (for the CPU) and fp16 (for CUDA) export the classifier alone."
TEACHER_HELP = "Export the robust recipe's larger network as the classifier, alone."
SAMPLE_CODE_HELP = "Write predict.py beside picture.onnx, which runs it with ONNX Runtime, NumPy and Pillow alone."
BUDGET_HELP = "Accuracy that int8 or fp16 may lose, in points."


def export(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=complete_run)] = None,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write ONNX, the one format there is.")] = True,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help=OUT_HELP)] = None,
    data: RunDataOption = None,
    teacher: Annotated[bool, typer.Option("--teacher", help=TEACHER_HELP)] = False,
    precision: Annotated[Precision, typer.Option(help=PRECISION_HELP)] = "fp32",
    budget: Annotated[float, typer.Option(metavar="POINTS", min=0, max=100, help=BUDGET_HELP)] = 0.2,
    provider: ProviderOption = "cpu",
    sample_code: Annotated[bool, typer.Option("--sample-code", help=SAMPLE_CODE_HELP)] = False,
) -> None:
    """Export encoder, decoder and classifier to ONNX.

    Each file carries its card and golden vectors. Nothing is written unless ONNX Runtime gives PyTorch's numbers on
    the whole test split (exit code 5).

    In int8 or fp16 the classifier is compared with float32, on all of test and on the provider: nothing is written if
    it loses more accuracy than the budget, if int8 is neither smaller nor faster, or if fp16 is slower (exit code 5).
    """
    if not onnx:
        raise UsageError("--no-onnx must not be given: ONNX is the one format that fmcae exports")
    if precision == "fp32" and provider != "cpu":
        advice = f"fmcae verify --provider {provider} checks the files"
        raise UsageError(f"provider (={provider}) must be cpu for fp32: {advice}")
    if teacher and precision != "fp32":
        raise UsageError(f"precision (={precision}) must be fp32 with --teacher")
    if math.isnan(budget):  # which is within any limits
        raise UsageError(f"budget (={budget}) must be from 0 to 100")
    if out is not None:
        check_out_folder(out)
    require_extra("train", *EXPORT_PACKAGES)
    from fmcae.data import check_outside, load_dataset
    from fmcae.export.artefacts import export_run, export_smaller
    from fmcae.train.run import data_of, open_run

    opened = open_run(run) if run else _newest_finished_run()
    network = opened.config.network
    suffix = "-teacher" if teacher else f"-{precision}" if precision != "fp32" else ""
    folder = out or opened.folder / f"onnx{suffix}"
    check_out_folder(folder)
    if folder.exists() and Path.cwd().is_relative_to(folder.resolve()):
        raise UsageError(f"out (={folder}) must not hold the current folder: an export replaces its folder as a whole")
    dataset = load_dataset(data_of(opened, data), network.channels, network.size)
    if out is not None:  # a run's own folder is where it is
        check_outside(folder, data_of(opened, data))
    if precision == "fp32":
        with status(f"exporting {opened.folder}, with parity on all of test ..."):
            files, evidence = export_run(opened, dataset, folder, teacher, sample_code)
        echo_parity(evidence.to_json())
    else:
        with status(f"exporting {opened.folder} in {precision}, compared with float32 on all of test ..."):
            files, tradeoff = export_smaller(opened, dataset, folder, precision, budget, provider, sample_code)
        _echo_tradeoff(tradeoff)
    _echo_files(files)


def _newest_finished_run() -> "Run":
    from fmcae.train.run import find_runs

    finished = [run for run in find_runs(RUNS_FOLDER) if run.finished]
    if not finished:
        raise RunError(f"no finished run in {RUNS_FOLDER}/: run  fmcae train  first, or name a run folder")
    return finished[-1]


def _echo_files(files: list[Path]) -> None:
    folder = files[0].parent
    for file in files:
        echo(f"{file}  {file.stat().st_size:,} bytes")
    artefacts = [file for file in files if file.suffix == ".onnx"]
    echo(f"\nnext: {command_line('fmcae', 'verify', *artefacts)}")
    if (folder / "classifier.onnx") in files:
        echo(f"      {command_line('fmcae', 'predict', '--model', folder / 'classifier.onnx')} IMAGE...")
    if (folder / "predict.py") in files:
        echo(f"      {command_line('python', folder / 'predict.py')} IMAGE...")
    echo(f"      {command_line('fmcae', 'bench', '--model', folder)}")


def _echo_tradeoff(tradeoff: "Tradeoff") -> None:
    size = f"{tradeoff.size_bytes:,} bytes, {tradeoff.size_bytes / tradeoff.fp32_size_bytes:.2f} of float32's"
    echo(
        f"  {tradeoff.accuracy_text}, and may lose {tradeoff.budget_points:g} points; "
        f"{tradeoff.label_agreement:.2%} of {tradeoff.images:,} labels agree\n"
        f"  size {size}\n"
        f"  {tradeoff.speed_text}, with {tradeoff.threads} thread"
    )
    echo_verdict(True, f"{tradeoff.precision} is worth keeping")
