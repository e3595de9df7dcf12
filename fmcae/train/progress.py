"""The events of a run, for whoever shows them. There is no torch here, so that a renderer need not import it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Progress:
    """The events of a run, each of which does nothing here; renderers override them."""

    def stage(self, stage: str, epochs: int, first_epoch: int, images_per_epoch: int) -> None:
        """A stage begins at ``first_epoch`` (from 1)."""

    def step(self, images: int, loss: "Tensor") -> None:
        """A mini-batch is done; ``loss`` is a scalar still on its device, and reading it waits for the device."""

    def note(self, text: str) -> None:
        """Something happened that whoever watches should know."""

    def warn(self, text: str) -> None:
        """Something failed that the run can do without."""

    def record(self, record: dict[str, Any]) -> None:
        """An epoch, or a stage's test, is measured; ``record`` is its line in ``metrics.jsonl``."""
