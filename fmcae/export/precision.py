"""The classifier's graph in fewer bits.

int8 is for the CPU. Measurements decide where eight bits are used (``bench/results/inference_cpu.json``):

- The linear layer holds nine tenths of the weights, and reading them takes most of a single image's time.
- The second convolution is three quarters of the arithmetic, and a CPU multiplies several times as many 8-bit integers
  a second as floats.
- The first convolution has too few channels to gain, and the last linear layer is small: both stay in float32.

Weights have a scale for each output channel and lie within ±63: with ±127 the sum of two products can overflow the 16
bits that x86 processors without VNNI add them in. Activations are uint8, with a scale from the largest value on training
images. Latent units that are 0 on all of these images are left out.

The graph uses operators of ONNX Runtime's own domain, because the standard ones want channels first and convert back and
forth. Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md

fp16 is for CUDA: weights and activations are half precision, and input and output stay float32.
"""

from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fmcae.data import Dataset
from fmcae.preprocess import scale
from fmcae.train.networks import Classifier

SmallerPrecision = Literal["int8", "fp16"]
CALIBRATION_IMAGES = 5_000
_WEIGHT_LIMIT = 63
_CALIBRATION_BATCH = 500


class Half(nn.Module):
    """A network in half precision: (N, ...) float32 in, float32 out. The network itself is changed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()  # type: ignore[no-any-return]


def int8_graph(classifier: Classifier, calibration: NDArray[np.uint8]) -> bytes:
    """The classifier's graph in int8, x (N, C, S, S) float32 -> logits (N, K) float32, as an ONNX file.

    Args:
        calibration: training images uint8, (M, S, S) or (M, S, S, 3).
    """
    constants, config = _int8_constants(classifier, calibration), classifier.config
    shape = ["batch", config.channels, config.size, config.size]
    graph = helper.make_graph(
        _int8_nodes(config.pooling, config.latent_activation),
        "classifier_int8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(constants["head.bias"])])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8, producer_name="fmcae")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def latent_units(graph: bytes) -> int:
    """How many latent units :func:`int8_graph` kept."""
    initializers = onnx.load_from_string(graph).graph.initializer
    (bias,) = (tensor for tensor in initializers if tensor.name == "linear.bias")
    return int(bias.dims[0])


def calibration_images(dataset: Dataset) -> NDArray[np.uint8]:
    """Training images uint8, evenly spaced, since folders of images come class by class."""
    count = len(dataset.train)
    return dataset.train.images[np.linspace(0, count - 1, min(count, CALIBRATION_IMAGES)).astype(np.intp)]


def _int8_constants(classifier: Classifier, calibration: NDArray[np.uint8]) -> dict[str, Any]:
    """The initializers of the int8 graph by name, in the order in which they are stored."""
    conv1, conv2, linear = (layer for layer in classifier.encoder if isinstance(layer, nn.Conv2d | nn.Linear))
    top1, top2, top_z = _largest_activations(classifier, calibration)
    # Behind a ReLU, a latent unit that is never above 0 is left out.
    may_drop = classifier.config.latent_activation and top_z.any()
    active = np.flatnonzero(top_z > 0) if may_drop else np.arange(len(top_z))
    scale1, scale2 = (np.float32(top / 255 if top > 0 else 1) for top in (top1, top2))
    weight2, weight2_scale = _quantized(_array(conv2.weight))  # (32, 16, 3, 3)
    flat = _array(linear.weight)[active]  # (n, 32·H·W), flattened with channels first
    side = int((flat.shape[1] // 32) ** 0.5)
    flat = flat.reshape(-1, 32, side, side).transpose(0, 2, 3, 1).reshape(len(active), -1)  # channels last
    weight3, weight3_scale = _quantized(flat)
    return {
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
        "linear.bias": _array(linear.bias)[active],
        "head.weight": np.ascontiguousarray(_array(classifier.linear.weight)[:, active]),
        "head.bias": _array(classifier.linear.bias),
    }


def _int8_nodes(pooling: bool, latent_activation: bool) -> list[onnx.NodeProto]:
    node = helper.make_node
    own: dict[str, Any] = {"domain": "com.microsoft"}
    pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    conv2 = ["conv2.weight", "conv2.weight_scale", "conv2.weight_zero", "conv2.scale", "zero", "conv2.bias"]
    linear = ["linear.weight", "conv2.scale", "linear.weight_scale", "", "", "linear.bias"]
    return [
        node("Conv", ["x", "conv1.weight", "conv1.bias"], ["conv1"], kernel_shape=[3, 3]),
        *([node("MaxPool", ["conv1"], ["pool1"], **pool)] if pooling else []),
        node("Transpose", ["pool1" if pooling else "conv1"], ["last1"], perm=[0, 2, 3, 1]),  # channels last
        # Here it keeps ONNX Runtime from quantizing before pooling, which takes longer.
        node("Relu", ["last1"], ["relu1"]),
        node("QuantizeLinear", ["relu1", "conv1.scale", "zero"], ["y1"]),
        # Its ReLU is the lower end of uint8.
        node("QLinearConv", ["y1", "conv1.scale", "zero", *conv2], ["y2"], kernel_shape=[3, 3], channels_last=1, **own),
        *([node("NhwcMaxPool", ["y2"], ["pool2"], **pool, **own)] if pooling else []),
        node("Flatten", ["pool2" if pooling else "y2"], ["flat"]),
        node("MatMulIntegerToFloat", ["flat", *linear], ["linear"], **own),
        *([node("Relu", ["linear"], ["z"])] if latent_activation else []),
        node("Gemm", ["z" if latent_activation else "linear", "head.weight", "head.bias"], ["logits"], transB=1),
    ]


@torch.no_grad()
def _largest_activations(classifier: Classifier, images: NDArray[np.uint8]) -> tuple[float, float, NDArray[np.float32]]:
    """The largest output of each convolution's block, and of each latent unit (latent_dim,), over all images."""
    layers = list(classifier.encoder.eval())
    second = next(index for index, layer in enumerate(layers) if index and isinstance(layer, nn.Conv2d))
    flatten = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.Flatten))
    parts = layers[:second], layers[second:flatten], layers[flatten:]
    block1, block2, rest = (nn.Sequential(*part) for part in parts)
    maxima = []
    for start in range(0, len(images), _CALIBRATION_BATCH):
        y1 = block1(torch.from_numpy(scale(images[start : start + _CALIBRATION_BATCH])))
        y2 = block2(y1)
        maxima.append((y1.max(), y2.max(), rest(y2).amax(dim=0)))
    top1, top2, top_z = (torch.stack(tops).amax(dim=0) for tops in zip(*maxima, strict=True))
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
