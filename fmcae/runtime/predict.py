"""From what a user names (files, folders, globs, stdin) to predictions, in batches and flat memory."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcae.data import IMAGE_SUFFIXES
from fmcae.errors import FmcaeError, ImageError
from fmcae.preprocess import preprocess
from fmcae.runtime.model import Model, Prediction

FloatArray = NDArray[np.float32]
STDIN = "-"
BATCH_SIZE = 64  # images


@dataclass(frozen=True)
class Outcome:
    """What became of one image: its prediction, or the error that it raised."""

    path: str
    prediction: Prediction | None
    error: FmcaeError | None


def find_images(names: Iterable[str]) -> Iterator[tuple[str, ImageError | None]]:
    """The image files that ``names`` stand for, sorted within each name.

    A name is a file, a folder (every image below it), a glob, or "-" for stdin. One that stands for nothing comes with
    the error that says so; a file's error is None, whether or not it can be read.
    """
    for name in names:
        if os.path.isdir(name):
            found = sorted(
                str(path) for path in Path(name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
            )
            problem = "is a folder without images"
        elif name != STDIN and not os.path.lexists(name) and glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True))
            problem = "matches no file"
        else:
            found = [name]
            problem = ""
        yield from ((path, None) for path in found)
        if not found:
            yield name, ImageError(f"{name}: {problem}")


def predict_images(model: Model, names: Iterable[str], stdin: bytes = b"") -> Iterator[Outcome]:
    """Predict every image that ``names`` stand for, in order; one that cannot be read does not stop the rest.

    Args:
        names: as for :func:`find_images`.
        stdin: the encoded image that "-" stands for.
    """
    images = find_images(names)
    while batch := list(islice(images, BATCH_SIZE)):
        inputs: list[FloatArray] = []
        errors: list[ImageError | None] = []
        for path, error in batch:
            try:
                if error is None:
                    inputs.append(preprocess(stdin if path == STDIN else path))
            except ImageError as unreadable:
                error = unreadable
            errors.append(error)
        predictions = iter(model.predict_inputs(np.stack(inputs)) if inputs else [])
        for (path, _), error in zip(batch, errors, strict=True):
            yield Outcome(path, next(predictions) if error is None else None, error)
