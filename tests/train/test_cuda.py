"""What surrounds a capture; the capture itself needs a GPU, where ``bench/cuda.py`` compares both ways bit for bit."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
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


class FakeCuda:
    """Of ``torch.cuda`` what a capture needs, with what PyTorch leaves behind where one fails.

    Attributes:
        stream: the current stream.
        capturing: whether the generator takes a capture to be under way.
        pools: the memory pools that a capture takes from.
        waits: how often the device was waited for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.capturing, self.pools, self.waits = "main", False, list[object](), 0
        generator = SimpleNamespace(clone_state=lambda: "clone", graphsafe_set_state=self.set_state)
        fakes = {
            "CUDAGraph": lambda: "graph",
            "graph_pool_handle": lambda: (0, 7),
            "Stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None, name=self.stream),
            "stream": self.on,
            "graph": self.capture,
            "synchronize": self.synchronize,
            "default_generators": {None: generator},
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: None)

    @contextmanager
    def on(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.stream = self.stream, getattr(stream, "name", "side")
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def capture(self, graph: str, pool: tuple[int, int], stream: SimpleNamespace) -> Iterator[None]:
        self.stream, self.capturing, self.pools = "capture", True, [pool]
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 (as PyTorch)
        self.stream, self.capturing, self.pools = "main", False, []

    def synchronize(self, device: torch.device) -> None:
        self.waits += 1

    def set_state(self, state: str) -> None:
        self.capturing = self.capturing and state != "clone"

    def end_pool(self, index: None, pool: tuple[int, int]) -> None:
        if pool not in self.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools.remove(pool)


@pytest.mark.parametrize(
    "failing", [1, cuda.WARM_UP_STEPS + 1, None], ids=["in the warm-up", "in the capture", "never"]
)
def test_a_capture_that_fails_leaves_pytorch_as_it_was_and_says_why(
    monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    fake, training, warnings, steps = FakeCuda(monkeypatch), Training(), Warnings(), 0

    def step(batch: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == failing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore about it")
        return training.step(batch)

    result = cuda._replayed(step, [training.state], 4, warnings)
    assert training.state.tolist() == [0, 0, 0]
    assert (fake.stream, fake.capturing, fake.pools, fake.waits) == ("main", False, [], failing is not None)
    reason = "training goes on without a CUDA graph, and slower: operation not permitted when stream is capturing"
    assert (result == step, warnings.texts) == ((True, [reason]) if failing else (False, []))


def test_a_capture_that_fails_leaves_no_tensor_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """For want of memory, perhaps: the error, its traceback and its frames would keep them."""
    FakeCuda(monkeypatch)
    left: list[weakref.ref[Tensor]] = []

    def step(batch: Tensor) -> Tensor:
        activations = torch.zeros(1000)
        left.append(weakref.ref(activations))
        raise RuntimeError("CUDA out of memory")

    gc.disable()
    try:
        cuda._replayed(step, [torch.zeros(1)], 4, Progress())
        assert [tensor() for tensor in left] == [None]
    finally:
        gc.enable()
