"""``fmcae export``: a run becomes sealed ONNX files, if parity holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcae.cli.options import RUNS_FOLDER, DataOption, ProviderOption, note
from fmcae.errors import RunError, UsageError, require_train_extra

if TYPE_CHECKING:
    from fmcae.export.precision import Verdict
    from fmcae.train.run import Run

RunArgument = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="A run folder. [default: the newest finished one in runs/]")
]


def export(
    run: RunArgument = None,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write ONNX, the one format there is.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="[default: RUN/onnx, or RUN/onnx-int8, RUN/onnx-fp16]")
    ] = None,
    data: DataOption = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="fp32|int8|fp16",
            help="int8 (for the CPU) and fp16 (for CUDA) are of the classifier alone.",
            autocompletion=lambda: ["fp32", "int8", "fp16"],
        ),
    ] = "fp32",
    budget: Annotated[
        float, typer.Option("--budget", metavar="POINTS", help="Accuracy that int8 or fp16 may lose, in points.")
    ] = 0.2,
    provider: ProviderOption = "cpu",
) -> None:
    """Export encoder, decoder and classifier to ONNX.

    Each file carries its card and golden vectors. Nothing is written unless ONNX Runtime gives PyTorch's numbers on
    the whole test split (exit code 5).

    In int8 or fp16 the classifier is compared with float32, on all of test and on the provider: nothing is written if
    it loses more accuracy than the budget, or is neither smaller nor faster (exit code 5).
    """
    if not onnx:
        raise UsageError("onnx (=False) must be on: it is the one format that fmcae exports")
    require_train_extra()
    from fmcae.data import load_dataset
    from fmcae.export.artefacts import export_run, export_smaller
    from fmcae.export.precision import check_precision
    from fmcae.runtime.session import check_provider

    wanted = check_precision(precision)
    if not 0 <= budget <= 100:
        raise UsageError(f"budget (={budget:g}) must be from 0 to 100 points")
    if wanted == "fp32" and provider != "cpu":
        raise UsageError(
            f"provider (={provider}) must be cpu for fp32: fmcae verify --provider {provider} checks the files"
        )
    opened = open_run_or_newest(run)
    folder = out or opened.folder / ("onnx" if wanted == "fp32" else f"onnx-{wanted}")
    if wanted != "fp32":
        note(f"exporting {opened.folder} in {wanted}, compared with float32 on all of test ...")
        files, verdict = export_smaller(
            opened, load_dataset(data or opened.config.data), folder, wanted, budget, check_provider(provider)
        )
        note(_verdict_lines(verdict))
        _echo_files(files)
        return
    note(f"exporting {opened.folder}, with parity on all of test ...")
    files, evidence = export_run(opened, load_dataset(data or opened.config.data), folder)
    note(parity_lines(evidence.to_json()))
    _echo_files(files)


def _echo_files(files: list[Path]) -> None:
    folder = files[0].parent
    for file in files:
        typer.echo(f"{file}  {file.stat().st_size:,} bytes")
    artefacts = " ".join(str(file) for file in files if file.suffix == ".onnx")
    typer.echo(f"\nnext: fmcae verify {artefacts}")
    if (folder / "classifier.onnx") in files:
        typer.echo(f"      fmcae predict --model {folder / 'classifier.onnx'} IMAGE...")
    typer.echo(f"      fmcae bench --model {folder}")


def _verdict_lines(verdict: "Verdict") -> str:
    """The verdict on a smaller classifier as lines of text."""
    speed = ", ".join(
        f"{ratio.median:.2f} times as fast at batch {size} ({ratio.low:.2f} to {ratio.high:.2f})"
        for size, ratio in verdict.speedup.items()
    )
    lost = 100 * (verdict.fp32_accuracy - verdict.accuracy)
    return (
        f"  accuracy {verdict.accuracy:.4f}, {verdict.fp32_accuracy:.4f} in float32: {lost:+.2f} points lost of "
        f"{verdict.budget_points:g} allowed; {verdict.label_agreement:.2%} of {verdict.images:,} labels agree\n"
        f"  size {verdict.size_bytes:,} bytes, {verdict.size_bytes / verdict.fp32_size_bytes:.2f} of float32's\n"
        f"  {speed}, on {verdict.provider} with {verdict.threads} thread"
    )


def open_run_or_newest(folder: Path | None) -> "Run":
    """The run in ``folder``, or the newest finished one in ``runs/``.

    Raises:
        RunError: there is none.
    """
    from fmcae.train.run import find_runs, open_run

    if folder is not None:
        return open_run(folder)
    finished = [run for run in find_runs(RUNS_FOLDER) if run.finished]
    if not finished:
        raise RunError(f"no finished run in {RUNS_FOLDER}/: run  fmcae train  first, or name a run folder")
    return finished[-1]


def parity_lines(evidence: dict[str, object]) -> str:
    """The parity evidence as lines of text."""
    comparisons = evidence["comparisons"]
    assert isinstance(comparisons, list)
    lines = []
    for item in comparisons:
        agreement = item["label_agreement"]
        labels = "" if agreement is None else f"  labels agree {agreement:.2%}"
        difference = item["difference"]
        lines.append(
            f"  {item['output']:<7} batch {item['batch_size']:>4}  max abs {difference['max_abs']:.2e}  "
            f"max rel {difference['max_rel']:.2e}{labels}"
        )
    verdict = "holds" if evidence["passed"] else "does not hold"
    return "\n".join([*lines, f"parity {verdict} on {evidence['images']:,} images, provider {evidence['provider']}"])
