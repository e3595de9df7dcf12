"""``fmcae evaluate``: how often a model is right on labelled pictures, how sure it is, and what it refuses."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fmcae.cli.options import (
    MODEL_HELP,
    JsonOption,
    ProviderOption,
    ThreadsOption,
    ThresholdOption,
    check_out_folder,
    complete_model,
    counting,
    echo,
    error_line,
    note,
    print_json,
    printable,
)
from fmcae.errors import UsageError
from fmcae.runtime.as_json import JSON_SCHEMA_VERSION, json_text

if TYPE_CHECKING:
    from fmcae.card import Card
    from fmcae.runtime.evaluate import Evaluation, LabelledPictures, Scores
    from fmcae.runtime.predict import Outcome

DATA_HELP = """Folder with one folder of pictures per class (one called unknown for what is of none), with train, val and
test of these, with pictures and truth.csv (columns file, label), or with four IDX files.
[default: Fashion-MNIST, found as for fmcae train]"""
SPLIT_HELP = "The split to evaluate, where DATA has several. [default: test, else val]"
OUT_HELP = "Write evaluation.json, confusion.png, reliability.png and errors.png into this folder."
PRINTED_MISTAKES = 5


def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=complete_model)
    ] = None,
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    split: Annotated[Literal["train", "val", "test"] | None, typer.Option(help=SPLIT_HELP)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help=OUT_HELP)] = None,
    as_json: JsonOption = False,
    threshold: ThresholdOption = None,
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Measure a model on labelled pictures.

    One name alone is DATA, unless it is what ships, ends in .onnx, or is a run or a folder with classifier.onnx. A
    picture that cannot be read gets its line on stderr and the rest goes on. The exit code says nothing of the accuracy.
    """
    from fmcae.runtime.evaluate import evaluate as evaluate_pictures
    from fmcae.runtime.evaluate import find_pictures
    from fmcae.runtime.model import load

    if model is not None and data is None and not _is_model(model):
        model, data = None, model
    if out is not None:
        _check_out(out, data)
    loaded = load(model, provider=provider, threads=threads, only="classifier", threshold=threshold)
    session = loaded.session("classifier")
    pictures = find_pictures(data, loaded.class_names, split, loaded.channels, loaded.size)
    for text in pictures.notes:
        note(printable(text))
    if _seems_trained_on(pictures, loaded.artefacts["classifier"].card):
        note("by name and number, these are the pictures that the model was trained on: new ones may do worse")
    with counting(len(pictures)) as count:

        def see(outcome: "Outcome") -> None:
            if outcome.error is not None:
                error_line(str(outcome.error))
            count()

        evaluation = evaluate_pictures(loaded, pictures, see)
    facts: dict[str, Any] = {
        "model": str(loaded.artefacts["classifier"].path),
        "provider": session.provider,
        "data": pictures.data,
        "split": pictures.split,
    }
    if out is not None:
        _write(out, facts, pictures, evaluation, (loaded.channels, loaded.size))
    if as_json:
        print_json({**facts, **evaluation.to_json()})
    else:
        _print(facts, evaluation)


def _is_model(name: str) -> bool:
    from fmcae.runtime.model import SHIPPED, file_name, is_run, resolve_path, shipped_folder

    path = resolve_path(name)
    is_shipped = name in SHIPPED and path == shipped_folder(name)
    return is_shipped or path.suffix == ".onnx" or os.path.isfile(path / file_name("classifier")) or is_run(path)


def _seems_trained_on(pictures: "LabelledPictures", card: "Card") -> bool:
    """Whether the folder has the name and the number of pictures of the one that was trained on, or its split.

    No picture of ``test`` is trained on, and those of ``val`` set temperature and threshold.
    """
    trained_on, split = card.training["data"], pictures.split
    counts = trained_on["counts"]
    same_name = Path(pictures.data).resolve().name == trained_on["name"]
    train, val, test = (counts[name] for name in ("train", "val", "test"))
    # a folder's own split, or what the missing one was drawn from
    sizes = {"train": (train, train + val), "val": (val, val + test)}.get(split or "", (train + val + test,))
    return same_name and pictures.images is None and split != "test" and len(pictures) in sizes


