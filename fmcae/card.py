"""What an artefact says of itself in the metadata of its ONNX file, and how it proves that nothing has changed.

    fmcae.card    the card: JSON, readable by people
    fmcae.golden  golden vectors: images, the outputs that PyTorch gave for them, and what a classifier makes of these;
                  of picture.onnx golden pictures, as JSON: PNG files and what must come out
    fmcae.seal    SHA-256 digests of the model without its metadata, of the card, of the golden vectors and of names
    names         of a classifier, the class names as a Python dict {0: 'T-shirt/top', ...}, for other tools

Other tools also show the model's description (ONNX's doc_string) and its version, which the seal covers as parts of the
model. Files that were exported before version 0.2 have none of the three.

The seal finds damage, not forgery: whoever can rewrite a file can seal it again.
"""

import base64
import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, TypedDict, get_args

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fmcae import schema
from fmcae.errors import ArtefactError
from fmcae.precision import PRECISION_PROVIDERS
from fmcae.shape import SHAPES

SCHEMA_VERSION = 1
CARD_KEY, GOLDEN_KEY, SEAL_KEY, NAMES_KEY = "fmcae.card", "fmcae.golden", "fmcae.seal", "names"
Kind = Literal["encoder", "decoder", "classifier", "picture"]
NetworkKind = Literal["encoder", "decoder", "classifier"]  # a picture is a classifier with preprocessing before it
FILE_KINDS: tuple[Kind, ...] = get_args(Kind)
KINDS: tuple[NetworkKind, ...] = get_args(NetworkKind)
TENSORS: dict[Kind, tuple[str, str]] = {  # the names of input and output; a picture has more outputs
    "encoder": ("x", "z"), "decoder": ("z", "x_hat"), "classifier": ("x", "logits"), "picture": ("image", "probabilities"),
}  # fmt: skip
MAX_GOLDEN_BYTES = 64 * 2**20  # unpacked; those of the paper's classifier take 33 KB
GRAPH_FIELD, METADATA_FIELD = 7, 14  # of ModelProto in onnx.proto
KEPT = ("kept_epoch", "stopped_epoch")  # of a training's facts, those of one network alone
_OPTIONAL_ARRAYS = ("probabilities", "known_scores")  # of golden vectors


class _Tensor(TypedDict):
    name: str
    shape: Annotated[list[str | Annotated[int, Meta(ge=1, le=65_536)]], Meta(min_length=1, max_length=4)]
    dtype: Literal["float32", "uint8"]
    range: str


class _Tolerance(TypedDict):
    atol: schema.Share
    rtol: schema.Share


class _Difference(TypedDict):
    max_abs: float
    max_rel: float


class _Comparison(TypedDict):
    output: str
    batch_size: schema.Count
    label_agreement: schema.Share | None
    difference: _Difference


class _Parity(TypedDict):
    images: schema.Count
    provider: str
    passed: bool
    comparisons: list[_Comparison]


class _Bin(TypedDict):
    confidence: schema.Share
    accuracy: schema.Share
    count: schema.Count


class _Calibration(TypedDict):
    temperature: Annotated[float, Meta(ge=1e-3, le=1e3)]
    threshold: schema.Share
    kept: schema.Share
    images: Annotated[int, Meta(ge=1, le=2**53)]
    ece_before: schema.Share
    ece_after: schema.Share
    reliability: list[_Bin]


class _Precision(TypedDict):
    name: str


class _Autoencoder(schema.Facts, total=False):
    kept_epoch: schema.Epoch
    stopped_epoch: schema.Epoch


class _Training(_Autoencoder, total=False):
    network: str
    autoencoder: _Autoencoder


class _CardValues(schema.Versioned):
    kind: Kind
    name: str
    fmcae_version: str
    class_names: schema.ClassNames
    input: _Tensor
    output: _Tensor
    preprocessing: dict[str, str | float]
    training: _Training
    metrics: dict[str, schema.Number | schema.Confusion]
    parity: dict[str, Any]
    tolerance: _Tolerance
    precision: _Precision


