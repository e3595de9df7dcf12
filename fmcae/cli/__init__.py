"""The ``fmcae`` command: one module a verb, each of which parses, calls and renders.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 an extra is missing,
4 the provider asked for is not what ran, 5 a gate did not hold, 130 stopped by Ctrl-C.
"""

import io
import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from fmcae import __version__
from fmcae.cli.options import error_line
from fmcae.errors import FmcaeError

VERBS = ("train", "export", "parity", "verify", "info", "predict", "reconstruct", "encode", "bench", "doctor", "study")


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
            app.command()(command)
    return app


def main() -> None:
    """Run the command line; an error is one line on stderr and an exit code, and typer explains wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an ASCII terminal or log cannot show must not end the run
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options  # accepted before and after the verb
    sys.argv[1:] = [option for option in options if option != "--debug"] + arguments[len(options) :]
    try:
        try:
            app_for(sys.argv[1:])(prog_name="fmcae")
        finally:
            sys.stdout.flush()  # here, where what goes wrong has its handler
    except FmcaeError as error:
        _fail(str(error), error.exit_code, debug)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}", 1, debug)
    except MemoryError:
        _fail("out of memory; try a smaller batch", 1, debug)
    except Exception as error:
        _fail(f"internal error: {type(error).__name__}: {error} (--debug shows where)", 1, debug)


def _fail(message: str, exit_code: int, debug: bool) -> None:
    if debug:
        raise
    error_line(message)
    sys.exit(exit_code)
