"""A classifier in fewer bits, and the verdict on it: what it costs in accuracy, what it gains in size and time.

int8, for the CPU. What was measured decides where eight bits are used (``bench/results/inference_cpu.json``):

- the linear layer, nine tenths of the weights: a single image is done when they have been read;
- the second convolution, three quarters of the arithmetic: integer products of two 8-bit numbers are several times as
  many a second;
- not the first, which has too few channels to gain, nor the last linear layer, which is small.

Weights have a scale for each output channel and 7 bits and a sign less one, ±63: with ±127 the sum of two products can
overflow in the 16 bits that x86 processors without VNNI add them in. Activations are uint8, their scale taken from the
largest value on training images, where the latent units that are 0 on all of them are left out too.

Operators of ONNX Runtime's own domain are used, because the standard ones want channels first and convert back and
forth. Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md

fp16, for CUDA: weights and activations are half precision, input and output stay float32.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fmcae import metrics
from fmcae.data import Dataset, Split
from fmcae.errors import UsageError
from fmcae.preprocess import scale
from fmcae.runtime.machine import describe_machine
from fmcae.runtime.model import Artefact, Model
from fmcae.runtime.timing import Ratio, random_input, time_in_turns
from fmcae.train.networks import Classifier

Precision = Literal["fp32", "int8", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CALIBRATION_IMAGES = 5_000
ACCURACY_BUDGET = 0.2  # points: hundredths of accuracy
# Integers do not differ between machines; what is left is the first convolution's rounding, which may move a sum's last bit.
INT8_TOLERANCE = {"atol": 0.05, "rtol": 1e-3}
FP16_TOLERANCE = {"atol": 0.05, "rtol": 1e-2}
_WEIGHT_LIMIT = 63
_CALIBRATION_BATCH = 500
_TIMED_BATCHES = (1, 256)
_TIMED_SECONDS = 0.5


@dataclass(frozen=True)
class Verdict:
    """A smaller classifier beside the float32 one, on one machine.

    Attributes:
        accuracy, fp32_accuracy: on the whole test split, in [0, 1].
        label_agreement: share of test images that get the same label from both.
        max_abs_difference: of logits.
        speedup: fp32's latency over this one's, by batch size; above 1 this one is faster.
        budget_points: the loss of accuracy that was allowed, in hundredths.
    """

    images: int
    accuracy: float
    fp32_accuracy: float
    label_agreement: float
    max_abs_difference: float
    size_bytes: int
    fp32_size_bytes: int
    speedup: dict[int, Ratio]
    provider: str
    threads: int
    machine: dict[str, Any]
    budget_points: float

    @property
    def failure(self) -> str | None:
        """Why the file is not worth keeping; None if it is."""
        lost = 100 * (self.fp32_accuracy - self.accuracy)
        if not lost <= self.budget_points:
            return (
                f"accuracy falls from {self.fp32_accuracy:.4f} to {self.accuracy:.4f} on {self.images:,} test images, "
                f"by {lost:.2f} points, more than the budget of {self.budget_points:g}"
            )
        if self.size_bytes >= self.fp32_size_bytes and self.speedup[1].median <= 1:
            return f"it is neither smaller ({self.size_bytes:,} bytes) nor faster ({self.speedup[1].median:.2f} times)"
        return None

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values."""
        return {**asdict(self), "speedup": {str(size): asdict(ratio) for size, ratio in self.speedup.items()}}


def judge(smaller: Artefact, fp32: Artefact, test: Split, budget_points: float, provider: str) -> Verdict:
    """Run both classifiers on all of ``test``, and time them in turns, one thread each.

    Raises:
        ProviderError: ``provider`` is not the one that would run.
    """
    models = [Model({"classifier": artefact}, provider, threads=1) for artefact in (smaller, fp32)]
    x = scale(test.images)
    logits, reference = (model.classify(x) for model in models)
    session, other = (model.session("classifier") for model in models)
    speedup = {}
    for size in _TIMED_BATCHES:
        batch = random_input(session, size)
        runners = {"smaller": lambda x=batch: session.run(x), "fp32": lambda x=batch: other.run(x)}
        speedup[size] = time_in_turns(runners, size, _TIMED_SECONDS).ratios["fp32"]
    return Verdict(
        images=len(test),
        accuracy=metrics.accuracy(logits, test.labels),
        fp32_accuracy=metrics.accuracy(reference, test.labels),
        label_agreement=float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        max_abs_difference=float(np.abs(logits - reference).max()),
        size_bytes=len(smaller.content),
        fp32_size_bytes=len(fp32.content),
        speedup=speedup,
        provider=session.provider,
        threads=session.threads,
        machine=describe_machine(),
        budget_points=budget_points,
    )


def check_precision(precision: str) -> Precision:
    """``precision`` itself.

    Raises:
        UsageError: it is none of fp32, int8 and fp16.
    """
    for known in PRECISIONS:
        if precision == known:
            return known
    raise UsageError(f"precision (={precision}) must be one of {', '.join(PRECISIONS)}")