@dataclass(frozen=True)
class Card:
    """The facts of one artefact.

    Attributes:
        kind: "encoder" (x -> z), "decoder" (z -> x_hat), "classifier" (x -> logits) or "picture" (an image of any size
            -> probabilities, known_score and x).
        name: the name of the run that it came from.
        input, output: each ``{"name", "shape", "dtype", "range"}``; the first axis of shape is the batch, but a picture
            has none.
        training: name, configuration, data set, versions and machine of the run that trained it, and the epoch whose
            weights it has, ``"kept_epoch"``; ``"stopped_epoch"`` where training ended early. A classifier that started
            from another run's autoencoder has that run's facts as ``"autoencoder"``.
        metrics: what PyTorch measured at the end of training, such as ``test_accuracy`` in [0, 1].
        parity: the evidence that ONNX Runtime gives PyTorch's numbers.
        tolerance: the largest allowed difference from the golden outputs, ``{"atol", "rtol"}``.
        precision: its ``"name"``, which is a key of PRECISION_PROVIDERS, and for int8 and fp16 what they cost and gain.
        calibration: a classifier's ``temperature``, the ``threshold`` of its known score, the share of validation
            images ``kept`` at or above it and their number ``images``; and from test the expected calibration error
            before and after, ``ece_before`` and ``ece_after``, and ``reliability``, the bins after calibration, each
            ``{"confidence", "accuracy", "count"}``. Empty where nothing was calibrated.
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
    calibration: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def x_shape(self) -> tuple[int, int, int]:
        """The shape (channels, size, size) of the model's input x, which a decoder gives again, and a picture makes."""
        if self.kind == "picture":
            channels, size = (
                self.preprocessing.get(name, default) for name, default in (("channels", 1), ("size", 28))
            )
            return channels, size, size
        channels, height, width = (self.output if self.kind == "decoder" else self.input)["shape"][1:]
        return channels, height, width

    @property
    def temperature(self) -> float:
        """What the logits are divided by before the softmax; 1 where nothing was calibrated."""
        return float(self.calibration.get("temperature", 1))

    @property
    def threshold(self) -> float:
        """The known score from which an image is known; 0 where nothing was calibrated, so that every image is."""
        return float(self.calibration.get("threshold", 0))

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that its precision is made for."""
        made_for = PRECISION_PROVIDERS[self.precision["name"]]
        return made_for if self.kind != "picture" else tuple(name for name in made_for if name == "cpu")

    def to_json(self) -> str:
        """Return the card as one JSON object."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """Read what :meth:`to_json` gave.

        Raises:
            ArtefactError: the text is no card of this schema version, its precision is unknown, a value is not of its type
                or range, or its shapes are not those of its kind.
        """
        try:
            values = schema.parse(text, schema.Versioned)
            if (version := values["schema_version"]) != SCHEMA_VERSION:
                raise ArtefactError(f"its card's schema_version (={version}) must be {SCHEMA_VERSION}: update fmcae")
            schema.check(values, _CardValues)
            if unknown := sorted(set(values) - {item.name for item in fields(cls)}):
                raise ValueError(f"it has the unknown key {unknown[0]}")
            for name, kind in (("parity", _Parity), ("calibration", _Calibration)):
                if values.get(name, {}) != {}:
                    schema.check(values[name], kind)
        except ValueError as error:
            raise ArtefactError(f"its card is damaged: {error}") from error
        if values["precision"]["name"] not in tuple(PRECISION_PROVIDERS):
            raise ArtefactError(f"its card's precision must be one of {', '.join(PRECISION_PROVIDERS)}: update fmcae")
        card = cls(**{**values, "class_names": tuple(values["class_names"])})
        card._check_shapes()
        return card

    def _check_shapes(self) -> None:
        """Check that input, output and confusion matrix have the shapes of their kind."""
        classes, given = (
            len(self.class_names),
            [(item["name"], item["shape"][1:]) for item in (self.input, self.output)],
        )
        code = given[self.kind == "encoder"][1][:1]
        known = [[channels, size, size] for channels, size in SHAPES]
        x = [sizes for name, sizes in given if name in ("x", "x_hat")]
        if self.kind == "picture":
            x = [list(self.x_shape)]
        if len(x) != 1 or x[0] not in known or not all(type(length) is int for length in x[0]):
            said = f"the shape of its images (={', '.join(map(str, x[0]))})" if x else "its input and output"
            raise ArtefactError(f"its card is damaged: {said} is that of no model")
        shapes = {"x": x[0], "x_hat": x[0], "z": code, "logits": [classes]}
        shapes |= {"image": ["width", "channels"], "probabilities": []}
        has_classes = self.kind != "picture" or self.output["shape"] == [classes]
        if not has_classes or given != [(name, shapes[name]) for name in TENSORS[self.kind]]:
            raise ArtefactError(f"its card is damaged: its input and output are not those of kind {self.kind}")
        confusion = self.metrics.get("confusion")
        if confusion is not None and not (isinstance(confusion, list) and schema.is_square(confusion, classes)):
            raise ArtefactError("its card is damaged: its confusion matrix is not of its classes")


@dataclass(frozen=True)
class Golden:
    """Inputs (G, ...) float32, the outputs (G, ...) float32 that PyTorch gave for them, and what a classifier says.

    That is its labels and, where it is calibrated, probabilities (G, K) float32 and known scores (G,) float64.
    """

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]
    labels: tuple[str, ...] = ()
    probabilities: NDArray[np.float32] | None = None
    known_scores: NDArray[np.float64] | None = None

    def to_text(self) -> str:
        """Return the vectors compressed, as ASCII."""
        buffer = io.BytesIO()
        labels = np.frombuffer(json.dumps(self.labels).encode(), np.uint8)  # strings would be pickled or padded
        optional = {name: value for name in _OPTIONAL_ARRAYS if (value := getattr(self, name)) is not None}
        np.savez(buffer, inputs=self.inputs, outputs=self.outputs, labels=labels, **optional)
        return base64.b85encode(zlib.compress(buffer.getvalue(), 9)).decode()

    @classmethod
    def from_text(cls, text: str) -> "Golden":
        """Read what :meth:`to_text` gave.

        Raises:
            ArtefactError: the text is damaged.
        """
        try:
            arrays = _read_arrays(_unzip(base64.b85decode(text)))
            labels = tuple(schema.parse(arrays["labels"].tobytes(), list[str]))
            optional = {name: arrays[name] for name in _OPTIONAL_ARRAYS if name in arrays}
            return cls(arrays["inputs"], arrays["outputs"], labels, **optional)
        except Exception as error:  # numpy, zipfile and json raise a dozen kinds on damaged bytes
            raise ArtefactError(f"its golden vectors are damaged: {error}") from error

    def check(self, card: Card) -> None:
        """Check that there is at least one vector, and all that ``card`` promises.

        Raises:
            ArtefactError: an array is missing, or has another shape or dtype; or a label is not of the card's classes.
        """
        count, classes = len(self.inputs) if self.inputs.ndim else 0, len(card.class_names)
        is_classifier, is_calibrated = card.kind == "classifier", card.calibration != {}
        wanted = {
            "inputs": (np.float32, card.input["shape"][1:]),
            "outputs": (np.float32, card.output["shape"][1:]),
            "probabilities": (np.float32, [classes]) if is_calibrated else None,
            "known_scores": (np.float64, []) if is_calibrated else None,
        }
        for name, kind in wanted.items():
            array = getattr(self, name)
            found = None if array is None else (array.dtype, list(array.shape))
            if found != (kind and (kind[0], [count, *kind[1]])) or not count:
                raise ArtefactError(f"its golden vectors are damaged: its {name} are not those of its card")
        if len(self.labels) != count * is_classifier or not set(self.labels) <= set(card.class_names):
            raise ArtefactError("its golden vectors are damaged: its labels are not those of its card")


class _GoldenPicturesValues(TypedDict):
    pictures: Annotated[list[str], Meta(min_length=1, max_length=1000)]
    probabilities: list[list[schema.Share]]
    known_scores: list[schema.Share]
    labels: list[str]


@dataclass(frozen=True)
class GoldenPictures:
    """PNG files and what comes out: labels, probabilities (G, K) float32 and known scores (G,) float64."""

    pictures: tuple[bytes, ...]
    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    known_scores: NDArray[np.float64]

    def to_text(self) -> str:
        """Return everything as one JSON object, which a browser reads too; the pictures are in base64."""
        return json.dumps({
            "pictures": [base64.b64encode(picture).decode() for picture in self.pictures],
            "probabilities": self.probabilities.tolist(),
            "known_scores": self.known_scores.tolist(),
            "labels": list(self.labels),
        })  # fmt: skip

    @classmethod
    def from_text(cls, text: str) -> "GoldenPictures":
        """Read what :meth:`to_text` gave.

        Raises:
            ArtefactError: the text is damaged.
        """
        try:
            if len(text) > MAX_GOLDEN_BYTES:
                raise ValueError(f"they have more than {MAX_GOLDEN_BYTES:,} bytes")
            values = schema.parse(text, _GoldenPicturesValues)
            return cls(
                tuple(base64.b64decode(picture, validate=True) for picture in values["pictures"]),
                tuple(values["labels"]),
                np.array(values["probabilities"], np.float32),
                np.array(values["known_scores"], np.float64),
            )
        except ValueError as error:
            raise ArtefactError(f"its golden pictures are damaged: {error}") from error

    def check(self, card: Card) -> None:
        """Check that there are as many of each as there are pictures; ArtefactError if not."""
        count, classes = len(self.pictures), len(card.class_names)
        shapes = self.probabilities.shape, self.known_scores.shape, len(self.labels)
        if shapes != ((count, classes), (count,), count) or not set(self.labels) <= set(card.class_names):
            raise ArtefactError("its golden pictures are damaged: what must come out is not that of its card")


def _unzip(content: bytes) -> bytes:
    unzip = zlib.decompressobj()
    found = unzip.decompress(content, MAX_GOLDEN_BYTES)
    if not unzip.eof:
        reason = f"they have more than {MAX_GOLDEN_BYTES:,} bytes" if unzip.unconsumed_tail else "they are cut short"
        raise ValueError(reason)
    return found


def _read_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file's bytes; none is made before the file is seen to hold all of it."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(item.file_size for item in archive.infolist()) > MAX_GOLDEN_BYTES:
            raise ValueError(f"they have more than {MAX_GOLDEN_BYTES:,} bytes")
        for item in archive.infolist():
            file = io.BytesIO(archive.read(item))
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if math.prod(shape) * dtype.itemsize != len(file.getbuffer()) - file.tell():
                raise ValueError(f"{item.filename} is not as long as its header says")
            file.seek(0)
            arrays[item.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def parity_lines(evidence: Mapping[str, Any]) -> str:
    """The parity evidence of a card as lines of text, one for each output and batch size."""
    lines = []
    for item in evidence["comparisons"]:
        agreement, difference = item["label_agreement"], item["difference"]
        distance = f"max abs {difference['max_abs']:.2e}  max rel {difference['max_rel']:.2e}"
        labels = "" if agreement is None else f"  labels agree {agreement:.2%}"
        lines.append(f"  {item['output']:<7} batch {item['batch_size']:>4}  {distance}{labels}")
    result = "holds" if evidence["passed"] else "does not hold"
    return "\n".join([*lines, f"parity {result} on {evidence['images']:,} images, provider {evidence['provider']}"])


def seal(model: bytes, card: str, golden: str, names: str | None = None) -> str:
    """The seal of an ONNX file's bytes with its card, golden vectors and names: JSON of a SHA-256 digest of each."""
    graph = b"".join(raw for number, _, raw in protobuf_fields(model) if number != METADATA_FIELD)
    parts = {"graph": graph, "card": card.encode(), "golden": golden.encode()}
    if names is not None:
        parts["names"] = names.encode()
    return json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in parts.items()})


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
    try:
        expected = json.loads(metadata[SEAL_KEY])
        digests = json.loads(seal(model, metadata[CARD_KEY], metadata[GOLDEN_KEY], metadata.get(NAMES_KEY, "")))
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"is damaged: its seal cannot be read: {error}") from error
    if not isinstance(expected, dict) or expected.keys() | {"names"} != digests.keys():
        raise ArtefactError("is damaged: its seal is no JSON object of three or four digests")
    parts = {"graph": "its graph or weights", "card": "its card (labels, metrics, ...)", "golden": "its golden vectors"}
    parts["names"] = "its names"
    changed = [parts[name] for name in expected if digests[name] != expected[name]]
    if changed:
        raise ArtefactError(f"is not the file that was exported: {' and '.join(changed)} changed since")


