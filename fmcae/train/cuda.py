"""A training step on a GPU as one CUDA graph.

The networks are small: a step's 50 to 70 kernels each compute for a few microseconds, and to start them one by one from
Python takes several times as long. Captured once and replayed, they start together. The kernels and their order are
the same, and so are the results, bit for bit.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
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
    failure = None
    try:
        with torch.random.fork_rng(devices=[] if device.index is None else [device.index]):
            graph, loss = _capture(step, indices)
    except RuntimeError as error:
        failure = _reason(error)
    finally:
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
    if failure is not None:
        _give_back_memory()
        progress.warn(f"training goes on without a CUDA graph, and slower: {failure}")
        return step

    def replay(batch: Tensor) -> Tensor:
        if len(batch) != batch_size:
            return step(batch)
        indices.copy_(batch)
        graph.replay()
        return loss

    return replay


def _reason(error: RuntimeError) -> str:
    cause = error.__context__ or error  # a capture that failed ends with an error that does not say why
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _give_back_memory() -> None:
    """Free what the failed step still has on the GPU, which may have failed for want of memory."""
    gc.collect()  # the error's traceback and its frames hold each other, and with them the step's tensors
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def _capture(step: Step, indices: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # for the warm-up and the capture, and for this graph alone: with a graph PyTorch frees the 64 MiB that cuBLAS keeps for
    # its stream, which another graph on that stream would go on to use
    stream = torch.cuda.Stream(indices.device)  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream(indices.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(current):  # which would not be the current one any more after a failed capture
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    step(indices)
            current.wait_stream(stream)
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                loss = step(indices)
    except RuntimeError:
        _clear_away(indices.device, pool)
        raise
    return graph, loss


def _clear_away(device: torch.device, pool: tuple[int, int]) -> None:
    """Mend what a capture leaves that failed: in PyTorch only one that ends well gives generator and memory back.

    Source: CUDAGraph::capture_end in PyTorch's aten/src/ATen/cuda/CUDAGraph.cpp.
    """
    torch.cuda.synchronize(device)  # the warm-up may still write to the state
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())  # up to PyTorch 2.12 it would refuse to draw from now on
    with suppress(RuntimeError):  # there is nothing to give back where the capture did not begin, or ended
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
