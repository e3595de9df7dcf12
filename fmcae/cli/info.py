"""``fmcae info``: print the card that a file carries."""

import os
from typing import Annotated

import typer

from fmcae.cli.options import JsonOption, complete_model, echo, echo_parity, print_json, printable, rounded

FILE_HELP = "An exported file, or a folder with one. [default: the shipped classifier]"


def info(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help=FILE_HELP, autocompletion=complete_model)] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what an exported file says of itself.

    A folder stands for its classifier, or without one for its encoder.
    """
    from dataclasses import asdict

    from fmcae.runtime.model import artefact_files, read_artefact, resolve_path, shipped_folder

    path = shipped_folder() if file is None else resolve_path(file)
    files = artefact_files(path) if os.path.isdir(path) else {}
    artefact = read_artefact(files.get("classifier") or next(iter(files.values()), path))
    facts = {"size_bytes": len(artefact.content), "made_for": artefact.card.providers}
    card = asdict(artefact.card)
    if as_json:
        print_json({"file": str(artefact.path), **facts, "card": card})
        return
    echo(f"{printable(str(artefact.path))}  {len(artefact.content):,} bytes, seal holds")
    if not card["calibration"]:
        del card["calibration"]
    else:  # the bins are a picture's, which lies beside the model card
        card["calibration"].pop("reliability", None)
    confusion, parity = card["metrics"].pop("confusion", None), card.pop("parity")
    _echo({"made for": facts["made_for"], **card}, indent=0)
    if parity:
        echo_parity(parity)
    if confusion:
        echo("confusion (rows: true class, columns: predicted)")
        class_names = [printable(name) for name in card["class_names"]]
        width = max(map(len, class_names))
        for name, row in zip(class_names, confusion, strict=True):
            echo(f"  {name:<{width}} " + " ".join(f"{count:>5}" for count in row))


def _echo(values: dict[str, object], indent: int) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            echo(f"{' ' * indent}{printable(key)}")
            _echo(value, indent + 2)
        else:
            text = ", ".join(map(_text, value)) if isinstance(value, list | tuple) else _text(value)
            echo(f"{' ' * indent}{printable(key)}: {printable(text)}")


def _text(value: object) -> str:
    return rounded(value) if isinstance(value, float) else str(value)
