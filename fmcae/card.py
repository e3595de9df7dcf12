"""What an artefact says of itself, and how it proves that it is still what was exported.

An exported ONNX file carries three entries in its own metadata:

    fmcae.card    the card: JSON, readable by people
    fmcae.golden  golden vectors: images, and the outputs that PyTorch gave for them
    fmcae.seal    SHA-256 digests of the model without its metadata, of the card and of the golden vectors

The seal finds damage, not forgery: whoever can rewrite a file can seal it again.
"""

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import ArtefactError

SCHEMA_VERSION = 1
CARD_KEY, GOLDEN_KEY, SEAL_KEY = "fmcae.card", "fmcae.golden", "fmcae.seal"
Kind = Literal["encoder", "decoder", "classifier"]
KINDS: tuple[Kind, ...] = ("encoder", "decoder", "classifier")
Precision = Literal["fp32", "int8", "fp16"]
# What each is made for: CUDA has no kernels for the integer operators of int8.
PRECISION_PROVIDERS: dict[Precision, tuple[str, ...]] = {
    "fp32": ("cpu", "cuda"),
    "int8": ("cpu",),
    "fp16": ("cpu", "cuda"),
}
GRAPH_FIELD, METADATA_FIELD = 7, 14  # of ModelProto in onnx.proto


@dataclass(frozen=True)
class Card:
    """The facts of one artefact.

    Attributes:
        kind: "encoder" (x -> z), "decoder" (z -> x_hat) or "classifier" (x -> logits).
        name: the name of the run that it came from.
        fmcae_version: the version that exported it.
        class_names: the label of each class index.
        input, output: each ``{"name", "shape", "dtype", "range"}``; the first axis of shape is the batch.
        preprocessing: how an image becomes the input, in words and numbers.
        training: name, configuration, data set, versions and machine of the run that trained it. A classifier that
            started from another run's autoencoder has that run's facts as ``"autoencoder"``.
        metrics: what PyTorch measured at the end of training, such as ``test_accuracy`` in [0, 1].
        parity: the evidence that ONNX Runtime gives PyTorch's numbers.
        tolerance: the largest allowed difference from the golden outputs, ``{"atol", "rtol"}``.
        precision: its ``"name"``, which is a key of PRECISION_PROVIDERS, and for int8 and fp16 what they cost and gain.
    """

    kind: Kind
    name: str
    fmcae_version: str
    class_names: tuple[str, ...]
    input: dict[str, Any]
    output: dict[str, Any]
    preprocessing: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]
    parity: dict[str, Any]
    tolerance: dict[str, float]
    precision: dict[str, Any] = field(default_factory=lambda: {"name": "fp32"})
    schema_version: int = SCHEMA_VERSION

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that its precision is made for."""
        return PRECISION_PROVIDERS[self.precision["name"]]

    def to_json(self) -> str:
        """Return the card as one JSON object."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """Read what :meth:`to_json` gave.

        Raises:
            ArtefactError: the text is no JSON object of this schema version, or its keys or its precision are unknown.
        """
        try:
            values = json.loads(text)
            version = values["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError("its card is damaged: it is no JSON object with a schema_version") from error
        if version != SCHEMA_VERSION:
            raise ArtefactError(f"its card's schema_version (={version}) must be {SCHEMA_VERSION}: update fmcae")
        if set(values) != {item.name for item in fields(cls)} or values["kind"] not in KINDS:
            raise ArtefactError("its card is damaged: its keys are not those of an fmcae card")
        precision = values["precision"]
        if not isinstance(precision, dict) or precision.get("name") not in tuple(PRECISION_PROVIDERS):
            raise ArtefactError(f"its card's precision must be one of {', '.join(PRECISION_PROVIDERS)}: update fmcae")
        return cls(**{**values, "class_names": tuple(values["class_names"])})


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that PyTorch gave for them.

    Attributes:
        inputs: (G, ...) float32, the model's input.
        outputs: (G, ...) float32, the expected output.
        labels: the label that each input of a classifier must get; empty for the other kinds.
    """

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]
    labels: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the vectors compressed, as ASCII."""
        buffer = io.BytesIO()
        # labels as JSON bytes: an array of strings would be pickled or padded
        labels = np.frombuffer(json.dumps(self.labels).encode(), np.uint8)
        np.savez(buffer, inputs=self.inputs, outputs=self.outputs, labels=labels)
        return base64.b85encode(zlib.compress(buffer.getvalue(), 9)).decode()

    @classmethod
    def from_text(cls, text: str) -> "Golden":
        """Read what :meth:`to_text` gave.

        Raises:
            ArtefactError: the text is damaged.
        """
        try:
            with np.load(io.BytesIO(zlib.decompress(base64.b85decode(text))), allow_pickle=False) as arrays:
                labels = tuple(json.loads(arrays["labels"].tobytes()))
                return cls(arrays["inputs"], arrays["outputs"], labels)
        except (ValueError, KeyError, zlib.error, OSError) as error:
            raise ArtefactError(f"its golden vectors are damaged: {error}") from error


def parity_lines(evidence: Mapping[str, Any]) -> str:
    """The parity evidence of a card as lines of text, one for each output and batch size."""
    lines = []
    for item in evidence["comparisons"]:
        agreement, difference = item["label_agreement"], item["difference"]
        labels = "" if agreement is None else f"  labels agree {agreement:.2%}"
        lines.append(
            f"  {item['output']:<7} batch {item['batch_size']:>4}  max abs {difference['max_abs']:.2e}  "
            f"max rel {difference['max_rel']:.2e}{labels}"
        )
    result = "holds" if evidence["passed"] else "does not hold"
    return "\n".join([*lines, f"parity {result} on {evidence['images']:,} images, provider {evidence['provider']}"])


def seal(model: bytes, card: str, golden: str) -> str:
    """The seal of an ONNX file's bytes with its card and golden vectors: JSON of three SHA-256 digests."""
    return json.dumps(_digests(model, card, golden))


