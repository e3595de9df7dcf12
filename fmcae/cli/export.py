"""``fmcae export``: a run becomes sealed ONNX files, if parity holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcae.cli.options import RUNS_FOLDER, DataOption, note
from fmcae.errors import RunError, UsageError, require_train_extra

if TYPE_CHECKING:
    from fmcae.train.run import Run

RunArgument = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="A run folder. [default: the newest finished one in runs/]")
]


def export(
    run: RunArgument = None,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write ONNX, the one format there is.")] = True,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="[default: RUN/onnx]")] = None,
    data: DataOption = None,
) -> None:
    """Export encoder, decoder and classifier to ONNX.

    Each file carries its card and golden vectors. Nothing is written unless ONNX Runtime gives PyTorch's numbers on
    the whole test split (exit code 5).
    """
    if not onnx:
        raise UsageError("onnx (=False) must be on: it is the one format that fmcae exports")
    require_train_extra()
    from fmcae.data import load_dataset
    from fmcae.export.artefacts import export_run

    opened = open_run_or_newest(run)
    folder = out or opened.folder / "onnx"
    note(f"exporting {opened.folder}, with parity on all of test ...")
    files, evidence = export_run(opened, load_dataset(data or opened.config.data), folder)
    note(parity_lines(evidence.to_json()))
    for file in files:
        typer.echo(f"{file}  {file.stat().st_size:,} bytes")
    artefacts = " ".join(str(file) for file in files if file.suffix == ".onnx")
    typer.echo(f"\nnext: fmcae verify {artefacts}")
    if (folder / "classifier.onnx") in files:
        typer.echo(f"      fmcae predict --model {folder / 'classifier.onnx'} IMAGE...")
    typer.echo(f"      fmcae bench --model {folder}")


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
