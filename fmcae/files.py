"""Write files so that they appear whole or not at all, and read them up to a limit."""

import ctypes
import errno
import glob
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def read_at_most(source: str | os.PathLike[str] | BinaryIO, limit: int, chunk_size: int = 1 << 20) -> bytes:
    """Read a file or an open stream that may have ``limit`` bytes at most.

    Raises:
        OSError: it cannot be read, has more bytes (a pipe may have no end), is a device, or is a pipe that nobody writes.
    """
    if isinstance(source, str | os.PathLike):
        with open(source, "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                raise OSError(errno.EINVAL, "it is a device, not a file")
            if stat.S_ISREG(status.st_mode):
                return read_at_most(file, limit, min(status.st_size, limit) + 1)
            os.set_blocking(file.fileno(), True)  # the writer that is there, if one is, may take its time
            content = read_at_most(file, limit, chunk_size)
            if not content:
                raise OSError(errno.EINVAL, "it is a pipe that nothing is written to")
            return content
    chunks, size = [], 0
    while chunk := source.read(chunk_size):
        size += len(chunk)
        if size > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit / 2**20:,.0f} MiB")
        chunks.append(chunk)
    return b"".join(chunks)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file for reading; for a pipe, do not wait until somebody opens it for writing."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write one file as :func:`write_all_atomic` does: a crash or a power cut leaves the old file or the new one."""
    write_all_atomic({Path(path): data})


def write_all_atomic(files: Mapping[Path, bytes | str]) -> None:
    """Write files (text as UTF-8) beside their paths, force all to disk, then rename each over its path.

    Each appears whole or not at all. A failure or a power cut between two renames leaves some new and the others old.
    What an earlier call for the same path left when it was killed is removed. A file that is there keeps its permissions,
    and a symbolic link leads to the new file.

    Raises:
        OSError: a folder cannot be written; no temporary file is left behind.
    """
    temporary: dict[Path, tuple[Path, Path]] = {}  # by path, what is written and what it replaces
    with ExitStack() as open_files:
        try:
            for path, data in files.items():
                with _naming(path):
                    real = Path(os.path.realpath(path))
                    _remove_leftovers(real)
                    file, beside = _open_beside(real)
                    open_files.enter_context(file)
                    temporary[path] = beside, real
                    if real.exists():
                        shutil.copymode(real, beside)
                    _write(file, data)
            if os.name != "posix":
                open_files.close()  # an open file cannot be renamed
            for path, (beside, real) in temporary.items():
                with _naming(path):
                    _rename(beside, real)
        finally:
            with suppress(OSError):  # what could not be written is tried once more
                open_files.close()
            for beside, _ in temporary.values():
                beside.unlink(missing_ok=True)
    for parent in {real.parent for _, real in temporary.values()}:
        _force_to_disk(parent)


def replace_folder(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Make ``folder`` hold ``files`` (text as UTF-8), by name, and nothing else.

    A crash or a power cut leaves the old folder or the new one. Where the system cannot exchange two folders in one step,
    a crash between two renames leaves the new one and no old one, or none; where the folder cannot be renamed, as the
    root of a volume, its files are replaced one by one.

    Raises:
        OSError: the folder cannot be written; it is as before.
    """
    asked, folder = folder, folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    beside = folder.with_name(_beside(folder.name))
    try:
        with _naming(asked):
            beside.mkdir()
            with _open_held(beside):
                for name, data in files.items():
                    with open(beside / name, "xb") as file:
                        _write(file, data)
                _force_to_disk(beside)
                if folder.exists():
                    shutil.copymode(folder, beside)
                    _exchange(beside, folder)
                else:
                    _rename(beside, folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS, errno.EXDEV):
            raise
        folder.mkdir(exist_ok=True)
        write_all_atomic({folder / name: data for name, data in files.items()})
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # now the old folder, if there was one
    _force_to_disk(folder.parent)


def is_leftover(path: Path) -> bool:
    """Whether a file or folder is what a write that was killed leaves."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.part", path.name) is not None


def _beside(name: str) -> str:
    return f".{short_name(name)}.{os.urandom(4).hex()}.part"


def short_name(name: str) -> str:
    """As much of a name as leaves room for what is added to it: file systems allow 255 bytes, some encrypted ones 143."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= 128 else encoded[:128].decode(errors="ignore")


def is_utf8(text: str) -> bool:
    """Whether a name or path can be written as UTF-8: a byte of it that is none is a lone surrogate."""
    return text == text.encode(errors="replace").decode()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error name the path that was asked for, not the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        del error.filename2  # None would be printed too
        raise


def _open_beside(path: Path) -> tuple[BinaryIO, Path]:
    """A new file beside ``path``, which is held until it is closed, so that no other process takes it for a leftover."""
    while True:
        beside = path.with_name(_beside(path.name))
        file = open(beside, "xb")  # noqa: SIM115 (the caller closes it)
        _hold(file.fileno())
        if beside.exists():
            return file, beside
        file.close()  # another process took it for a leftover before it was held


def _remove_leftovers(path: Path) -> None:
    """Remove what writes of ``path`` left that were killed, and nothing that a process still holds."""
    for found in path.parent.glob(f".{glob.escape(short_name(path.name))}.*.part"):
        if is_leftover(found):
            with suppress(OSError), _open_held(found) as is_held:
                if is_held and found.is_dir():
                    shutil.rmtree(found)
                elif is_held:
                    found.unlink()


@contextmanager
def _open_held(path: Path) -> Iterator[bool]:
    """Hold a file or folder; False if another process holds it, as one may on Windows if it is younger than an hour."""
    if fcntl is None:
        yield time.time() - os.stat(path).st_mtime > 3600
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _hold(descriptor)
    finally:
        os.close(descriptor)


def _hold(descriptor: int) -> bool:
    """Hold an open file until it is closed; False if another process holds it, or the system cannot tell."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _exchange(new: Path, old: Path) -> None:
    """Let two folders swap their names, in one step where the system can (Linux)."""
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if library.renameat2(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):  # which a file system without it gives
            raise OSError(code, os.strerror(code), str(old))
    aside = old.with_name(_beside(old.name))
    with suppress(OSError):
        os.utime(old)  # another process may take it for a leftover if it is older than an hour
    _rename(old, aside)
    try:
        _rename(new, old)
    except OSError:
        _rename(aside, old)
        raise
    _rename(aside, new)


def _rename(source: Path, target: Path) -> None:
    """Rename over what is there; on Windows, wait up to two seconds for programs that read it, which prevent that."""
    for pause_s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.5, 0.7) if os.name == "nt" else ():
        with suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(pause_s)
    os.replace(source, target)


def _write(file: BinaryIO, data: bytes | str) -> None:
    file.write(data.encode() if isinstance(data, str) else data)
    file.flush()
    os.fsync(file.fileno())


def _force_to_disk(folder: Path) -> None:
    """Force a folder's entries to disk: renames must survive a power cut too."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:  # some file systems of networks and virtual machines cannot
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)
