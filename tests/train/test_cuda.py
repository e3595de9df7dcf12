"""What surrounds a capture; the capture itself needs a GPU, where ``bench/cuda.py`` compares both ways bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fmcae.train import cuda
from fmcae.train.cuda import Step, captured
from fmcae.train.progress import Progress


class Training:
    """A step that changes a state by random numbers."""

    def __init__(self) -> None:
        self.state = torch.zeros(3)

    def step(self, batch: Tensor) -> Tensor:
        self.state += batch.sum() + torch.rand(3)
        return self.state.sum()


class FakeGraph:
    """Replays by computing again, at the place in memory that was captured."""

    def __init__(self, step: Step, indices: Tensor) -> None:
        self.step, self.indices, self.loss = step, indices, torch.zeros(())

    def replay(self) -> None:
        self.loss.copy_(self.step(self.indices))


class Warnings(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def test_a_step_on_a_cpu_is_itself() -> None:
    training = Training()
    assert captured(training.step, [training.state], 4, Progress()) == training.step


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_changes_no_result(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    def capture(step: Step, indices: Tensor) -> Any:
        for _ in range(cuda.WARM_UP_STEPS):
            step(indices)
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore about it")
        graph = FakeGraph(step, indices)
        return graph, graph.loss

    monkeypatch.setattr(cuda, "_capture", capture)
    batches = torch.split(torch.arange(10), 4)  # the last one is smaller
    eager, replayed, warnings = Training(), Training(), Warnings()
    torch.manual_seed(0)
    expected = [eager.step(batch).item() for batch in batches]
    torch.manual_seed(0)
    step = cuda._replayed(replayed.step, [replayed.state], 4, warnings)
    assert [step(batch).item() for batch in batches] == expected
    assert torch.equal(replayed.state, eager.state)
    reason = "training goes on without a CUDA graph, and slower: operation not permitted when stream is capturing"
    assert warnings.texts == ([reason] if fails else [])
