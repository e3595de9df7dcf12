from dataclasses import replace
from pathlib import Path

import pytest

from fmcae.errors import UsageError
from fmcae.study.grid import PARTS, autoencoder, classifier, multiply_adds, plan, work
from fmcae.train import run as run_module


def test_each_run_is_planned_once_and_after_what_it_needs():
    tasks = plan(PARTS, range(2))
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    for index, task in enumerate(tasks):
        assert task.needs is None or task.needs.name in names[:index]
    assert {task.config.seed for task in tasks} == {0, 1}


def test_parts_share_runs():
    tables = [plan([part], [0]) for part in ("table-1", "table-2")]
    assert [len(tasks) for tasks in tables] == [4, 4]
    assert len(plan(["table-1", "table-2"], [0])) == 7  # n=128, p=0.2 is in both
    final = PARTS["final-model"]["final model"](0)
    assert final.name == PARTS["figure-ap3"]["pre-trained, fine-tuned"](0).name
    assert final.name == PARTS["labels"]["50,000 labels, pre-trained"](0).name


def test_a_name_stands_for_all_that_decides_the_result():
    tasks = [
        autoencoder(0), autoencoder(1), autoencoder(0, epochs=2), autoencoder(0, latent_dim=64),
        autoencoder(0, pooling=False), autoencoder(0, dropout=0.2), autoencoder(0, learning_rate=0.01),
        autoencoder(0, output_dropout=True), classifier(0), classifier(0, labels=100), classifier(0, is_random=True),
        classifier(0, is_frozen=True), classifier(0, learning_rate=0.01), classifier(0, encoder_dropout=0.05),
    ]  # fmt: skip
    assert len({task.name for task in tasks}) == len(tasks)
    task = classifier(0)
    elsewhere = replace(task, config=replace(task.config, device="cuda", threads=8, data="/elsewhere"))
    assert elsewhere.name == task.name


def test_names_stay_so_that_a_study_of_last_year_goes_on():
    assert autoencoder(0).name == "autoencoder-81c6cec9466d"
    assert classifier(0).name == "classifier-755ce9758694"


def test_an_unknown_part_is_named():
    with pytest.raises(UsageError, match=r"only \(=table-9\) must be one of table-1, "):
        plan(["table-9"], [0])


@pytest.mark.parametrize(
    "task",
    [
        autoencoder(3, latent_dim=64, dropout=0.2, learning_rate=0.0001, pooling=False, output_dropout=True),
        autoencoder(0, dropout_position="before-pooling", epochs=7),
        classifier(1, is_random=True, is_frozen=True),
        classifier(0, labels=300, is_random=True),
        classifier(0, dropout=0.15, encoder_dropout=0.05),
    ],
    ids=lambda task: task.title,
)
def test_the_printed_command_makes_the_same_run(cli, sample, monkeypatch, task):
    made = []

    def create_run(folder, config, dataset):
        made.append((folder, config))
        raise UsageError("enough")

    monkeypatch.setattr(run_module, "create_run", create_run)
    assert cli(*task.command()[1:], "--data", sample, "--device", "cpu").exit_code == 2
    (folder, config) = made[0]
    assert folder.name == task.name
    source = config.autoencoder_from and Path(config.autoencoder_from).name
    assert replace(config, data=None, threads=1, autoencoder_from=source) == task.config


def test_the_command_of_a_classifier_names_its_autoencoder():
    task = classifier(0)
    command = " ".join(task.command("here"))
    assert f"--from here/{task.needs.name} " in command and command.endswith(f"--out here/{task.name}")


def test_a_classifier_may_start_from_an_autoencoder_of_another_dropout():
    other = PARTS["encoder-dropout"]["p=0.2"](1)
    assert other.needs == PARTS["table-2"]["p=0.05"](1) and other.config.network.dropout == 0.2
    assert "p=0.2, lr=0.001, pre-trained with p=0.05, fine-tuned, seed 1" in other.title
    own = PARTS["figure-4"]["p=0.2"](1)
    assert own.needs == PARTS["table-2"]["p=0.2"](1) and own.name != other.name


def test_work_grows_with_what_is_computed():
    assert multiply_adds(autoencoder(0, pooling=False).config) > 5 * multiply_adds(autoencoder(0).config)
    assert work(classifier(0, is_frozen=True).config) < work(classifier(0).config)
    assert work(classifier(0, labels=100).config) < work(classifier(0).config) / 5
    assert work(autoencoder(0, epochs=60).config) == 2 * work(autoencoder(0).config)
