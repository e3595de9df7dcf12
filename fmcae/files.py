"""Write files so that they appear whole or not at all, and read them up to a limit."""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO


def read_at_most(source: str | os.PathLike[str] | BinaryIO, limit: int, chunk_size: int = 1 << 20) -> bytes:
    """Read a file or an open stream that may have ``limit`` bytes at most.

    Raises:
        OSError: it cannot be read, has more bytes (a pipe may have no end), or is a device.
    """
    if isinstance(source, str | os.PathLike):
        with open(source, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                raise OSError(errno.EINVAL, "it is a device, not a file")
            is_regular = stat.S_ISREG(status.st_mode)
            return read_at_most(file, limit, min(status.st_size, limit) + 1 if is_regular else chunk_size)
    chunks, size = [], 0
    while chunk := source.read(chunk_size):
        size += len(chunk)
        if size > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit / 2**20:,.0f} MiB")
        chunks.append(chunk)
    return b"".join(chunks)


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write one file as :func:`write_all_atomic` does: a crash or a power cut leaves the old file or the new one."""
    write_all_atomic({Path(path): data})


def write_all_atomic(files: Mapping[Path, bytes | str]) -> None:
    """Write files (text as UTF-8) beside their paths, force all to disk, then rename each over its path.

    Each appears whole or not at all. A failure or a power cut between two renames leaves some new and the others old.

    Raises:
        OSError: a folder cannot be written; no temporary file is left behind.
    """
    temporary: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            beside = path.parent / f".{path.name}.{os.urandom(4).hex()}.part"
            try:
                with open(beside, "xb") as file:
                    temporary[path] = beside
                    file.write(data.encode() if isinstance(data, str) else data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                error.filename = str(path)  # the file that was asked for, not the temporary one
                raise
        for path, beside in temporary.items():
            os.replace(beside, path)
    finally:
        for beside in temporary.values():
            beside.unlink(missing_ok=True)
    if os.name == "posix":  # the renames themselves must survive a power cut
        for parent in {path.parent for path in files}:
            folder = os.open(parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
