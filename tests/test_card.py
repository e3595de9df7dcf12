import base64
import contextlib
import io
import json
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fmcae.card import (
    CARD_KEY,
    GOLDEN_KEY,
    MAX_GOLDEN_BYTES,
    SEAL_KEY,
    Card,
    Golden,
    check_seal,
    parity_lines,
    read_metadata,
)
from fmcae.errors import ArtefactError


@pytest.fixture(scope="module")
def content(shipped: Path) -> bytes:
    return (shipped / "classifier.onnx").read_bytes()


def test_a_card_survives_json(content: bytes) -> None:
    card = Card.from_json(read_metadata(content)[CARD_KEY])
    assert Card.from_json(card.to_json()) == card
    assert card.kind == "classifier"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 1, "kind": "x"}'])
def test_a_damaged_card_is_named(text: str) -> None:
    with pytest.raises(ArtefactError, match="its card is damaged"):
        Card.from_json(text)


def test_a_card_of_the_future_is_named() -> None:
    with pytest.raises(ArtefactError, match=r"schema_version \(=99\) must be 1: update fmcae"):
        Card.from_json(json.dumps({"schema_version": 99}))


CALIBRATION: dict[str, Any] = {
    "temperature": 1.25, "threshold": 0.1 + 0.2, "kept": 0.98, "images": 10_000, "ece_before": 0.04, "ece_after": 0.01,
    "reliability": [{"confidence": 0.9, "accuracy": 0.8, "count": 7}],
}  # fmt: skip


def card_values(content: bytes) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(read_metadata(content)[CARD_KEY])
    return values


def test_a_calibration_survives_json_to_the_last_digit(content: bytes) -> None:
    card = Card.from_json(json.dumps(card_values(content) | {"calibration": CALIBRATION}))
    assert Card.from_json(card.to_json()) == card and card.calibration == CALIBRATION
    assert (card.temperature, card.threshold) == (1.25, 0.1 + 0.2)


def test_a_card_of_before_calibration_knows_everything(content: bytes) -> None:
    values = card_values(content)
    values.pop("calibration", None)
    card = Card.from_json(json.dumps(values))
    assert (card.calibration, card.temperature, card.threshold) == ({}, 1, 0)
    assert Card.from_json(card.to_json()) == card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, r">= 0.001 - at `\$.temperature`"),
        ({"temperature": float("nan")}, r"at `\$.temperature`"),
        ({"temperature": 10**400}, r"at `\$.temperature`"),
        ({"temperature": True}, r"got `bool` - at `\$.temperature`"),
        ({"threshold": 1.01}, r"<= 1.0 - at `\$.threshold`"),
        ({"threshold": "0.5"}, r"got `str` - at `\$.threshold`"),
        ({"images": 0}, r"at `\$.images`"),
        ({"ece_after": None}, r"at `\$.ece_after`"),
        ({"reliability": {}}, r"at `\$.reliability`"),
        ({"reliability": [{"confidence": 1}]}, r"field `accuracy` - at `\$.reliability\[0\]`"),
        ({"reliability": [{"confidence": 1, "accuracy": 2, "count": 3}]}, "accuracy`"),
    ],
)
def test_a_damaged_calibration_is_named(content: bytes, change: dict[str, Any], message: str) -> None:
    values = card_values(content) | {"calibration": CALIBRATION | change}
    with pytest.raises(ArtefactError, match=f"its card is damaged: .*{message}"):
        Card.from_json(json.dumps(values))


