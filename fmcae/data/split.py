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


def split_by_class(
    labels: NDArray[np.uint8], parts: int, apart: int, all_in_first: bool = True
) -> list[NDArray[np.int64]]:
    """Return the indices of labels (N,) in ``apart`` + 1 splits: each after the first has one of ``parts`` of every class.

    A class whose size is no multiple of ``parts`` gets one image more or less into a split, but at least one into the first
    if ``all_in_first``.
    """
    order = _permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(len(labels)) % parts  # in every run of so many images, nearly all of one class
    if all_in_first:
        classes, starts = np.unique(labels[order], return_index=True)
        place[starts[~np.isin(classes, labels[order][place < parts - apart])]] = 0
    taken = [np.sort(order[place == parts - 1 - number]) for number in range(apart)]
    return [np.sort(order[place < parts - apart]), *taken]


def draw_labels(labels: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of ``count`` of ``labels`` (N,), as many of each class as of another, or one more or less.

    Of a class that has fewer all are taken, and more of the others.
    """
    order = _permutation(len(labels), seed)
    rank = np.empty(len(labels), np.int64)  # how many images of its class come before an image
    for label in np.unique(labels):
        indices = np.flatnonzero(labels[order] == label)
        rank[indices] = np.arange(len(indices))
    return np.sort(order[np.argsort(rank, kind="stable")[:count]])


def _permutation(count: int, seed: int = SPLIT_SEED) -> NDArray[np.int64]:
    # RandomState, because NumPy froze its streams for good (NEP 19); default_rng's may change between versions.
    return np.random.RandomState(seed).permutation(count)
