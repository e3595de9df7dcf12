"""Options and small renderers that several verbs share."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

JSON_SCHEMA_VERSION = 1

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with four IDX files, or one folder of images per class. "
        "[default: Fashion-MNIST from $FMCAE_DATA, the cache, Debian's package or a download]",
    ),
]
ProviderOption = Annotated[
    str,
    typer.Option(
        "--provider",
        metavar="cpu|cuda",
        help="Where ONNX Runtime runs; cuda never runs on the CPU.",
        autocompletion=lambda: ["cpu", "cuda"],  # of the shell; check_provider says what is wrong
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", help="CPU threads. [default: the CPUs that this process may use]"),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PATH", help="An exported file, or a folder of them. [default: those that ship with fmcae]"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
RUNS_FOLDER = Path("runs")


def print_json(values: dict[str, Any]) -> None:
    """Print ``values`` as JSON, with the schema version first."""
    typer.echo(json.dumps({"schema_version": JSON_SCHEMA_VERSION, **values}, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """Print a line of progress or advice to stderr."""
    typer.echo(text, err=True)


def error_line(text: str) -> None:
    """Print one error as one line on stderr, red on a terminal unless NO_COLOR is set."""
    line = printable(" ".join(text.split()))
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"\033[31merror:\033[0m {line}" if colour else f"error: {line}", file=sys.stderr)


def printable(text: str) -> str:
    """``text`` without the lone surrogates that a file name in an unknown encoding has."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_stdin(paths: list[str]) -> bytes:
    """What is on stdin if one of ``paths`` is "-", else nothing."""
    return sys.stdin.buffer.read() if "-" in paths else b""
