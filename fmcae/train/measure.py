"""A split on the training device, and how a network is measured on it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcae import metrics
from fmcae.data import Split
from fmcae.train.backend import Backend
from fmcae.train.config import TrainConfig
from fmcae.train.networks import Autoencoder
from fmcae.train.run import NETWORKS

EVALUATION_BATCH = 1000  # images; the result does not depend on it
GPU_BATCH = 2_000  # images of 28x28; more take gigabytes of a GPU's memory


@dataclass(frozen=True)
class DeviceSplit:
    """A split on the training device: images uint8, (N, S, S) or (N, S, S, 3); labels (N,) int64."""

    images: Tensor
    labels: Tensor

    @classmethod
    def from_split(cls, split: Split, device: torch.device) -> "DeviceSplit":
        """Copy ``split`` to ``device``."""
        images, labels = torch.from_numpy(np.array(split.images)), torch.from_numpy(split.labels.astype(np.int64))
        return cls(images.to(device), labels.to(device))


@torch.no_grad()
def evaluate(
    backend: Backend, split: DeviceSplit, interior: int | None = None
) -> tuple[dict[str, float], NDArray[np.int64] | None]:
    """A split's metrics in evaluation mode, and a classifier's confusion counts (K, K).

    An autoencoder has ``mse``, and where ``interior`` is given ``interior_mse``, of so many rows and columns from the first;
    a classifier ``cross_entropy`` (nats) and ``accuracy``. Outputs of one batch at a time are in memory.
    """
    backend.network.eval()
    total, interior_total, counts = 0.0, 0.0, None
    batches = (torch.split(tensor, _batch_size(split.images)) for tensor in (split.images, split.labels))
    for images, batch_labels in zip(*batches, strict=True):
        x, labels = scale(images), batch_labels.cpu().numpy()
        outputs = backend.outputs(x)
        if isinstance(backend.network, Autoencoder):
            total += _mse(x, outputs) * len(labels)
            if interior is not None:
                x, outputs = x[..., :interior, :interior], outputs[..., :interior, :interior]
                interior_total += _mse(x, outputs) * len(labels)
        else:
            logits = outputs.cpu().numpy()
            total += metrics.cross_entropy(logits, labels) * len(labels)
            confusion = metrics.confusion(logits, labels)
            counts = confusion if counts is None else counts + confusion
    mean = total / len(split.labels)
    if counts is None:
        of_interior = {} if interior is None else {"interior_mse": interior_total / len(split.labels)}
        return {"mse": mean, **of_interior}, None
    return {"cross_entropy": mean, "accuracy": float(np.trace(counts) / len(split.labels))}, counts


def _batch_size(images: Tensor) -> int:
    return EVALUATION_BATCH if images.device.type == "cpu" else GPU_BATCH * 28**2 // images.shape[1] ** 2


def _mse(x: Tensor, x_hat: Tensor) -> float:
    return _mse_on_device(x, x_hat) if x.is_cuda else metrics.mse(x.numpy(), x_hat.numpy())


def _mse_on_device(x: Tensor, x_hat: Tensor) -> float:
    """``metrics.mse`` but for the last digits, without copying hundreds of megabytes to the CPU after every epoch."""
    return float((x - x_hat).double().square().mean())


def scale(images: Tensor) -> Tensor:
    """uint8 images -> float32 (N, C, S, S) in [0, 1]: ``fmcae.preprocess.scale`` on the device, bit for bit."""
    planes = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return planes.float().div_(255)


def epoch_seed(config: TrainConfig, stage: str, epoch: int) -> int:
    """One 64-bit seed for an epoch; epoch 0 is the initial weights'. SeedSequence keeps neighbours unrelated."""
    stage_index = list(NETWORKS).index(stage)
    return int(np.random.SeedSequence([config.seed, stage_index, epoch]).generate_state(1, np.uint64)[0])
