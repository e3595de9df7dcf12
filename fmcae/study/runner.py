"""Running the grid: several runs at a time, each in a process of its own, on this machine or on a Ray cluster.

Each run has its folder, DIR/runs/NAME. A run that is stopped continues from its last whole epoch. If a run fails, only
those that start from it fail too, and the next call tries them once more.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fmcae import schema
from fmcae.errors import FmcaeError, ProviderError
from fmcae.runtime.cluster import connected
from fmcae.study.grid import Task, autoencoder, multiply_adds, work
from fmcae.train.config import Device
from fmcae.train.progress import Progress

State = Literal["waiting", "running", "done", "failed"]
Submit: TypeAlias = Callable[[Path, Task, str | None], "Future[None]"]  # starts run_task with these arguments
POLL_SECONDS = 0.5


@dataclass
class TaskStatus:
    """The state of one task, which fails also where the autoencoder that it needs has failed.

    ``reason`` says in one line why it failed, and ``epochs_before`` how many epochs were done before this call.
    """

    task: Task
    state: State = "waiting"
    reason: str = ""
    epochs_before: int = 0


@dataclass
class StudyProgress:
    """The state of all tasks of a call, by name; ``began`` is when, in seconds of ``time.monotonic``."""

    folder: Path
    statuses: dict[str, TaskStatus]
    workers: int
    began: float = field(default_factory=time.monotonic)

    def in_state(self, state: State) -> list[TaskStatus]:
        """Return the tasks in that state, in the plan's order."""
        return [status for status in self.statuses.values() if status.state == state]

    def epochs_done(self, status: TaskStatus) -> int:
        """Return the number of whole epochs, from whatever machine."""
        return status.task.config.epochs if status.state == "done" else count_epochs(self.folder, status.task)

    def seconds_left(self) -> float | None:
        """Return the time left at the pace of this call; None before the first epoch's end."""
        done = left = 0.0
        for status in self.statuses.values():
            if status.state != "failed":
                epochs, work_of_epoch = self.epochs_done(status), work(status.task.config) / status.task.config.epochs
                done += work_of_epoch * (epochs - status.epochs_before)
                left += work_of_epoch * (status.task.config.epochs - epochs)
        return left * (time.monotonic() - self.began) / done if done else None


def run_folder(folder: Path, task: Task) -> Path:
    """Return the folder of a task's run below the study's folder."""
    return folder / "runs" / task.name


def is_done(folder: Path, task: Task) -> bool:
    """Return whether the task's run is finished."""
    path = run_folder(folder, task)  # seen as Run.finished does, without torch
    return (path / f"{task.config.stage}.safetensors").is_file() and not (path / "checkpoint.safetensors").is_file()


def to_do(folder: Path, tasks: Sequence[Task], known: Collection[str] = ()) -> list[Task]:
    """Return the tasks that must still run.

    The results of the runs named in ``known`` are there, though their folders may not be. An autoencoder among them is
    trained anew where a classifier needs its weights to start from.
    """
    left = [task for task in tasks if not is_done(folder, task)]
    needed = {task.needs.name for task in left if task.needs and task.name not in known}
    return [task for task in left if task.name not in known or task.name in needed]


def count_epochs(folder: Path, task: Task) -> int:
    """Return the number of whole epochs in the task's ``metrics.jsonl``; 0 without one."""
    try:
        lines = (run_folder(folder, task) / "metrics.jsonl").read_text().splitlines()
        records = [schema.parse(line, dict[str, Any]) for line in lines]
        return sum(record.get("stage") == task.config.stage and "epoch" in record for record in records)
    except (OSError, ValueError):
        return 0


