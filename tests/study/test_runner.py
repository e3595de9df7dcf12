import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmcae.errors import FmcaeError, ProviderError
from fmcae.study import runner
from fmcae.study.grid import Task, autoencoder, classifier, plan
from fmcae.study.runner import (
    StudyProgress,
    Submit,
    TaskStatus,
    count_epochs,
    is_done,
    local,
    run_folder,
    run_study,
    run_task,
    to_do,
)

REPOSITORY = Path(__file__).parents[2]


def weights(folder: Path, task: Task) -> Path:
    path = run_folder(folder, task) / f"{task.config.stage}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def submit_fake(started: list[str], failing: Collection[str] = ()) -> Submit:
    """Runs nothing: what starts is noted, and done at once or failed."""

    def submit(folder: Path, task: Task, data: str | None) -> Future[None]:
        started.append(task.name)
        future: Future[None] = Future()
        if task.name in failing:
            future.set_exception(FmcaeError("out of luck\nand more"))
        else:
            weights(folder, task).touch()
            future.set_result(None)
        return future

    return submit


def test_autoencoders_come_first_and_done_runs_are_left_alone(tmp_path: Path) -> None:
    tasks = plan(["final-model", "figure-3"], range(2))
    weights(tmp_path, tasks[0]).touch()
    started: list[str] = []
    progress = run_study(tmp_path, tasks, submit_fake(started), 3, None)
    assert sorted(started) == sorted(task.name for task in tasks[1:])
    for task in tasks:
        if task.needs and task.needs.name in started:
            assert started.index(task.needs.name) < started.index(task.name)
    assert len(progress.in_state("done")) == len(tasks)
    second: list[str] = []
    run_study(tmp_path, tasks, submit_fake(second), 3, None)
    assert second == []


def test_a_run_stopped_while_it_draws_is_not_done(tmp_path: Path) -> None:
    weights(tmp_path, task := autoencoder(0)).touch()
    checkpoint = run_folder(tmp_path, task) / "checkpoint.safetensors"
    checkpoint.touch()
    assert not is_done(tmp_path, task)
    checkpoint.unlink()
    assert is_done(tmp_path, task)


def test_what_is_known_runs_again_only_to_start_from(tmp_path: Path) -> None:
    tasks = plan(["final-model", "figure-3"], [0])
    known = {task.name for task in tasks}
    assert to_do(tmp_path, tasks, known) == []
    follower = classifier(0, latent_dim=64, dropout=0.05)
    started: list[str] = []
    run_study(tmp_path, tasks, submit_fake(started), 2, None, known=known - {follower.name})
    assert follower.needs and started == [follower.needs.name, follower.name]


def test_a_failure_takes_along_only_what_starts_from_it(tmp_path: Path) -> None:
    tasks = plan(["figure-3"], [0])
    broken = autoencoder(0, latent_dim=256, dropout=0.05)
    progress = run_study(tmp_path, tasks, submit_fake([], {broken.name}), 2, None)
    reasons = {status.task.name: status.reason for status in progress.in_state("failed")}
    follower = classifier(0, latent_dim=256, dropout=0.05)
    assert reasons == {broken.name: "out of luck", follower.name: f"{broken.name}, which it starts from, failed"}
    assert len(progress.in_state("done")) == 6


def test_no_more_run_at_a_time_than_there_are_workers(tmp_path: Path) -> None:
    lock = threading.Lock()
    running: set[str] = set()
    most: list[int] = []

    def submit(folder: Path, task: Task, data: str | None) -> Future[None]:
        future: Future[None] = Future()

        def work() -> None:
            with lock:
                running.add(task.name)
                most.append(len(running))
            time.sleep(0.01)
            weights(folder, task).touch()
            with lock:
                running.discard(task.name)
            future.set_result(None)

        threading.Thread(target=work).start()
        return future

    run_study(tmp_path, plan(["table-1", "table-2"], range(2)), submit, 2, None)
    assert max(most) == 2


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """An autoencoder and the classifier on it, of one epoch."""
    return plan(["final-model"], [0], epochs=1)