@pytest.mark.parametrize("calibration", [None, [], 1])
def test_a_calibration_that_is_no_object_is_named(content: bytes, calibration: object) -> None:
    with pytest.raises(ArtefactError, match="its card is damaged: Expected `object`"):
        Card.from_json(json.dumps(card_values(content) | {"calibration": calibration}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": []}, r"length >= 1 - at `\$.class_names`"),
        ({"class_names": "T-shirt"}, r"at `\$.class_names`"),
        ({"class_names": ["a", "b"]}, "input and output are not those of kind classifier"),
        ({"kind": "encoder"}, "input and output are not those of kind encoder"),
        ({"kind": "x"}, r"at `\$.kind`"),
        ({"tolerance": {"atol": 1e9, "rtol": 0}}, r"at `\$.tolerance.atol`"),
        ({"tolerance": {"atol": float("inf"), "rtol": 0}}, r"at `\$.tolerance.atol`"),
        ({"tolerance": {"atol": 0}}, r"field `rtol`"),
        ({"input": {"name": "x", "shape": ["batch", 10**9], "dtype": "float32", "range": ""}}, r"at `\$.input.shape"),
        ({"metrics": {"confusion": [[1, 2], [3]]}}, "confusion matrix is not of its classes"),
        ({"metrics": {"test_accuracy": "high"}}, r"at `\$.metrics\[...\]`"),
        ({"training": {}}, r"at `\$.training`"),
        ({"parity": {"passed": 1}}, "its card is damaged"),
        ({"precision": []}, r"at `\$.precision`"),
        ({"another": 1}, "it has the unknown key another"),
        *(
            ({"input": {"name": "x", "shape": ["batch", *shape], "dtype": "float32", "range": ""}}, message)
            for shape, message in (
                ([2, 31, 7], r"the shape of its images \(=2, 31, 7\) is that of no model"),
                ([3, 64, 28], r"the shape of its images \(=3, 64, 28\) is that of no model"),
                (["c", 28, 28], r"the shape of its images \(=c, 28, 28\) is that of no model"),
                ([784], r"the shape of its images \(=784\) is that of no model"),
            )
        ),
    ],
)
def test_a_card_with_another_value_is_named(content: bytes, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        Card.from_json(json.dumps(card_values(content) | change))


@pytest.mark.parametrize("size", [28.0, 32, "28", 1e300, -1])
def test_a_picture_of_a_strange_size_is_named(shipped: Path, size: object) -> None:
    values = json.loads(read_metadata((shipped / "picture.onnx").read_bytes())[CARD_KEY])
    assert Card.from_json(json.dumps(values)).x_shape == (1, 28, 28)
    values["preprocessing"] |= {"channels": 1, "size": 64}
    assert Card.from_json(json.dumps(values)).x_shape == (1, 64, 64)
    values["preprocessing"]["size"] = size
    with pytest.raises(ArtefactError, match="the shape of its images .* is that of no model"):
        Card.from_json(json.dumps(values))


def test_a_card_that_is_nested_without_end_is_named() -> None:
    with pytest.raises(ArtefactError, match="its card is damaged: it is nested too deeply"):
        Card.from_json("[" * 100_000)


@given(st.data())
def test_a_card_is_read_or_named_whatever_it_holds(content: bytes, data: st.DataObject) -> None:
    """Any value of a card, at any depth, replaced by any other."""
    values = card_values(content)
    place: Any = values
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    place[key] = data.draw(
        scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=3), scalars, max_size=3)
    )
    with contextlib.suppress(ArtefactError):
        card = Card.from_json(json.dumps(values))
        assert card.providers and card.temperature > 0 and 0 <= card.threshold <= 1
        assert len(card.x_shape) == 3
        assert Card.from_json(card.to_json()) == card or "NaN" in card.to_json()
        if card.parity:
            parity_lines(card.parity)


@given(arrays(np.float32, (2, 3)), arrays(np.float64, 2))
def test_optional_golden_vectors_survive_their_text(
    probabilities: NDArray[np.float32], known_scores: NDArray[np.float64]
) -> None:
    golden = Golden(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), ("a", "b"), probabilities, known_scores)
    read = Golden.from_text(golden.to_text())
    assert read.probabilities is not None and read.known_scores is not None
    assert np.array_equal(read.probabilities, probabilities, equal_nan=True) and read.known_scores.dtype == np.float64
    assert np.array_equal(read.known_scores, known_scores, equal_nan=True)
    without = Golden.from_text(Golden(golden.inputs, golden.outputs).to_text())
    assert without.probabilities is None and without.known_scores is None


@given(arrays(np.float32, (2, 3)), arrays(np.float32, (2, 4)), st.lists(st.text(), max_size=3))
def test_golden_vectors_survive_their_text(
    inputs: NDArray[np.float32], outputs: NDArray[np.float32], labels: list[str]
) -> None:
    golden = Golden.from_text(Golden(inputs, outputs, tuple(labels)).to_text())
    assert np.array_equal(golden.inputs, inputs, equal_nan=True)
    assert np.array_equal(golden.outputs, outputs, equal_nan=True)
    assert golden.labels == tuple(labels)


@pytest.mark.parametrize("text", ["", "?", "0" * 50])
def test_damaged_golden_vectors_are_named(text: str) -> None:
    with pytest.raises(ArtefactError, match="its golden vectors are damaged"):
        Golden.from_text(text)


def test_the_seal_of_an_untouched_file_holds(content: bytes) -> None:
    check_seal(content, read_metadata(content))


