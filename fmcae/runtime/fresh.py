"""Call a function of fmcae in a fresh Python process, because it must start cold or may crash."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fmcae.errors import FmcaeError


def call_in_fresh_process(module: str, function: str, argument: str, timeout_s: float | None = None) -> Any:
    """Run ``module.function(argument)`` in a new process of this interpreter and return the JSON that it prints.

    Raises:
        FmcaeError: the process failed, or did not end in time and was killed. The message says how; an FmcaeError that was
            raised there keeps its own.
    """
    # The folder goes behind all others, so that it shadows nothing there; only a checkout needs it. The current folder,
    # which -c puts in front, may hold anything.
    code = (
        "import sys; sys.path = [*filter(None, sys.path), sys.argv[1]]; import importlib; "
        "getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(sys.argv[4])"
    )
    folder = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, folder, module, function, argument]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise FmcaeError(f"the fresh process hangs: no answer in {timeout_s} s") from error
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or ["no message"]
        name, _, reason = lines[-1].partition(": ")
        if name.startswith(FmcaeError.__module__):
            raise FmcaeError(reason)
        raise FmcaeError(f"the fresh process crashed (exit code {child.returncode}): {lines[-1]}")
    return json.loads(child.stdout.splitlines()[-1])
