"""A smaller classifier beside the float32 one: what it costs in accuracy, and what it gains in size and time.

Times are taken in turns, in rounds, and compared by the spread of the rounds: a classifier is faster or slower at a batch
size only if it is so in every round.
"""

from collections.abc import Mapping
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
        precision: "int8" or "fp16". int8 may be slower if it is smaller; fp16, which is for speed, may not.
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
    precision: SmallerPrecision = "int8"

    @property
    def where(self) -> str:
        """The provider, and the GPU's name if one ran it."""
        return f"{self.provider} ({self.gpu['name']})" if self.gpu else self.provider

    @property
    def lost_points(self) -> float:
        """The accuracy that is lost, in hundredths; below 0 where some is gained."""
        return 100 * (self.fp32_accuracy - self.accuracy)

    @property
    def accuracy_text(self) -> str:
        """What the accuracy gains or loses, in words."""
        verb = "gains" if self.lost_points < 0 else "loses"
        points = f"{abs(self.lost_points):.2f}"
        change = "keeps the accuracy" if points == "0.00" else f"{verb} {points} points of accuracy"
        return f"{change} ({self.accuracy:.4f}, float32 has {self.fp32_accuracy:.4f})"

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than float32 in every round at a batch size."""
        return any(ratio.low > 1 for ratio in self.speedup.values())

    @property
    def is_slower(self) -> bool:
        """Whether it is slower than float32 in every round at a batch size, and faster at none."""
        return not self.is_faster and any(ratio.high < 1 for ratio in self.speedup.values())

    @property
    def speed_verdict(self) -> str:
        """Whether it is faster or slower than float32, in words."""
        return f"{'faster than' if self.is_faster else 'slower than' if self.is_slower else 'as fast as'} float32"

    @property
    def speed_text(self) -> str:
        """The same, where, and by how much, with the range of the rounds."""
        ratios = ", ".join(
            f"{ratio.median:.2f} times as fast at batch {size} ({ratio.low:.2f} to {ratio.high:.2f})"
            for size, ratio in self.speedup.items()
        )
        return f"{self.speed_verdict} on {self.where}: {ratios}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Tradeoff":
        """The tradeoff that a card carries."""
        return cls(**{**values, "speedup": {size: Ratio(**ratio) for size, ratio in values["speedup"].items()}})

    @property
    def failure(self) -> str | None:
        """Why the file is not worth keeping; None if it is."""
        if not self.lost_points <= self.budget_points + _ROUNDING:
            return f"it {self.accuracy_text} on {self.images:,} test images, and may lose {self.budget_points:g} points"
        if self.is_slower and self.precision == "fp16":
            advice = "; fp16 is for CUDA: --provider cuda" if self.provider == "cpu" else ""
            return f"it is {self.speed_text}{advice}"
        if self.size_bytes >= self.fp32_size_bytes and not self.is_faster:
            return f"it is not smaller ({self.size_bytes:,} bytes), and {self.speed_text}"
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
        precision=precision,
    )
