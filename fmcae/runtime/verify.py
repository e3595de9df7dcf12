"""Replay an artefact's golden vectors: is this file, on this provider, what it was shipped as?"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcae.card import Card, Golden
from fmcae.errors import ArtefactError, FmcaeError, ImageError, ProviderError
from fmcae.images import pixels_of, read_image
from fmcae.metrics import known_score, softmax
from fmcae.preprocess import image_session
from fmcae.runtime.model import Artefact, read_artefact
from fmcae.runtime.session import check_threads, short_reason

RELATIVE_FLOOR = 1e-3  # below it a relative difference says nothing, since a ReLU's output may be any small number


@dataclass(frozen=True)
class Difference:
    """How far outputs are from their reference; infinitely far if the shapes differ."""

    max_abs: float
    max_rel: float  # relative to the reference, over values of at least RELATIVE_FLOOR in size
    within: bool  # every value is within atol + rtol·|reference|


@dataclass(frozen=True)
class Verification:
    """The outcome for one artefact; ``failure`` says what did not hold, if anything."""

    path: str
    kind: str
    provider: str
    vectors: int
    difference: Difference
    failure: str | None

    @property
    def passed(self) -> bool:
        """Whether the golden vectors were reproduced."""
        return self.failure is None


def compare(
    outputs: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]], tolerance: dict[str, float]
) -> Difference:
    """The difference of two float arrays of one shape, against ``tolerance`` {"atol", "rtol"}."""
    distance = np.abs(outputs.astype(np.float64) - reference)
    size = np.abs(reference, dtype=np.float64)
    large = ~(size < RELATIVE_FLOOR)  # NaN too
    return Difference(
        max_abs=float(distance.max(initial=0)),
        max_rel=float((distance[large] / size[large]).max(initial=0)),
        within=bool((distance <= tolerance["atol"] + tolerance["rtol"] * size).all()),  # False on NaN too
    )


def verify(
    artefact: Artefact | str | os.PathLike[str], provider: str = "cpu", threads: int | None = None
) -> Verification:
    """Run the golden inputs and compare outputs, labels, probabilities and known scores with what the file says.

    Args:
        artefact: an exported file's path, or what :func:`fmcae.runtime.model.read_artefact` gave for it.
        provider, threads: as for :func:`fmcae.load`.

    Raises:
        ProviderError: the file is not made for ``provider``, or ``provider`` is not the one that would run.
        ArtefactError: the file cannot be read, has changed since its export, or does not load or run in ONNX Runtime.
        FmcaeError: memory has no room for it.
    """
    check_threads(threads)
    if not isinstance(artefact, Artefact):
        artefact = read_artefact(artefact)
    if artefact.card.kind == "picture":
        return _verify_picture(artefact, provider)
    card, golden = artefact.card, artefact.golden
    session = artefact.session(provider, threads)
    try:
        outputs = session.run(golden.inputs)
    except FmcaeError as error:
        is_devices = isinstance(error, ProviderError) or "out of memory" in str(error)  # and says nothing of the file
        raise (type(error) if is_devices else ArtefactError)(f"{artefact.path}: {error}") from error
    difference, failure = Difference(float("inf"), float("inf"), False), None
    if outputs.shape != golden.outputs.shape:
        failure = f"gives outputs of shape {outputs.shape} where {golden.outputs.shape} is expected"
    elif not (difference := compare(outputs, golden.outputs, card.tolerance)).within:
        limit = f"the tolerance (atol {card.tolerance['atol']:g}, rtol {card.tolerance['rtol']:g})"
        failure = f"outputs differ from the golden ones by up to {difference.max_abs:.3g}, more than {limit}"
    elif golden.labels:
        failure = _label_failure(outputs, card, golden) or _calibration_failure(outputs, card, golden)
    return Verification(str(artefact.path), card.kind, session.provider, len(golden.inputs), difference, failure)


def _verify_picture(artefact: Artefact, provider: str) -> Verification:
    """Replay the golden pictures; ``difference`` is that of the probabilities."""
    artefact.check_made_for(provider)
    card, golden = artefact.card, artefact.golden_pictures
    found: list[tuple[NDArray[np.float32], float]] = []
    try:
        session = image_session(artefact.content)
        for picture in golden.pictures:
            image = np.atleast_3d(pixels_of(read_image(picture)))
            probabilities, score = session.run(["probabilities", "known_score"], {"image": image})
            found.append((probabilities, float(score)))
    except ImageError as error:
        raise ArtefactError(f"{artefact.path}: its golden pictures are damaged: {error}") from error
    except FmcaeError:
        raise
    except Exception as error:  # ONNX Runtime's own
        raise ArtefactError(f"{artefact.path}: does not run in ONNX Runtime: {short_reason(error)}") from error
    probabilities = np.stack([row for row, _ in found])
    differences = [
        compare(probabilities, golden.probabilities, card.tolerance),
        compare(np.array([score for _, score in found]), golden.known_scores, card.tolerance),
    ]
    labels = [card.class_names[index] for index in probabilities.argmax(axis=1)]
    wrong = [pair for pair in zip(labels, golden.labels, strict=True) if pair[0] != pair[1]]
    failure = None
    if not all(difference.within for difference in differences):
        largest = max(difference.max_abs for difference in differences)
        limit = f"the tolerance (atol {card.tolerance['atol']:g}, rtol {card.tolerance['rtol']:g})"
        failure = f"what comes out of golden pictures differs by up to {largest:.3g}, more than {limit}"
    elif wrong:
        failure = f"labels differ from the golden ones: {wrong[0][0]} for {wrong[0][1]}"
    return Verification(str(artefact.path), card.kind, "cpu", len(golden.pictures), differences[0], failure)


def _label_failure(logits: NDArray[np.float32], card: Card, golden: Golden) -> str | None:
    labels = [card.class_names[index] for index in logits.argmax(axis=1)]
    wrong = [
        f"{found} for {expected}" for found, expected in zip(labels, golden.labels, strict=True) if found != expected
    ]
    return f"labels differ from the golden ones: {wrong[0]}" if wrong else None


def _calibration_failure(logits: NDArray[np.float32], card: Card, golden: Golden) -> str | None:
    """Replay temperature and known score, within what the tolerance allows of logits that a small temperature enlarges."""
    atol, rtol = card.tolerance["atol"], card.tolerance["rtol"]
    replayed = (
        ("probabilities", softmax(logits, card.temperature), golden.probabilities, atol / min(1, card.temperature)),
        ("known scores", known_score(logits), golden.known_scores, atol),
    )
    for name, found, expected, limit in replayed:
        if expected is None:
            continue
        difference = compare(found, expected, {"atol": limit, "rtol": rtol})
        if not difference.within:
            allowed = f"the tolerance (atol {limit:g}, rtol {rtol:g})"
            return f"{name} differ from the golden ones by up to {difference.max_abs:.3g}, more than {allowed}"
    return None
