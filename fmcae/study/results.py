"""What a study found, in one file: ``results.json`` has every finished run with all that it was made from.

A report needs nothing else. The runs of several machines may be in one file, but all of one data set.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fmcae import metrics, schema
from fmcae.errors import FmcaeError, RunError, command_line
from fmcae.files import write_atomic
from fmcae.study.grid import COMPONENTS, INTERIOR, NOT_SETTINGS, Task, autoencoder, cells_of_runs
from fmcae.train.config import LIMITS

if TYPE_CHECKING:
    from fmcae.data import Dataset
    from fmcae.train.run import Run

SCHEMA_VERSION = 2
FILE = "results.json"
SPLITS = ("train", "val")  # that are measured after each epoch
METRICS_OF = {"autoencoder": ("mse",), "classifier": ("cross_entropy", "accuracy")}  # by stage
EXAMPLES = 8  # test images in Figure Ap.1
EXAMPLES_OF: tuple[dict[str, Any], ...] = ({}, {"pooling": False}, {"decoder_padding": False})  # their autoencoders


class _Config(TypedDict):
    network: dict[str, Any]
    epochs: Annotated[int, Meta(ge=1, le=LIMITS["epochs"][1])]
    seed: schema.Count
    stage: Literal["autoencoder", "classifier"]
    device: str
    threads: schema.Count


class _DataOfRun(TypedDict):
    name: str
    fingerprint: str


class _RunValues(TypedDict):
    cells: list[str]
    config: _Config
    autoencoder: str | None
    data: _DataOfRun
    machine: dict[str, str | float | None]
    versions: schema.Versions
    date: str
    recorded: str
    epochs: dict[str, list[schema.Number]]
    test: dict[str, schema.Number]
    confusion: schema.Confusion | None
    seconds: schema.Number


class _SecondTraining(TypedDict):
    mse: schema.Number
    machine: dict[str, str | float | None]
    versions: schema.Versions
    date: str


class _RunAgain(_RunValues, total=False):
    second_training: _SecondTraining


class _Content(schema.Versioned):
    data: schema.Data
    examples: dict[str, str]
    runs: dict[str, _RunAgain]


class _WithBaseline(_Content, total=False):
    baseline: dict[str, schema.Number]


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        cells: the cells that it belongs to, such as "table-1: n=64".
        autoencoder: the name of the run whose autoencoder it starts from.
        date: the day, ISO 8601; ``recorded`` says when it and ``machine`` were written down.
        epochs: by metric ("train_mse", "val_accuracy", ...), its value after each epoch.
        test: by metric; an autoencoder from before it was measured has no "interior_mse".
        confusion: (K, K) counts on test, rows are the true classes; None for an autoencoder.
        seconds: the time of training, without evaluation.
        second_training: where "interior_mse" is of a second training with the same seed, which the first edition's results
            lack: its ``mse``, ``machine``, ``versions`` and ``date``.
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
    second_training: dict[str, Any] | None = None


@dataclass(frozen=True)
class Results:
    """All finished runs by name, and their data's name, class_names, counts, split_seed and fingerprint.

    ``examples`` has by run name the reconstructions (N, 28, 28) uint8 of the first test images; those are under "x".
    ``baseline`` is what :func:`baseline_errors` gives, empty in results from before.
    """

    runs: dict[str, RunResult]
    data: dict[str, Any]
    examples: dict[str, NDArray[np.uint8]]
    baseline: dict[str, float] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def known(self, interior: bool = False) -> set[str]:
        """Return the names of the runs; with ``interior`` without the autoencoders that lack the interior's error."""
        return {
            name
            for name, run in self.runs.items()
            if not interior or run.confusion is not None or "interior_mse" in run.test
        }

    def find(self, task: Task) -> RunResult | None:
        """Return the task's run if it is finished.

        Raises:
            RunError: the run of that name, or its autoencoder, was trained with other settings.
        """
        run = self.runs.get(task.name)
        if task.name not in self._checked:
            if task.needs:
                self.find(task.needs)
            if run:
                check_settings(task, run.config, run.autoencoder)
            self._checked.add(task.name)
        return run


def check_settings(task: Task, config: Mapping[str, Any], autoencoder: str | None) -> None:
    """Check that a run was trained with all that its task asks for.

    The name of a run leaves defaults out. So a run from before a default was changed has the name of one from after.

    Raises:
        RunError: naming the first setting that differs.
    """
    found = {**config["network"], **config, "autoencoder": autoencoder}
    wanted = {**vars(task.config.network), **vars(task.config), "autoencoder": task.needs.name if task.needs else None}
    for name, value in found.items():
        if name not in NOT_SETTINGS - {"seed", "stage"} and value != wanted.get(name, value):
            raise RunError(
                f"{task.name}: was trained with {name} (={value}), not {wanted[name]}, which it is today: "
                "take another folder for the study"
            )


