"""Evaluate a model on labelled pictures: how often it is right, how honest its probabilities are, and what it refuses.

Pictures are read and predicted as ``fmcae predict`` does it. Labels are compared whatever the model's threshold: each
picture gets its most probable class. The threshold decides only what is kept or refused as unknown.
"""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcae.data import (
    CLASS_NAMES_FILE,
    ENVIRONMENT_VARIABLE,
    IDX_NAMES,
    UNKNOWN,
    class_folders,
    holds_idx,
    load_dataset,
)
from fmcae.errors import DataError, UsageError
from fmcae.files import read_at_most
from fmcae.metrics import (
    ReliabilityBin,
    auroc,
    class_scores,
    confusion_of,
    expected_calibration_error,
    reliability,
    wilson_interval,
)
from fmcae.preprocess import scale
from fmcae.runtime.model import Model, Prediction
from fmcae.runtime.predict import BATCH_SIZE, Found, Outcome, images_below, predict_found

NO_CLASS = -1  # the index of UNKNOWN
TRUTH_FILE = "truth.csv"
MAX_TRUTH_BYTES = 64 * 2**20
DEFAULT_SPLITS = ("test", "val")  # the first that is there is taken
SPLITS = (*DEFAULT_SPLITS, "train")
SHOWN_MISTAKES = 24  # in JSON and on the contact sheet


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures and what each of them shows; ``data`` is the folder that was named, or the name of an IDX set.

    ``truth`` (N,) int64 has a class index of the model for each path that was found, or NO_CLASS. ``images`` uint8,
    in the model's form, are those of an IDX set, whose paths only number them; others are read when they are predicted.
    ``notes`` are sentences about them that whoever reads the numbers should know.
    """

    data: str
    split: str | None
    found: list[Found]
    truth: NDArray[np.int64]
    images: NDArray[np.uint8] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.found)


@dataclass(frozen=True)
class ClassRow:
    """One class: its pictures, how many the threshold refuses, and its scores in [0, 1] or None where undefined.

    Unknown pictures that get its label do not lower its precision, which is among the pictures of classes.
    """

    label: str
    images: int
    images_refused: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class Scores:
    """What predictions say of pictures whose truth is known. A share is in [0, 1], and None where there is nothing to share.

    ``accuracy`` and the calibration are over the pictures of the model's classes, whatever the threshold. ``known_kept``
    of these reach the threshold, and ``unknown_refused`` of the others do not. ``confusion`` (K, K) counts the pictures of
    each class (row) by label (column), and ``unknown_confusion`` (K,) the unknown ones.
    """

    images_known: int
    images_unknown: int
    images_right: int
    accuracy: float | None
    accuracy_wilson_interval_95: tuple[float, float] | None
    expected_calibration_error: float | None
    reliability: list[ReliabilityBin]
    threshold: float
    known_kept: float | None
    unknown_refused: float | None
    auroc_known_score: float | None
    classes: list[ClassRow]
    confusion: list[list[int]]
    unknown_confusion: list[int]


@dataclass(frozen=True)
class Mistake:
    """A picture of a class with another label, or an unknown one that was kept; ``index`` is its place in the pictures."""

    index: int
    path: str
    truth: str
    prediction: Prediction


@dataclass(frozen=True)
class Evaluation:
    """The scores, all mistakes with the most confident first, and the pictures that could not be read."""

    scores: Scores
    mistakes: list[Mistake]
    unreadable: list[Outcome]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON's types, but of the mistakes only the most confident."""
        mistakes = [
            {
                "path": mistake.path,
                "truth": mistake.truth,
                **{key: getattr(mistake.prediction, key) for key in ("label", "probability", "known", "known_score")},
            }
            for mistake in self.mistakes[:SHOWN_MISTAKES]
        ]
        unreadable = [{"path": outcome.path, "error": str(outcome.error)} for outcome in self.unreadable]
        counts = {"images_unreadable": len(unreadable), "mistakes_count": len(self.mistakes)}
        return {**asdict(self.scores), **counts, "mistakes": mistakes, "unreadable": unreadable}


def evaluate(
    model: Model, pictures: LabelledPictures, each: Callable[[Outcome], None] = lambda outcome: None
) -> Evaluation:
    """Predict labelled pictures and compare; ``each`` is called with each outcome as it comes.

    Raises:
        DataError: no picture can be read.
    """
    predictions: list[Prediction] = []
    indices: list[int] = []
    unreadable: list[Outcome] = []
    for index, outcome in enumerate(_outcomes(model, pictures)):
        each(outcome)
        if outcome.prediction is None:
            unreadable.append(outcome)
        else:
            predictions.append(outcome.prediction)
            indices.append(index)
    if not predictions:
        raise DataError(f"{pictures.data}: holds no picture that can be read")
    truth = pictures.truth[indices]
    names = [*model.class_names, UNKNOWN]  # the last stands at NO_CLASS
    mistakes = [
        Mistake(index, pictures.found[index][0], names[true], prediction)
        for index, true, prediction in zip(indices, truth.tolist(), predictions, strict=True)
        if (prediction.known if true == NO_CLASS else prediction.index != true)
    ]
    mistakes.sort(key=lambda mistake: -mistake.prediction.probability)
    return Evaluation(measure(predictions, truth, model.class_names, model.threshold), mistakes, unreadable)


