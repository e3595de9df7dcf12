import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fmcae.errors import UsageError
from fmcae.study.grid import EPOCHS, PARTS, Task, autoencoder, cells_of_runs, classifier, multiply_adds, plan, work
from fmcae.train import run as run_module
from fmcae.train.config import NetworkConfig, TrainConfig

REPOSITORY = Path(__file__).parents[2]


def test_each_run_is_planned_once_and_after_what_it_needs() -> None:
    tasks = plan(PARTS, range(2))
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    for index, task in enumerate(tasks):
        assert task.needs is None or task.needs.name in names[:index]
    assert {task.config.seed for task in tasks} == {0, 1}


def test_parts_share_runs() -> None:
    tables = [plan([part], [0]) for part in ("table-1", "table-2")]
    assert [len(tasks) for tasks in tables] == [4, 4]
    assert len(plan(["table-1", "table-2"], [0])) == 7  # n=128, p=0.2 is in both
    final = PARTS["final-model"]["final model"](0)
    assert final.name == PARTS["figure-ap3"]["pre-trained, fine-tuned"](0).name
    assert final.name == PARTS["labels"]["all labels, pre-trained"](0).name


def test_a_name_stands_for_all_that_decides_the_result() -> None:
    tasks = [
        autoencoder(0), autoencoder(1), autoencoder(0, epochs=2), autoencoder(0, latent_dim=64),
        autoencoder(0, pooling=False), autoencoder(0, dropout=0.2), autoencoder(0, learning_rate=0.01),
        autoencoder(0, output_dropout=True), classifier(0), classifier(0, labels=100), classifier(0, is_random=True),
        classifier(0, is_frozen=True), classifier(0, learning_rate=0.01), classifier(0, encoder_dropout=0.05),
        classifier(0, labels=100, steps_per_epoch=100), autoencoder(0, decoder_padding=False),
        autoencoder(0, latent_activation=False), autoencoder(0, decoder_relu=False),
    ]  # fmt: skip
    assert len({task.name for task in tasks}) == len(tasks)
    task = classifier(0)
    network = replace(task.config.network, class_count=3)
    config = replace(task.config, network=network, device="cuda", threads=8, data="/elsewhere")
    assert replace(task, config=config).name == task.name


def test_a_name_says_what_was_run() -> None:
    assert autoencoder(2, latent_dim=64, dropout=0.2).name.startswith("autoencoder-n64-p0.2-seed2-")


def test_a_new_option_changes_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class WiderNetwork(NetworkConfig):
        normalization: str = "none"

    @dataclass(frozen=True)
    class WiderTraining(TrainConfig):
        network: NetworkConfig = field(default_factory=WiderNetwork)
        augmentation: str = "none"
        schedule: list[float] = field(default_factory=list)

    before = [task.name for task in plan(PARTS, range(2))]
    monkeypatch.setattr("fmcae.study.grid.NetworkConfig", WiderNetwork)
    monkeypatch.setattr("fmcae.study.grid.TrainConfig", WiderTraining)
    assert [task.name for task in plan(PARTS, range(2))] == before
    assert autoencoder(0, normalization="batch").name != autoencoder(0).name
    task = autoencoder(0)
    flipped = Task(WiderTraining(**{**vars(task.config), "augmentation": "flip"}))
    assert flipped.name != task.name and flipped.command()[4:6] == ["--augmentation", "flip"]


def test_names_stay_so_that_a_study_of_last_year_goes_on() -> None:
    committed = json.loads((REPOSITORY / "bench" / "results" / "study" / "results.json").read_text())["runs"]
    planned = {task.name: task for task in plan(PARTS, range(10))}
    assert len(committed) >= 272 and committed.keys() <= planned.keys()
    for name, task in planned.items():
        if name in committed:
            assert set(committed[name]["cells"]) <= set(cells_of_runs(task.config.seed, EPOCHS)[name])


def test_a_default_that_changes_has_to_be_thought_of() -> None:
    """Names leave defaults out: a changed one makes the runs from before another thing, which the study then refuses.

    Add new fields here. For a changed default, set the old value in the grid's cells.
    """
    assert TrainConfig().to_json() == {
        "network": {
            "latent_dim": 128,
            "dropout": 0.1,
            "dropout_position": "after-pooling",
            "output_dropout": False,
            "pooling": True,
            "class_count": 10,
        },
        "learning_rate": 0.001,
        "batch_size": 100,
        "epochs": 30,
        "encoder_init": "pretrained",
        "encoder_training": "fine-tuned",
        "seed": 0,
        "device": "cpu",
        "threads": 1,
        "stage": "both",
        "data": None,
        "autoencoder_from": None,
        "labels": None,
    }


