"""A training step on a GPU as one CUDA graph.

The networks are small: a step's 50 to 70 kernels each compute for a few microseconds, and to start them one by one from
Python takes several times as long. Captured once and replayed, they start together. The kernels and their order are
the same, and so are the results, bit for bit.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from fmcae.train.progress import Progress

Step: TypeAlias = Callable[[Tensor], Tensor]
WARM_UP_STEPS = 3  # in which cuDNN and cuBLAS choose their kernels, as PyTorch's own recipe has it


def captured(step: Step, state: Sequence[Tensor], batch_size: int, progress: Progress) -> Step:
    """Return what does the same as ``step``, from one CUDA graph wherever that can be.

    Args:
        step: trains on the images at indices (B,) int64, and returns the loss, a scalar. Nothing in it may wait for the
            device, and all that it reads and changes must keep its place in memory.
        state: every tensor that a step changes; the capture leaves them as they were.
        batch_size: the number of indices that the graph is for; others take ``step`` itself.
        progress: is warned where the capture fails; every step is ``step`` itself then.
    """
    return step if state[0].device.type == "cpu" else _replayed(step, state, batch_size, progress)


def _replayed(step: Step, state: Sequence[Tensor], batch_size: int, progress: Progress) -> Step:
    device = state[0].device
    indices = torch.zeros(batch_size, dtype=torch.int64, device=device)
    before = [tensor.clone() for tensor in state]
    try:
        with torch.random.fork_rng(devices=[] if device.index is None else [device.index]):
            graph, loss = _capture(step, indices)
    except RuntimeError as error:
        progress.warn(f"training goes on without a CUDA graph, and slower: {str(error).splitlines()[0]}")
        return step
    finally:
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

    def replay(batch: Tensor) -> Tensor:
        if len(batch) != batch_size:
            return step(batch)
        indices.copy_(batch)
        graph.replay()
        return loss

    return replay


def _capture(step: Step, indices: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    stream = torch.cuda.Stream(indices.device)  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream(indices.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            step(indices)
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(indices)
    return graph, loss