def _digests(model: bytes, card: str, golden: str) -> dict[str, str]:
    graph = b"".join(raw for number, _, raw in _protobuf_fields(model) if number != METADATA_FIELD)
    parts = {"graph": graph, "card": card.encode(), "golden": golden.encode()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def check_seal(model: bytes, metadata: Mapping[str, str]) -> None:
    """Check that an ONNX file's bytes and metadata are what was exported.

    Raises:
        ArtefactError: something is missing or has changed; the message names it.
    """
    if CARD_KEY not in metadata:
        raise ArtefactError("is an ONNX model, but not one that fmcae exported: it carries no card")
    for key in (GOLDEN_KEY, SEAL_KEY):
        if key not in metadata:
            raise ArtefactError(f"is damaged: its metadata entry {key} is missing")
    what = {"graph": "its graph or weights", "card": "its card (labels, metrics, ...)", "golden": "its golden vectors"}
    try:
        expected = json.loads(metadata[SEAL_KEY])
        digests = _digests(model, metadata[CARD_KEY], metadata[GOLDEN_KEY])
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"is damaged: its seal cannot be read: {error}") from error
    if not isinstance(expected, dict) or expected.keys() != digests.keys():
        raise ArtefactError("is damaged: its seal is no JSON object of three digests")
    changed = [words for name, words in what.items() if digests[name] != expected[name]]
    if changed:
        raise ArtefactError(f"is not the file that was exported: {' and '.join(changed)} changed since")


def read_metadata(model: bytes) -> dict[str, str]:
    """The metadata entries of an ONNX file's bytes, read without ONNX or ONNX Runtime.

    Raises:
        ArtefactError: the bytes are not an ONNX model.
    """
    entries = {}
    try:
        has_graph = False
        for number, content, _ in _protobuf_fields(model):
            has_graph = has_graph or (number == GRAPH_FIELD and content != b"")
            if number == METADATA_FIELD:  # a StringStringEntryProto of key (1) and value (2)
                pair = {part: text.decode() for part, text, _ in _protobuf_fields(content)}
                entries[pair.get(1, "")] = pair.get(2, "")
    except UnicodeDecodeError as error:
        raise ArtefactError("is not an ONNX model: its metadata is not text") from error
    except ValueError as error:
        raise ArtefactError(f"is not an ONNX model: {error}") from error
    if not has_graph:
        raise ArtefactError("is not an ONNX model: it has no graph")
    return entries


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Split a message into its top-level fields: (number, content, all bytes); only length-delimited ones have content.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, position = _varint(message, position)
            size = 0
        elif wire_type == 2:
            size, position = _varint(message, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"byte {position} starts no protobuf field")
        if position + size > len(message):
            raise ValueError("it ends inside a field")
        content = message[position : position + size] if wire_type == 2 else b""
        position += size
        yield number, content, message[start:position]


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends inside a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"byte {position} ends no number")
