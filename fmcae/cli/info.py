"""``fmcae info``: print the card that a file carries."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fmcae.cli.options import JsonOption, print_json, printable


def info(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="An exported file, or a folder with one. [default: the shipped classifier]"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what an exported file says of itself.

    A folder stands for its classifier.
    """
    import json

    from fmcae.runtime.model import file_name, located, read_artefact, shipped_folder

    path = shipped_folder() if file is None else located(file)
    artefact = read_artefact(Path(path) / file_name("classifier") if os.path.isdir(path) else path)
    card = json.loads(artefact.card.to_json())
    if as_json:
        print_json({"file": str(artefact.path), "size_bytes": len(artefact.content), "card": card})
        return
    typer.echo(f"{printable(str(artefact.path))}  {len(artefact.content):,} bytes, seal holds")
    confusion = card["metrics"].pop("confusion", None)
    comparisons = card["parity"].pop("comparisons", [])
    _echo(card, indent=0)
    for item in comparisons:
        if item["output"] == artefact.card.output["name"] or artefact.card.kind == "decoder":
            difference = item["difference"]
            typer.echo(
                f"  {item['output']} at batch size {item['batch_size']}: largest difference "
                f"{difference['max_abs']:.2e} absolute, {difference['max_rel']:.2e} relative"
            )
    if confusion:
        typer.echo("confusion (rows: true class, columns: predicted)")
        width = max(len(name) for name in card["class_names"])
        for name, row in zip(card["class_names"], confusion, strict=True):
            typer.echo(f"  {name:<{width}} " + " ".join(f"{count:>5}" for count in row))


def _echo(values: dict[str, object], indent: int) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            typer.echo(f"{' ' * indent}{key}")
            _echo(value, indent + 2)
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            typer.echo(f"{' ' * indent}{key}: {text}")
