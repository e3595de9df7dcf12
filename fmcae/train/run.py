"""A run folder: what one training leaves on disk, and how it is read back.

    config.json               the configuration, the data's identity, versions and machine, and what is known of an
                              autoencoder that was adopted from another run
    autoencoder.safetensors   final weights; present once the stage is done
    classifier.safetensors
    teacher.safetensors       of the robust recipe
    metrics.jsonl             one object per epoch and stage, then one for the test split, with the epoch that is kept
    *.png                     curves, confusion matrix, reconstructions
    checkpoint.safetensors    weights and Adam's state after the last whole epoch, and the best epoch's weights if these are
                              to be kept; until the last stage is done and drawn
    tensorboard/              the metrics once more, for TensorBoard, if that was asked for

Every file is written whole or not at all, ``config.json`` last of what a new run has.
"""

import errno
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

import fmcae
from fmcae import schema
from fmcae.card import KEPT
from fmcae.data import ENVIRONMENT_VARIABLE, Dataset
from fmcae.data.split import SPLIT_SEED
from fmcae.errors import DataError, FmcaeError, RunError, UsageError
from fmcae.files import is_leftover, is_utf8, short_name, write_atomic
from fmcae.runtime.machine import describe_hardware
from fmcae.train.config import TrainConfig
from fmcae.train.networks import Autoencoder, Classifier, Teacher
from fmcae.train.weights import load_weights

SCHEMA_VERSION = 1
CONFIG = "config.json"
METRICS = "metrics.jsonl"
NETWORKS: dict[str, type[Autoencoder] | type[Classifier] | type[Teacher]] = {
    "autoencoder": Autoencoder, "classifier": Classifier, "teacher": Teacher,
}  # fmt: skip
SHAPING = (  # what an autoencoder's weights are made for
    "latent_dim", "pooling", "channels", "size", "decoder_padding", "latent_activation", "decoder_relu",
)  # fmt: skip
PATHS = ("data", "autoencoder_from")  # in the configuration; they mean something on one machine only


class _Description(schema.Versioned):
    started: str
    config: dict[str, Any]
    data: schema.Data
    versions: schema.Versions
    machine: dict[str, str | float | None]


