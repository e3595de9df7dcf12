# mypy: disable-error-code="import-untyped"
import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmcae.runtime import machine
from fmcae.runtime.machine import (
    available_cpus,
    describe_hardware,
    describe_machine,
    driver_obstacle,
    gpu_address,
    gpu_facts,
)


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense"}, 8),
        (  # the parent's quota holds for its children
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            3,
        ),
        (  # version 1; the path is the host's, the mount the container's own
            {
                "proc/self/cgroup": "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_available_cpus_respects_the_containers_quota(
    tmp_path: Path, eight_cpus: None, files: dict[str, str], expected: int
) -> None:
    assert available_cpus(write(tmp_path, files)) == expected


@given(quota=st.integers(1, 10**9), period=st.integers(1, 10**6))
def test_any_quota_leaves_a_cpu_and_adds_none(
    tmp_path_factory: pytest.TempPathFactory, quota: int, period: int
) -> None:
    root = tmp_path_factory.mktemp("root")
    write(root, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} {period}\n"})
    assert 1 <= available_cpus(root) <= available_cpus(root / "none")


@pytest.mark.parametrize(
    ("init", "count", "expected"),
    [
        (0, 1, None),
        (0, 0, "the NVIDIA driver finds no GPU"),
        (100, 0, "the NVIDIA driver finds no GPU"),
        (803, 0, "the NVIDIA driver does not start (CUDA error 803)"),
    ],
)
def test_the_driver_is_asked_for_its_gpus(
    monkeypatch: pytest.MonkeyPatch, init: int, count: int, expected: str | None
) -> None:
    def device_count(pointer: Any) -> int:
        pointer._obj.value = count
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=device_count)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert driver_obstacle() == expected


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvidia-smi is a shell script")
def test_the_gpu_is_described_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    address = "0000:41:00.0"
    monkeypatch.setattr(machine, "gpu_address", lambda: address)
    assert gpu_facts() is None
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\n[ "$4" = 0000:41:00.0 ] || exit 9\necho "NVIDIA L4, 570.86.15, 12, 23034"\n')
    script.chmod(0o755)
    expected = {"name": "NVIDIA L4", "driver": "570.86.15", "memory_used_mib": 12, "memory_total_mib": 23034}
    assert gpu_facts() == expected
    assert gpu_facts(address) == expected
    assert gpu_facts("0000:01:00.0") is None
    script.write_text('#!/bin/sh\necho "NVIDIA GB10, 580.95.05, [N/A], [N/A]"\n')
    assert gpu_facts() == {
        "name": "NVIDIA GB10",
        "driver": "580.95.05",
        "memory_used_mib": None,
        "memory_total_mib": None,
    }
    monkeypatch.setattr(machine, "gpu_address", lambda: None)
    assert gpu_facts() is None
    script.write_text("#!/bin/sh\necho No devices were found\n")
    assert gpu_facts(address) is None


def test_the_address_of_a_gpu_is_what_the_driver_says_of_cudas_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(pointer: Any, ordinal: int) -> int:
        pointer._obj.value = 7 + ordinal
        return 0

    def address(buffer: Any, size: int, device: Any) -> int:
        buffer.value = b"0000:41:00.0"
        return 0 if device.value == 7 and size == len(buffer) else 1

    driver = SimpleNamespace(cuDeviceGet=device, cuDeviceGetPCIBusId=address)
    monkeypatch.setattr(machine, "driver_obstacle", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert gpu_address() == "0000:41:00.0"
    driver.cuDeviceGetPCIBusId = lambda *_: 101
    assert gpu_address() is None
    del driver.cuDeviceGetPCIBusId
    assert gpu_address() is None
    monkeypatch.setattr(machine, "driver_obstacle", lambda: "no NVIDIA driver is found")
    assert gpu_address() is None


def test_the_machine_is_described() -> None:
    facts = describe_machine()
    assert facts["onnxruntime"] == onnxruntime.__version__
    assert facts["available_cpus"] == available_cpus()
    assert facts["cpu"] and facts["python"] and facts["numpy"] == np.__version__


def test_the_hardware_is_described_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    facts = describe_hardware()
    assert set(facts) == {"cpu", "cpu_model", "available_cpus", "memory_gib", "platform"}
    if sys.platform == "linux":
        assert re.fullmatch(rf"Linux-{platform.machine()}(-with-.+)?", facts["platform"]), "no kernel's release"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "cpu family" in (text := cpuinfo.read_text()):
        assert re.fullmatch(r"family \d+, model \d+, stepping \d+", facts["cpu_model"])
        assert f"cpu family\t: {facts['cpu_model'].split(',')[0].split()[1]}\n" in text
    assert facts["memory_gib"] is None or facts["memory_gib"] > 0
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert describe_hardware()["memory_gib"] is None


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, fmcae.runtime.machine\n"
        "print([n for n in ('onnxruntime', 'numpy', 'torch', 'ctypes', 'subprocess', 'platform') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
