"""The split into train, val and test: drawn once from a stated seed, and the same on every machine.

The paper has 50,000 / 10,000 / 10,000 (§2). Its shares, 5 : 1 : 1, serve for sets of any size.
"""

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 2023  # the paper's year; nothing was tuned on it


def split_val(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return indices (train, val) into ``count`` images that have their own test set: one sixth is val."""
    order = _permutation(count)
    val_count = count // 6
    return np.sort(order[val_count:]), np.sort(order[:val_count])


def split_val_test(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return indices (train, val, test) into ``count`` images without a test set: one seventh each is val and test."""
    order = _permutation(count)
    share = count // 7
    return np.sort(order[2 * share :]), np.sort(order[:share]), np.sort(order[share : 2 * share])


def draw_labels(labels: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of ``count`` of ``labels`` (N,), as many of each class as of another, or one more or less."""
    order = _permutation(len(labels), seed)
    rank = np.empty(len(labels), np.int64)  # how many images of its class come before an image
    for label in np.unique(labels):
        indices = np.flatnonzero(labels[order] == label)
        rank[indices] = np.arange(len(indices))
    return np.sort(order[np.argsort(rank, kind="stable")[:count]])


def _permutation(count: int, seed: int = SPLIT_SEED) -> NDArray[np.int64]:
    # RandomState, because NumPy froze its streams for good (NEP 19); default_rng's may change between versions.
    return np.random.RandomState(seed).permutation(count)
