import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmcae.data import load_dataset
from fmcae.errors import RunError
from fmcae.study.grid import Task, classifier, plan
from fmcae.study.report import write_report
from fmcae.study.results import Results, baseline_errors, check_study, collect, read
from fmcae.study.runner import count_epochs, run_folder

AUTOENCODER, CLASSIFIER = plan(["final-model"], [0], epochs=1)


@pytest.mark.usefixtures("no_figures")
def test_runs_are_collected_and_read_back(sample: Path, tmp_path: Path, study_copy: Path) -> None:
    dataset = load_dataset(sample)
    collect(tmp_path, dataset)
    with pytest.raises(RunError, match=r"has no results\.json; make it with  fmcae study run --out"):
        read(tmp_path)
    collect(study_copy, dataset)
    results = read(study_copy)
    assert set(results.runs) == {AUTOENCODER.name, CLASSIFIER.name}
    run = results.find(CLASSIFIER)
    assert run and run.confusion is not None
    assert run.confusion.sum() == 400 and set(run.test) == {"cross_entropy", "accuracy"}
    assert [len(values) for values in run.epochs.values()] == [1, 1, 1, 1] and run.config["seed"] == 0
    autoencoder = results.runs[AUTOENCODER.name]
    assert set(autoencoder.test) == {"mse", "interior_mse"} and autoencoder.versions.keys() >= {"numpy"}
    assert results.baseline == baseline_errors(dataset.train.images, dataset.test.images)
    assert run.autoencoder == AUTOENCODER.name and "final-model: final model" in run.cells
    assert run.data == {"name": dataset.name, "fingerprint": dataset.fingerprint}
    content = (study_copy / "results.json").read_text()
    assert str(study_copy) not in content and str(sample) not in content
    assert write_report(study_copy, results)[0].name == "report.md"
    assert (study_copy / "results.json").read_text() == content


@pytest.mark.usefixtures("no_figures")
def test_machine_date_and_versions_are_those_of_the_run(sample: Path, study_copy: Path) -> None:
    shutil.rmtree(run_folder(study_copy, CLASSIFIER))
    path = run_folder(study_copy, AUTOENCODER) / "config.json"
    described = json.loads(path.read_text())
    described |= {"started": "2020-02-02T02:02:02+00:00", "machine": {"cpu": "that one", "available_cpus": 64}}
    path.write_text(json.dumps(described))
    collect(study_copy, load_dataset(sample))
    content = json.loads((study_copy / "results.json").read_text())
    assert content.keys() == {"schema_version", "data", "examples", "baseline", "runs"}
    run = content["runs"][AUTOENCODER.name]
    assert run["machine"] == described["machine"] and run["versions"] == described["versions"]
    assert (run["date"], run["recorded"]) == (described["started"], "when the run started")
    write_report(study_copy, read(study_copy))
    page = " ".join((study_copy / "report.md").read_text().split())
    assert "- 1 run: that one, 64 CPUs, memory not recorded;" in page
    assert "(2020-02-02) were recorded when the run started." in page


def test_the_linear_baseline_is_the_best_linear_reconstruction(sample: Path) -> None:
    dataset = load_dataset(sample)
    train, test = (getattr(dataset, name).images.reshape(-1, 784) / 255 for name in ("train", "test"))
    _, _, rows = np.linalg.svd(train - train.mean(axis=0), full_matrices=False)
    x_hat = (test - train.mean(axis=0)) @ rows[:128].T @ rows[:128] + train.mean(axis=0)
    squares = ((test - x_hat) ** 2).reshape(-1, 28, 28)
    found = baseline_errors(dataset.train.images, dataset.test.images)
    assert found["mse"] == pytest.approx(squares.mean(), rel=1e-5)
    assert found["interior_mse"] == pytest.approx(squares[:, :25, :25].mean(), rel=1e-5)
    without_input = ((test - train.mean(axis=0)) ** 2).reshape(-1, 28, 28)
    edge = without_input.mean() - without_input[:, :25, :25].mean() * 625 / 784
    assert found["edge_mse"] == pytest.approx(edge, rel=1e-5)


