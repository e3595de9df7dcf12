"""``fmcae predict``: a label and a probability for each image."""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

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

    Row: TypeAlias = tuple[Outcome, list[dict[str, Any]]]  # with its top labels, none if it has an error

PathsArgument = Annotated[
    list[str], typer.Argument(metavar="PATH", help="Image files, folders, globs, or - for an image on stdin.")
]
RANK_COLUMNS = ("label", "index", "probability")


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
    class_names = loaded.class_names
    if top_k > len(class_names):
        raise UsageError(f"top_k (={top_k}) must be an integer from 1 to {len(class_names)}, the number of classes")
    session = loaded.session("classifier")
    facts = {"provider": session.provider, "model": str(loaded.artefacts["classifier"].path)}
    stdin = read_stdin(paths)
    failed: list[str] = []

    def rows() -> "Iterator[Row]":
        for outcome in predict_images(loaded, paths, stdin):
            if outcome.prediction is None:
                error_line(str(outcome.error))
                failed.append(outcome.path)
            yield outcome, _ranked(outcome.prediction, class_names, top_k) if outcome.prediction else []

    write = _write_json if as_json else _write_csv if as_csv else _write_lines
    write(rows(), top_k, facts)
    if failed:
        raise typer.Exit(1)


def _ranked(prediction: "Prediction", class_names: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    probabilities = prediction.probabilities
    order = (-probabilities).argsort(kind="stable")[:top_k].tolist()
    return [dict(zip(RANK_COLUMNS, (class_names[i], i, float(probabilities[i])), strict=True)) for i in order]


def _write_lines(rows: "Iterable[Row]", top_k: int, facts: dict[str, str]) -> None:
    for outcome, ranked in rows:
        if ranked:
            labels = "  ".join(f"{item['label']} {item['probability']:.4f}" for item in ranked)
            print(f"{printable(outcome.path)}: {labels}")  # typer.echo would flush each line


def _write_csv(rows: "Iterable[Row]", top_k: int, facts: dict[str, str]) -> None:
    import csv

    columns = [f"{name}{'' if rank == 1 else f'_{rank}'}" for rank in range(1, top_k + 1) for name in RANK_COLUMNS]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", *columns, *facts, "error"])
    for outcome, ranked in rows:
        cells = [value for item in ranked for value in item.values()] or [""] * len(columns)
        writer.writerow([outcome.path, *cells, *(facts.values() if ranked else [""] * len(facts)), outcome.error or ""])


def _write_json(rows: "Iterable[Row]", top_k: int, facts: dict[str, str]) -> None:
    """One object per image, written as it comes, so that memory stays flat over any number of images."""
    separator = "\n"
    print(f'{{"schema_version": {JSON_SCHEMA_VERSION}, "predictions": [', end="")
    for outcome, ranked in rows:
        values: dict[str, Any] = {"path": outcome.path}
        if outcome.prediction is None:
            values["error"] = str(outcome.error)
        else:
            probabilities = outcome.prediction.probabilities.tolist()
            values |= {**ranked[0], "probabilities": probabilities, **facts}
            values |= {"top_k": ranked} if top_k > 1 else {}
        print(f"{separator}  {json_text(values)}", end="")
        separator = ",\n"
    print("\n]}")
