"""How a training run looks in a terminal, and how in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fmcae.cli.options import note, printable
from fmcae.train.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from torch import Tensor

LOSS_EVERY = 20  # steps; reading the loss waits for the device


@contextmanager
def watch_training(quiet: bool) -> Iterator[Progress]:
    """A progress bar on a terminal's stderr; plain lines if ``quiet`` or elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = ("{task.description}", BarColumn(), "{task.fields[status]}", TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield Bar(bar)


class Lines(Progress):
    """One plain line per epoch."""

    epochs = 0

    def stage(self, stage: str, epochs: int, first_epoch: int, images_per_epoch: int) -> None:
        self.epochs = epochs

    def note(self, text: str) -> None:
        note(text)

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")

    def record(self, record: dict[str, Any]) -> None:
        self.note(record_line(record, self.epochs))


class Bar(Lines):
    """A bar over a stage's images with loss, val accuracy and speed; a line per epoch stays above it."""

    def __init__(self, bar: "RichProgress") -> None:
        self.bar = bar
        self.task = bar.add_task("", status="")
        self.steps = 0
        self.accuracy = ""

    def stage(self, stage: str, epochs: int, first_epoch: int, images_per_epoch: int) -> None:
        super().stage(stage, epochs, first_epoch, images_per_epoch)
        self.bar.reset(self.task, total=epochs * images_per_epoch, completed=(first_epoch - 1) * images_per_epoch)
        self._describe(stage, first_epoch)

    def note(self, text: str) -> None:
        self.bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def step(self, images: int, loss: "Tensor") -> None:
        self.bar.advance(self.task, images)
        self.steps += 1
        if self.steps % LOSS_EVERY == 0:
            speed = self.bar.tasks[0].speed or 0
            self.bar.update(self.task, status=f"loss {loss.item():.4f}{self.accuracy}  {speed:,.0f} images/s")

    def record(self, record: dict[str, Any]) -> None:
        super().record(record)
        if "val_accuracy" in record:
            self.accuracy = f"  val accuracy {record['val_accuracy']:.4f}"
        if "epoch" in record:
            self._describe(record["stage"], record["epoch"] + 1)

    def _describe(self, stage: str, epoch: int) -> None:
        # the epoch first: a narrow terminal cuts the end
        self.bar.update(self.task, description=f"{min(epoch, self.epochs)}/{self.epochs} {stage}")


def record_line(record: dict[str, Any], epochs: int) -> str:
    """One line of text, of at most 80 columns, for a record of ``metrics.jsonl``."""

    def shown(*names: str) -> str:
        return ", ".join(
            f"{label} {record[name]:.4f}" for name, label in zip(names[::2], names[1::2], strict=True) if name in record
        )

    if "epoch" not in record:
        tested = shown("test_mse", "mse", "test_cross_entropy", "cross entropy", "test_accuracy", "accuracy")
        return f"{record['stage']} test: {tested}" + (f"  (epoch {kept})" if (kept := record.get("kept_epoch")) else "")
    parts = (
        shown("train_mse", "mse", "val_mse", "val"),
        shown("train_loss", "loss", "train_cross_entropy", "loss", "val_cross_entropy", "val"),
        shown("train_accuracy", "accuracy", "val_accuracy", "val" if "train_accuracy" in record else "val accuracy"),
        f"{record['seconds']:.1f} s",
    )
    return f"{record['stage']} {record['epoch']}/{epochs}: {'  '.join(part for part in parts if part)}"