def test_fresh_processes_train_what_this_one_does_and_a_killed_one_fails_alone(
    sample: Path, tmp_path: Path, tasks: list[Task], trained_study: Path
) -> None:
    long = autoencoder(0, epochs=400)
    killed: list[int] = []

    def kill_the_long_one(progress: StudyProgress) -> None:
        if count_epochs(tmp_path, long) > 2 and not killed:
            killed.extend(_children(long, tmp_path))
            os.kill(killed[0], signal.SIGKILL)

    with local(2) as submit:
        progress = run_study(tmp_path, [long, *tasks], submit, 2, str(sample), kill_the_long_one)
    (failed,) = progress.in_state("failed")
    assert failed.task is long and failed.reason == "its process ended with exit code -9" and len(killed) == 1
    assert 2 < count_epochs(tmp_path, long) < 400 and not is_done(tmp_path, long)
    assert [status.task for status in progress.in_state("done")] == tasks
    for task in tasks:
        assert weights(tmp_path, task).read_bytes() == weights(trained_study, task).read_bytes()


def _children(task: Task, folder: Path) -> list[int]:
    """The process that holds the task's lock."""
    lock = os.stat(run_folder(folder, task).with_name(f".{task.name}.lock")).st_ino
    holders = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(fields[4]) for fields in holders if fields[5].endswith(f":{lock}") and fields[1] == "FLOCK"]


def test_leaving_early_ends_the_processes(sample: Path, tmp_path: Path) -> None:
    long = autoencoder(0, epochs=400)

    def stop(progress: StudyProgress) -> None:
        if count_epochs(tmp_path, long) > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), local(1) as submit:
        run_study(tmp_path, [long], submit, 1, str(sample), stop)
    before = count_epochs(tmp_path, long)
    time.sleep(0.3)
    assert count_epochs(tmp_path, long) == before > 0


def test_a_killed_study_takes_its_processes_along(sample: Path, tmp_path: Path) -> None:
    command = ["study", "run", "--only", "final-model", "--seeds", "1", "--epochs", "400"]
    (task, _) = plan(["final-model"], [0], epochs=400)
    with subprocess.Popen(
        [sys.executable, "-m", "fmcae", *command, "--data", str(sample), "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as study:
        _wait_until(lambda: count_epochs(tmp_path, task) > 0)
        assert len(_children(task, tmp_path)) == 1
        study.kill()
    _wait_until(lambda: not _children(task, tmp_path))


def _wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_run_that_another_process_trains_is_waited_for(
    sample: Path, tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = threading.Event()
    order: list[str] = []
    real = runner.is_done

    def slowly(folder: Path, task: Task) -> bool:
        order.append(threading.current_thread().name)
        inside.set()
        time.sleep(0.2)
        return real(folder, task)

    monkeypatch.setattr(runner, "is_done", slowly)
    weights(tmp_path, tasks[0]).touch()
    first = threading.Thread(target=run_task, args=(tmp_path, tasks[0], str(sample)), name="first")
    first.start()
    inside.wait(5)
    began = time.monotonic()
    run_task(tmp_path, tasks[0], str(sample))
    assert time.monotonic() - began > 0.3 and order[0] == "first" and len(order) == 2
    first.join()


def test_the_time_left_is_estimated_from_what_ran(tmp_path: Path) -> None:
    tasks = plan(["table-1"], [0])
    progress = StudyProgress(tmp_path, {task.name: TaskStatus(task) for task in tasks}, workers=2)
    assert progress.seconds_left() is None
    progress.began = time.monotonic() - 30
    progress.statuses[tasks[0].name].state = "running"
    path = run_folder(tmp_path, tasks[0]) / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"stage": "autoencoder", "epoch": epoch}) + "\n" for epoch in range(1, 11)))
    seconds_left = progress.seconds_left()
    assert seconds_left is not None
    runs_left = seconds_left / (3 * 30)  # ten of thirty epochs took 30 s
    assert 2 / 3 + 3 < runs_left < 2 / 3 + 5  # the three others are larger


