import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from fmcae.data import idx
from fmcae.errors import DataError


@given(arrays(np.uint8, array_shapes(max_dims=4, min_side=0, max_side=5)), st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, array: NDArray[np.uint8], zipped: bool) -> None:
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if zipped else "a")
    idx.write(path, array)
    assert np.array_equal(idx.parse(idx.read_bytes(path), "a"), array)


def test_gzip_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "plain-name"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab"))
    assert idx.parse(idx.read_bytes(path), "a").tolist() == [97, 98]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01....", "is not an IDX file of bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "cut short inside its header"),
        (b"\0\0\x08\x01\0\0\0\x05ab", "has 10 bytes where its header .* asks for 13 bytes"),
        (b"\0\0\x08\x01\0\0\0\x01ab", "has more where its header .* asks for 9 bytes"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "asks for"),
        (b"\0\0\x08\x04" + bytes(4) + b"\xff" * 8 + bytes(4), "which are too large"),
    ],
)
def test_damaged_content_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"a-file: .*{reason}"):
        idx.parse(content, "a-file")


def test_of_a_bomb_no_more_is_read_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    tail = bytes(50_000_000)
    for header, size in ((b"\0\0\x08\x01\0\0\0\x02", 21), (b"no idx file", 21), (b"\0\0\x08\x01\0\0\1\0", 265)):
        path.write_bytes(gzip.compress(header + tail))
        tracemalloc.start()
        assert len(idx.read_bytes(path)) == size
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()
    path.write_bytes(gzip.compress(b"\0\0\x08\x02" + b"\xff" * 8 + tail))
    with pytest.raises(DataError, match=r"a\.gz: announces 18,446,744,065,119,617,0\d\d bytes; at most 2,147,483,648"):
        idx.read_bytes(path)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab")
    path = tmp_path / "a.gz"
    for damaged, reason in ((whole[:-3], "cut short"), (whole[:-6] + b"xxxxxx", "damaged gzip")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"a\.gz: cannot be read: .*{reason}"):
            idx.read_bytes(path)
    with pytest.raises(DataError, match="No such file"):
        idx.read_bytes(tmp_path / "missing")
