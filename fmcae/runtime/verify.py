"""Replay an artefact's golden vectors: is this file, on this provider, what it was shipped as?"""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmcae.runtime.model import Artefact, read_artefact

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


def compare(outputs: NDArray[np.float32], reference: NDArray[np.float32], tolerance: dict[str, float]) -> Difference:
    """The difference of two float32 arrays of one shape, against ``tolerance`` {"atol", "rtol"}."""
    distance = np.abs(outputs.astype(np.float64) - reference)
    size = np.abs(reference, dtype=np.float64)
    large = size >= RELATIVE_FLOOR
    return Difference(
        max_abs=float(distance.max(initial=0)),
        max_rel=float((distance[large] / size[large]).max(initial=0)),
        within=bool((distance <= tolerance["atol"] + tolerance["rtol"] * size).all()),  # False on NaN too
    )


def verify(
    artefact: Artefact | str | os.PathLike[str], provider: str = "cpu", threads: int | None = None
) -> Verification:
    """Run the golden inputs and compare outputs and labels with what the file says.

    Args:
        artefact: an exported file's path, or what :func:`fmcae.runtime.model.read_artefact` gave for it.
        provider, threads: as for :func:`fmcae.load`.

    Raises:
        ProviderError: the file is not made for ``provider``, or ``provider`` is not the one that would run.
        ArtefactError: the file cannot be read, has changed since its export, or does not load in ONNX Runtime.
    """
    if not isinstance(artefact, Artefact):
        artefact = read_artefact(artefact)
    card, golden = artefact.card, artefact.golden
    session = artefact.session(provider, threads)
    outputs = session.run(golden.inputs)
    difference, failure = Difference(float("inf"), float("inf"), False), None
    if outputs.shape != golden.outputs.shape:
        failure = f"gives outputs of shape {outputs.shape} where {golden.outputs.shape} is expected"
    elif not (difference := compare(outputs, golden.outputs, card.tolerance)).within:
        limit = f"the tolerance (atol {card.tolerance['atol']:g}, rtol {card.tolerance['rtol']:g})"
        failure = f"outputs differ from the golden ones by up to {difference.max_abs:.3g}, more than {limit}"
    elif golden.labels:
        labels = [card.class_names[index] for index in outputs.argmax(axis=1)]
        pairs = zip(labels, golden.labels, strict=True)
        wrong = [f"{found} for {expected}" for found, expected in pairs if found != expected]
        failure = f"labels differ from the golden ones: {wrong[0]}" if wrong else None
    return Verification(str(artefact.path), card.kind, session.provider, len(golden.inputs), difference, failure)
