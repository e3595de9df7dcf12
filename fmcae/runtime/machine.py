"""The machine: its CPUs and their share, its memory and GPU, and the versions that a measurement depends on.

Nothing heavy is imported with this module; each probe imports what it needs.
"""

import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MODEL = ("cpu family", "model", "stepping")  # of /proc/cpuinfo, on x86
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def available_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: its affinity, cut to the container's quota (rounded up), at least 1.

    ``root`` is the folder that holds ``proc`` and ``sys``.

    Source: the kernel's documentation, cgroup-v2 "cpu.max" and cgroup-v1 "cpu.cfs_quota_us".
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *map(math.ceil, _cgroup_quotas(root))]))


def platform_name() -> str:
    """Return the system, the processor's kind and the C library, without a Linux kernel's release.

    The release decides nothing here and can name a private build.
    """
    import platform

    name = platform.platform()
    return name.replace(f"-{platform.release()}", "", 1) if sys.platform == "linux" else name


def describe_hardware() -> dict[str, Any]:
    """Return the platform, the CPU's name and model, the CPUs that this process may use, and the memory in GiB.

    ``cpu_model`` is such as "family 25, model 1, stepping 1", since many CPUs share a name. None stands for the unknown.
    """
    import platform

    lines = _read(Path("/proc/cpuinfo")).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware"))]
    numbers = [re.search(rf"^{name}\s*: (\d+)$", "\n".join(lines), re.MULTILINE) for name in _MODEL]
    model = ", ".join(f"{name.split()[-1]} {found[1]}" for name, found in zip(_MODEL, numbers, strict=True) if found)
    try:
        memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        memory_gib = None
    return {
        "platform": platform_name(),
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpu_model": model or None,
        "available_cpus": available_cpus(),
        "memory_gib": memory_gib,
    }


def describe_machine() -> dict[str, Any]:
    """Return what a measurement depends on: the hardware, and versions; None for a package that is not installed."""
    import platform
    from importlib import import_module

    from fmcae import __version__

    ort = import_module("onnxruntime")
    return {
        "fmcae": __version__,
        "python": platform.python_version(),
        **describe_hardware(),
        "numpy": installed_version("numpy"),
        "onnxruntime": ort.__version__,
        "onnxruntime_build": ort.get_device(),  # "CPU" or "GPU"
        "onnxruntime_cuda": getattr(ort, "cuda_version", None) or None,
        "torch": installed_version("torch"),
    }


def installed_version(name: str) -> str | None:
    """Return the version of a distribution without importing it; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def driver_obstacle() -> str | None:
    """Return what keeps the NVIDIA driver from giving a GPU, in a few words; None if it has one.

    Source: CUDA Driver API, cuInit and cuDeviceGetCount.
    """
    import ctypes

    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return "no NVIDIA driver is found"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status == 100 or (status == 0 and count.value == 0):  # CUDA_ERROR_NO_DEVICE
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        among = "" if listed is None else f" among those that CUDA_VISIBLE_DEVICES (={listed}) lists"
        return f"the NVIDIA driver finds no GPU{among}"
    return f"the NVIDIA driver does not start (CUDA error {status})" if status != 0 else None


def gpu_address() -> str | None:
    """Return the PCI address of CUDA's device 0, such as "0000:01:00.0"; None without a GPU. It starts the driver.

    Source: CUDA Driver API, cuDeviceGet and cuDeviceGetPCIBusId.
    """
    import ctypes

    if driver_obstacle() is not None:
        return None
    driver, device, text = ctypes.CDLL(_DRIVER), ctypes.c_int(0), ctypes.create_string_buffer(32)
    try:
        status = driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetPCIBusId(text, len(text), device)
    except AttributeError:  # what stands in for a driver may not have them
        return None
    return None if status else text.value.decode("ascii")


def gpu_facts(address: str | None = None) -> dict[str, Any] | None:
    """Return a GPU's name, driver and memory from nvidia-smi; None if they cannot be had.

    The memory alone is None where nvidia-smi does not tell it, as of a GPU that shares the machine's.

    Args:
        address: its PCI address, or None for that of :func:`gpu_address`. nvidia-smi counts GPUs by it, and CUDA the fastest
            first, among those that CUDA_VISIBLE_DEVICES lists.
    """
    import subprocess

    address = address or gpu_address()
    if address is None:
        return None
    query = "--query-gpu=name,driver_version,memory.used,memory.total"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", "-i", address]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        name, driver, used, total = (field.strip() for field in answer.splitlines()[0].split(","))
        memory = {"memory_used_mib": _number(used), "memory_total_mib": _number(total)}
        return {"name": name, "driver": driver, **memory}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # such as "[N/A]"
        return None


def peak_memory_mib() -> float | None:
    """Return this process's peak resident memory in MiB; None where the system does not tell."""
    # Not ru_maxrss, which on Linux a child inherits from a larger parent.
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return None


def cpu_times_ns() -> tuple[int, int]:
    """Return how long this process's threads have run and have waited for a CPU; zeros where the system does not tell.

    Source: the kernel's documentation, scheduler/sched-stats, "/proc/<pid>/schedstat".
    """
    ran = waited = 0
    try:
        for path in Path("/proc/self/task").glob("*/schedstat"):
            thread_ran, thread_waited, _ = map(int, path.read_text(encoding="ascii").split())
            ran, waited = ran + thread_ran, waited + thread_waited
    except (OSError, ValueError):
        return 0, 0
    return ran, waited


def _cgroup_quotas(root: Path) -> Iterator[float]:
    """Find the CPU quotas of this process's control groups and their parents, in CPUs."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")  # version 2 names no controllers
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        # A container often sees its host's path but only its own mount: what is not there is passed over.
        folder = mount / group.strip("/")
        for parent in (folder, *folder.parents):
            try:
                quota, period = map(int, " ".join(_read(parent / name) for name in names).split())
            except ValueError:  # "max" or an absent file: no quota
                quota = period = 0
            if quota > 0 and period > 0:  # version 1 writes -1 for no quota
                yield quota / period
            if parent == mount:
                break


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
