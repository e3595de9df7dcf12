"""Artefacts on disk, and the object that runs them: ``fmcae.load(...)``."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from fmcae.card import (
    CARD_KEY,
    FILE_KINDS,
    GOLDEN_KEY,
    KEPT,
    KINDS,
    Card,
    Golden,
    GoldenPictures,
    Kind,
    NetworkKind,
    check_seal,
    read_metadata,
)
from fmcae.errors import ArtefactError, ProviderError, UsageError, command_line
from fmcae.files import read_at_most
from fmcae.images import MAX_PIXELS, ImageSource
from fmcae.metrics import known_score, softmax
from fmcae.precision import Precision, check_made_for
from fmcae.preprocess import preprocess, scale
from fmcae.runtime.graph_rules import check_graph, check_interface
from fmcae.runtime.session import Session, check_provider, check_threads

FloatArray = NDArray[np.float32]
PathName: TypeAlias = str | os.PathLike[str]
GoldenKind = TypeVar("GoldenKind", Golden, GoldenPictures)
# What ships, trained on Fashion-MNIST: by the folder's name, the precision and the kinds of artefact in it.
SHIPPED: dict[str, tuple[Precision, tuple[Kind, ...]]] = {
    "fashion-mnist": ("fp32", FILE_KINDS),
    "fashion-mnist-int8": ("int8", ("classifier", "picture")),
    "fashion-mnist-large": ("fp32", ("classifier",)),
    "fashion-mnist-paper": ("fp32", KINDS),
}
MAX_FILLED = 1_024  # images; planning anew takes little beside a larger batch
MAX_ARTEFACT_BYTES = 2**31  # protobuf's own limit


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one image: its most probable class, and the probabilities of all.

    ``probability`` is that class's, in [0, 1]; ``probabilities`` is (K,) float32 and sums to 1. Both are calibrated: of
    many images with probability 0.8, about 80% are what the label says.

    ``known_score`` in [0, 1] is higher the more the image looks like what the model was trained on. Where it is below
    the model's threshold ``known`` is False: the image is of no class, and ``label`` is only the nearest one.
    """

    label: str
    index: int
    probability: float
    probabilities: FloatArray = field(hash=False)
    known: bool
    known_score: float

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prediction):
            return NotImplemented
        return all(map(np.array_equal, vars(self).values(), vars(other).values()))


@dataclass(frozen=True, eq=False)
class Artefact:
    """An exported file whose seal holds: its path, its bytes, its card and its golden vectors as text."""

    path: Path
    content: bytes = field(repr=False)
    card: Card
    golden_text: str = field(repr=False)

    @cached_property
    def golden(self) -> Golden:
        """The golden vectors, decoded and checked at the first use: only ``verify`` needs them."""
        return self._decoded(Golden)

    @cached_property
    def golden_pictures(self) -> GoldenPictures:
        """A picture's golden pictures, decoded and checked as ``golden`` is."""
        return self._decoded(GoldenPictures)

    def _decoded(self, kind: type[GoldenKind]) -> GoldenKind:
        try:
            golden = kind.from_text(self.golden_text)
            golden.check(self.card)
        except ArtefactError as error:
            raise ArtefactError(f"{self.path}: {error}") from error
        return golden

    def check_made_for(self, provider: str) -> None:
        """Raise ProviderError if the file is not made for a provider, and UsageError if that is unknown."""
        if check_provider(provider) not in self.card.providers and self.card.kind == "picture":
            raise ProviderError(f"{self.path}: is made for cpu; on {provider} take {file_name('classifier')}")
        try:
            check_made_for(self.card.precision["name"], check_provider(provider))
        except ProviderError as error:
            raise ProviderError(f"{self.path}: {error}") from error

    def session(self, provider: str = "cpu", threads: int | None = None) -> Session:
        """Start an ONNX Runtime session for this file.

        Raises:
            ProviderError: the precision is not made for ``provider``, or ``provider`` is not the one that would run.
            ArtefactError: ONNX Runtime cannot load the graph.
        """
        self.check_made_for(provider)
        try:
            session = Session(self.content, provider=provider, threads=threads)
            for name, found in (("input", session.raw.get_inputs()), ("output", session.raw.get_outputs())):
                if found[0].shape[1:] != getattr(self.card, name)["shape"][1:]:  # a graph may give what it does not say
                    raise ArtefactError(f"its {name} is not what its card says")
        except (ArtefactError, UnicodeDecodeError) as error:  # the latter by a name in the graph
            raise ArtefactError(f"{self.path}: {error}") from error
        return session


