"""The one definition of each metric, in numpy and float64.

A metric over a split is the mean over its images; the paper's mean over batches equals it if they are of one size.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


def mse(x: FloatArray, x_hat: FloatArray) -> float:
    """The mean squared error of inputs and reconstructions, both (N, ...) in [0, 1]. Source: the paper's ECM, §1.2.3."""
    difference = np.subtract(x, x_hat).reshape(len(x), -1)
    total = np.einsum("np,np->n", difference, difference, dtype=np.float64)
    return float((total / difference.shape[1]).mean())


def softmax(logits: FloatArray) -> NDArray[np.float32]:
    """The probabilities (N, K) float32 of logits (N, K), each row summing to 1."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    probabilities: NDArray[np.float32] = (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def cross_entropy(logits: FloatArray, labels: IntArray) -> float:
    """The mean cross-entropy in nats of logits (N, K) and class indices (N,). Source: the paper's equation 2 (in bits)."""
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sum - shifted[np.arange(len(labels)), labels]).mean())


def accuracy(logits: FloatArray, labels: IntArray) -> float:
    """The share in [0, 1] of rows of logits (N, K) whose largest entry is the label's (N,)."""
    return float((logits.argmax(axis=1) == labels).mean())


def confusion(logits: FloatArray, labels: IntArray) -> NDArray[np.int64]:
    """The counts (K, K) int64: row = true class, column = predicted class. Source: the paper's Figure 6."""
    class_count = logits.shape[1]
    pairs = labels.astype(np.int64) * class_count + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=class_count**2).reshape(class_count, class_count)
