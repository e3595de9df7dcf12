"""What a study found, in one file: ``results.json`` has every finished run with all that it was made from.

A report needs nothing else. The runs of several machines may be in one file, but all of one data set.
"""

import base64
import json
import shlex
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import RunError
from fmcae.files import write_atomic
from fmcae.study.grid import NOT_SETTINGS, Task, autoencoder, cells_of_runs

if TYPE_CHECKING:
    from fmcae.data import Dataset
    from fmcae.train.run import Run

SCHEMA_VERSION = 2
FILE = "results.json"
EXAMPLES = 8  # test images in Figure Ap.1
_DIGITS = 6


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        cells: the cells that it belongs to, such as "table-1: n=64".
        config: its whole configuration, defaults included.
        autoencoder: the name of the run whose autoencoder it starts from, or None.
        data: the name and the fingerprint of its data.
        machine: the hardware, date (ISO 8601) the day, and recorded says when these two were written down.
        epochs: by metric ("train_mse", "val_accuracy", ...), its value after each epoch.
        test: by metric, its value on the test split after the last epoch.
        confusion: (K, K) counts on test, rows are the true classes; None for an autoencoder.
        seconds: the time of training, without evaluation.
    """

    name: str
    cells: list[str]
    config: dict[str, Any]
    autoencoder: str | None
    data: dict[str, str]
    machine: dict[str, Any]
    versions: dict[str, str]
    date: str
    recorded: str
    epochs: dict[str, list[float]]
    test: dict[str, float]
    confusion: NDArray[np.int64] | None
    seconds: float


@dataclass(frozen=True)
class Results:
    """All finished runs by name, and what else the report needs.

    Attributes:
        data: the data's name, class_names, counts, split_seed and fingerprint.
        examples: by run name, reconstructions (N, 28, 28) uint8 of the first test images; those are under "x".
    """

    runs: dict[str, RunResult]
    data: dict[str, Any]
    examples: dict[str, NDArray[np.uint8]]

    def find(self, task: Task) -> RunResult | None:
        """Return the task's run if it is finished.

        Raises:
            RunError: the run of that name, or its autoencoder, was trained with other settings.
        """
        if task.needs:
            self.find(task.needs)
        run = self.runs.get(task.name)
        if run:
            check_settings(task, run.config, run.autoencoder)
        return run


def check_settings(task: Task, config: Mapping[str, Any], autoencoder: str | None) -> None:
    """Check that a run was trained with what its task asks for, its defaults included.

    The name of a run leaves defaults out. So a run from before a default was changed has the name of one from after.

    Raises:
        RunError: naming the first setting that differs.
    """
    wanted = _flat(task.config.to_json()) | {"autoencoder": task.needs.name if task.needs else None}
    for name, value in (_flat(config) | {"autoencoder": autoencoder}).items():
        if value != wanted.get(name, value):
            raise RunError(
                f"{task.name}: was trained with {name} (={value}), not {wanted[name]}, which it is today: "
                "take another folder for the study"
            )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (*config["network"].items(), *config.items()) if name not in NOT_SETTINGS}


def check_study(folder: Path, tasks: Iterable[Task], dataset: "Dataset") -> set[str]:
    """Check that the runs in a study's folder are of these data and settings; return the names in ``results.json``.

    Raises:
        RunError: a run is of other data or settings, or ``results.json`` is damaged.
    """
    from fmcae.train.run import find_runs

    found = {run.folder.name: run for run in find_runs(folder / "runs")}
    results = read(folder, missing_ok=True)
    _check_data([(run.folder, run.data) for run in found.values()], dataset)
    _check_data([(folder / FILE, run.data) for run in results.runs.values()], dataset)
    for task in tasks:
        results.find(task)
        if run := found.get(task.name):
            check_settings(task, run.config.to_json(), _source(run))
    return set(results.runs)


def _check_data(trained_on: Iterable[tuple[Path, Mapping[str, Any]]], dataset: "Dataset") -> None:
    fingerprint = dataset.fingerprint
    for place, data in trained_on:
        if data["fingerprint"] != fingerprint:
            raise RunError(
                f"{place}: was trained on {data['name']} (fingerprint {data['fingerprint'][:12]}…), and the data are now "
                f"{dataset.name} (fingerprint {fingerprint[:12]}…): name the first with --data, or another --out"
            )


def collect(folder: Path, dataset: "Dataset") -> None:
    """Add every finished run below ``folder`` to ``results.json``, whose other runs stay.

    Raises:
        RunError: a run was trained on other data than ``dataset``, or its files are damaged.
    """
    from fmcae.train.run import find_runs

    runs = [run for run in find_runs(folder / "runs") if run.finished and run.config.stage != "both"]
    if not runs:
        return
    _check_data([(run.folder, run.data) for run in runs], dataset)
    path = folder / FILE
    before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"runs": {}, "examples": {}}
    found = before["runs"] | {run.folder.name: _run_to_json(run) for run in runs}
    examples = before["examples"] or {name: _pack(images) for name, images in _examples(folder, dataset).items()}
    content = {"schema_version": SCHEMA_VERSION, "data": runs[0].data, "examples": examples}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))  # one for each run
    write_atomic(path, json.dumps(content, indent=1).removesuffix("\n}") + ',\n "runs": {\n' + lines + "\n }\n}\n")


def read(folder: Path, *, missing_ok: bool = False) -> Results:
    """Read ``results.json``; with ``missing_ok`` there are no results without one.

    Raises:
        RunError: it is missing or damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text())
        if content["schema_version"] != SCHEMA_VERSION:
            raise RunError(f"{path}: schema_version (={content['schema_version']}) must be {SCHEMA_VERSION}")
        runs = {}
        for name, values in content["runs"].items():
            confusion = values.pop("confusion")
            counts = None if confusion is None else np.array(confusion, np.int64)
            runs[name] = RunResult(name=name, confusion=counts, **values)
        return Results(runs, content["data"], {name: _unpack(text) for name, text in content["examples"].items()})
    except FileNotFoundError as error:
        if missing_ok:
            return Results({}, {}, {})
        raise RunError(
            f"{folder}: has no {FILE}; make it with  fmcae study run --out {shlex.quote(str(folder))}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise RunError(f"{path}: is damaged: {error}") from error


def _run_to_json(run: "Run") -> dict[str, Any]:
    records = run.metrics(run.config.stage)
    epochs = [record for record in records if "epoch" in record]
    if not epochs or records[-1].get("split") != "test":
        raise RunError(f"{run.folder}: is finished, and its metrics are not there")
    test = records[-1]
    return {
        "cells": cells_of_runs(run.config.seed, run.config.epochs).get(run.folder.name, []),
        "config": run.facts(run.config.stage)["config"],
        "autoencoder": _source(run),
        "data": {name: run.data[name] for name in ("name", "fingerprint")},
        "machine": run.machine,
        "versions": run.versions,
        "date": run.started,
        "recorded": "when the run started",
        "epochs": {
            key: [round(record[key], _DIGITS) for record in epochs]
            for key in epochs[0]
            if key.startswith(("train_", "val_"))
        },
        "test": {key.removeprefix("test_"): value for key, value in test.items() if key.startswith("test_")},
        "confusion": test.get("confusion"),
        "seconds": round(sum(record["seconds"] for record in epochs), 1),
    }


def _source(run: "Run") -> str | None:
    return Path(run.config.autoencoder_from).name if run.config.autoencoder_from else None


def _examples(folder: Path, dataset: "Dataset") -> dict[str, NDArray[np.uint8]]:
    """Reconstructions with and without pooling by the first seed that has both; empty without."""
    import torch

    from fmcae.preprocess import scale
    from fmcae.train.run import open_run

    for seed in range(100):
        paths = [folder / "runs" / autoencoder(seed, pooling=pooling).name for pooling in (True, False)]
        if all((path / "autoencoder.safetensors").is_file() for path in paths):
            examples = {"x": dataset.test.images[:EXAMPLES]}
            for path in paths:
                with torch.no_grad():
                    x_hat = open_run(path).network("autoencoder")(torch.from_numpy(scale(examples["x"])))
                examples[path.name] = np.rint(255 * x_hat[:, 0].numpy()).astype(np.uint8)
            return examples
    return {}


def _pack(images: NDArray[np.uint8]) -> str:
    return base64.b85encode(zlib.compress(images.tobytes(), 9)).decode()


def _unpack(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8).reshape(-1, 28, 28)