def file_name(kind: Kind) -> str:
    """The name of the file that holds a kind of artefact, such as "encoder.onnx"."""
    return f"{kind}.onnx"


def shipped_folder(name: str = "fashion-mnist") -> Path:
    """The folder of artefacts that ship with fmcae under one of the names in SHIPPED."""
    checkout, package = Path(__file__).parents[2], Path(__file__).parents[1]
    return (package if (package / "exports").is_dir() else checkout) / "exports" / name


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, which was perhaps not exported."""
    return os.path.isfile(folder / "config.json") and any(folder.glob("*.safetensors"))


def _is_finished(run: Path) -> bool:
    """Whether a run has all of its weights; where its configuration cannot be read, its export will say so."""
    try:
        stage = json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]["stage"]
    except (OSError, ValueError, LookupError, TypeError):
        return True
    last = "autoencoder" if stage == "autoencoder" else "classifier"
    return (run / f"{last}.safetensors").is_file() and not (run / "checkpoint.safetensors").exists()


def artefact_files(folder: PathName) -> dict[Kind, Path]:
    """Find the exported files in a folder, by the kind that their names say; raise ArtefactError if it has no network."""
    parent = resolve_path(folder)
    files = {kind: parent / file_name(kind) for kind in FILE_KINDS if os.path.isfile(parent / file_name(kind))}
    if not files and is_run(parent):
        if not _is_finished(parent):
            command = command_line("fmcae", "train", "--resume", "--out", folder)
            raise ArtefactError(f"{folder}: is a run that is not finished; go on with  {command}")
        command = command_line("fmcae", "export", folder)
        raise ArtefactError(f"{folder}: is a run that is not exported into its folder onnx: run  {command}")
    if not files.keys() & set(KINDS):
        raise ArtefactError(f"{folder}: holds none of {', '.join(map(file_name, KINDS))}")
    return files


def read_artefact(path: PathName) -> Artefact:
    """Read an exported file and check its seal.

    Raises:
        ArtefactError: the file cannot be read, is not an artefact of fmcae, or has changed since its export.
        UsageError: path is empty.
    """
    is_path, asked, path = isinstance(path, Path), os.fspath(path), resolve_path(path)
    try:
        content = read_at_most(path, MAX_ARTEFACT_BYTES)
        metadata = read_metadata(content)
        check_seal(content, metadata)
        card = Card.from_json(metadata[CARD_KEY])
        check_graph(content, card.kind, card.x_shape)
        check_interface(content, card)
        return Artefact(path, content, card, metadata[GOLDEN_KEY])
    except OSError as error:
        is_plain = not is_path and asked == path.name and not path.suffix  # and not "./name"
        is_name = is_plain and isinstance(error, FileNotFoundError)
        ships = f"; what ships is {', '.join(SHIPPED)}" if is_name else ""
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}{ships}") from error
    except (ArtefactError, ValueError) as error:  # the latter by a null byte in the path
        raise ArtefactError(f"{path}: {error}") from error


def read_artefacts(path: PathName | None = None, only: NetworkKind | None = None) -> dict[Kind, Artefact]:
    """Read the artefacts in a file or folder, by kind; arguments and errors as for :func:`load`."""
    if only is not None and only not in KINDS:
        raise UsageError(f"only (={only}) must be one of {', '.join(KINDS)}")
    asked = shipped_folder() if path is None else path
    path = resolve_path(asked)
    if not os.path.isdir(path):
        artefact = read_artefact(asked)
        if artefact.card.kind == "picture":
            raise ArtefactError(f"{path}: is for other programs; name classifier.onnx beside it, or their folder")
        return {artefact.card.kind: artefact}
    files = artefact_files(path)
    files.pop("picture", None)
    wanted = {only: files[only]} if only in files else files
    artefacts = {kind: read_artefact(file) for kind, file in wanted.items()}
    check_one_export(artefacts)
    return artefacts


def check_one_export(artefacts: Mapping[Kind, Artefact]) -> None:
    """Check that the artefacts of one folder are of one export.

    Args:
        artefacts: by the kind that their names say.

    Raises:
        ArtefactError: one has another's name, is of another run or for images of another shape, or a picture has another
            classifier than the one beside it.
    """
    first = next(iter(artefacts.values()))
    for kind, artefact in artefacts.items():
        folder = artefact.path.parent
        if artefact.card.kind != kind:
            raise ArtefactError(f"{artefact.path}: is named {kind} but is a {artefact.card.kind}")
        if _run_of(artefact.card) != _run_of(first.card):
            raise ArtefactError(f"{folder}: {artefact.path.name} and {first.path.name} come from different runs")
        if artefact.card.x_shape != first.card.x_shape:
            raise ArtefactError(f"{folder}: its files are for images of different shapes")
    if "classifier" in artefacts and "picture" in artefacts:
        classifier, picture = artefacts["classifier"], artefacts["picture"]
        for name in ("training", "precision", "class_names", "calibration"):
            if getattr(classifier.card, name) != getattr(picture.card, name):
                raise ArtefactError(
                    f"{picture.path.parent}: {classifier.path.name} and {picture.path.name} come from different exports"
                )


def _run_of(card: Card) -> dict[str, Any]:
    """What all files of one export have in common: the autoencoder's run, which a classifier may have started from."""
    run = card.training.get("autoencoder", card.training)
    return {name: value for name, value in run.items() if name not in KEPT}


