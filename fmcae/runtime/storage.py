"""Pictures and results on this machine's disks or in a bucket: paths, and URIs such as s3://bucket/folder.

URIs go through pyarrow, which takes credentials, region and endpoint from the environment.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from fmcae.errors import DataError, FmcaeError, ImageError, UsageError
from fmcae.files import read_at_most, write_atomic
from fmcae.images import HEIC_SUFFIXES, IMAGE_SUFFIXES, MAX_FILE_BYTES, heic_not_read
from fmcae.preprocess import Floats
from fmcae.runtime.model import Model
from fmcae.runtime.predict import find_images, input_of, read_input

Stamp: TypeAlias = tuple[int, int | None]  # bytes, and when it changed in nanoseconds
Source: TypeAlias = tuple[str, ImageError | None, Stamp | None]


def is_uri(name: str) -> bool:
    """Whether a name is a URI that pyarrow opens, and no path."""
    return re.match(r"(s3|gs|file)://", name) is not None


def find_sources(names: Iterable[str]) -> Iterator[Source]:
    """Find the pictures that paths and URIs stand for, as :func:`fmcae.runtime.predict.find_images` does, with stamps.

    Raises:
        DataError: a URI's folder cannot be listed, such as for want of credentials.
    """
    for name in names:
        if is_uri(name):
            yield from _below_uri(name)
            continue
        for path, error in find_images([name]):
            yield path, error, None if error else _stamp(path)


def read_source(model: Model, path: str) -> Floats:
    """Read the picture at a path or URI as the model's input (C, S, S) float32; raise ImageError if that fails."""
    if not is_uri(path):
        return read_input(model, path)
    try:
        with _errors_of(path), _opened(path) as file:
            content = read_at_most(file, MAX_FILE_BYTES)
    except DataError as error:
        raise ImageError(str(error)) from error
    return input_of(model, content, path)


def list_folder(folder: str) -> set[str]:
    """The names of the files in a folder; none if it does not exist."""
    with _errors_of(folder):
        if not is_uri(folder):
            return set(os.listdir(folder)) if os.path.exists(folder) else set()
        from pyarrow.fs import FileSelector

        filesystem, path, _ = _located(folder)
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        return {info.base_name for info in found if info.is_file}


@contextmanager
def open_file(path: str) -> Iterator[Any]:
    """Open a file for reading; raise DataError if that fails, also while it is read."""
    with _errors_of(path), _opened(path, random_access=True) as file:
        yield file


def write_file(path: str, content: bytes) -> None:
    """Write a file, which appears whole or not at all: in a bucket an object is there once it is complete.

    Raises:
        DataError: it cannot be written.
    """
    with _errors_of(path, "written"):
        if not is_uri(path) or path.startswith("file:"):
            local = Path(path.removeprefix("file://"))
            local.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(local, content)
            return
        filesystem, place, _ = _located(path)
        with filesystem.open_output_stream(place) as stream:
            stream.write(content)


@contextmanager
def _errors_of(name: str, done: str = "read") -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except FmcaeError:
        raise
    except (OSError, ArrowException) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name}: cannot be {done}: {reason}") from error


@contextmanager
def _opened(path: str, random_access: bool = False) -> Iterator[Any]:
    if not is_uri(path):
        with open(path, "rb") as file:
            yield file
        return
    filesystem, place, _ = _located(path)
    with filesystem.open_input_file(place) if random_access else filesystem.open_input_stream(place) as stream:
        yield stream


def _located(uri: str) -> tuple[Any, str, str]:
    """The file system of a URI, the path in it, and what stands before that path in the URI."""
    root, path = re.match(r"(\w+://[^/]*)(.*)", uri, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in root:
        raise UsageError(f"{root.partition('//')[0]}//…: must hold no credentials: set them in the environment")
    filesystem, base = _file_system(root)
    return filesystem, (base + path).rstrip("/") or "/", root.removesuffix(base)


@cache
def _file_system(root: str) -> tuple[Any, str]:
    """A bucket's file system, of which a process has one because it holds the connections, and the bucket's path in it."""
    from pyarrow.fs import FileSystem

    filesystem, path = FileSystem.from_uri(f"{root}/")
    return filesystem, path.rstrip("/")


def _below_uri(name: str) -> list[Source]:
    from pyarrow.fs import FileSelector, FileType

    not_read = 0
    with _errors_of(name):
        filesystem, path, before = _located(name)
        info = filesystem.get_file_info(path)
        if info.type == FileType.Directory:
            found = filesystem.get_file_info(FileSelector(path, recursive=True))
            found = [item for item in found if "/." not in f"/{item.path[len(path) :]}"]  # hidden ones
            not_read = sum(item.path.lower().endswith(HEIC_SUFFIXES) for item in found)
            found = [item for item in found if os.path.splitext(item.path)[1].lower() in IMAGE_SUFFIXES]
            nothing = "is a folder without images"
        elif info.type == FileType.NotFound and glob.has_magic(path):
            top = path[: re.search("[*?[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
            found = filesystem.get_file_info(FileSelector(top, recursive=True, allow_not_found=True))
            pattern = path.split("/")
            found = [item for item in found if _matches(item.path.split("/"), pattern)]
            nothing = "matches no file"
        else:
            found, nothing = [info] if info.is_file else [], "cannot be read: it does not exist"
    files = sorted((item for item in found if item.is_file), key=lambda item: item.path)
    sources: list[Source] = [(before + item.path, None, (item.size, item.mtime_ns)) for item in files]
    if not_read:
        sources.append((name, ImageError(heic_not_read(name, not_read)), None))
    return sources or [(name, ImageError(f"{name}: {nothing}"), None)]


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match those of a glob, whose ``**`` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        rest = pattern[1:] or ["*"]
        hidden = next((place for place, name in enumerate(parts) if name.startswith(".")), len(parts) - 1)
        return any(_matches(parts[skipped:], rest) for skipped in range(hidden + 1))
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
