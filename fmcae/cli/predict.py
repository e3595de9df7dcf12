"""``fmcae predict``: a label and a probability for each image."""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmcae.cli.options import (
    JSON_SCHEMA_VERSION,
    JsonOption,
    ModelOption,
    ProviderOption,
    ThreadsOption,
    error_line,
    json_text,
    printable,
    read_stdin,
)
from fmcae.errors import UsageError

if TYPE_CHECKING:
    from fmcae.runtime.model import Prediction
    from fmcae.runtime.predict import Outcome

PathsArgument = Annotated[
    list[str], typer.Argument(metavar="PATH", help="Image files, folders, globs, or - for an image on stdin.")
]
_RANK_COLUMNS = ("label", "index", "probability")


def predict(
    paths: PathsArgument,
    model: ModelOption = None,
    top_k: Annotated[int, typer.Option(metavar="K", min=1, help="Print the K most probable labels.")] = 1,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Classify images of any size, colour and format.

    A 28x28 grey image is taken as it is; anything else is brought into Fashion-MNIST's form first. A file that cannot
    be read gets its line on stderr, the rest goes on, and the exit code is 1.
    """
    from fmcae.runtime.model import load
    from fmcae.runtime.predict import predict_images

    if as_json and as_csv:
        raise UsageError("json (=True) must not come with csv: choose one")
    loaded = load(model, provider=provider, threads=threads, only="classifier")
    class_count = len(loaded.class_names)
    if top_k > class_count:
        raise UsageError(f"top_k (={top_k}) must be an integer from 1 to {class_count}, the number of classes")
    session = loaded.session("classifier")
    facts = {"provider": session.provider, "model": str(loaded.artefacts["classifier"].path)}
    write = _write_json if as_json else _write_csv if as_csv else _write_lines
    failed: list[str] = []
    outcomes = _with_errors_reported(predict_images(loaded, paths, read_stdin(paths)), failed)
    write(outcomes, loaded.class_names, top_k, facts)
    if failed:
        raise typer.Exit(1)


def _with_errors_reported(outcomes: "Iterable[Outcome]", failed: list[str]) -> "Iterator[Outcome]":
    for outcome in outcomes:
        if outcome.error is not None:
            error_line(str(outcome.error))
            failed.append(outcome.path)
        yield outcome


def _write_lines(
    outcomes: "Iterable[Outcome]", class_names: tuple[str, ...], top_k: int, facts: dict[str, str]
) -> None:
    for outcome in outcomes:
        best = outcome.prediction
        if best is None:
            continue
        labels = f"{best.label} {best.probability:.4f}"
        if top_k > 1:
            ranked = _ranked(best, class_names, top_k)
            labels = "  ".join(f"{item['label']} {item['probability']:.4f}" for item in ranked)
        print(f"{printable(outcome.path)}: {labels}")  # typer.echo would flush each line


def _write_csv(outcomes: "Iterable[Outcome]", class_names: tuple[str, ...], top_k: int, facts: dict[str, str]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    ranks = [f"{name}{'' if rank == 1 else f'_{rank}'}" for rank in range(1, top_k + 1) for name in _RANK_COLUMNS]
    writer.writerow(["path", *ranks, *facts, "error"])
    for outcome in outcomes:
        if outcome.prediction is None:
            writer.writerow([outcome.path, *[""] * (len(ranks) + len(facts)), str(outcome.error)])
            continue
        ranked = _ranked(outcome.prediction, class_names, top_k)
        cells = [item[name] for item in ranked for name in _RANK_COLUMNS]
        writer.writerow([outcome.path, *cells, *facts.values(), ""])


def _write_json(outcomes: "Iterable[Outcome]", class_names: tuple[str, ...], top_k: int, facts: dict[str, str]) -> None:
    """One object per image, written as it comes, so that memory stays flat over any number of images."""
    separator = "\n"
    print(f'{{"schema_version": {JSON_SCHEMA_VERSION}, "predictions": [', end="")
    for outcome in outcomes:
        print(f"{separator}  {json_text(_as_json(outcome, class_names, top_k, facts))}", end="")
        separator = ",\n"
    print("\n]}")


def _as_json(outcome: "Outcome", class_names: tuple[str, ...], top_k: int, facts: dict[str, str]) -> dict[str, Any]:
    prediction = outcome.prediction
    if prediction is None:
        return {"path": outcome.path, "error": str(outcome.error)}
    values: dict[str, Any] = {
        "path": outcome.path,
        "label": prediction.label,
        "index": prediction.index,
        "probability": prediction.probability,
        "probabilities": prediction.probabilities.tolist(),
        **facts,
    }
    if top_k > 1:
        values["top_k"] = _ranked(prediction, class_names, top_k)
    return values


def _ranked(prediction: "Prediction", class_names: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    order = (-prediction.probabilities).argsort(kind="stable")[:top_k]
    return [
        {"label": class_names[index], "index": int(index), "probability": float(prediction.probabilities[index])}
        for index in order
    ]
