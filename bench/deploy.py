"""Measure what the light install takes on disk, and find its wheels for other processors.

    python bench/deploy.py --out bench/results/deploy.json

A wheel of this checkout is installed with its dependencies for Linux on x86-64 and on aarch64, as pip resolves it for one
version of Python, without running it: that is what a container image or a zip file for AWS Lambda gets on top of its base.
Then each dependency is asked for on the package index, for each version of Python and each processor.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from reports import write_report

from fmcae import __version__

ROOT = Path(__file__).parents[1]
PYTHON = "3.12"  # of the installs that are measured
PYTHONS = "3.10", "3.11", "3.12", "3.13", "3.14"
# What a wheel may ask of the C library; Debian 12, Raspberry Pi OS 12 and Amazon Linux 2023 have glibc 2.34 or newer.
GLIBC = "manylinux2014", "manylinux_2_27", "manylinux_2_28"
PROCESSORS = "x86_64", "aarch64", "armv7l"


def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--disable-pip-version-check", "-q"]
    return subprocess.run(command, capture_output=True, text=True)


def platform(processor: str, python: str) -> list[str]:
    names = [word for glibc in GLIBC for word in ("--platform", f"{glibc}_{processor}")]
    return ["--only-binary=:all:", "--python-version", python, *names]


def measure_install(wheel: Path, processor: str, work: Path) -> dict[str, Any]:
    """The size of what ``pip install`` writes, by package, with and without Python's bytecode, and compressed."""
    folder = work / processor
    result = pip("install", "--no-compile", "--target", folder, *platform(processor, PYTHON), wheel)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(work / f"{processor}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            name = path.relative_to(folder).parts[0]
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
            archive.write(path, path.relative_to(folder))
    plain = sum(sizes.values())
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(folder)], check=False, capture_output=True)
    bytecode = sum(path.stat().st_size for path in folder.rglob("*.pyc"))
    with tarfile.open(work / f"{processor}.tar.gz", "w:gz") as layer:  # as a container registry keeps it
        layer.add(folder, "site-packages")
    largest = sorted(sizes, key=lambda name: -sizes[name])[:6]
    return {
        "size_mb": plain / 1e6,
        "size_with_bytecode_mb": (plain + bytecode) / 1e6,
        "zip_mb": (work / f"{processor}.zip").stat().st_size / 1e6,
        "layer_with_bytecode_gz_mb": (work / f"{processor}.tar.gz").stat().st_size / 1e6,
        "packages": sum(name.endswith(".dist-info") for name in sizes),
        "largest_mb": {name: sizes[name] / 1e6 for name in largest},
    }


def requirements(wheel: Path) -> list[str]:
    """What the light install asks for, such as "numpy>=1.26"."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    wanted = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    return [requirement for requirement in wanted if "extra ==" not in requirement]


def find_wheels(names: list[str], work: Path) -> dict[str, dict[str, dict[str, str | None]]]:
    """The newest wheel of each requirement by processor and version of Python; None where there is none."""
    found: dict[str, dict[str, dict[str, str | None]]] = {}
    for processor in PROCESSORS[1:]:
        for python in PYTHONS:
            for name in names:
                folder = work / "wheels" / f"{processor}-{python}-{names.index(name)}"
                pip("download", "--no-deps", "-d", folder, *platform(processor, python), name)
                wheel = next((path.name for path in folder.glob("*.whl")), None) if folder.is_dir() else None
                found.setdefault(processor, {}).setdefault(name, {})[python] = wheel
            print(f"{processor}, Python {python}: {found[processor]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        pip("wheel", "--no-deps", "-w", work, ROOT)
        (wheel,) = work.glob("*.whl")
        installs = {processor: measure_install(wheel, processor, work) for processor in PROCESSORS[:2]}
        report = write_report(
            options.out,
            "the light install's size by processor, and the wheels of what it needs on the package index",
            fmcae=__version__,
            wheel_mb=wheel.stat().st_size / 1e6,
            python=PYTHON,
            glibc=list(GLIBC),
            installs=installs,
            wheels=find_wheels(requirements(wheel), work),
        )
    print(json.dumps(report["installs"], indent=2))


if __name__ == "__main__":
    main()
