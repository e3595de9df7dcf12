"""Options and small renderers that several verbs use."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fmcae.errors import ImageError, UsageError
from fmcae.precision import Provider
from fmcae.runtime.as_json import JSON_SCHEMA_VERSION, json_text
from fmcae.runtime.session import MAX_THREADS

DATA_HELP = """Folder with four IDX files, or one folder of images per class, also in train, val and test.
[default: Fashion-MNIST from $FMCAE_DATA, the cache, Debian's package or a download]"""
DataOption = Annotated[str | None, typer.Option(metavar="DIR", help=DATA_HELP)]
RUN_DATA_HELP = "The run's data. [default: where they were when it was trained]"
RunDataOption = Annotated[str | None, typer.Option(metavar="DIR", help=RUN_DATA_HELP)]
ProviderOption = Annotated[Provider, typer.Option(help="What ONNX Runtime runs on; there is no fallback.")]
MAX_PIXELS = 64_000_000  # fmcae.images.MAX_PIXELS, without numpy
MaxPixelsOption = Annotated[
    int, typer.Option(metavar="N", min=1, max=MAX_PIXELS, help="Pixels of a picture; one with more is refused.")
]
THREADS_HELP = "CPU threads. [default: all that this process may use]"
ThreadsOption = Annotated[int | None, typer.Option(metavar="N", min=1, max=MAX_THREADS, help=THREADS_HELP)]
THRESHOLD_HELP = "Known score, 0 to 1, below which an image is unknown; 0 turns it off. [default: the model's own]"
ThresholdOption = Annotated[float | None, typer.Option(metavar="T", help=THRESHOLD_HELP)]
SHIPPED_NAMES = ["fashion-mnist", "fashion-mnist-int8", "fashion-mnist-large", "fashion-mnist-paper"]  # without numpy
MODEL_HELP = f"""An exported file, a folder of them, a run that is exported, or what ships: {", ".join(SHIPPED_NAMES[1:])}.
[default: fashion-mnist, which ships too]"""
RUNS_FOLDER = Path("runs")


def complete_run() -> list[str]:
    """The run folders in runs/, for a shell's completion."""
    return sorted(str(config.parent) for config in RUNS_FOLDER.glob("*/config.json"))


def complete_model() -> list[str]:
    """What ships and the runs that are exported, for a shell's completion."""
    return [*SHIPPED_NAMES, *(run for run in complete_run() if Path(run, "onnx").is_dir())]


ModelOption = Annotated[str | None, typer.Option(metavar="PATH", help=MODEL_HELP, autocompletion=complete_model)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
_NOT_PRINTABLE = "[\0-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


def print_json(values: dict[str, Any]) -> None:
    """Print ``values`` as JSON, with the schema version first."""
    echo(json_text({"schema_version": JSON_SCHEMA_VERSION, **values}, indent=2))


def echo(text: str, err: bool = False) -> None:
    """Print lines to stdout or stderr; a terminal's control characters in them are shown as escapes.

    Where a foreign text, such as a label, stands within a line, it goes through :func:`printable` first.
    """
    typer.echo("\n".join(map(printable, text.split("\n"))), err=err)


def echo_verdict(passed: bool, verdict: str, rest: str = "") -> None:
    """Print a line to stdout whose beginning is green or red on a terminal, by whether something passed or failed."""
    colour = ("green" if passed else "red") if shows_colours() else None
    typer.echo(typer.style(printable(verdict), fg=colour) + printable(rest) if colour else printable(verdict + rest))


def echo_parity(evidence: Mapping[str, Any]) -> None:
    """Print the parity evidence of a card: the numbers, then whether it holds."""
    from fmcae.card import parity_lines

    *lines, verdict = parity_lines(evidence).split("\n")
    echo("\n".join(lines))
    echo_verdict(evidence["passed"], verdict)


def shows_colours(err: bool = False) -> bool:
    """Whether stdout or stderr is a terminal that shows colours, and NO_COLOR is not set."""
    stream = sys.stderr if err else sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def rounded(value: float) -> str:
    """A number for people, with five digits; JSON has all of them."""
    return f"{value:.5g}"


def note(text: str) -> None:
    """Print a line of progress or advice to stderr."""
    echo(text, err=True)


def status(text: str) -> AbstractContextManager[object]:
    """Show that something takes its time, on a terminal's stderr only; nothing is left of it at the end."""
    from rich.console import Console

    return Console(stderr=True, markup=False).status(printable(text))


@contextmanager
def counting(total: int | None = None) -> Iterator[Callable[..., object]]:
    """Show on a terminal how many pictures are done; call what it gives for each, or with how many more are done.

    Without a total the predictions themselves go to stdout, and nothing is shown where that is the terminal.
    """
    if not sys.stderr.isatty() or (total is None and sys.stdout.isatty()):
        yield lambda count=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn

    done = "{task.completed:,}"
    columns = (
        (SpinnerColumn(), f"{done} pictures", TimeElapsedColumn())
        if total is None
        else (BarColumn(), f"{done} of {total:,} pictures", TimeRemainingColumn())
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=total)
        yield lambda count=1: progress.advance(task, count)


def error_line(text: str) -> None:
    """Print one error as one line on stderr, red on a terminal unless NO_COLOR is set."""
    line = printable(text.strip())
    print(f"\033[31merror:\033[0m {line}" if shows_colours(err=True) else f"error: {line}", file=sys.stderr)


def printable(text: str) -> str:
    """Foreign text on one line: what would steer a terminal, turn the reading order or is a lone surrogate, as escapes."""
    if text.isprintable():  # as nearly all is: compiling the pattern takes 1 ms, and memory when it has run out
        return text
    return re.sub(_NOT_PRINTABLE, lambda match: ascii(match[0])[1:-1], text)


def read_stdin(paths: Iterable[str]) -> bytes:
    """Read stdin if one of ``paths`` is "-", else nothing.

    Raises:
        ImageError: stdin is closed, cannot be read, or has more bytes than an image may have.
    """
    if "-" not in paths:
        return b""
    from fmcae.files import read_at_most
    from fmcae.images import MAX_FILE_BYTES

    if sys.stdin is None:
        raise ImageError("stdin: is closed")
    try:
        return read_at_most(sys.stdin.buffer, MAX_FILE_BYTES)
    except OSError as error:
        raise ImageError(f"stdin: cannot be read: {error.strerror or error}") from error


def check_out(out: Path, option: str = "out") -> None:
    """Check before any work that a file can be written where ``option`` says.

    Raises:
        UsageError: there is a folder, a pipe or a device, or the folder to write it in does not exist or is read-only.
    """
    folder = (Path(os.path.realpath(out)) if out.is_symlink() else out).parent
    if (os.path.exists(out) and not os.path.isfile(out)) or not os.path.isdir(folder):
        raise UsageError(f"{option} (={out}) must be a file in a folder that exists")
    _check_writable(folder, out, option)


def check_out_folder(out: Path, option: str = "out", writes: bool = True) -> None:
    """Check before any work that a folder is, or can be made, where ``option`` says, to write into unless not ``writes``.

    Raises:
        UsageError: a file is there, or it is read-only.
    """
    existing = next((path for path in (out, *out.parents) if os.path.exists(path)), None)
    if existing is None:  # on a drive that is not there
        raise UsageError(f"{option} (={out}) must be a folder on a drive that exists")
    if not existing.is_dir():
        raise UsageError(f"{option} (={out}) must be a folder; {'it' if existing == out else existing} is a file")
    if writes:
        _check_writable(existing, out, option)


def _check_writable(folder: Path, out: Path, option: str) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} (={out}) must be where this user may write; {folder} is read-only")


def check_is_no_input(out: Path, inputs: Iterable[str], option: str = "out") -> None:
    """Check that the file to write, which ``option`` names, is none of those to read.

    Raises:
        UsageError: it is one of them, by whatever name.
    """
    if out.exists() and any(os.path.exists(name) and os.path.samefile(name, out) for name in inputs):
        raise UsageError(f"{option} (={out}) must not be an input image")
