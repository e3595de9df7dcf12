"""A run's metrics for TensorBoard, as PyTorch's own writer has them.

``metrics.jsonl`` stays the record. Whenever training begins or goes on, the events are written anew from it, so that no
epoch is in them twice, wherever a run was stopped.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fmcae.errors import INSTALL, command_line
from fmcae.train.progress import Progress
from fmcae.train.run import Run

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "tensorboard"  # in the run's


@contextmanager
def also_to_tensorboard(run: Run, watcher: Progress, is_asked_for: bool) -> Iterator[Progress]:
    """Give ``watcher``, or what also writes for TensorBoard where that is asked for or was when the run began.

    Raises:
        OSError: the events cannot be written.
    """
    folder = run.folder / FOLDER
    if not is_asked_for and not folder.is_dir():
        yield watcher
        return
    if find_spec("tensorboard") is None:  # a run that goes on in another environment
        install = INSTALL.format(extra="tensorboard")
        watcher.warn(f"tensorboard is not installed, so {folder} is left as it is: run  {install}")
        yield watcher
        return
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    watcher.note(f"to see the metrics:  {command_line('tensorboard', '--logdir', folder)}")
    # a TensorBoard that has read the old events forgets those from purge_step on
    with SummaryWriter(str(folder), purge_step=1) as writer:
        yield _TensorBoard(run, watcher, writer)


class _TensorBoard(Progress):
    """Hands every event on to ``watcher``, and writes what is measured."""

    def __init__(self, run: Run, watcher: Progress, writer: Any) -> None:
        self.run, self.watcher, self.writer = run, watcher, writer
        self.is_first_stage = True

    def stage(self, stage: str, epochs: int, first_epoch: int, images_per_epoch: int) -> None:
        self.watcher.stage(stage, epochs, first_epoch, images_per_epoch)
        if self.is_first_stage:
            before = [
                old for old in self.run.metrics() if old["stage"] != stage or old.get("epoch", math.inf) < first_epoch
            ]
            self._write(before)
        self.is_first_stage = False

    def step(self, images: int, loss: "Tensor") -> None:
        self.watcher.step(images, loss)

    def note(self, text: str) -> None:
        self.watcher.note(text)

    def warn(self, text: str) -> None:
        self.watcher.warn(text)

    def record(self, record: dict[str, Any]) -> None:
        self._write([record])
        self.watcher.record(record)

    def _write(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            step = record.get("epoch", record.get("kept_epoch"))  # the second is of the test split
            for name, value in record.items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"{record['stage']}/{name}", value, step)
        self.writer.flush()
