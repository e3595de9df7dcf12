# mypy: disable-error-code="import-not-found"
"""Measure what the command line costs beyond its libraries: start, a folder of images, the first step, the disk.

    python bench/command_line.py --out bench/results/command_line.json --plot bench/results/command_line.png

Two fresh virtual environments are made from this checkout with ``pip install .`` and ``pip install '.[train]'``, and
measured: the packages in them without pip and setuptools, and then commands as whole processes, each beside the Python
line that does the least that it must do. Every round runs all commands of a comparison once; a ratio is taken within a
round, and reported as the median and the range over the rounds.

Folders hold the test set's images as PNG. They are read on one CPU, by Pillow alone and by ``fmcae predict``.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bars import Bar, draw
from PIL import Image
from reports import write_report

from fmcae.data import load_dataset
from fmcae.runtime.machine import describe_machine

ROOT = Path(__file__).parents[1]
FOLDER_SIZES = 1_000, 10_000
IMPORT = "import onnxruntime, PIL.Image, numpy"
DECODE = """
import os, sys, numpy
from PIL import Image
for entry in os.scandir(sys.argv[1]):
    with Image.open(entry.path) as image:
        numpy.asarray(image)
"""
READ = "import torch; from fmcae.data import load_dataset; load_dataset()"
# The first step's end is where its progress is told; the process ends there.
FIRST_STEP = """
import os, sys, tempfile
from fmcae.cli import main, progress
progress.Lines.step = lambda *_: os._exit(0)
sys.argv = ["fmcae", "train", "--out", tempfile.mkdtemp(dir=sys.argv[1]) + "/run"]
main()
"""
PEAK_MEMORY = """
import atexit, re, sys
from fmcae.__main__ import main
@atexit.register
def tell():
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.argv = ["fmcae", "predict", sys.argv[1]]
main()
"""


@dataclass(frozen=True)
class Command:
    arguments: list[str]
    environment: Mapping[str, str] | None = None
    cpus: frozenset[int] | None = None

    def run(self) -> float:
        """Run the command and return its wall time in seconds."""
        cpus, environment = (
            self.cpus,
            {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"},
        )
        began = time.perf_counter()
        result = subprocess.run(
            self.arguments, env={**environment, **(self.environment or {})}, capture_output=True, text=True,
            preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
        )  # fmt: skip
        wall = time.perf_counter() - began
        if result.returncode != 0:
            raise SystemExit(f"{shlex.join(self.arguments)}: {result.stderr}")
        return wall


def compare(commands: Mapping[str, Command], rounds: int) -> dict[str, Any]:
    """Measure the wall time of each command, also as a multiple of the first one's."""
    wall: dict[str, list[float]] = {name: [] for name in commands}
    for index in range(-1, rounds):  # one more to fill the file cache
        for name, command in commands.items():
            seconds = command.run()
            if index >= 0:
                wall[name].append(seconds)
    base = np.array(next(iter(wall.values())))
    rows: dict[str, dict[str, Any]] = {
        name: {
            "wall_s": spread(seconds),
            "times_base": spread(seconds / base),
            "command": shlex.join(plain(commands[name].arguments)),
        }
        for name, seconds in wall.items()
    }
    for name, row in rows.items():
        ratio = row["times_base"]
        print(
            f"  {name:52}{row['wall_s']['median']:8.3f} s  {ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
            flush=True,
        )
    return rows


def peak_memory_mib(python: str, folder: Path) -> float:
    """The peak resident memory of ``fmcae predict FOLDER``."""
    result = subprocess.run([python, "-c", PEAK_MEMORY, str(folder)], capture_output=True, text=True, check=True)
    return int(result.stderr) / 1024


def spread(values: Iterable[float]) -> dict[str, float]:
    array = np.array(list(values))
    return {"median": float(np.median(array)), "low": float(array.min()), "high": float(array.max())}


def plain(arguments: list[str]) -> list[str]:
    """The command without this machine's folders: what lies in the checkout is relative to it."""
    own = [part.removeprefix(f"{ROOT}/") for part in arguments]
    return [Path(part).name if part.startswith(tempfile.gettempdir()) else part for part in own]