def test_autoencoders_without_the_interiors_error_count_as_known_unless_it_is_asked_for(
    sample: Path, study_copy: Path
) -> None:
    collect(study_copy, load_dataset(sample))
    file = study_copy / "results.json"
    content = json.loads(file.read_text())
    del content["runs"][AUTOENCODER.name]["test"]["interior_mse"], content["baseline"]  # as the first edition has it
    file.write_text(json.dumps(content))
    results = read(study_copy)
    assert results.baseline == {}
    assert results.known() == {AUTOENCODER.name, CLASSIFIER.name} and results.known(interior=True) == {CLASSIFIER.name}
    collect(study_copy, load_dataset(sample))
    assert read(study_copy).known(interior=True) == {AUTOENCODER.name, CLASSIFIER.name}


def test_a_second_training_adds_the_interiors_error_and_replaces_nothing(sample: Path, study_copy: Path) -> None:
    collect(study_copy, load_dataset(sample))
    file = study_copy / "results.json"
    content = json.loads(file.read_text())
    first = content["runs"][AUTOENCODER.name]
    found, interior = dict(first["test"]), first["test"].pop("interior_mse")
    first |= {"seconds": 9_999.0, "date": "2020-02-02T02:02:02+00:00", "versions": first["versions"] | {"torch": "1.0"}}
    first["test"]["mse"] += 0.001
    file.write_text(json.dumps(content))
    for _ in range(2):  # the second time changes nothing
        collect(study_copy, load_dataset(sample))
        run = read(study_copy).runs[AUTOENCODER.name]
        assert (run.seconds, run.date, run.versions["torch"]) == (9_999.0, "2020-02-02T02:02:02+00:00", "1.0")
        assert run.test == {"mse": first["test"]["mse"], "interior_mse": interior}
        assert run.second_training and run.second_training["mse"] == found["mse"]
        assert run.second_training["versions"]["torch"] != "1.0"


def test_results_of_elsewhere_stay(sample: Path, study_copy: Path, tmp_path: Path) -> None:
    dataset = load_dataset(sample)
    here, there = study_copy, shutil.copytree(study_copy, tmp_path / "there")
    shutil.rmtree(run_folder(here, CLASSIFIER))
    shutil.rmtree(run_folder(there, AUTOENCODER))
    collect(there, dataset)
    assert set(read(there).runs) == {CLASSIFIER.name}
    shutil.copy(there / "results.json", here)
    collect(here, dataset)
    assert set(read(here).runs) == {AUTOENCODER.name, CLASSIFIER.name}
    shutil.rmtree(run_folder(here, AUTOENCODER))
    collect(here, dataset)
    assert set(read(here).runs) == {AUTOENCODER.name, CLASSIFIER.name}


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(RunError, match=r"results\.json: is damaged"):
        read(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(RunError, match=r"schema_version \(=9\) must be 2"):
        read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": [[1, 2], [3]]}, {"confusion": None}, {"epochs": {}}, {"epochs": {"train_accuracy": [0.5]}},
        {"test": {}}, {"test": {"accuracy": "high", "cross_entropy": 1}}, {"config": {}},
        {"data": {"name": "x", "fingerprint": "y"}}, {"versions": {}}, {"another": 1},
        {"seconds": float("inf")}, {"cells": "x"}, {"date": "\ud800"},
    ],
)  # fmt: skip
def test_a_damaged_run_among_the_results_is_named(study_copy: Path, sample: Path, change: dict[str, Any]) -> None:
    collect(study_copy, load_dataset(sample))
    file = study_copy / "results.json"
    content = json.loads(file.read_text())
    content["runs"][CLASSIFIER.name] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"results\.json: is damaged"):
        read(study_copy)


def test_a_run_without_its_metrics_is_named(sample: Path, study_copy: Path) -> None:
    (run_folder(study_copy, AUTOENCODER) / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="is finished, and its metrics are not there"):
        collect(study_copy, load_dataset(sample))


def test_a_run_with_damaged_metrics_is_named_and_spoils_no_results(sample: Path, study_copy: Path) -> None:
    path = run_folder(study_copy, AUTOENCODER) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"val_mse"', '"other"'))
    with pytest.raises(RunError, match=r"its metrics are damaged: .*; remove it to train it again"):
        collect(study_copy, load_dataset(sample))
    assert not (study_copy / "results.json").exists()


