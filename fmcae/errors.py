"""The errors that fmcae raises on purpose, each one clear line with the exit code that the command line gives it."""

import shlex
import sys


def quoted(word: str) -> str:
    """A word in quotes that the user's shell takes: POSIX's, or on Windows those that cmd.exe and PowerShell both know."""
    return f'"{word}"' if sys.platform == "win32" else f"'{word}'"


INSTALL = f"pip install {quoted('.[{extra}]')}  in fmcae's checkout"
EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors", "numba", "filelock", "jinja2", "scipy")
INSTALL_TRAIN = INSTALL.format(extra="train")


class FmcaeError(Exception):
    """Something failed for a reason that the message names. Exit code 1."""

    exit_code = 1


class UsageError(FmcaeError, ValueError):
    """An argument breaks a rule; the message names parameter, value and rule. Exit code 2."""

    exit_code = 2


class MissingExtraError(FmcaeError, ImportError):
    """A package of an optional extra is not installed. Exit code 3."""

    exit_code = 3


class ProviderError(FmcaeError):
    """The execution provider that was asked for is not the one that runs. Exit code 4."""

    exit_code = 4


class GateError(FmcaeError):
    """A gate (parity, accuracy, verify) did not hold. Exit code 5."""

    exit_code = 5


class ImageError(FmcaeError):
    """A file or array cannot be read as an image."""


class DataError(FmcaeError):
    """A data set is missing, incomplete or damaged."""


class ArtefactError(FmcaeError):
    """A file is not an fmcae artefact, or no longer the one that was exported."""


class RunError(FmcaeError):
    """A run folder is missing, incomplete or does not fit what was asked."""


def command_line(*words: object) -> str:
    """Return a command as the user's shell takes it: POSIX's, or on Windows cmd.exe and PowerShell."""
    import subprocess  # only here, for what its import takes

    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)


def require_extra(extra: str, *modules: str) -> None:
    """Raise MissingExtraError, with the command to run, if a package of an optional extra is not installed."""
    from importlib.util import find_spec

    for module in modules:
        if find_spec(module) is None:
            need = f"this command needs {module}, which is not installed"
            raise MissingExtraError(f"{need}: run  {INSTALL.format(extra=extra)}")