@dataclass(frozen=True)
class Run:
    """A run on disk; its versions and machine decide the last bits of the weights, besides the configuration."""

    folder: Path
    config: TrainConfig
    started: str  # the date and time in UTC, ISO 8601
    data: dict[str, Any]  # name, class_names, counts, split_seed, fingerprint
    versions: dict[str, Any]
    machine: dict[str, Any]
    autoencoder: dict[str, Any] | None  # what ``facts`` gives of another run's autoencoder; None for the run's own

    def weights(self, stage: str) -> Path:
        """Where the final weights of a stage ("autoencoder", "teacher" or "classifier") lie, or will lie."""
        return self.folder / f"{stage}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint of the stage under way lies, or will lie."""
        return self.folder / "checkpoint.safetensors"

    @property
    def finished(self) -> bool:
        """Whether every stage that the run was asked for is done, and its pictures are drawn."""
        return all(self.weights(stage).is_file() for stage in self.config.stages) and not self.checkpoint.is_file()

    def facts(self, stage: str) -> dict[str, Any]:
        """The name, started, config, data, versions and machine of the run that trained ``stage``.

        That is another run for an adopted autoencoder. The configuration is without the paths of its machine.
        """
        if stage == "autoencoder" and self.autoencoder is not None:
            return self.autoencoder
        config = {name: value for name, value in self.config.to_json().items() if name not in PATHS}
        facts = {name: getattr(self, name) for name in ("started", "data", "versions", "machine")}
        return {"name": self.folder.resolve().name, "config": config, **facts}

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``, of one stage if it is named; empty before the first epoch's end.

        Raises:
            RunError: a line is no such record.
        """
        path = self.folder / METRICS
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            records = [schema.parse_record(line, len(self.data["class_names"])) for line in lines]
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: is damaged: {error}") from error
        return [record for record in records if stage is None or record["stage"] == stage]

    def write_metrics(self, records: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl``."""
        write_atomic(self.folder / METRICS, _lines(records))

    def test_record(self, stage: str) -> dict[str, Any]:
        """The record of the test split of a stage; empty before it is measured, and without ``stage`` and ``split``."""
        test = next((record for record in self.metrics(stage) if record.get("split") == "test"), {})
        return {name: value for name, value in test.items() if name not in ("stage", "split")}

    def kept(self, stage: str) -> dict[str, int]:
        """Which epoch's weights a finished stage has, ``kept_epoch``, and after which it ended early, ``stopped_epoch``.

        The second is there only if it did, and runs from before they were written down have neither.
        """
        return {name: value for name, value in self.test_record(stage).items() if name in KEPT}

    def network(self, stage: str) -> Autoencoder | Classifier | Teacher:
        """The trained network of a stage, on the CPU, in evaluation mode.

        Raises:
            RunError: the weights are missing, damaged or do not fit the configuration.
        """
        network = NETWORKS[stage](self.config.network)
        load_weights(network, self.weights(stage))
        return network.eval()


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Let one process at a time train in ``folder``, which need not exist, by a lock file beside it.

    The system lets go of the lock when the process ends in any way. Where nothing can be written beside the folder, there
    is no lock.

    Raises:
        RunError: another process trains in the folder, and ``wait`` is False.
    """
    resolved = folder.resolve()
    file = resolved.with_name(f".{short_name(resolved.name)}.lock")
    is_new_parent = not file.parent.exists()
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(file).acquire(timeout=-1 if wait else 0))
        except Timeout:
            raise RunError(f"{folder}: another process trains in it") from None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        try:
            yield
        finally:
            if not resolved.exists():  # no run came of it
                with suppress(OSError):  # where nothing can be written
                    file.unlink(missing_ok=True)
                    if is_new_parent:
                        file.parent.rmdir()


def create_run(folder: Path, config: TrainConfig, dataset: Dataset, autoencoder_from: Path | None = None) -> Run:
    """Make a run folder with its ``config.json``.

    Args:
        autoencoder_from: the folder of another run, whose trained autoencoder the new run gets: its weights, its records
            and its facts. The folder may hold what an earlier call for it left when it was stopped.

    Raises:
        UsageError: the folder already holds something, a path is not in UTF-8, or the configuration has another number
            of classes or form of images than the data, or asks for more labels than there are, or for fewer than there
            are classes.
        DataError: a class that the classifier is to know has images in val or test, but none in train; or there is only one.
        RunError: the other run has no finished autoencoder, or one of another shape; no folder was made.
    """
    found = {
        "class_count": len(dataset.class_names),
        "channels": 3 if dataset.train.images.ndim == 4 else 1,
        "size": dataset.train.images.shape[1],
    }
    for name, value in found.items():
        if (own := getattr(config.network, name)) != value:
            raise UsageError(f"{name} (={own}) must be {value}, as {dataset.name} has it")
    if config.labels is not None and config.labels > len(dataset.train):
        raise UsageError(f"labels (={config.labels}) must be at most {len(dataset.train):,}, the images of train")
    if "classifier" in config.stages:
        train, val, test = dataset.counts.values()
        if np.count_nonzero(train) < 2:
            raise DataError(f"{dataset.name}: must have images of at least 2 classes in train")
        if unseen := [dataset.class_names[label] for label in np.flatnonzero((train == 0) & (val + test > 0))]:
            raise DataError(
                f"{dataset.name}: must have images of every class in train; it has none of {', '.join(unseen)}"
            )
        if config.labels is not None and config.labels < (classes := np.count_nonzero(train)):
            raise UsageError(f"labels (={config.labels}) must be at least {classes}, one for each class")
    for name, path in (("out", str(folder)), *((name, getattr(config, name)) for name in PATHS)):
        if path and not is_utf8(path):
            raise UsageError(f"{name} (={path}) must be a path in UTF-8")
    description = {
        "schema_version": SCHEMA_VERSION,
        "started": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        "config": config.to_json(),
        "data": {
            "name": dataset.name,
            "class_names": list(dataset.class_names),
            "counts": _counts(dataset),
            "split_seed": SPLIT_SEED,
            "fingerprint": dataset.fingerprint,
        },
        "versions": _versions() | _commit(),
        "machine": _machine(config.device),
    }
    files: dict[str, bytes] = {}
    if autoencoder_from is not None:
        source = open_run(autoencoder_from)
        if not source.weights("autoencoder").is_file():
            reason = f"{source.weights('autoencoder')} does not exist"
            raise RunError(f"the autoencoder to start from cannot be used: {reason}")
        if not any("split" in record for record in source.metrics("autoencoder")):
            reason = f"{source.folder / METRICS} lacks its records"
            raise RunError(f"the autoencoder to start from cannot be used: {reason}")
        for name in SHAPING:
            own, other = getattr(config.network, name), getattr(source.config.network, name)
            if own != other:
                raise RunError(
                    f"the autoencoder to start from cannot be used: {autoencoder_from} has {name}={other}, not {own}"
                )
        try:
            load_weights(Autoencoder(config.network), source.weights("autoencoder"))
        except RunError as error:
            raise RunError(f"the autoencoder to start from cannot be used: {error}") from error
        description["autoencoder"] = source.facts("autoencoder")
        files[METRICS] = _lines(source.metrics("autoencoder")).encode()
        files["autoencoder.safetensors"] = source.weights("autoencoder").read_bytes()
    # a call that was stopped leaves some of the files
    present = [path for path in folder.iterdir() if not is_leftover(path)] if folder.is_dir() else [folder]
    if folder.exists() and not all(path.is_file() and path.read_bytes() == files.get(path.name) for path in present):
        raise UsageError(f"out (={folder}) must be a new or empty folder; add --resume to go on with a run in it")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content)
    write_atomic(folder / CONFIG, json.dumps(description, indent=2) + "\n")  # last: it makes the folder a run
    return open_run(folder)


def open_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: there is no run, or its ``config.json`` is damaged.
    """
    path = folder / CONFIG
    if not os.path.isfile(path):
        raise RunError(f"{folder}: is not a run folder: it has no {CONFIG}")
    try:
        values = schema.parse(path.read_text(encoding="utf-8"), schema.Versioned)
        if (version := values["schema_version"]) != SCHEMA_VERSION:
            raise RunError(f"{path}: schema_version (={version}) must be {SCHEMA_VERSION}")
        schema.check(values, _Description)
        if values.get("autoencoder") is not None:
            schema.check(values["autoencoder"], schema.Facts)
        names = ("started", "data", "versions", "machine")
        facts = {name: values[name] for name in names}
        return Run(folder, TrainConfig.from_json(values["config"]), **facts, autoencoder=values.get("autoencoder"))
    except RunError:
        raise
    except (FmcaeError, OSError, ValueError) as error:
        raise RunError(f"{path}: is damaged: {error}") from error


