"""What a study found, in one file: ``results.json`` has every finished run's configuration, metrics, time and versions."""

import base64
import json
import zlib
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import RunError
from fmcae.files import write_atomic
from fmcae.runtime.machine import describe_machine
from fmcae.study.grid import Task, autoencoder

SCHEMA_VERSION = 1
FILE = "results.json"
EXAMPLES = 8  # test images in Figure Ap.1
_DIGITS = 6


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        epochs: by metric ("train_mse", "val_accuracy", ...), its value after each epoch.
        test: by metric, its value on the test split after the last epoch.
        confusion: (K, K) counts on test, rows are the true classes; None for an autoencoder.
        seconds: of training, without evaluation.
    """

    name: str
    config: dict[str, Any]
    epochs: dict[str, list[float]]
    test: dict[str, float]
    confusion: NDArray[np.int64] | None
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Results:
    """All finished runs by name, and what else the report needs.

    Attributes:
        machine: where they were collected; None where nothing ran.
        examples: by run name, reconstructions (N, 28, 28) uint8 of the first test images; those are under "x".
    """

    runs: dict[str, RunResult]
    class_names: tuple[str, ...]
    data: dict[str, Any]
    machine: dict[str, Any]
    date: str
    examples: dict[str, NDArray[np.uint8]]

    def of(self, task: Task) -> RunResult | None:
        """The task's run, if it is finished."""
        return self.runs.get(task.name)


def collect(folder: Path, data: str | None) -> Results:
    """Add every finished run below ``folder`` to ``results.json``, whose other runs stay: they may be another machine's.

    Args:
        data: the data folder, None for Fashion-MNIST from where it is found; the pictures come from there.

    Raises:
        RunError: no run is finished, or they were trained on different data.
    """
    from fmcae.train.run import find_runs

    runs = [run for run in find_runs(folder / "runs") if run.finished]
    before: dict[str, Any] = json.loads((folder / FILE).read_text()) if known_runs(folder) else {"runs": {}}
    if not runs:
        return read(folder)
    if len({of["fingerprint"] for of in (before.get("data", runs[0].data), *(run.data for run in runs))}) > 1:
        raise RunError(f"{folder}: its runs were trained on different data")
    all_runs = before["runs"] | {run.folder.name: _run_to_json(run) for run in runs}
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "data": runs[0].data,
        "machine": describe_machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "examples": {name: _pack(images) for name, images in _examples(folder, data).items()}
        or before.get("examples", {}),
    }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(all_runs[name])}" for name in sorted(all_runs))
    text = json.dumps(content, indent=1).removesuffix("\n}") + ',\n "runs": {\n' + lines + "\n }\n}\n"
    write_atomic(folder / FILE, text)
    return read(folder)


def known_runs(folder: Path) -> set[str]:
    """The names of the runs in ``results.json``; none without one.

    Raises:
        RunError: it is damaged.
    """
    return set(read(folder).runs) if (folder / FILE).is_file() else set()


def read(folder: Path) -> Results:
    """Read ``results.json``.

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
        return Results(
            runs=runs,
            class_names=tuple(content["data"]["class_names"]),
            data=content["data"],
            machine=content["machine"],
            date=content["date"],
            examples={name: _unpack(text) for name, text in content["examples"].items()},
        )
    except FileNotFoundError as error:
        start = f"start with  fmcae study run --out {folder}"
        raise RunError(f"{folder}: has neither finished runs nor {FILE}: {start}") from error
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise RunError(f"{path}: is damaged: {error}") from error


def _run_to_json(run: Any) -> dict[str, Any]:
    records = run.metrics()
    epochs = [record for record in records if "epoch" in record]
    test = next(record for record in records if record.get("split") == "test")
    described = json.loads((run.folder / "config.json").read_text())
    config = run.config.to_json()
    del config["data"]
    return {
        "config": config,
        "epochs": {
            key: [round(record[key], _DIGITS) for record in epochs]
            for key in epochs[0]
            if key.startswith(("train_", "val_"))
        },
        "test": {key.removeprefix("test_"): value for key, value in test.items() if key.startswith("test_")},
        "confusion": test.get("confusion"),
        "seconds": round(sum(record["seconds"] for record in epochs), 1),
        "versions": described["versions"],
    }


def _examples(folder: Path, data: str | None) -> dict[str, NDArray[np.uint8]]:
    """Reconstructions with and without pooling by the first seed that has both; empty without."""
    import torch

    from fmcae.data import load_dataset
    from fmcae.preprocess import scale
    from fmcae.train.run import open_run

    for seed in range(100):
        names = [autoencoder(seed).name, autoencoder(seed, pooling=False).name]
        if all((folder / "runs" / name / "autoencoder.safetensors").is_file() for name in names):
            images = load_dataset(data).test.images[:EXAMPLES]
            examples = {"x": images}
            for name in names:
                with torch.no_grad():
                    x_hat = open_run(folder / "runs" / name).network("autoencoder")(torch.from_numpy(scale(images)))
                examples[name] = np.rint(255 * x_hat[:, 0].numpy()).astype(np.uint8)
            return examples
    return {}


def _pack(images: NDArray[np.uint8]) -> str:
    return base64.b85encode(zlib.compress(images.tobytes(), 9)).decode()


def _unpack(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8).reshape(-1, 28, 28)
