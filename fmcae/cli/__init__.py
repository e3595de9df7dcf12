"""The ``fmcae`` command: one module a verb, each of which parses, calls and renders.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 an extra is missing,
4 the provider asked for is not what ran, 5 a gate did not hold, 130 stopped by Ctrl-C, 141 nobody reads stdout any more.
"""

import io
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer

from fmcae import __version__
from fmcae.cli.help import Verb, Verbs
from fmcae.cli.options import error_line
from fmcae.errors import FmcaeError
from fmcae.runtime.session import lacks_memory

VERBS = (
    "train", "export", "parity", "verify", "info", "predict", "evaluate", "reconstruct", "encode", "bench", "doctor",
    "serve", "study",
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fmcae {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def app_for(arguments: list[str]) -> typer.Typer:
    """Build the command with every verb, or only with the one that ``arguments`` name: importing all takes 10 ms."""
    app = typer.Typer(
        cls=Verbs,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: it starts faster, wraps better and can be piped
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Fashion-MNIST autoencoder and classifier: train, export to ONNX, verify, predict, measure.",
        callback=_root,
    )
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    for verb in (first,) if first in VERBS else VERBS:
        command = getattr(import_module(f"fmcae.cli.{verb}"), verb)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=verb)
        else:
            app.command(cls=Verb)(command)
    return app


def main() -> None:
    """Run the command line; an error is one line on stderr and an exit code, and typer explains wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an ASCII terminal or log cannot show must not end the run
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a GPU without memory is said once, by the error
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options  # accepted before and after the verb
    sys.argv[1:] = [option for option in options if option != "--debug"] + arguments[len(options) :]
    try:
        try:
            app_for(sys.argv[1:])(_expanded(sys.argv[1:]), prog_name="fmcae")
        finally:
            sys.stdout.flush()  # here, where what goes wrong has its handler
    except FmcaeError as error:
        _fail(str(error), error.exit_code, debug)
    except Exception as error:
        _fail(_reason(error), 1, debug)


def _expanded(arguments: list[str]) -> list[str]:
    """On Windows, whose shells leave it to programs, put for a pattern the files that it matches; a file's name is none."""
    if os.name != "nt":
        return arguments
    import glob

    found: list[str] = []
    for word in arguments:
        path = word if os.path.lexists(word) else os.path.expanduser(word)
        is_pattern = glob.has_magic(path) and "**" not in path and not os.path.lexists(path)  # predict itself knows **
        found += (sorted(glob.glob(path)) if is_pattern else []) or [path]
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError) or lacks_memory(error):
        return f"out of memory{_memory_limit()}"
    kind = type(error)
    if kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch"):  # which may not be imported here
        facts = ". ".join(
            str(error).removeprefix("CUDA out of memory. ").split(". ")[:2]
        )  # the rest is about its allocator
        return f"the GPU is out of memory: {facts}; nvidia-smi names the programs that take it"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    if isinstance(error, ImportError):
        last_line = str(error).strip().rpartition("\n")[2]  # numpy's own advice comes first
        return f"a package cannot be imported ({last_line}): fmcae doctor names the command that mends it"
    return f"internal error: {type(error).__name__}: {error} (--debug shows where)"


def _memory_limit() -> str:
    with suppress(ImportError, MemoryError):  # Windows has no such limit, and a process without memory no module
        import resource

        limit_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit_bytes != resource.RLIM_INFINITY:
            return f": ulimit -v allows this process {limit_bytes / 2**20:,.0f} MiB"
    return ""


def _fail(message: str, exit_code: int, debug: bool) -> None:
    if debug:
        raise
    error_line(message)
    sys.exit(exit_code)