def resolve_path(path: PathName) -> Path:
    """Return ``path``, or what ships if it is a str with that name and nothing here has it; raise UsageError if it is empty.

    Of a run folder it is the folder into which its run is exported, if that is there.
    """
    if path == "":  # which Path takes for the current folder
        raise UsageError("path (=) must not be empty")
    if isinstance(path, str) and path in SHIPPED and not os.path.exists(path):  # "./NAME" is no name
        return shipped_folder(path)
    exported = Path(path, "onnx")
    is_exported = os.path.isdir(exported) and os.path.isfile(
        Path(path, "config.json")
    )  # Path's own raise on some paths
    return exported if is_exported else Path(path)


class Model:
    """The artefacts of one export, ready to run. Threads may share it; sessions are created at first use."""

    def __init__(
        self,
        artefacts: dict[Kind, Artefact],
        provider: str = "cpu",
        threads: int | None = None,
        threshold: float | None = None,
    ) -> None:
        self.artefacts = artefacts
        self._provider = check_provider(provider)
        self._threads = check_threads(threads)
        self._threshold = check_threshold(threshold)
        self._sessions: dict[Kind, Session] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let other processes have the model, which start their own sessions."""
        return Model, (self.artefacts, self._provider, self._threads, self._threshold)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The label of each class index."""
        return next(iter(self.artefacts.values())).card.class_names

    @property
    def channels(self) -> int:
        """The channels of the model's images: 1 for grey, 3 for colour."""
        return next(iter(self.artefacts.values())).card.x_shape[0]

    @property
    def size(self) -> int:
        """The pixels of the edges of the model's images."""
        return next(iter(self.artefacts.values())).card.x_shape[1]

    @property
    def threshold(self) -> float:
        """The known score from which an image is known: what was asked for, or what the classifier's card says."""
        if self._threshold is not None:
            return self._threshold
        return self.artefacts["classifier"].card.threshold if "classifier" in self.artefacts else 0.0

    def session(self, kind: Kind) -> Session:
        """Return the session of one graph; raise as Artefact.session, and ArtefactError if that was not loaded."""
        if kind in self._sessions:  # without the lock, which would take 0.5 µs of each run
            return self._sessions[kind]
        if kind not in self.artefacts:
            paths = [artefact.path for artefact in self.artefacts.values()]
            has, missing = ", ".join(map(str, paths)), paths[0].with_name(file_name(kind))
            advice = "name its folder" if missing.is_file() else "there is none beside it"
            raise ArtefactError(f"this needs {missing.name}; the model was loaded with {has} only: {advice}")
        with self._lock:
            if kind not in self._sessions:
                self._sessions[kind] = self.artefacts[kind].session(self._provider, self._threads)
        return self._sessions[kind]

    def classify(self, x: FloatArray) -> FloatArray:
        """Compute the logits (N, K) float32 of model inputs, or (K,) for one.

        Args:
            x: (N, C, S, S) float32 in [0, 1], or (C, S, S) for one image, from :meth:`preprocess`: C and S are the model's
                ``channels`` and ``size``, 1 and 28 by default. Values are not checked, because that takes longer than a
                small batch; logits of others mean nothing.

        Raises:
            UsageError: x has another shape or dtype.
        """
        return self._run("classifier", x, 4)

    def encode(self, x: FloatArray) -> FloatArray:
        """Compute the latents (N, latent_dim) float32 of x (N, C, S, S) float32; errors as for classify."""
        return self._run("encoder", x, 4)

    def decode(self, z: FloatArray) -> FloatArray:
        """Compute the reconstructions (N, C, S, S) float32 in [0, 1] of latents z (N, latent_dim) float32."""
        return self._run("decoder", z, 2)

    def reconstruct(self, x: FloatArray) -> FloatArray:
        """Return decode(encode(x)), of x's shape (N, C, S, S) float32."""
        return self.decode(self.encode(x))

    @overload
    def predict(self, images: NDArray[Any]) -> Any: ...
    @overload
    def predict(self, images: ImageSource) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Sequence[ImageSource]) -> list[Prediction]: ...
    def predict(self, images: Any) -> Any:
        """Classify one image, which gives a Prediction, or several, which give a list of them.

        Args:
            images: a path, encoded bytes, a PIL image or an array (uint8, (H, W) or (H, W, C)); or a list of them, or
                arrays of many: float32 model inputs (N, C, S, S), or uint8 (N, S, S), or (N, S, S, 3) in colour. A float32
                array (C, S, S) is one model input, in a list too.

        Raises:
            ImageError: an image cannot be read.
            UsageError: a float32 array is not a model input.
            ArtefactError: the classifier gives logits that are not finite, as it does of inputs that are not.
        """
        if isinstance(images, np.ndarray):
            if images.dtype == np.float32 and images.ndim == 3:
                return self.predict_inputs(images[np.newaxis])[0]
            if images.dtype == np.float32:
                return self.predict_inputs(images)
            many = (self.size, self.size) if self.channels == 1 else (self.size, self.size, 3)
            if images.dtype == np.uint8 and images.shape[1:] == many and images.ndim == len(many) + 1:
                return self.predict_inputs(scale(images))
        elif isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview):
            return self.predict_inputs(np.stack([self._input(image) for image in images])) if images else []
        return self.predict_inputs(self.preprocess(images)[np.newaxis])[0]

    def _input(self, image: ImageSource) -> FloatArray:
        shape = (self.channels, self.size, self.size)
        if isinstance(image, np.ndarray) and image.dtype == np.float32 and image.shape == shape:
            return image
        return self.preprocess(image)

    def preprocess(self, source: ImageSource, max_pixels: int = MAX_PIXELS) -> FloatArray:
        """The model's input (C, S, S) for one image, as :func:`fmcae.preprocess.preprocess` makes it; errors as there."""
        return preprocess(source, self.channels, self.size, max_pixels)

    def predict_inputs(self, x: FloatArray) -> list[Prediction]:
        """Return a Prediction for each of x (N, C, S, S) float32.

        Raises:
            UsageError: x has another shape or dtype.
            ArtefactError: the classifier gives logits that are not finite.
        """
        logits = self.classify(x)
        if logits.ndim != 2:
            wanted = f"(N, {self.channels}, {self.size}, {self.size}) float32"
            raise UsageError(f"x must be an array {wanted}, not {x.shape} {x.dtype}")
        card = self.artefacts["classifier"].card
        if not np.isfinite(logits).all():
            path = self.artefacts["classifier"].path
            raise ArtefactError(f"{path}: gives logits that are not finite: its weights or the input are damaged")
        scores = known_score(logits)
        columns = (
            logits.argmax(axis=1).tolist(),
            softmax(logits, card.temperature),
            (scores >= self.threshold).tolist(),
            scores.tolist(),
        )
        return [
            Prediction(card.class_names[index], index, float(row[index]), row, known, score)
            for index, row, known, score in zip(*columns, strict=True)
        ]

    def _run(self, kind: Kind, x: FloatArray, dimensions: int) -> FloatArray:
        """Run inputs that have ``dimensions`` axes, or one input without the batch's axis."""
        session = self.session(kind)
        if getattr(x, "ndim", None) == dimensions - 1:
            one: FloatArray = session.run(x[np.newaxis])[0]
            return one
        if session.provider != "cpu" and getattr(x, "ndim", None) == dimensions:
            with suppress(UsageError):  # which is to name the shape that was given
                return session.run(_filled_up(x, session.provider))[: len(x)]
        return session.run(x)