def run_study(
    folder: Path,
    tasks: Sequence[Task],
    submit: Submit,
    workers: int,
    data: str | None,
    changed: Callable[[StudyProgress], None] = lambda progress: None,
    known: Collection[str] = (),
) -> StudyProgress:
    """Train every task that is not done yet, an autoencoder before the classifiers that start from it.

    ``workers`` run at a time; ``data`` is the data folder, None for Fashion-MNIST from where it is found; ``known`` is as
    for :func:`to_do`. ``changed`` is called at every change, and twice a second.

    Returns:
        The progress at the end, when every task is "done" or "failed".
    """
    waiting = {task.name for task in to_do(folder, tasks, known)}
    statuses = {task.name: TaskStatus(task, "waiting" if task.name in waiting else "done") for task in tasks}
    progress = StudyProgress(folder, statuses, workers)
    for status in statuses.values():
        status.epochs_before = progress.epochs_done(status)
    futures: dict[Future[None], TaskStatus] = {}
    while progress.in_state("waiting") or futures:
        for status in progress.in_state("waiting"):
            needs = statuses.get(status.task.needs.name) if status.task.needs else None
            if needs and needs.state == "failed":
                status.state, status.reason = "failed", f"{needs.task.name}, which it starts from, failed"
            elif len(futures) < workers and (not needs or needs.state == "done"):
                status.state = "running"
                futures[submit(folder, status.task, data)] = status
        changed(progress)
        for future in wait(futures, POLL_SECONDS, FIRST_COMPLETED).done if futures else ():
            status = futures.pop(future)
            error = future.exception()
            status.state = "failed" if error else "done"
            status.reason = (str(error).splitlines() or [type(error).__name__])[0] if error else ""
    changed(progress)
    return progress


class _Warnings(Progress):
    """Tells of a task's warnings alone."""

    def __init__(self, task: Task, tell: Callable[[str], object]) -> None:
        self.task, self.tell = task, tell

    def warn(self, text: str) -> None:
        self.tell(f"warning: {self.task.title}: {text}")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_task(folder: Path, task: Task, data: str | None, tell: Callable[[str], object] = _log) -> None:
    """Train one task, in this process, from where its run folder stands; ``tell`` gets its warnings.

    Raises:
        FmcaeError: it cannot be trained; the message says why.
    """
    from fmcae.data import load_dataset
    from fmcae.train.loop import train
    from fmcae.train.run import create_run, locked, open_run

    path = run_folder(folder, task)
    with locked(path, wait=True):  # while another process, perhaps of a killed study, trains the run
        if is_done(folder, task):
            return
        dataset = load_dataset(data)
        if (path / "config.json").is_file():
            run = open_run(path)
        else:
            network = replace(task.config.network, class_count=len(dataset.class_names))
            config = replace(task.config, network=network, data=data)
            run = create_run(path, config, dataset, run_folder(folder, task.needs) if task.needs else None)
        train(run, dataset, _Warnings(task, tell))


def measure_rate() -> float:
    """Measure the multiply-adds a second of one run on one thread of this machine."""
    import torch

    from fmcae.train.backend import backend_for, optimizer_for
    from fmcae.train.loop import step_for, train_epoch
    from fmcae.train.measure import DeviceSplit
    from fmcae.train.networks import Autoencoder

    config = autoencoder(0).config
    images = torch.randint(256, (5_000, 28, 28), dtype=torch.uint8)
    split = DeviceSplit(images, torch.zeros(len(images), dtype=torch.int64))
    with backend_for(Autoencoder(config.network), torch.device("cpu"), threads=1) as backend:
        optimizer = optimizer_for(backend, config.learning_rate)
        step = step_for(backend, optimizer, split, config.batch_size, Progress())
        for _ in range(2):  # the first time also compiles
            began = time.perf_counter()
            train_epoch(step, backend.network, split, config.batch_size, Progress())
            seconds = time.perf_counter() - began
    return 3 * len(images) * multiply_adds(config) / seconds