@given(st.data())
def test_any_flipped_byte_is_found(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ArtefactError):
        check_seal(bytes(damaged), read_metadata(bytes(damaged)))


@given(st.data())
def test_any_cut_is_found(content: bytes, data: st.DataObject) -> None:
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    with pytest.raises(ArtefactError):
        check_seal(cut, read_metadata(cut))


def test_what_changed_is_named(content: bytes) -> None:
    metadata = read_metadata(content)
    with pytest.raises(ArtefactError, match=r"its card \(labels, metrics, ...\) changed"):
        check_seal(content, metadata | {CARD_KEY: metadata[CARD_KEY].replace("Bag", "Hat")})
    with pytest.raises(ArtefactError, match="its golden vectors changed"):
        check_seal(content, metadata | {GOLDEN_KEY: metadata[GOLDEN_KEY] + " "})
    with pytest.raises(ArtefactError, match="its graph or weights changed"):
        other = json.loads(metadata[SEAL_KEY]) | {"graph": "0" * 64}
        check_seal(content, metadata | {SEAL_KEY: json.dumps(other)})
    with pytest.raises(ArtefactError, match="is damaged: its metadata entry fmcae.seal is missing"):
        check_seal(content, {key: value for key, value in metadata.items() if key != SEAL_KEY})


@pytest.mark.parametrize(
    "text", ["[]", "1", "null", '"abc"', '{"graph": "x"}', "{", '{"graph": 1, "card": [], "golden": {}}']
)
def test_a_seal_that_is_no_object_of_three_digests_is_named(content: bytes, text: str) -> None:
    with pytest.raises(ArtefactError, match="is damaged: its seal|changed since"):
        check_seal(content, read_metadata(content) | {SEAL_KEY: text})


@pytest.mark.parametrize("precision", [None, [], {}, {"name": "int4"}, {"name": []}])
def test_an_unknown_precision_is_named(content: bytes, precision: object) -> None:
    values = json.loads(read_metadata(content)[CARD_KEY]) | {"precision": precision}
    with pytest.raises(ArtefactError, match=r"its card's precision must be one of fp32, int8, fp16|\$.precision"):
        Card.from_json(json.dumps(values))


def test_every_key_of_a_card_is_needed(content: bytes) -> None:
    values = json.loads(read_metadata(content)[CARD_KEY])
    del values["precision"]
    with pytest.raises(ArtefactError, match="its card is damaged: Object missing required field `precision`"):
        Card.from_json(json.dumps(values))


def test_metadata_that_are_no_text_are_named(content: bytes) -> None:
    key = content.index(CARD_KEY.encode())
    with pytest.raises(ArtefactError, match="^is not an ONNX model: its metadata is not text$"):
        read_metadata(content[:key] + b"\xff" + content[key + 1 :])


@given(st.binary(max_size=300))
def test_any_other_bytes_are_told_apart(content: bytes) -> None:
    with pytest.raises(ArtefactError, match="is not an ONNX model|not one that fmcae exported"):
        check_seal(content, read_metadata(content))


def packed(**members: bytes) -> str:
    """Golden vectors as text, of the members' own bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return base64.b85encode(zlib.compress(buffer.getvalue(), 9)).decode()


def npy(shape: tuple[int, ...], data: bytes, dtype: str = "<f4") -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "text",
    [
        packed(inputs=bytes(MAX_GOLDEN_BYTES + 1)),
        base64.b85encode(zlib.compress(bytes(MAX_GOLDEN_BYTES + 1), 9)).decode(),
        packed(inputs=npy((2**40,), bytes(4)), outputs=npy((1,), bytes(4)), labels=npy((2,), b"[]", "|u1")),
        packed(inputs=npy((1,), bytes(8), "|O"), outputs=npy((1,), bytes(4)), labels=npy((2,), b"[]", "|u1")),
        packed(inputs=npy((1,), bytes(4)), outputs=npy((1,), bytes(4)), labels=npy((9000,), b"[" * 9000, "|u1")),
        base64.b85encode(zlib.compress(b"PK\x03\x04")).decode(),
    ],
    ids=["zip bomb", "zlib bomb", "long header", "objects", "deep labels", "no zip"],
)
def test_hostile_golden_vectors_are_refused_before_they_take_memory(text: str) -> None:
    tracemalloc.start()
    with pytest.raises(ArtefactError, match="its golden vectors are damaged"):
        Golden.from_text(text)
    assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_GOLDEN_BYTES
    tracemalloc.stop()
