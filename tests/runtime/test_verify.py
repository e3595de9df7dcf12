from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmcae
from fmcae.metrics import known_score, softmax
from fmcae.runtime.model import Artefact, read_artefact
from fmcae.runtime.verify import compare, verify

TOLERANCE = {"atol": 1e-3, "rtol": 1e-2}


def test_a_path_is_enough(shipped: Path) -> None:
    path = shipped / "classifier.onnx"
    for source in (path, str(path), fmcae.read_artefact(path)):
        assert fmcae.verify(source).passed
    with pytest.raises(fmcae.ArtefactError, match=r"missing\.onnx: cannot be read"):
        fmcae.verify("missing.onnx")


def test_numbers_that_differ_fail(shipped: Path) -> None:
    artefact = read_artefact(shipped / "encoder.onnx")
    golden = replace(artefact.golden, outputs=artefact.golden.outputs + np.float32(0.01)).to_text()
    outcome = verify(replace(artefact, golden_text=golden))
    assert not outcome.passed
    assert "differ from the golden ones by up to 0.01" in str(outcome.failure)


def test_labels_that_differ_fail(shipped: Path) -> None:
    artefact = read_artefact(shipped / "classifier.onnx")
    names = artefact.card.class_names
    swapped = replace(artefact.card, class_names=(names[1], names[0], *names[2:]))
    assert "labels differ from the golden ones" in str(verify(replace(artefact, card=swapped)).failure)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"outputs": np.zeros((10, 5), np.float32)}, "outputs"),
        ({"outputs": np.zeros((9, 10), np.float32)}, "outputs"),
        ({"inputs": np.zeros((10, 784), np.float32)}, "inputs"),
        ({"inputs": np.zeros((), np.float32)}, "inputs"),
        ({"inputs": np.zeros((10, 1, 28, 28), np.float64)}, "inputs"),
        ({"probabilities": None}, "probabilities"),
        ({"probabilities": np.ones((3, 10), np.float32)}, "probabilities"),
        ({"known_scores": None}, "known_scores"),
        ({"labels": ()}, "labels"),
        ({"labels": ("Bag",) * 9 + ("Hat",)}, "labels"),
    ],
)
def test_golden_vectors_that_are_not_those_of_the_card_are_damaged(
    shipped: Path, change: dict[str, Any], name: str
) -> None:
    artefact = read_artefact(shipped / "classifier.onnx")
    with pytest.raises(fmcae.ArtefactError, match=rf"classifier\.onnx: its golden vectors .* its {name} are not those"):
        verify(changed(artefact, **change))


def test_a_file_without_golden_vectors_does_not_pass(shipped: Path) -> None:
    artefact = read_artefact(shipped / "classifier.onnx")
    golden = artefact.golden
    arrays = {name: getattr(golden, name)[:0] for name in ("inputs", "outputs", "probabilities", "known_scores")}
    with pytest.raises(fmcae.ArtefactError, match="its golden vectors are damaged"):
        verify(changed(artefact, **arrays, labels=()))


@pytest.fixture
def calibrated(shipped: Path) -> Artefact:
    """The shipped classifier with a temperature of 2 and golden probabilities and known scores."""
    artefact = read_artefact(shipped / "classifier.onnx")
    logits = artefact.golden.outputs
    golden = replace(artefact.golden, probabilities=softmax(logits, 2), known_scores=known_score(logits))
    card = replace(artefact.card, calibration={"temperature": 2.0, "threshold": 0.5})
    return replace(artefact, card=card, golden_text=golden.to_text())


def changed(artefact: Artefact, **arrays: Any) -> Artefact:
    return replace(artefact, golden_text=replace(artefact.golden, **arrays).to_text())


def test_temperature_and_known_score_are_replayed(calibrated: Artefact) -> None:
    assert verify(calibrated).passed
    other = replace(calibrated, card=replace(calibrated.card, calibration={"temperature": 1.0}))
    assert "probabilities differ from the golden ones by up to" in str(verify(other).failure)
    scores = calibrated.golden.known_scores
    assert scores is not None
    assert "known scores differ from the golden ones by up to 0.5," in str(
        verify(changed(calibrated, known_scores=scores - 0.5)).failure
    )


def test_a_file_of_before_calibration_is_verified_without(calibrated: Artefact) -> None:
    card = replace(calibrated.card, calibration={})
    assert verify(replace(changed(calibrated, probabilities=None, known_scores=None), card=card)).passed


def test_compare_by_hand() -> None:
    reference = np.array([0.0, 1.0, -2.0], np.float32)
    difference = compare(np.array([0.0005, 1.0, -2.02], np.float32), reference, TOLERANCE)
    assert difference.within
    assert difference.max_abs == pytest.approx(0.02, rel=1e-4)
    assert difference.max_rel == pytest.approx(0.01, rel=1e-4)  # the reference 0 does not count
    assert not compare(np.array([0.002, 1.0, -2.0], np.float32), reference, TOLERANCE).within
    assert not compare(np.array([np.nan, 1.0, -2.0], np.float32), reference, TOLERANCE).within