def _check_out(out: Path, data: str | None) -> None:
    from fmcae.data import ENVIRONMENT_VARIABLE
    from fmcae.runtime.model import is_run

    check_out_folder(out)
    if is_run(out) or any(out.glob("*.onnx")):
        raise UsageError(f"out (={out}) must not be a run or an export, whose pictures would be replaced")
    data = data or os.environ.get(ENVIRONMENT_VARIABLE)
    if data and out.resolve().is_relative_to(Path(os.path.expanduser(data)).resolve()):
        raise UsageError(f"out (={out}) must not be in DATA ({data}), where its pictures would be evaluated next time")


def _write(
    out: Path, facts: dict[str, Any], pictures: "LabelledPictures", evaluation: "Evaluation", shape: tuple[int, int]
) -> None:
    from fmcae.files import write_all_atomic
    from fmcae.runtime.charts import confusion_png, mistakes_png, reliability_png

    scores = evaluation.scores
    out.mkdir(parents=True, exist_ok=True)
    result = {"schema_version": JSON_SCHEMA_VERSION, **facts, **evaluation.to_json()}
    write_all_atomic(
        {
            out / "evaluation.json": json_text(result, indent=2) + "\n",
            out / "confusion.png": confusion_png(scores),
            out / "reliability.png": reliability_png(scores.reliability, scores.expected_calibration_error),
            out / "errors.png": mistakes_png(pictures, evaluation, *shape),
        }
    )


def _print(facts: dict[str, Any], evaluation: "Evaluation") -> None:
    scores = evaluation.scores
    split = f", {facts['split']}" if facts["split"] else ""
    counts = f"{scores.images_known:,} of its classes, {scores.images_unknown:,} unknown"
    counts += f", {len(evaluation.unreadable):,} unreadable" if evaluation.unreadable else ""
    echo(f"model              {printable(facts['model'])} on {facts['provider']}")
    echo(f"pictures           {printable(facts['data'])}{split}: {counts}")
    echo("\n".join(_summary(scores)))
    echo("\n" + "\n".join(_table(scores)))
    if evaluation.mistakes:
        from fmcae.runtime.contact_sheet import caption

        count = len(evaluation.mistakes)
        echo(f"\n{count:,} mistake{'s' * (count > 1)}; the most confident")
        for mistake in evaluation.mistakes[:PRINTED_MISTAKES]:
            echo(printable(f"  {mistake.path}: {caption(mistake.prediction)}, is {mistake.truth}"))


def _summary(scores: "Scores") -> list[str]:
    lines = []
    if scores.accuracy is not None and scores.accuracy_wilson_interval_95 is not None:
        low, high = scores.accuracy_wilson_interval_95
        seen = f"{scores.images_right:,} of {scores.images_known:,}"
        lines += [
            f"accuracy           {scores.accuracy:.2%}, 95% interval {low:.2%} to {high:.2%} (Wilson): {seen}",
            f"calibration error  {scores.expected_calibration_error:.4f}: the mean gap between probability and accuracy",
            f"known kept         {scores.known_kept:.2%} at the threshold {scores.threshold:.4f}",
        ]
    if scores.unknown_refused is not None:
        lines.append(f"unknown refused    {scores.unknown_refused:.2%} at the threshold {scores.threshold:.4f}")
    if scores.auroc_known_score is not None:
        lines.append(f"AUROC              {scores.auroc_known_score:.4f} of the known score, known from unknown")
    return lines


def _table(scores: "Scores") -> list[str]:
    names = [printable(row.label) for row in scores.classes]
    width = max(map(len, names))
    lines = [f"{'':{width}}  pictures  recognized  precision      F1  refused"]
    for name, row in zip(names, scores.classes, strict=True):
        refused = row.images_refused / row.images if row.images else None
        shares = f"{_percent(row.recall):>12}{_percent(row.precision):>11}{_percent(row.f1):>8}{_percent(refused):>9}"
        lines.append(f"{name:{width}}{row.images:10,}{shares}")
    return lines


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