def measure(
    predictions: Sequence[Prediction], truth: NDArray[np.int64], class_names: Sequence[str], threshold: float
) -> Scores:
    """Compare a model's predictions, at least one, with class indices (N,), which are NO_CLASS for pictures of no class."""
    is_known = truth != NO_CLASS
    labels = truth[is_known]
    predicted = np.array([prediction.index for prediction in predictions], np.int64)
    kept = np.array([prediction.known for prediction in predictions], bool)
    known_scores = np.array([prediction.known_score for prediction in predictions])
    sides = known_scores[is_known], known_scores[~is_known]
    class_count, known_count = len(class_names), len(labels)
    confusion = confusion_of(predicted[is_known], labels, class_count)
    right = int(np.trace(confusion))
    refused = np.bincount(labels[~kept[is_known]], minlength=class_count)
    scores = class_scores(confusion)
    rows = (confusion.sum(axis=1), refused, scores.recall, scores.precision, scores.f1)
    probabilities = np.array([p.probabilities for p, known in zip(predictions, is_known, strict=True) if known])
    return Scores(
        images_known=known_count,
        images_unknown=len(truth) - known_count,
        images_right=right,
        accuracy=_share(right, known_count),
        accuracy_wilson_interval_95=wilson_interval(right, known_count) if known_count else None,
        expected_calibration_error=expected_calibration_error(probabilities, labels) if known_count else None,
        reliability=reliability(probabilities, labels) if known_count else [],
        threshold=threshold,
        known_kept=_share(int(kept[is_known].sum()), known_count),
        unknown_refused=_share(int((~kept)[~is_known].sum()), len(truth) - known_count),
        auroc_known_score=auroc(*sides) if all(map(len, sides)) else None,
        classes=[
            ClassRow(name, int(images), int(images_refused), *(None if np.isnan(x) else float(x) for x in values))
            for name, images, images_refused, *values in zip(class_names, *rows, strict=True)
        ],
        confusion=confusion.tolist(),
        unknown_confusion=np.bincount(predicted[~is_known], minlength=class_count).tolist(),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _outcomes(model: Model, pictures: LabelledPictures) -> Iterator[Outcome]:
    if pictures.images is None:
        yield from predict_found(model, pictures.found)
        return
    for start in range(0, len(pictures), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        predictions = model.predict_inputs(scale(pictures.images[batch]))
        for (path, _), prediction, pixels in zip(
            pictures.found[batch], predictions, pictures.images[batch], strict=True
        ):
            yield Outcome(path, prediction, None, pixels)


def find_pictures(
    data: str | os.PathLike[str] | None,
    class_names: tuple[str, ...],
    split: str | None = None,
    channels: int = 1,
    size: int = 28,
) -> LabelledPictures:
    """Find labelled pictures and match their labels with a model's classes, as :func:`class_index` does.

    Args:
        data: a folder with the four IDX files; with ``truth.csv``; with a folder for each class, ``unknown`` for what is of
            none; or with folders train, val and test of such folders. None takes the data set of ``fmcae train``.
        split: "test", "val" or "train" where the data has them; None takes test, or else val.
        channels, size: the model's own, to which IDX files must fit.

    Raises:
        UsageError: ``data`` is none of these, has no such split, or a class is none of the model's.
        DataError: a file is damaged or cannot be read, or no data set is found.
    """
    parameter = f"data (={data})"
    if data is None:
        data = os.environ.get(ENVIRONMENT_VARIABLE)
        if not data:
            return _from_dataset(None, split, class_names, "data (=None)", channels, size)
        parameter = f"{ENVIRONMENT_VARIABLE} (={data})"
    folder = Path(os.path.expanduser(data))
    if data == "" or not os.path.isdir(folder):  # Path takes nothing for the current folder
        raise UsageError(f"{parameter} must be an existing folder")
    try:
        if holds_idx(folder):
            return _from_dataset(folder, split, class_names, parameter, channels, size)
        folder, split = _split_folder(folder, split, class_names, parameter)
        parameter += f" in {split}" if split else ""
        if (folder / TRUTH_FILE).is_file():
            return _from_truth(folder, os.fspath(data), split, class_names)
        return _from_class_folders(folder, os.fspath(data), split, class_names, parameter)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def class_index(label: str, class_names: Sequence[str]) -> int | None:
    """The index of the class that a label names, NO_CLASS for "unknown", None for anything else.

    Upper case, and what separates words, may differ: no folder can be called "T-shirt/top", but "t-shirt_top" can.
    """
    if label in class_names:
        return class_names.index(label)
    plain = _plain(label)
    same = [index for index, name in enumerate(class_names) if _plain(name) == plain]
    if plain and len(same) == 1:
        return same[0]
    return NO_CLASS if plain == UNKNOWN else None


def _plain(name: str) -> str:
    return re.sub(r'[\s_.<>:"/\\|?*-]+', " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def read_truth(folder: Path) -> list[tuple[str, str]]:
    """Read the columns ``file`` and ``label`` of a folder's ``truth.csv``; a file that is there twice counts once.

    Raises:
        DataError: it cannot be read, is not CSV in UTF-8, lacks a column or a value or has one too many, has a file with two
            labels, or has no rows.
    """
    path = folder / TRUTH_FILE
    try:
        text = read_at_most(path, MAX_TRUTH_BYTES).decode("utf-8-sig")  # spreadsheets write a mark at the beginning
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if missing := {"file", "label"}.difference(reader.fieldnames or ()):
            raise DataError(
                f"{path}: must begin with the columns file and label; it lacks {' and '.join(sorted(missing))}"
            )
        labels: dict[str, str] = {}
        for row in reader:
            if not row["file"] or not row["label"]:
                raise DataError(f"{path}: must have a file and a label in every line; line {reader.line_num} lacks one")
            if None in row:
                raise DataError(f"{path}: must have a value for each column; line {reader.line_num} has more")
            if labels.setdefault(row["file"], row["label"]) != row["label"]:
                raise DataError(f"{path}: must have one label for {row['file']}; line {reader.line_num} has another")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV: {error}") from error
    if not labels:
        raise DataError(f"{path}: must name at least one picture")
    return list(labels.items())


def _split_folder(
    folder: Path, split: str | None, class_names: tuple[str, ...], parameter: str
) -> tuple[Path, str | None]:
    """The folder of the split, where the data has splits; a class of the model may be called as one."""
    has_truth = (folder / TRUTH_FILE).is_file()
    names = () if has_truth else {child.name for child in class_folders(folder)}
    splits = [name for name in SPLITS if name in names and class_index(name, class_names) is None]
    if not splits:
        if split is not None:
            raise UsageError(f"split (={split}) must not be given: {folder} has no folders train, val or test")
        return folder, None
    chosen = split or next((name for name in splits if name in DEFAULT_SPLITS), None)
    if chosen is None:
        raise UsageError(f"split (=None) must be train, because {parameter} has no other")
    if chosen not in splits:
        raise UsageError(f"split (={split}) must be {' or '.join(splits)}, which {parameter} has")
    return folder / chosen, chosen


def _from_dataset(
    folder: Path | None, split: str | None, class_names: tuple[str, ...], parameter: str, channels: int, size: int
) -> LabelledPictures:
    try:
        dataset = load_dataset(folder, channels, size)
    except UsageError as error:  # training has a parameter for it
        raise UsageError(str(error).replace(f"size (={size})", f"the model's size, {size},")) from error
    split = split or DEFAULT_SPLITS[0]
    if split not in SPLITS:
        raise UsageError(f"split (={split}) must be one of {', '.join(SPLITS)}")
    part = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[split]
    indices = _checked_indices(dataset.class_names, class_names, parameter)
    found: list[Found] = [(f"{split}[{index}]", None) for index in range(len(part))]
    truth = np.array(indices, np.int64)[part.labels]
    return LabelledPictures(dataset.name, split, found, truth, part.images, dataset.notes)


def _from_truth(folder: Path, data: str, split: str | None, class_names: tuple[str, ...]) -> LabelledPictures:
    rows = read_truth(folder)
    indices = {label: class_index(label, class_names) for _, label in rows}
    foreign = ", ".join(label for label, index in indices.items() if index is None)
    notes = (f"counted as unknown, because the model has no such class: {foreign}",) if foreign else ()
    found: list[Found] = [(str(folder / file), None) for file, _ in rows]
    truth = [NO_CLASS if (index := indices[label]) is None else index for _, label in rows]
    return LabelledPictures(data, split, found, np.array(truth, np.int64), notes=notes)


def _from_class_folders(
    folder: Path, data: str, split: str | None, class_names: tuple[str, ...], parameter: str
) -> LabelledPictures:
    children = class_folders(folder)
    indices = _checked_indices([child.name for child in children], class_names, parameter)  # before any is searched
    folders = {child.name: images_below(str(child)) for child in children}
    if not any(folders.values()):
        idx = f"the four IDX files ({', '.join(IDX_NAMES)}, plain or .gz)"
        raise UsageError(f"{parameter} must hold a folder of pictures for each class, {TRUTH_FILE}, or {idx}")
    found = [picture for pictures in folders.values() for picture in pictures]
    truth = np.repeat(np.array(indices, np.int64), [len(pictures) for pictures in folders.values()])
    return LabelledPictures(data, split, found, truth)


def _checked_indices(labels: Sequence[str], class_names: tuple[str, ...], parameter: str) -> list[int]:
    indices = []
    for label in labels:
        index = class_index(label, class_names)
        if index is None:
            classes = ", ".join(class_names)
            rule = f"must hold the model's classes or {UNKNOWN}; {label} is none of: {classes}"
            default = "; without a folder it is Fashion-MNIST" if parameter.endswith("(=None)") else ""
            hint = f"; a {CLASS_NAMES_FILE} beside IDX files names their numbers" if label.isdigit() else ""
            raise UsageError(f"{parameter} {rule}{hint or default}")
        indices.append(index)
    return indices
