"""Predict whatever a user names (files, folders, globs, stdin), in batches, on all CPUs and in flat memory."""

import glob
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import FmcaeError, ImageError, UsageError
from fmcae.images import HEIC_SUFFIXES, IMAGE_SUFFIXES, MAX_PIXELS, heic_not_read
from fmcae.preprocess import Floats, as_bytes
from fmcae.runtime.machine import available_cpus
from fmcae.runtime.model import Model, Prediction

STDIN = "-"
NO_ITEM = 8  # the most by which the pixels of a picture without an item differ, of 255
BATCH_SIZE = 16  # images; small enough that a folder of a few dozen keeps all CPUs busy
_SEPARATOR = f"[{re.escape(os.sep + (os.altsep or ''))}]"
_RECURSIVE = rf"(?:^|(?<={_SEPARATOR}))\*\*(?:{_SEPARATOR}\*\*)*(?:{_SEPARATOR}|$)"  # ** as the whole name of a folder
Found: TypeAlias = tuple[str, ImageError | None]


@dataclass(frozen=True)
class Outcome:
    """The prediction of one image and the pixels uint8 that the model saw, or the error that it raised.

    The pixels (S, S), or (S, S, 3) in colour, are rounded, for eyes.
    """

    path: str
    prediction: Prediction | None
    error: FmcaeError | None
    pixels: NDArray[np.uint8] | None = None


def prediction_text(labels: str, known: bool, pixels: NDArray[np.uint8] | None) -> str:
    """What is said of a picture: its labels, whether it is unknown, and whether ``pixels`` show no item."""
    has_no_item = pixels is not None and np.ptp(pixels, axis=(0, 1)).max() <= NO_ITEM
    if known:
        return f"{labels} (no item)" if has_no_item else labels
    return f"unknown ({'no item; ' if has_no_item else ''}nearest: {labels})"


def find_images(names: Iterable[str]) -> Iterator[Found]:
    """Find the image files that ``names`` stand for, sorted within each name.

    A name is a file, a folder (every image below it), a glob (every file that it matches), or "-" for stdin. One that
    stands for nothing comes with the error that says so, as does a folder that cannot be read; a file's error is None.
    """
    for name in names:
        if os.path.isdir(name):
            yield from images_below(name) or [(name, ImageError(f"{name}: is a folder without images"))]
        elif name != STDIN and not os.path.lexists(name) and glob.has_magic(name):
            unreadable: list[OSError] = []
            found: list[Found] = [(path, None) for path in set(_matches(name, unreadable.append)) if _may_be_read(path)]
            found += [(error.filename, _unreadable(error.filename, error)) for error in unreadable]
            yield from sorted(found, key=itemgetter(0)) or [(name, ImageError(f"{name}: matches no file"))]
        else:
            yield name, None


def images_below(folder: str) -> list[Found]:
    """Find every image below a folder that is not hidden, sorted; folders and HEIC files that are not read have an error."""
    found: list[Found] = []
    not_read = 0
    folders = [str(Path(folder))]
    while folders:
        parent = folders.pop()
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.name.startswith("."):  # such as ._a.jpg, which macOS leaves beside a.jpg
                        continue
                    path = os.path.join(parent, entry.name) if parent != "." else entry.name
                    if os.name == "nt" and _is_junction(entry):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                        continue
                    if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and _may_be_read(path):
                        found.append((path, None))
                    not_read += entry.name.lower().endswith(HEIC_SUFFIXES)
        except OSError as error:
            found.append((parent, _unreadable(parent, error)))
    if not_read:
        found.append((folder, ImageError(heic_not_read(folder, not_read))))
    return sorted(found, key=itemgetter(0))


def _is_junction(entry: "os.DirEntry[str]") -> bool:
    """Whether it is Windows' other link to a folder."""
    mount_point = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", None)
    return getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0) == mount_point


def _matches(pattern: str, onerror: Callable[[OSError], None]) -> Iterator[str]:
    """What a glob matches; its ``**`` goes through no link to a folder, which may lead back to where it lies."""
    recursive = re.search(_RECURSIVE, pattern)
    if recursive is None:
        yield from glob.iglob(pattern)
        return
    top, rest = pattern[: recursive.start()], pattern[recursive.end() :] or "*"
    for start in glob.iglob(top) if top else (os.curdir,):
        for parent, folders, _ in os.walk(start, onerror=onerror):
            folders[:] = [name for name in folders if not name.startswith(".")]
            parent = os.path.join(parent, "")
            if not top:
                parent = parent[2:]  # without the dot for the current folder
            yield from _matches(glob.escape(parent) + rest, onerror)


