from pathlib import Path

import numpy as np
import pytest

from fmcae.data import load_dataset
from fmcae.train.negatives import DRAWN, negatives


def test_negatives_are_repeatable_varied_and_none_of_the_items(sample: Path) -> None:
    items = load_dataset(sample).train.images
    drawn = negatives(items, 120, seed=3)
    assert drawn.shape == (120, 28, 28) and drawn.dtype == np.uint8
    assert np.array_equal(drawn, negatives(items, 120, seed=3))
    assert not np.array_equal(drawn, negatives(items, 120, seed=4))
    assert len(np.unique(drawn.reshape(120, -1), axis=0)) > 100
    known = {image.tobytes() for image in items}
    assert not any(image.tobytes() in known for image in drawn)


@pytest.mark.parametrize("kind", DRAWN)
def test_each_kind_draws_something_on_a_small_sheet(kind: str) -> None:
    pictures = [np.asarray(DRAWN[kind](np.random.default_rng(seed)).convert("L")) for seed in range(20)]
    assert sum(int(np.ptp(picture)) > 20 for picture in pictures) >= 10
    assert all(picture.shape == (112, 112) for picture in pictures)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_are_enough(sample: Path, count: int) -> None:
    assert len(negatives(load_dataset(sample).train.images[:2], count, seed=0)) == count