def find_runs(parent: Path) -> list[Run]:
    """The runs in the folders directly below ``parent``, the newest last; exports and damaged ones are left out."""
    runs = []
    for config in parent.glob(f"*/{CONFIG}"):
        if any(config.parent.glob("*.onnx")) and not any(config.parent.glob("*.safetensors")):
            continue  # an export, which has its run's configuration
        with suppress(RunError):
            runs.append(open_run(config.parent))
    return sorted(runs, key=lambda run: (run.started, run.folder))


def data_of(run: Run, named: str | None) -> str | None:
    """Return the data folder that was ``named``, or else the run's own, None for a set from where it is found.

    Raises:
        RunError: the run's own is no longer there, and $FMCAE_DATA names no other.
    """
    if named is None and run.config.data and not Path(run.config.data).exists():
        if os.environ.get(ENVIRONMENT_VARIABLE):
            return None
        raise RunError(f"{run.folder}: its data are no longer in {run.config.data}: name them with --data")
    return named or run.config.data


def _counts(dataset: Dataset) -> dict[str, int]:
    return {"train": len(dataset.train), "val": len(dataset.val), "test": len(dataset.test)}


def _counted(counts: dict[str, int]) -> str:
    return " + ".join(f"{count:,}" for count in counts.values()) + " images"


def check_data(run: Run, dataset: Dataset) -> None:
    """Raise RunError if ``dataset`` is not what the run was trained on."""
    if dataset.fingerprint != run.data["fingerprint"]:
        raise RunError(
            f"{run.folder}: was trained on {run.data['name']}, {_counted(run.data['counts'])}, with fingerprint "
            f"{run.data['fingerprint'][:12]}…; the data found now are {dataset.name}, {_counted(_counts(dataset))}, with "
            f"{dataset.fingerprint[:12]}…: name the run's data with --data"
        )
    if run.data["class_names"] != list(dataset.class_names):
        raise RunError(f"{run.folder / CONFIG}: is damaged: its class_names are not those of {dataset.name}")


def changes_since(run: Run) -> list[str]:
    """Return an entry for each version and fact of the machine that may change the weights' last bits and has changed."""
    before, now = run.versions | run.machine, _versions() | _machine(run.config.device)
    deciding = (*_versions(), "cpu", "instruction_set", "device_name")
    changed = [name for name in deciding if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name)}, is {now.get(name)}" for name in changed]


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "numpy", "numba")}
    return {"fmcae": fmcae.__version__, "python": platform.python_version(), **packages}


def _commit() -> dict[str, str]:
    """The commit of fmcae's own repository, with "-dirty" if files were changed; empty where it runs without one."""
    folder = Path(fmcae.__file__).parents[1]
    if not (folder / ".git").exists():  # an installed package may lie in somebody else's repository
        return {}
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return {"commit": subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}
    return {}


def _machine(device: str) -> dict[str, Any]:
    """The hardware, and the instruction set for which PyTorch chooses its kernels and numba compiles."""
    from llvmlite.binding import get_host_cpu_name  # type: ignore[import-untyped]

    compiled_for = os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name()
    instruction_set = f"{torch.backends.cpu.get_cpu_capability()}, {compiled_for}"
    machine = describe_hardware() | {"instruction_set": instruction_set}
    if device == "cuda" and torch.cuda.is_available():
        machine["device_name"] = torch.cuda.get_device_name()
    return machine


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
