from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmcae.data import load_dataset
from fmcae.train.augment import ITEM, augment, strongly
from fmcae.train.measure import scale


@pytest.fixture(scope="module")
def x(sample: Path) -> Tensor:
    """Real items, (200, 1, 28, 28)."""
    return scale(torch.from_numpy(load_dataset(sample).train.images[:200].copy()))


@settings(max_examples=25)
@given(
    count=st.integers(1, 7),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    make=st.sampled_from([torch.rand, torch.zeros, torch.ones]),
)
def test_every_batch_keeps_its_form(count: int, share: float, seed: int, make: Callable[..., Tensor]) -> None:
    torch.manual_seed(seed)
    shape = (count, 1, 28, 28)
    before = make(shape)
    kept = before.clone()
    after = augment(before, share)
    assert after.shape == shape and after.dtype == torch.float32
    assert 0 <= after.min() and after.max() <= 1  # False for NaN
    assert torch.equal(before, kept)


def test_the_generator_decides_everything(x: Tensor) -> None:
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(augment(x, 0.5))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_half_is_mirrored_and_half_of_the_weak_changes_move_by_a_pixel(x: Tensor) -> None:
    after = augment(torch.cat([x, x]), 0)[len(x) :]

    def distance(picture: Tensor) -> Tensor:
        """The smallest over the nine shifts, for each image."""
        shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        moved = [(after.roll(shift, (2, 3)) - picture)[inner].abs().amax((1, 2, 3)) for shift in shifts]
        return torch.stack(moved).amin(0)

    as_they_were, mirrored = distance(x) == 0, distance(x.flip(-1)) == 0
    assert (as_they_were | mirrored).all()
    assert 60 < int(mirrored.sum()) < 140


def test_a_strong_change_trims_and_centres_again(x: Tensor) -> None:
    torch.manual_seed(0)
    small = torch.zeros_like(x)
    small[..., :14, :14] = torch.nn.functional.avg_pool2d(x, 2)  # an item that fills a quarter of its frame
    item = strongly(small) > 10 * ITEM
    edges = []
    for axis in (2, 3):
        present = item.any(axis)[:, 0].float()
        edges.append(present.sum(1))
    longest = torch.maximum(*edges)
    assert longest.median() >= 25


def test_strong_changes_are_strong(x: Tensor) -> None:
    torch.manual_seed(0)
    after = strongly(x)
    assert (after - x).abs().mean() > 0.1
    light = after.mean((1, 2, 3)) / x.mean((1, 2, 3)).clamp_min(0.01)
    assert light.min() < 0.5 and light.max() > 2  # an outline has little ink, a silhouette much