def check_study(folder: Path, tasks: Iterable[Task], dataset: "Dataset", interior: bool = False) -> set[str]:
    """Check that the runs in a study's folder are of these data and settings; return those that ``results.json`` knows.

    ``interior`` is as for :meth:`Results.known`.

    Raises:
        RunError: a run is of other data or settings, or ``results.json`` is damaged.
    """
    from fmcae.train.run import find_runs

    found = {run.folder.name: run for run in find_runs(folder / "runs")}
    results = read(folder, missing_ok=True)
    trained_on = {run.folder: run.data for run in found.values()}
    for place, data in (trained_on | ({folder / FILE: results.data} if results.runs else {})).items():
        if data["fingerprint"] != dataset.fingerprint:
            raise RunError(
                f"{place}: was trained on {data['name']} (fingerprint {data['fingerprint'][:12]}…), and the data are now "
                f"{dataset.name} (fingerprint {dataset.fingerprint[:12]}…): name the first with --data, or another --out"
            )
    for task in tasks:
        results.find(task)
        if run := found.get(task.name):
            check_settings(task, run.config.to_json(), run.autoencoder["name"] if run.autoencoder else None)
    return results.known(interior)


def collect(folder: Path, dataset: "Dataset") -> None:
    """Add every finished run below ``folder``, all of ``dataset``, to ``results.json``, whose runs stay as they are.

    A run that is there and lacks the interior's error gets that alone from a second training.

    Raises:
        RunError: a run's files are damaged.
    """
    from fmcae.train.run import find_runs

    # a run that may end early is none of the grid's
    runs = [
        run
        for run in find_runs(folder / "runs")
        if run.finished and run.config.stage != "both" and run.config.patience is None
    ]
    if not runs:
        return
    path = folder / FILE
    read(folder, missing_ok=True)  # raises if what is there is damaged
    before: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"runs": {}, "examples": {}}
    found = before["runs"] | {
        run.folder.name: _merge(before["runs"].get(run.folder.name), _run_to_json(run)) for run in runs
    }
    examples = _examples(folder, dataset, before["examples"])
    baseline = before.get("baseline") or baseline_errors(dataset.train.images, dataset.test.images)
    content = {"schema_version": SCHEMA_VERSION, "data": runs[0].data, "examples": examples, "baseline": baseline}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))  # one for each run
    write_atomic(path, json.dumps(content, indent=1).removesuffix("\n}") + ',\n "runs": {\n' + lines + "\n }\n}\n")


def read(folder: Path, *, missing_ok: bool = False) -> Results:
    """Read ``results.json``; with ``missing_ok`` there are no results without one.

    Raises:
        RunError: it is missing or damaged.
    """
    path = folder / FILE
    try:
        content = schema.parse(path.read_text(encoding="utf-8"), schema.Versioned)
        if (version := content["schema_version"]) != SCHEMA_VERSION:
            raise RunError(f"{path}: schema_version (={version}) must be {SCHEMA_VERSION}")
        schema.check(content, _WithBaseline)
        runs = {name: _run_from_json(name, values, content["data"]) for name, values in content["runs"].items()}
        examples = {name: _unpack(packed) for name, packed in content["examples"].items()}
        return Results(runs, content["data"], examples, content.get("baseline", {}))
    except FileNotFoundError as error:
        if missing_ok:
            return Results({}, {}, {})
        command = command_line("fmcae", "study", "run", "--out", folder)
        raise RunError(f"{folder}: has no {FILE}; make it with  {command}") from error
    except RunError:
        raise
    except (FmcaeError, OSError, ValueError) as error:
        raise RunError(f"{path}: is damaged: {error}") from error


def _run_from_json(name: str, values: dict[str, Any], data: dict[str, Any]) -> RunResult:
    if unknown := sorted(set(values) - {item.name for item in fields(RunResult)}):
        raise ValueError(f"{name} has the unknown key {unknown[0]}")
    if values["data"]["fingerprint"] != data["fingerprint"]:
        raise ValueError(f"{name} is of other data")
    stage, epochs, confusion = values["config"]["stage"], values["config"]["epochs"], values["confusion"]
    needed = METRICS_OF[stage]
    if not all(len(values["epochs"].get(f"{split}_{name}", ())) == epochs for split in SPLITS for name in needed):
        raise ValueError(f"{name} has not {epochs} values of each metric")
    if not set(needed) <= set(values["test"]):
        raise ValueError(f"{name} has no {' or no '.join(needed)} on test")
    if (confusion is None) != (stage == "autoencoder") or (
        confusion is not None and not schema.is_square(confusion, len(data["class_names"]))
    ):
        raise ValueError(f"{name} has no confusion matrix of its classes")
    return RunResult(name=name, **values | {"confusion": confusion and np.array(confusion, np.int64)})


