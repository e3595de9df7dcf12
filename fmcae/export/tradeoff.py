"""A smaller classifier beside the float32 one: what it costs in accuracy, and what it gains in size and time."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fmcae import metrics
from fmcae.data import Split
from fmcae.export.precision import SmallerPrecision
from fmcae.precision import check_made_for
from fmcae.preprocess import scale
from fmcae.runtime.machine import describe_machine, gpu_facts
from fmcae.runtime.session import Session
from fmcae.runtime.timing import Ratio, random_input, time_in_turns

ACCURACY_BUDGET = 0.2  # points: hundredths of accuracy
_TIMED_BATCHES = (1, 256)
_TIMED_SECONDS = 0.5
_ROUNDING = 1e-9  # points; a loss of exactly the budget is allowed, and a difference of two floats is not exact


@dataclass(frozen=True)
class Tradeoff:
    """A smaller classifier beside the float32 one, on one machine.

    Attributes:
        images: the number of test images, all of which both classified.
        accuracy, fp32_accuracy: the shares of them in [0, 1] that get the right label.
        label_agreement: the share that gets the same label from both.
        max_abs_difference: the largest absolute difference of a logit.
        size_bytes, fp32_size_bytes: the sizes of the graphs, without card and golden vectors.
        speedup: fp32's latency over this one's, by batch size; above 1 this one is faster.
        machine, gpu: what the times were taken on. gpu has name and driver, and is None on the CPU or if it cannot be had.
        budget_points: the loss of accuracy that was allowed, in hundredths.
    """

    images: int
    accuracy: float
    fp32_accuracy: float
    label_agreement: float
    max_abs_difference: float
    size_bytes: int
    fp32_size_bytes: int
    speedup: dict[str, Ratio]
    provider: str
    threads: int
    machine: dict[str, Any]
    budget_points: float
    gpu: dict[str, str] | None = None

    @property
    def where(self) -> str:
        """The provider, and the GPU's name if one ran it."""
        return f"{self.provider} ({self.gpu['name']})" if self.gpu else self.provider

    @property
    def lost_points(self) -> float:
        """The accuracy that is lost, in hundredths; below 0 where some is gained."""
        return 100 * (self.fp32_accuracy - self.accuracy)

    @property
    def failure(self) -> str | None:
        """Why the file is not worth keeping; None if it is."""
        if not self.lost_points <= self.budget_points + _ROUNDING:
            return (
                f"accuracy falls from {self.fp32_accuracy:.4f} to {self.accuracy:.4f} on {self.images:,} test images, "
                f"by {self.lost_points:.2f} points, more than the budget of {self.budget_points:g}"
            )
        speed = self.speedup["1"].median
        if self.size_bytes >= self.fp32_size_bytes and speed <= 1:
            return f"it is neither smaller ({self.size_bytes:,} bytes) nor faster ({speed:.2f} times on {self.where})"
        return None


def measure_tradeoff(
    graph: bytes, fp32: bytes, precision: SmallerPrecision, test: Split, budget_points: float, provider: str
) -> Tradeoff:
    """Run both classifiers' graphs on all of ``test``, and time them in turns, one thread each.

    Raises:
        ProviderError: ``provider`` is not one that the precision is made for, or not the one that would run.
    """
    check_made_for(precision, provider)
    session, fp32_session = (Session(model, provider=provider, threads=1) for model in (graph, fp32))
    x = scale(test.images)
    logits, reference = session.run(x), fp32_session.run(x)
    speedup = {}
    for size in _TIMED_BATCHES:
        batch = random_input(session, size)
        runners = {"smaller": lambda x=batch: session.run(x), "fp32": lambda x=batch: fp32_session.run(x)}
        speedup[str(size)] = time_in_turns(runners, size, _TIMED_SECONDS).ratios["fp32"]
    gpu = gpu_facts() if session.provider == "cuda" else None
    return Tradeoff(
        images=len(test),
        accuracy=metrics.accuracy(logits, test.labels),
        fp32_accuracy=metrics.accuracy(reference, test.labels),
        label_agreement=float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        max_abs_difference=float(np.abs(logits - reference).max()),
        size_bytes=len(graph),
        fp32_size_bytes=len(fp32),
        speedup=speedup,
        provider=session.provider,
        threads=session.threads,
        machine=describe_machine(),
        budget_points=budget_points,
        gpu={key: gpu[key] for key in ("name", "driver")} if gpu else None,
    )
