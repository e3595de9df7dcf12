"""JSON from outside, seen to be of a declared type before anything uses it."""

import json
from typing import Annotated, Any, TypedDict

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Epoch = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]  # finite
Confusion = list[list[Count]]
ClassNames = Annotated[list[str], msgspec.Meta(min_length=1, max_length=256)]


class Versioned(TypedDict):
    """What every kind of file has."""

    schema_version: int


class _Counts(TypedDict):
    train: Count
    val: Count
    test: Count


class Data(TypedDict):
    """A run's data."""

    name: str
    class_names: ClassNames
    counts: _Counts
    split_seed: int
    fingerprint: str


class Versions(TypedDict):
    """The versions that a network was trained with, among others."""

    fmcae: str
    python: str
    torch: str


class Facts(TypedDict):
    """What is known of the run that trained a network."""

    name: str
    started: str
    config: dict[str, Any]
    data: Data
    versions: Versions
    machine: dict[str, str | float | None]


class _Staged(TypedDict):
    stage: str


class _Record(_Staged, total=False):
    epoch: Epoch
    kept_epoch: Epoch
    stopped_epoch: Epoch
    split: str
    confusion: Confusion
    seconds: Number


def parse(text: str | bytes, kind: Any) -> Any:
    """Return the value of a JSON text that is of ``kind``, a type that msgspec knows; keys that it leaves open stay.

    Raises:
        ValueError: the text is no JSON, or of another kind; the message has the place.
    """
    try:
        value = json.loads(text)
        if "\\ud" in str(text).lower():  # half a character, which nothing can write: raises ValueError
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check(value, kind)
    return value


def parse_record(text: str, classes: int) -> dict[str, Any]:
    """Return a record of ``metrics.jsonl``: its stage, and an epoch's or a split's measurements.

    Raises:
        ValueError: as for :func:`parse`; or its confusion matrix is not of ``classes``.
    """
    record: dict[str, Any] = parse(text, dict[str, str | float | Confusion])
    check(record, _Record)
    if "confusion" in record and not is_square(record["confusion"], classes):
        raise ValueError("a record's confusion matrix is not of the classes")
    return record


def check(value: object, kind: Any) -> None:
    """Raise ValueError, with the place, if a JSON value is not of ``kind``."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:  # no ValueError before msgspec 0.20
        raise ValueError(str(error)) from error


def is_square(confusion: Confusion, classes: int) -> bool:
    """Whether a confusion matrix has a row and a column for each class."""
    return len(confusion) == classes and all(len(row) == classes for row in confusion)