def _may_be_read(path: str) -> bool:
    """Whether a path is no folder, pipe, socket or device; a file that cannot be looked at gets its error when read."""
    return os.path.isfile(path) or not os.path.exists(path)


def _unreadable(folder: str, error: OSError) -> ImageError:
    return ImageError(f"{folder}: cannot be read: {error.strerror}")


def read_input(model: Model, path: str, stdin: bytes = b"", max_pixels: int = MAX_PIXELS) -> Floats:
    """Read the image at ``path``, or the encoded image ``stdin`` if that is "-", as a model's input (C, S, S) float32.

    Raises:
        ImageError: it cannot be read or preprocessed, or has more than ``max_pixels``; the message names the path.
    """
    source, name = (stdin, "stdin") if path == STDIN else (path, path)
    return input_of(model, source, name, max_pixels)


def input_of(model: Model, source: str | bytes, name: str, max_pixels: int = MAX_PIXELS) -> Floats:
    """Turn the image at a path, or an encoded one that errors call ``name``, into the model's input (C, S, S) float32.

    Raises:
        ImageError: it cannot be read or preprocessed, or has more than ``max_pixels``.
    """
    try:
        return model.preprocess(source, max_pixels)
    except MemoryError:
        raise
    except ImageError as error:
        if isinstance(source, str):
            raise
        raise ImageError(f"{name}{str(error).removeprefix('image bytes')}") from error
    except FmcaeError:  # ONNX Runtime is broken, which no picture mends
        raise
    except Exception as error:  # one odd picture among thousands must not stop the others
        raise ImageError(f"{name}: cannot be preprocessed: {type(error).__name__}: {error}") from error


def predict_content(model: Model, path: str, content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Outcome:
    """Predict an encoded image that came from elsewhere than a file: one with more than ``max_pixels`` is an error.

    ``path`` is what the outcome calls it, and ``name`` what its error does. No file is read.
    """
    try:
        x = input_of(model, content, name, max_pixels)
    except ImageError as error:
        return Outcome(path, None, error)
    return Outcome(path, model.predict_inputs(x[np.newaxis])[0], None, as_bytes(x))


def predict_images(
    model: Model, names: Iterable[str], stdin: bytes = b"", jobs: int | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Outcome]:
    """Predict every image that ``names`` stand for, in order; one that cannot be read does not stop the rest.

    Args:
        names: those of :func:`find_images`.
        stdin: the encoded image that "-" stands for.
        jobs: as for :func:`predict_found`.
        max_pixels: a picture with more is one that cannot be read.
    """
    return predict_found(model, find_images(names), jobs, partial(read_input, stdin=stdin, max_pixels=max_pixels))


def predict_found(
    model: Model, found: Iterable[Found], jobs: int | None = None, read: Callable[[Model, str], Floats] = read_input
) -> Iterator[Outcome]:
    """Predict the images at paths that were found, in order; a path with an error keeps it.

    Args:
        jobs: how many threads read pictures and predict; None for one on each CPU.
        read: what reads the picture at a path for the model, as :func:`read_input` does.

    Raises:
        UsageError: ``jobs`` is less than 1.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs (={jobs}) must be at least 1")
    jobs, images = jobs or available_cpus(), iter(found)
    batches = iter(lambda: list(islice(images, BATCH_SIZE)), [])
    if jobs == 1:
        for batch in batches:
            yield from _predict_batch(model, batch, read)
        return
    pool = ThreadPoolExecutor(jobs)
    running: deque[Future[list[Outcome]]] = deque()
    try:
        for batch in batches:
            running.append(pool.submit(_predict_batch, model, batch, read))
            if len(running) > 2 * jobs:  # so that memory stays flat where the outcomes are taken slowly
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _predict_batch(model: Model, batch: list[Found], read: Callable[[Model, str], Floats]) -> list[Outcome]:
    x: list[Floats] = []
    errors: list[ImageError | None] = []
    for path, error in batch:
        try:
            if error is None:
                x.append(read(model, path))
        except ImageError as unreadable:
            error = unreadable
        errors.append(error)
    predicted = zip(model.predict_inputs(np.stack(x)) if x else [], x, strict=True)
    outcomes = []
    for (path, _), error in zip(batch, errors, strict=True):
        prediction, seen = next(predicted) if error is None else (None, None)
        outcomes.append(Outcome(path, prediction, error, None if seen is None else as_bytes(seen)))
    return outcomes