def read_metadata(model: bytes) -> dict[str, str]:
    """The metadata entries of an ONNX file's bytes, read without ONNX or ONNX Runtime.

    Raises:
        ArtefactError: the bytes are not an ONNX model.
    """
    entries, has_graph = {}, False
    try:
        for number, content, _ in protobuf_fields(model):
            has_graph |= number == GRAPH_FIELD and content != b""
            if number == METADATA_FIELD:  # a StringStringEntryProto of key (1) and value (2)
                pair = {part: text.decode() for part, text, _ in protobuf_fields(content)}
                entries[pair.get(1, "")] = pair.get(2, "")
    except UnicodeDecodeError as error:
        raise ArtefactError("is not an ONNX model: its metadata is not text") from error
    except ValueError as error:
        raise ArtefactError(f"is not an ONNX model: {error}") from error
    if not has_graph:
        raise ArtefactError("is not an ONNX model: it has no graph")
    return entries


def protobuf_fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Split a message into its top-level fields: (number, content, all bytes); only length-delimited ones have content.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        value, position = varint(message, position) if wire_type in (0, 2) else (0, position)
        sizes = {0: 0, 1: 8, 2: value, 5: 4}
        if wire_type not in sizes:
            raise ValueError(f"byte {position} starts no protobuf field")
        end = position + sizes[wire_type]
        if end > len(message):
            raise ValueError("it ends inside a field")
        yield number, message[position:end] if wire_type == 2 else b"", message[start:end]
        position = end


def varint(message: bytes, position: int) -> tuple[int, int]:
    """The unsigned number that starts at ``position``, and where it ends; ValueError if it does not end."""
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError(f"byte {position} starts a number that does not end")
