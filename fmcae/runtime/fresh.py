"""Call a function of fmcae in a fresh Python process, because it must start cold or may crash."""

import subprocess
import sys
from pathlib import Path


def call_in_fresh_process(
    module: str, function: str, argument: str, timeout_s: float | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run ``module.function(argument)`` in a new process of this interpreter, with its output captured.

    Raises:
        subprocess.TimeoutExpired: it did not end in time, and was killed.
    """
    # The folder goes behind all others, so that it shadows nothing there; only a checkout needs it.
    code = (
        "import sys, importlib; sys.path.append(sys.argv[1]); "
        "getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(sys.argv[4])"
    )
    folder = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, folder, module, function, argument]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
