"""The machine that a process runs on."""

import os
import platform
from typing import Any

from fmcae.runtime.session import _cpu_name, available_cpus, describe_machine

__all__ = ["available_cpus", "describe_hardware", "describe_machine"]


def describe_hardware() -> dict[str, Any]:
    """The CPU's name, the CPUs that this process may use, the memory in GiB (None if unknown), and the platform."""
    try:
        memory_gib = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        memory_gib = None
    return {
        "cpu": _cpu_name(),
        "available_cpus": available_cpus(),
        "memory_gib": memory_gib,
        "platform": platform.platform(),
    }