def test_a_run_belongs_to_cells() -> None:
    cells = cells_of_runs(0, EPOCHS)
    reading = "readings: dropout after pooling, output not dropped: table-1, n=64"
    assert cells[autoencoder(0, latent_dim=64, dropout=0.2).name] == ["table-1: n=64", reading]
    assert cells[autoencoder(0, latent_dim=64, dropout=0.05).name] == ["figure-3: n=64"]  # which starts from it
    assert "final-model: final model" in cells[classifier(0).name]


def test_cells_with_more_labels_than_images_are_left_out() -> None:
    counts = [task.config.labels for task in plan(["labels"], [0], train_images=1_000)]
    assert sorted(count for count in counts if count) == [100, 100, 300, 300]


@pytest.mark.parametrize(
    "task",
    [
        autoencoder(3, latent_dim=64, dropout=0.2, learning_rate=0.0001, pooling=False, output_dropout=True),
        autoencoder(0, dropout_position="before-pooling", epochs=7),
        classifier(1, is_random=True, is_frozen=True),
        classifier(0, labels=300, is_random=True),
        classifier(0, dropout=0.15, encoder_dropout=0.05),
        autoencoder(0, decoder_padding=False, latent_activation=False, decoder_relu=False),
        classifier(2, labels=300, steps_per_epoch=100),
    ],
    ids=lambda task: str(task.title),
)
def test_the_printed_command_makes_the_same_run(
    cli: Callable[..., Any], sample: Path, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    made: list[tuple[Path, TrainConfig]] = []

    def create_run(folder: Path, config: TrainConfig, *others: object, **more: object) -> None:
        made.append((folder, config))
        raise UsageError("enough")

    monkeypatch.setattr(run_module, "create_run", create_run)
    assert cli(*task.command()[1:], "--data", sample, "--device", "cpu").exit_code == 2
    (folder, config) = made[0]
    assert folder.name == task.name
    source = config.autoencoder_from and Path(config.autoencoder_from).name
    assert replace(config, data=None, threads=1, autoencoder_from=source) == task.config


def test_the_command_of_a_classifier_names_its_autoencoder() -> None:
    task = classifier(0)
    assert task.needs
    command = " ".join(task.command("here"))
    assert f"--from here/{task.needs.name} " in command and command.endswith(f"--out here/{task.name}")


def test_a_classifier_may_start_from_an_autoencoder_of_another_dropout() -> None:
    other = PARTS["encoder-dropout"]["figure-4, p=0.2"](1)
    assert other.needs == PARTS["table-2"]["p=0.05"](1) and other.config.network.dropout == 0.2
    assert "p=0.2, lr=0.001, pre-trained with p=0.05, fine-tuned, seed 1" in other.title
    own = PARTS["figure-4"]["p=0.2"](1)
    assert own.needs == PARTS["table-2"]["p=0.2"](1) and own.name != other.name
    assert PARTS["encoder-dropout"]["figure-4, p=0.05"](1) == PARTS["figure-4"]["p=0.05"](1)


def test_equal_steps_are_as_many_with_each_number_of_labels() -> None:
    tasks = plan(["equal-steps"], [0])
    classifiers = [task.config for task in tasks if task.config.stage == "classifier"]
    assert len(classifiers) == 12
    assert {config.images_of_epoch("classifier", config.labels or 50_000) for config in classifiers} == {10_000}


def test_other_readings_share_the_runs_that_they_do_not_change() -> None:
    assert PARTS["no-decoder-padding"]["appendix, without pooling"](0) == PARTS["appendix"]["without pooling"](0)
    assert PARTS["dropout-first"]["figure-ap2, without pooling"](0) == PARTS["figure-ap2"]["without pooling"](0)
    final = PARTS["dropout-first"]["final-model, final model"](0)
    assert (
        final == PARTS["dropout-first"]["figure-4, p=0.1"](0) == PARTS["dropout-first"]["figure-ap2, with pooling"](0)
    )
    assert final.needs and final.needs.config.network.dropout_position == "before-pooling"


def test_work_grows_with_what_is_computed() -> None:
    assert multiply_adds(autoencoder(0, pooling=False).config) > 5 * multiply_adds(autoencoder(0).config)
    assert work(classifier(0, is_frozen=True).config) < work(classifier(0).config)
    assert work(classifier(0, labels=100).config) < work(classifier(0).config) / 5
    assert work(autoencoder(0, epochs=60).config) == 2 * work(autoencoder(0).config)
