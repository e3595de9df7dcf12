"""The IDX format, in which MNIST stores arrays of bytes, gzipped or plain.

Source: http://yann.lecun.com/exdb/mnist/ ("the IDX file format"): two zero bytes, a type code, the number of
dimensions, each dimension's size as a big-endian uint32, then the values in C order.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import DataError

UINT8 = 0x08  # the only type code that MNIST's family uses


def read_bytes(path: Path) -> bytes:
    """Return the content of ``path``, unzipped if its first bytes, not its name, say that it is gzipped.

    Raises:
        DataError: the file cannot be read, or the gzip stream is damaged or cut short.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
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
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UINT8 or not 1 <= content[3] <= 4:
        raise DataError(f"{name}: is not an IDX file of bytes (it must start with 00 00 08 and 1 to 4 dimensions)")
    header_size = 4 + 4 * content[3]
    if len(content) < header_size:
        raise DataError(f"{name}: is cut short inside its header ({len(content)} of {header_size} bytes)")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", content[3], offset=4))
    expected_size = header_size + int(np.prod(shape, dtype=object))
    if len(content) != expected_size:
        raise DataError(f"{name}: has {len(content)} bytes where its header {shape} asks for {expected_size}")
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def write(path: Path, array: NDArray[np.uint8]) -> None:
    """Write uint8 ``array`` of 1 to 4 dimensions as IDX, gzipped if ``path`` ends in ``.gz`` (the same bytes each time)."""
    content = bytes([0, 0, UINT8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(content, 9, mtime=0) if path.suffix == ".gz" else content)
