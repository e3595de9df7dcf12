"""The training step on a CPU, several times faster than PyTorch's own and equal to it but for rounding.

A plain step spends its time on memory and Python, not on arithmetic: every layer's dropout, ReLU and pooling passes over
its array again, forward and backward. Here

- what stands between two matrix products is one pass, a kernel compiled by numba;
- the threads divide a batch once, from x to the gradients, instead of once in every operator;
- the encoder computes only what pooling uses: 11×11 are pooled to 5×5 without their last row and column, so the second
  convolution gives 10×10 and the first block 12×12;
- a transposed convolution is one matrix product, whose columns are added up where its windows overlap.

The matrix products and the second convolution, nine tenths of the arithmetic, are PyTorch's (oneDNN, MKL). The networks are
defined in :mod:`fmcae.train.networks`; ``tests/train/test_cpu.py`` compares losses, gradients and training steps with them.
"""

from fmcae.train.cpu.backend import FusedAdam, FusedBackend, adam_state
from fmcae.train.cpu.passes import DROPOUT_LAYERS

__all__ = ["DROPOUT_LAYERS", "FusedAdam", "FusedBackend", "adam_state"]
