import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fmcae.data.split import split_val, split_val_test


def test_the_papers_split_is_the_same_everywhere():
    train, val = split_val(60_000)
    assert (len(train), len(val)) == (50_000, 10_000)
    digest = hashlib.sha256(val.astype("<i8").tobytes()).hexdigest()
    assert digest == "81c4c9d2b059488b3071ab155bf992306ffa3149c2df116ff1577083e93529eb"


@given(st.integers(7, 500))
def test_splits_are_disjoint_and_whole(count):
    for parts in (split_val(count), split_val_test(count)):
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
        assert all(len(part) > 0 for part in parts)
