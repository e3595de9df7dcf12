import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fmcae.data.split import draw_labels, split_by_class, split_val


def test_the_papers_split_is_the_same_everywhere() -> None:
    train, val = split_val(60_000)
    assert (len(train), len(val)) == (50_000, 10_000)
    digest = hashlib.sha256(val.astype("<i8").tobytes()).hexdigest()
    assert digest == "81c4c9d2b059488b3071ab155bf992306ffa3149c2df116ff1577083e93529eb"


@given(st.lists(st.integers(0, 4), min_size=7, max_size=500))
def test_splits_are_disjoint_and_whole_and_have_all_classes_alike(values: list[int]) -> None:
    labels = np.array(values, np.uint8)
    by_class = split_by_class(labels, 7, 2)
    counts = np.bincount(labels, minlength=5)
    for parts in ([*split_val(len(labels))], by_class):
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        assert all(len(part) > 0 for part in parts) or counts.max() < 7
    assert set(labels[by_class[0]]) == set(values)
    for part in by_class[1:]:
        assert (np.abs(np.bincount(labels[part], minlength=5) - counts / 7) < 1).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.data())
def test_drawn_labels_are_of_all_classes_alike(values: list[int], data: st.DataObject) -> None:
    labels = np.array(values, np.uint8)
    count = data.draw(st.integers(1, len(labels)))
    drawn = draw_labels(labels, count, data.draw(st.integers(0, 2**32 - 1)))
    assert len(drawn) == len(set(drawn.tolist())) == count
    available, taken = np.bincount(labels, minlength=5), np.bincount(labels[drawn], minlength=5)
    most = taken.max()
    assert all(share in (most, most - 1) for share, there in zip(taken, available, strict=True) if there >= most)
    assert all(share == there for share, there in zip(taken, available, strict=True) if there < most - 1)


def test_another_seed_draws_others() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 100)
    assert not np.array_equal(draw_labels(labels, 100, 0), draw_labels(labels, 100, 1))
    assert np.array_equal(draw_labels(labels, 100, 1), draw_labels(labels, 100, 1))


def test_a_lone_image_of_each_class_is_shared_where_not_all_must_be_in_the_first() -> None:
    labels = np.arange(3, dtype=np.uint8)
    assert [len(part) for part in split_by_class(labels, 2, 1, all_in_first=False)] == [2, 1]
    assert [len(part) for part in split_by_class(labels, 2, 1)] == [3, 0]