def _run_to_json(run: "Run") -> dict[str, Any]:
    *epochs, test = run.metrics(run.config.stage) or [{}]
    if not epochs or test.get("split") != "test":
        raise RunError(f"{run.folder}: is finished, and its metrics are not there")
    names = [name for name in epochs[0] if name.startswith(("train_", "val_"))]
    found = {
        "cells": cells_of_runs(run.config.seed, run.config.epochs).get(run.folder.name, []),
        "config": run.facts(run.config.stage)["config"],
        "autoencoder": run.autoencoder["name"] if run.autoencoder else None,
        "data": {name: run.data[name] for name in ("name", "fingerprint")},
        "machine": run.machine,
        "versions": run.versions,
        "date": run.started,
        "recorded": "when the run started",
        "epochs": {name: [round(record[name], 6) for record in epochs if name in record] for name in names},
        "test": {name.removeprefix("test_"): value for name, value in test.items() if name.startswith("test_")},
        "confusion": test.get("confusion"),
        "seconds": round(sum(record["seconds"] for record in epochs), 1),
    }
    try:
        _run_from_json(run.folder.name, found, run.data)
    except ValueError as error:
        raise RunError(f"{run.folder}: its metrics are damaged: {error}; remove it to train it again") from error
    return found


def _merge(before: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """What ``results.json`` says of a run, from what it said ``before``, if it did, and what was now ``found``."""
    if before is None:
        return found
    merged = before | {"cells": found["cells"]}
    if "interior_mse" in found["test"] and "interior_mse" not in before["test"]:
        merged["test"] = before["test"] | {"interior_mse": found["test"]["interior_mse"]}
        merged["second_training"] = {"mse": found["test"]["mse"]} | {
            name: found[name] for name in ("machine", "versions", "date")
        }
    return merged


def _examples(folder: Path, dataset: "Dataset", before: dict[str, str]) -> dict[str, str]:
    """The packed reconstructions of ``before``, and by each autoencoder that lacks them the first seed's that is there."""
    import torch

    from fmcae.preprocess import scale
    from fmcae.train.run import open_run

    images = dataset.test.images[:EXAMPLES]
    found = {"x": _pack(images)} | before
    for network in EXAMPLES_OF:
        names = [autoencoder(seed, **network).name for seed in range(100)]
        paths = [folder / "runs" / name for name in names]
        ready = [path for path in paths if (path / "autoencoder.safetensors").is_file()]
        if ready and not found.keys() & set(names):
            with torch.no_grad():
                x_hat = open_run(ready[0]).network("autoencoder")(torch.from_numpy(scale(images)))
            found[ready[0].name] = _pack(np.rint(255 * x_hat[:, 0].numpy()).astype(np.uint8))
    return found


def baseline_errors(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> dict[str, float]:
    """Return the test error of the linear baseline: principal components of train (N, 28, 28) reconstruct test.

    ``mse`` and ``interior_mse`` are of pixels in [0, 1], and ``components`` says how many components there are.
    ``edge_mse`` is what train's mean picture on the edge, which is the best that depends on no input, adds to the error
    of the whole.
    """
    from fmcae.preprocess import scale

    x = scale(train).reshape(len(train), -1).astype(np.float64)
    mean = x.mean(axis=0)
    _, vectors = np.linalg.eigh((x - mean).T @ (x - mean))  # the right singular vectors, the largest's last
    components = vectors[:, -COMPONENTS:]
    x = scale(test).reshape(len(test), -1).astype(np.float64)
    x_hat = (x - mean) @ components @ components.T + mean
    pictures = [pixels.reshape(-1, 28, 28) for pixels in (x, x_hat)]
    at_edge = np.ones((28, 28))
    at_edge[:INTERIOR, :INTERIOR] = 0
    return {
        "components": COMPONENTS,
        "edge_mse": float(np.mean(np.square(x - mean) * at_edge.ravel())),
        "mse": metrics.mse(*pictures),
        "interior_mse": metrics.mse(*(picture[:, :INTERIOR, :INTERIOR] for picture in pictures)),
    }


def _pack(images: NDArray[np.uint8]) -> str:
    return base64.b85encode(zlib.compress(images.tobytes(), 9)).decode()


def _unpack(text: str) -> NDArray[np.uint8]:
    """The inverse of :func:`_pack`; ValueError if ``text`` is damaged."""
    unzip = zlib.decompressobj()
    try:
        content = unzip.decompress(base64.b85decode(text), EXAMPLES * 784 + 1)
    except zlib.error as error:
        raise ValueError(f"an example is damaged: {error}") from error
    if not content or len(content) % 784 or len(content) > EXAMPLES * 784:
        raise ValueError(f"an example is not of 1 to {EXAMPLES} images")
    return np.frombuffer(content, np.uint8).reshape(-1, 28, 28)