def install(folder: Path, requirement: str) -> Path:
    """Make a virtual environment with this checkout and return its ``bin``."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run(
        [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", requirement],
        cwd=ROOT, check=True,
    )  # fmt: skip
    return folder / "bin"


def measure_disk(folder: Path) -> dict[str, Any]:
    """Measure size and number of the packages in a virtual environment, without those that every environment has."""
    (packages,) = folder.glob("lib/python*/site-packages")
    born_with = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence", "__pycache__")
    sizes = {
        entry.name: sum(file.lstat().st_size for file in [entry, *entry.rglob("*")] if file.is_file())
        for entry in packages.iterdir()
        if not entry.name.startswith(born_with)
    }
    names = sorted(name.split("-")[0] for name in sizes if name.endswith(".dist-info"))
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    return {
        "size_mb": sum(sizes.values()) / 1e6,
        "packages": len(names),
        "names": names,
        "largest_mb": {name: sizes[name] / 1e6 for name in largest},
    }


def write_folders(data: Path | None, work: Path) -> dict[int, Path]:
    images = load_dataset(data).test.images
    folders = {}
    for count in FOLDER_SIZES:
        folders[count] = work / f"{count}-png"
        folders[count].mkdir()
        for index, image in enumerate(images[:count]):
            Image.fromarray(image).save(folders[count] / f"{index:05}.png")
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="gzipped IDX files of Fashion-MNIST")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    parser.add_argument("--plot", type=Path, help="draw the result here as PNG")
    parser.add_argument("--from", dest="source", type=Path, help="draw this result, and measure nothing")
    options = parser.parse_args()
    report = json.loads(options.source.read_text()) if options.source else measure(options)
    if options.plot:
        panels = {
            title: {
                name: Bar(**row["times_base"], note=f"{row['wall_s']['median']:.2f} s", is_own=name.startswith("fmcae"))
                for name, row in rows.items()
            }
            for title, rows in report["comparisons"].items()
        }
        draw(
            panels,
            1,
            "wall time as a multiple of the plain Python line's (median and range of rounds)",
            options.plot,
            1,
        )


def commands_to_compare(
    light: Path, train: Path, folders: Mapping[int, Path], data: Path | None, temporary: str
) -> dict[str, dict[str, Command]]:
    """The commands of each comparison, the plain Python line first."""
    sample = str(ROOT / "exports" / "samples" / "bag.png")
    python, fmcae = str(light / "python"), str(light / "fmcae")
    one_cpu = frozenset([min(os.sched_getaffinity(0))])
    completing = {"_FMCAE_COMPLETE": "complete_bash", "COMP_WORDS": "fmcae predict --", "COMP_CWORD": "2"}
    settings = {"FMCAE_DATA": str(data)} if data else None
    first_step = [str(train / "python"), "-c", FIRST_STEP, temporary]
    return {
        "start": {
            f"python -c '{IMPORT}'": Command([python, "-c", IMPORT]),
            "fmcae predict bag.png": Command([fmcae, "predict", sample]),
            "fmcae --help": Command([fmcae, "--help"]),
            "fmcae --version": Command([fmcae, "--version"]),
            "fmcae predict --<Tab>": Command([fmcae], completing),
        },
        **{
            f"{count:,} PNG files, one CPU": {
                "Pillow alone": Command([python, "-c", DECODE, str(folders[count])], cpus=one_cpu),
                "fmcae predict": Command([fmcae, "predict", str(folders[count])], cpus=one_cpu),
            }
            for count in FOLDER_SIZES
        },
        "first step of training": {
            "import torch; load_dataset()": Command([str(train / "python"), "-c", READ], settings),
            "fmcae train, to its first step": Command(first_step, settings),
        },
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        light, train = install(work / "light", "."), install(work / "train", ".[train]")
        disk = {"pip install .": measure_disk(work / "light"), "pip install '.[train]'": measure_disk(work / "train")}
        for name, row in disk.items():
            print(f"{name}: {row['size_mb']:,.0f} MB in {row['packages']} packages", flush=True)
        folders = write_folders(options.data, work)
        comparisons = commands_to_compare(light, train, folders, options.data, temporary)
        results = {}
        for title, commands in comparisons.items():
            print(title)
            results[title] = compare(commands, options.rounds)
        python = str(light / "python")
        memory = {f"{count:,} PNG files": peak_memory_mib(python, folders[count]) for count in FOLDER_SIZES}
        print(f"peak memory of fmcae predict, in MiB: {memory}")
    return write_report(
        options.out,
        "wall time of whole processes, and ratios to the first command within each round",
        rounds=options.rounds,
        disk=disk,
        comparisons=results,
        predict_peak_memory_mib=memory,
        machine=describe_machine(),
    )


if __name__ == "__main__":
    main()