def test_a_run_that_may_end_early_is_none_of_the_grids(sample: Path, study_copy: Path) -> None:
    path = run_folder(study_copy, AUTOENCODER) / "config.json"
    path.write_text(path.read_text().replace('"labels": null', '"labels": null, "patience": 3'))
    collect(study_copy, load_dataset(sample))
    assert set(read(study_copy).runs) == {CLASSIFIER.name}


@pytest.fixture
def changed_run(study_results: Results) -> Callable[..., Results]:
    """The results with other settings in one run: ``changed_run(task, network={...}, **config)``."""

    def change(task: Task, network: dict[str, Any] | None = None, **config: Any) -> Results:
        run = study_results.runs[task.name]
        values = {**run.config, **config, "network": run.config["network"] | (network or {})}
        return replace(study_results, runs={**study_results.runs, task.name: replace(run, config=values)})

    return change


def test_a_run_from_before_a_default_changed_is_not_taken_for_one_of_today(changed_run: Callable[..., Results]) -> None:
    task = classifier(0)
    assert task.needs
    with pytest.raises(RunError, match=r"was trained with batch_size \(=50\), not 100, which it is today"):
        changed_run(task, batch_size=50).find(task)
    with pytest.raises(RunError, match=r"was trained with pooling \(=False\), not True"):
        changed_run(task, network={"pooling": False}).find(task)
    with pytest.raises(RunError, match=r"was trained with seed \(=5\), not 0"):
        changed_run(task, seed=5).find(task)
    with pytest.raises(RunError, match=r"autoencoder-n128-p0.1-seed0-\w+: was trained with batch_size \(=50\)"):
        changed_run(task.needs, batch_size=50).find(task)  # which the classifier starts from


def test_results_from_before_a_field_was_added_are_found(study_results: Results) -> None:
    task = classifier(0)
    run = study_results.runs[task.name]
    older = {name: value for name, value in run.config.items() if name != "labels"}
    results = replace(study_results, runs={task.name: replace(run, config=older)})
    assert results.find(task) == results.runs[task.name]


def test_a_run_folder_from_before_a_default_changed_is_refused(sample: Path, study_copy: Path) -> None:
    path = run_folder(study_copy, AUTOENCODER) / "config.json"
    described = path.read_text()
    path.write_text(described.replace('"threads": 1', '"threads": 2'))  # which decides only the last bits
    check_study(study_copy, [AUTOENCODER], load_dataset(sample))
    path.write_text(described.replace('"batch_size": 100', '"batch_size": 50'))
    with pytest.raises(RunError, match=r"was trained with batch_size \(=50\), not 100"):
        check_study(study_copy, [AUTOENCODER], load_dataset(sample))


def test_records_of_the_autoencoder_in_a_classifiers_run_are_not_its_own(sample: Path, study_copy: Path) -> None:
    records = (run_folder(study_copy, CLASSIFIER) / "metrics.jsonl").read_text()
    assert '"stage": "autoencoder"' in records and count_epochs(study_copy, CLASSIFIER) == 1
    collect(study_copy, load_dataset(sample))
    run = read(study_copy).runs[CLASSIFIER.name]
    assert set(run.test) == {"cross_entropy", "accuracy"} and all(len(values) == 1 for values in run.epochs.values())


@pytest.mark.parametrize("where", ["results.json", "runs"])
def test_another_data_set_is_refused_and_both_are_named(
    sample: Path, study_copy: Path, make_dataset: Callable[[str, int], Path], where: str
) -> None:
    first, second = load_dataset(sample), load_dataset(make_dataset("another", 3))
    (other,) = plan(["table-1"], [0], epochs=1)[:1]
    if where == "results.json":
        collect(study_copy, first)
        shutil.rmtree(study_copy / "runs")
    with pytest.raises(RunError) as error:
        check_study(study_copy, [other], second)
    for text in (first.name, first.fingerprint[:12], second.name, second.fingerprint[:12]):
        assert text in str(error.value)
    check_study(study_copy, [other], first)