def test_a_ray_cluster_finishes_what_a_killed_worker_began(
    sample: Path, tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    long = autoencoder(0, epochs=10)
    killed: list[int] = []

    def kill_once(progress: StudyProgress) -> None:
        if not killed and count_epochs(tmp_path, long) > 2:
            killed.extend(_children(long, tmp_path))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(runner, "POLL_SECONDS", 0.05)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        with runner.ray(cluster.address, cpus=1, gpu_workers=0) as submit:
            progress = run_study(tmp_path, [long, *tasks], submit, 2, str(sample), kill_once)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    assert killed and len(progress.in_state("done")) == 3
    assert count_epochs(tmp_path, long) == 10


@pytest.mark.parametrize(
    ("gpus", "workers", "share"), [(8, 32, 1 / 4), (1, 4, 1 / 4), (3, 4, 1 / 2), (8, 4, 1), (0, 4, 0), (8, 0, 0)]
)
def test_workers_spread_over_all_gpus_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int, share: float
) -> None:
    asked: list[dict[str, float]] = []

    def remote(**wanted: float) -> Callable[[object], object]:
        asked.append(wanted)
        return lambda task: task

    cluster = SimpleNamespace(
        init=lambda **_: None, shutdown=lambda: None, remote=remote, cluster_resources=lambda: {"CPU": 64, "GPU": gpus}
    )
    monkeypatch.setitem(sys.modules, "ray", cluster)
    with runner.ray("auto", cpus=1, gpu_workers=workers):
        assert [wanted["num_gpus"] for wanted in asked] == [share]


@pytest.mark.parametrize(
    ("gpus", "device", "found"), [(2, "auto", "cuda"), (2, "cuda", "cuda"), (2, "cpu", "cpu"), (0, "auto", "cpu")]
)
def test_the_device_on_a_cluster_is_not_this_machines(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, found: str
) -> None:
    resources = {"CPU": 4.0} | ({"GPU": float(gpus)} if gpus else {})
    cluster = SimpleNamespace(init=lambda **_: None, shutdown=lambda: None, cluster_resources=lambda: resources)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    assert runner.cluster_device("auto", device) == found
    resources.pop("GPU", None)
    with pytest.raises(ProviderError, match=r"device \(=cuda\) is not available: the Ray cluster auto has no GPU"):
        runner.cluster_device("auto", "cuda")


SLICES = "MIG-a,MIG-b,MIG-c,MIG-d"  # of which a process sees one


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("5,GPU-1a,3", ["5", "GPU-1a", "3"]),
        ("4,5,6,-1,7", ["4", "5", "6"]),
        (SLICES, SLICES.split(",")),
    ],
)
def test_workers_spread_over_all_gpus_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    gpus = runner._visible_gpus()
    assert gpus == expected
    if visible is not None:
        return
    monkeypatch.syspath_prepend(REPOSITORY)  # where the processes find this module
    monkeypatch.setattr(runner, "_run_and_report", _report_gpu)
    with local(4, gpus) as submit:  # all four must be at it before one ends
        seen = [submit(tmp_path, task, "4") for task in plan(["table-1"], [0])]
        for future in seen:
            future.result(60)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["0", "0", "1", "2"]


def _report_gpu(sender: Any, *arguments: Any) -> None:
    """As the runner's own, in a process in which a task only waits for the others and notes its GPU."""

    def see_gpu(folder: Path, task: Task, data: str, tell: Callable[[str], object]) -> None:
        assert "torch" not in sys.modules
        (folder / task.name).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        _wait_until(lambda: len(list(folder.iterdir())) == int(data))

    runner.run_task = see_gpu  # type: ignore[assignment]
    runner._run_and_report(sender, *arguments)


def _warn_twice(sender: Any, *arguments: Any) -> None:
    def warn(folder: Path, task: Task, data: None, tell: Callable[[str], object]) -> None:
        progress = runner._Warnings(task, tell)
        progress.warn("first")
        progress.warn("second")

    runner.run_task = warn  # type: ignore[assignment]
    runner._run_and_report(sender, *arguments)


def test_warnings_of_a_run_reach_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[Task]) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)  # where the process finds this module
    monkeypatch.setattr(runner, "_run_and_report", _warn_twice)
    told: list[str] = []
    with local(1, tell=told.append) as submit:
        submit(tmp_path, tasks[0], None).result(60)
    assert told == [f"warning: {tasks[0].title}: {text}" for text in ("first", "second")]
