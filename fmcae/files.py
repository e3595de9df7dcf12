"""Files appear whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) beside ``path``, force it to disk, then rename it over ``path``.

    A crash, a full disk or a power cut leaves either the old file or the new one.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
    """
    write_all_atomic({Path(path): data})


def write_all_atomic(files: Mapping[Path, bytes | str]) -> None:
    """Write several files of one folder as :func:`write_atomic` does, none renamed before all are on disk.

    Raises:
        OSError: the folder cannot be written; every old file is still there and nothing is left behind.
    """
    temporary: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            try:
                descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
                temporary[path] = Path(name)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data.encode() if isinstance(data, str) else data)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files private; these are ordinary ones
            except OSError as error:
                error.filename, error.filename2 = str(path), None  # the file that was asked for, not the temporary one
                raise
        for path, name_beside in temporary.items():
            os.replace(name_beside, path)
    finally:
        for name_beside in temporary.values():
            name_beside.unlink(missing_ok=True)
    if os.name == "posix":  # the renames themselves must survive a power cut
        for parent in {path.parent for path in files}:
            folder = os.open(parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