def _filled_up(x: FloatArray, provider: str) -> FloatArray:
    """Fill a batch up with zeros: an empty one to one image, because OpenVINO answers it with the last one's numbers.

    On CUDA a small one has a power of two of images: CUDA plans the convolutions anew at every change of the batch size,
    which takes ten times as long as a small batch, and so the size changes less often.
    """
    count = 1 << max(0, len(x) - 1).bit_length()
    is_filled = count <= MAX_FILLED if provider == "cuda" else len(x) == 0
    return np.concatenate([x, np.zeros((count - len(x), *x.shape[1:]), x.dtype)]) if is_filled and count > len(x) else x


def check_threshold(threshold: float | None) -> float | None:
    """Return ``threshold`` itself; raise UsageError if it is neither None nor a number from 0 to 1."""
    if threshold is None:
        return None
    if not isinstance(threshold, Real) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise UsageError(f"threshold (={threshold}) must be a number from 0 to 1; 0 turns it off")
    return float(threshold)


def load(
    path: PathName | None = None,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    only: NetworkKind | None = None,
    threshold: float | None = None,
) -> Model:
    """Load exported networks.

    Args:
        path: a folder that holds encoder.onnx, decoder.onnx, classifier.onnx or some of them, or one such file; or the
            name of what ships with fmcae: "fashion-mnist" (which None stands for), "fashion-mnist-int8",
            "fashion-mnist-large" or "fashion-mnist-paper".
        provider: "cpu", "cuda", "openvino", "tensorrt", "dml" or "coreml"; none falls back to the CPU.
        threads: ONNX Runtime's threads, 1 to 1,024; None takes the CPUs that this process may use.
        only: "encoder", "decoder" or "classifier", to read only that one if the folder has it.
        threshold: the known score, 0 to 1, from which an image is known; None takes the classifier's own, and 0 turns it
            off: every image is known.

    Raises:
        ArtefactError: a file is missing, foreign or damaged, or files come from different runs.
        UsageError: path is empty, or provider, threads, only or threshold is out of range.
    """
    return Model(read_artefacts(path, only), provider, threads, threshold)
