from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fmcae.data import Dataset, load_dataset
from fmcae.train.config import NetworkConfig, TrainConfig
from fmcae.train.loop import train
from fmcae.train.progress import Progress
from fmcae.train.run import Run, create_run
from fmcae.train.tensorboard import also_to_tensorboard

CONFIG = TrainConfig(NetworkConfig(latent_dim=4), epochs=3, seed=1)
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def dataset(small_sample: Path) -> Dataset:
    return load_dataset(small_sample)


class Watcher(Progress):
    """Remembers what it is told, and stops a run as a signal would after a number of records."""

    def __init__(self, records: int = 0) -> None:
        self.left, self.texts, self.steps, self.stages = records, list[str](), 0, list[str]()

    def stage(self, stage: str, epochs: int, first_epoch: int, images_per_epoch: int) -> None:
        self.stages.append(stage)

    def step(self, images: int, loss: Tensor) -> None:
        self.steps += 1

    def note(self, text: str) -> None:
        self.texts.append(text)

    def warn(self, text: str) -> None:
        self.texts.append(f"warning: {text}")

    def record(self, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def points(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What a reader that forgets nothing finds in all files."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((run.folder / "tensorboard").iterdir()):
        for event in loader.LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def expected(run: Run) -> dict[str, list[tuple[int, Any]]]:
    found: dict[str, list[tuple[int, Any]]] = {}
    for record in run.metrics():
        for name, value in record.items():
            if isinstance(value, float):
                step = record.get("epoch") or record["kept_epoch"]
                found.setdefault(f"{record['stage']}/{name}", []).append((step, pytest.approx(value, rel=1e-6)))
    return found


@pytest.mark.parametrize("records", [1, 4, 6, 8])  # three epochs and a test for each stage
def test_every_point_is_there_once_wherever_a_run_was_stopped(dataset: Dataset, tmp_path: Path, records: int) -> None:
    pytest.importorskip("tensorboard")
    run = create_run(tmp_path / "run", CONFIG, dataset)
    with pytest.raises(KeyboardInterrupt), also_to_tensorboard(run, Watcher(records), True) as watcher:
        train(run, dataset, watcher)
    watching = Watcher()
    with also_to_tensorboard(run, watching, False) as watcher:  # it was asked for when the run began
        train(run, dataset, watcher)
    assert points(run) == expected(run)
    assert {"autoencoder/val_mse", "classifier/val_accuracy", "classifier/test_accuracy"} <= set(points(run))
    assert watching.texts == [f"to see the metrics:  tensorboard --logdir {run.folder}/tensorboard"]
    assert watching.stages[-1] == "classifier" and (watching.steps > 0 or records == 8)


def test_without_being_asked_for_there_is_none(dataset: Dataset, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", CONFIG, dataset)
    with also_to_tensorboard(run, given := Watcher(), False) as watcher:
        assert watcher is given
    assert not (run.folder / "tensorboard").exists()


def test_a_run_goes_on_where_tensorboard_is_not_installed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tmp_path / "run", CONFIG, dataset)
    (run.folder / "tensorboard").mkdir()
    monkeypatch.setattr("fmcae.train.tensorboard.find_spec", lambda name: None)
    with also_to_tensorboard(run, given := Watcher(), False) as watcher:
        assert watcher is given
    assert given.texts == [
        f"warning: tensorboard is not installed, so {run.folder}/tensorboard is left as it is: "
        "run  pip install '.[tensorboard]'  in fmcae's checkout"
    ]
