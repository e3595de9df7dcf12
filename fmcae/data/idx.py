"""The IDX format, in which MNIST stores arrays of bytes, gzipped or plain.

Source: http://yann.lecun.com/exdb/mnist/ ("the IDX file format"): two zero bytes, a type code, the number of
dimensions, each dimension's size as a big-endian uint32, then the values in C order.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import DataError

UINT8 = 0x08  # the only type code that MNIST's family uses
MAX_BYTES = 2**31  # unpacked: 2.7 million images of 28×28
_LONGEST_HEADER = 20


def read_bytes(path: Path) -> bytes:
    """Return the content of ``path``, unzipped if its first bytes, not its name, say that it is gzipped.

    Of a file that is longer than its own header says, or that is no IDX file, only enough to tell is read.

    Raises:
        DataError: the file cannot be read, announces more than ``MAX_BYTES``, or the gzip stream is damaged or cut short.
    """
    try:
        with path.open("rb") as file:
            is_zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if is_zipped else file as source:
                header = source.read(_LONGEST_HEADER)
                size = _announced(header)[2] if _is_idx(header) else 0
                if size > MAX_BYTES:
                    raise DataError(f"{path}: announces {size:,} bytes; at most {MAX_BYTES:,} are read")
                return header + source.read(max(size - len(header), 0) + 1)
    except EOFError as error:
        raise DataError(f"{path}: cannot be read: its gzip data are cut short") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: damaged gzip data ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return the array in the bytes of an unzipped IDX file, uint8, read-only; ``name`` is for error messages.

    Raises:
        DataError: not IDX, not of bytes, or not as long as its header says.
    """
    if not _is_idx(content):
        raise DataError(f"{name}: is not an IDX file of bytes (it must start with 00 00 08 and 1 to 4 dimensions)")
    header_size, shape, size = _announced(content)
    if len(content) < header_size:
        raise DataError(f"{name}: is cut short inside its header ({len(content)} of {header_size} bytes)")
    if len(content) != size:
        found = f"{len(content):,} bytes" if len(content) < size else "more"
        raise DataError(f"{name}: has {found} where its header {shape} asks for {size:,} bytes")
    if math.prod(filter(None, shape)) > MAX_BYTES:  # an empty array whose other sizes numpy does not take
        raise DataError(f"{name}: has sizes {shape} in its header, which are too large")
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _is_idx(content: bytes) -> bool:
    return content[:3] == bytes([0, 0, UINT8]) and len(content) > 3 and 1 <= content[3] <= 4


def _announced(content: bytes) -> tuple[int, tuple[int, ...], int]:
    """The header's size, the shape, and the size of the whole file in bytes; as far as the header goes."""
    header_size = 4 + 4 * content[3]
    shape = struct.unpack_from(f">{(min(len(content), header_size) - 4) // 4}I", content, 4)
    return header_size, shape, header_size + math.prod(shape)


def write(path: Path, array: NDArray[np.uint8]) -> None:
    """Write uint8 ``array`` of 1 to 4 dimensions as IDX, gzipped if ``path`` ends in ``.gz`` (the same bytes each time)."""
    content = bytes([0, 0, UINT8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(content, 9, mtime=0) if path.suffix == ".gz" else content)