class Half(nn.Module):
    """A network in half precision: (N, ...) float32 in, float32 out. The network itself is changed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()  # type: ignore[no-any-return]


def int8_graph(classifier: Classifier, calibration: NDArray[np.uint8]) -> onnx.ModelProto:
    """The classifier's graph in int8, x (N, 1, 28, 28) float32 -> logits (N, K) float32.

    Args:
        calibration: training images (M, 28, 28) uint8.
    """
    conv1, conv2, linear = (layer for layer in classifier.encoder if isinstance(layer, nn.Conv2d | nn.Linear))
    pooling = classifier.config.pooling
    top1, top2, top_z = _largest_activations(classifier, calibration)
    alive = np.flatnonzero(top_z > 0) if top_z.any() else np.arange(len(top_z))
    scale1, scale2 = (np.float32(top / 255 if top > 0 else 1) for top in (top1, top2))

    weight2, weight2_scale = _quantized(_array(conv2.weight))  # (32, 16, 3, 3)
    flat = _array(linear.weight)[alive]  # (n, 32·H·W), flattened with channels first
    side = int((flat.shape[1] // 32) ** 0.5)
    flat = flat.reshape(-1, 32, side, side).transpose(0, 2, 3, 1).reshape(len(alive), -1)  # channels last
    weight3, weight3_scale = _quantized(flat)
    constants = {
        "conv1.weight": _array(conv1.weight),
        "conv1.bias": _array(conv1.bias),
        "conv1.scale": scale1,
        "zero": np.uint8(0),
        "conv2.weight": weight2,
        "conv2.weight_scale": weight2_scale,
        "conv2.weight_zero": np.zeros(len(weight2), np.int8),
        "conv2.bias": np.rint(_array(conv2.bias) / (scale1 * weight2_scale)).astype(np.int32),
        "conv2.scale": scale2,
        "linear.weight": np.ascontiguousarray(weight3.T),  # (H·W·32, n)
        "linear.weight_scale": weight3_scale,
        "linear.bias": _array(linear.bias)[alive],
        "head.weight": np.ascontiguousarray(_array(classifier.linear.weight)[:, alive]),
        "head.bias": _array(classifier.linear.bias),
    }

    node = helper.make_node
    own: dict[str, Any] = {"domain": "com.microsoft"}
    pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    names = ["conv2.weight", "conv2.weight_scale", "conv2.weight_zero", "conv2.scale", "zero", "conv2.bias"]
    nodes = [
        node("Conv", ["x", "conv1.weight", "conv1.bias"], ["conv1"], kernel_shape=[3, 3]),
        node("Relu", ["conv1"], ["relu1"]),
        *([node("MaxPool", ["relu1"], ["pool1"], **pool)] if pooling else []),
        node("Transpose", ["pool1" if pooling else "relu1"], ["last1"], perm=[0, 2, 3, 1]),  # channels last
        node("QuantizeLinear", ["last1", "conv1.scale", "zero"], ["y1"]),
        # its ReLU is the lower end of uint8
        node("QLinearConv", ["y1", "conv1.scale", "zero", *names], ["y2"], kernel_shape=[3, 3], channels_last=1, **own),
        *([node("NhwcMaxPool", ["y2"], ["pool2"], **pool, **own)] if pooling else []),
        node("Flatten", ["pool2" if pooling else "y2"], ["flat"]),
        node(
            "MatMulIntegerToFloat",
            ["flat", "linear.weight", "conv2.scale", "linear.weight_scale", "", "", "linear.bias"],
            ["linear"],
            **own,
        ),
        node("Relu", ["linear"], ["z"]),
        node("Gemm", ["z", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier_int8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(constants["head.bias"])])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8, producer_name="fmcae")
    onnx.checker.check_model(model)
    return model


def latent_units(model: onnx.ModelProto) -> int:
    """How many latent units :func:`int8_graph` kept."""
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "linear.bias")
    return int(bias.dims[0])


def calibration_images(dataset: Dataset) -> NDArray[np.uint8]:
    """Training images (M, 28, 28) uint8, evenly spaced, since folders of images come class by class."""
    count = len(dataset.train)
    return dataset.train.images[np.linspace(0, count - 1, min(count, CALIBRATION_IMAGES)).astype(np.intp)]


@torch.no_grad()
def _largest_activations(classifier: Classifier, images: NDArray[np.uint8]) -> tuple[float, float, NDArray[np.float32]]:
    """The largest output of each convolution's block, and of each latent unit (latent_dim,), over all images."""
    layers = list(classifier.encoder.eval())
    second, flatten = (
        next(index for index, layer in enumerate(layers) if index and isinstance(layer, kind))
        for kind in (nn.Conv2d, nn.Flatten)
    )
    block1, block2, rest = (
        nn.Sequential(*part) for part in (layers[:second], layers[second:flatten], layers[flatten:])
    )

    def of_batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(images), _CALIBRATION_BATCH):
            y1 = block1(torch.from_numpy(scale(images[start : start + _CALIBRATION_BATCH])))
            y2 = block2(y1)
            yield y1.max(), y2.max(), rest(y2).amax(dim=0)

    top1, top2, top_z = (torch.stack(tops).amax(dim=0) for tops in zip(*of_batches(), strict=True))
    return float(top1), float(top2), top_z.numpy()


def _quantized(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 weights, and a scale for each of the first axis: weight is close to int8 times scale."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scales = np.where(largest > 0, largest / _WEIGHT_LIMIT, 1).astype(np.float32)
    rounded = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
    return rounded.clip(-_WEIGHT_LIMIT, _WEIGHT_LIMIT).astype(np.int8), scales


def _array(parameter: Tensor | None) -> NDArray[np.float32]:
    assert parameter is not None  # a bias may be None; not in these networks
    return parameter.detach().cpu().numpy()