@contextmanager
def local(workers: int, gpus: Sequence[str] = (), tell: Callable[[str], object] = _log) -> Iterator[Submit]:
    """Run each task in a fresh process of this machine, ``workers`` at a time; leaving early ends them.

    They share ``gpus`` evenly, which are entries of CUDA_VISIBLE_DEVICES; each process sees one of them. ``tell`` gets
    their warnings, in this process.
    """
    processes: set[multiprocessing.process.BaseProcess] = set()
    context = multiprocessing.get_context("spawn")
    slot, gpus_of_slots = threading.local(), cycle(gpus or [None])

    def begin_slot() -> None:
        slot.gpu = next(gpus_of_slots)

    def in_process(*arguments: Any) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_and_report, args=(sender, slot.gpu, *arguments), daemon=True)
        processes.add(process)
        process.start()
        sender.close()
        try:
            is_warning, message = receiver.recv()
            while is_warning:
                tell(message)
                is_warning, message = receiver.recv()
        except EOFError:
            process.join()
            message = f"its process ended with exit code {process.exitcode}"
        process.join()
        processes.discard(process)
        if message:
            raise FmcaeError(message)

    pool = ThreadPoolExecutor(workers, initializer=begin_slot)
    try:
        yield partial(pool.submit, in_process)
    finally:
        for process in list(processes):
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _run_and_report(sender: Any, gpu: str | None, folder: Path, task: Task, data: str | None) -> None:
    """Send each warning, and in the end an empty text when the task is trained, or else the error."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch is imported
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the study, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_task(folder, task, data, lambda warning: sender.send((True, warning)))
        sender.send((False, ""))
    except BaseException as error:
        sender.send((False, str(error) if isinstance(error, FmcaeError) else f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    """End this process when the study that started it ends, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def ray(address: str, cpus: int, gpu_workers: int) -> Iterator[Submit]:
    """Run each task, which takes so many ``cpus``, on a Ray cluster, again elsewhere if its worker dies.

    So many ``gpu_workers`` divide all of the cluster's GPUs among them, where they are not 0.

    The cluster's machines need fmcae with its [train] extra, the data set, and the study's folder under the same path.

    Raises:
        RunError: there is no cluster at that address.
    """
    with connected(address) as library:
        resources: dict[str, float] = library.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        # so many workers on each GPU, since Ray packs shares such as three quarters on one GPU each
        share = 1 / math.ceil(gpu_workers / gpus) if gpu_workers and gpus else 0
        remote = library.remote(num_cpus=cpus, num_gpus=share, max_retries=5)(run_task)
        yield lambda *arguments: remote.remote(*arguments).future()


def cluster_device(address: str, device: str) -> Device:
    """Return the device on a Ray cluster, "cpu" or "cuda"; "auto" is cuda where one of its machines has a GPU.

    Raises:
        ProviderError: cuda was asked for, and no machine has a GPU.
        RunError: there is no cluster at that address.
    """
    with connected(address) as library:
        has_gpu = library.cluster_resources().get("GPU", 0) >= 1
    if device == "cuda" and not has_gpu:
        raise ProviderError(
            f"device (=cuda) is not available: the Ray cluster {address} has no GPU; run on --device cpu"
        )
    return "cuda" if has_gpu and device != "cpu" else "cpu"


def executor(
    address: str | None, workers: int, threads: int, device: str, tell: Callable[[str], object] = _log
) -> AbstractContextManager[Submit]:
    """Return :func:`ray` if there is an address, else :func:`local`, whose runs' warnings ``tell`` gets."""
    if address is None:
        return local(workers, _visible_gpus() if device == "cuda" else (), tell)
    return ray(address, threads, workers if device == "cuda" else 0)


def _visible_gpus() -> list[str]:
    """The GPUs that this process sees, as entries of CUDA_VISIBLE_DEVICES."""
    import torch

    count, listed = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(index) for index in range(count)]
    names = listed.split(",")
    return names if names[0].startswith("MIG-") else names[:count]  # a process can use one slice, and counts no more
