"""Parity between PyTorch and what a user runs.

One side is PyTorch on the data set's uint8 tensor, as in training. The other side takes each test image as the bytes of
a PNG file, through ``preprocess`` and ONNX Runtime.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from fmcae.card import Kind
from fmcae.data import Split
from fmcae.errors import GateError
from fmcae.preprocess import preprocess
from fmcae.runtime.session import Session, import_onnxruntime
from fmcae.runtime.verify import Difference, compare
from fmcae.train.measure import EVALUATION_BATCH, scale

BATCH_SIZES = (1, 2, 7, 1000)
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """One output (logits, z or x_hat) at one batch size against PyTorch's, over the whole split."""

    output: str
    batch_size: int
    difference: Difference
    label_agreement: float | None  # share in [0, 1]; of logits only


@dataclass(frozen=True)
class Parity:
    """The evidence: every comparison, and what it was made with."""

    images: int
    provider: str
    onnxruntime_version: str
    torch_version: str
    tolerance: dict[str, float]
    comparisons: list[Comparison]

    @property
    def failure(self) -> str | None:
        """What does not hold, in words; None if all does."""
        for item in self.comparisons:
            if item.label_agreement is not None and item.label_agreement < 1:
                differing = round((1 - item.label_agreement) * self.images)
                return f"{differing} of {self.images:,} labels differ at batch size {item.batch_size}"
            if not item.difference.within:
                return (
                    f"{item.output} differs by up to {item.difference.max_abs:.3g} at batch size {item.batch_size}, "
                    f"more than atol {self.tolerance['atol']:g} + rtol {self.tolerance['rtol']:g} allow"
                )
        return None

    @property
    def passed(self) -> bool:
        """Whether labels agree on every image and every difference is within the tolerance."""
        return self.failure is None

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values."""
        return {**asdict(self), "passed": self.passed}


def measure_parity(
    networks: Mapping[Kind, nn.Module], sessions: Mapping[Kind, Session], split: Split, tolerance: dict[str, float]
) -> Parity:
    """Compare every session with its PyTorch network on all of ``split``, at each of BATCH_SIZES, or all at once.

    The networks, in evaluation mode, must have every kind of the sessions; a decoder is compared behind its encoder.

    Args:
        tolerance: the largest allowed difference, ``{"atol", "rtol"}``.

    Raises:
        GateError: an output has another shape than PyTorch's.
    """
    paths: list[tuple[str, Callable[[FloatArray], FloatArray], nn.Module]] = []  # output, shipped path, PyTorch's
    if "classifier" in sessions:
        paths.append(("logits", sessions["classifier"].run, networks["classifier"]))
    if "encoder" in sessions:
        paths.append(("z", sessions["encoder"].run, networks["encoder"]))
    if "encoder" in sessions and "decoder" in sessions:
        autoencoder = nn.Sequential(networks["encoder"], networks["decoder"])
        paths.append(("x_hat", lambda x: sessions["decoder"].run(sessions["encoder"].run(x)), autoencoder))
    shape = (3 if split.images.ndim == 4 else 1), split.images.shape[1]
    x = np.stack([preprocess(_png(image), *shape) for image in split.images])  # (N, C, S, S)
    comparisons, batch_sizes = [], sorted({min(size, len(x)) for size in BATCH_SIZES})
    for output, run, network in paths:
        reference = _reference(network, split)
        for batch_size in batch_sizes:
            outputs = np.concatenate([run(x[i : i + batch_size]) for i in range(0, len(x), batch_size)])
            if outputs.shape != reference.shape:
                raise GateError(f"parity does not hold: {output} is {outputs.shape}, PyTorch's {reference.shape}")
            agreement = None
            if output == "logits":
                agreement = float((outputs.argmax(axis=1) == reference.argmax(axis=1)).mean())
            comparisons.append(Comparison(output, batch_size, compare(outputs, reference, tolerance), agreement))
    return Parity(
        images=len(split),
        provider=next(iter(sessions.values())).provider,
        onnxruntime_version=str(import_onnxruntime().__version__),
        torch_version=version("torch"),
        tolerance=tolerance,
        comparisons=comparisons,
    )


@torch.no_grad()
def _reference(network: nn.Module, split: Split) -> FloatArray:
    images = torch.from_numpy(np.array(split.images))
    return np.concatenate([network(scale(batch)).numpy() for batch in torch.split(images, EVALUATION_BATCH)])


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
