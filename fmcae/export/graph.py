"""PyTorch to ONNX: one network becomes one graph, without card, golden vectors or seal.

Opset 18 and IR version 8 are what ONNX Runtime has read since 1.14, older than the oldest version that fmcae declares.
"""

import warnings

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from fmcae.card import TENSORS, Kind
from fmcae.train.networks import Encoder

OPSET, IR_VERSION = 18, 8
UNUSED_PIXELS = 2  # of 28 by pooling: 5·2 rows of the second convolution, ·2 of the first block, +2 for each kernel


def to_onnx(network: nn.Module, kind: Kind, example: NDArray[np.float32]) -> bytes:
    """Convert ``network`` to an ONNX file with named input and output and a dynamic batch, checked by ONNX's own checker.

    Args:
        example: an input (2 or more, ...) float32.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not the user's
        program = torch.onnx.export(
            network.eval(),
            (torch.from_numpy(example),),
            input_names=[TENSORS[kind][0]],
            output_names=[TENSORS[kind][1]],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # only where the exporter writes a file itself
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    # The exporter notes where in the Python source each node comes from; that is of no use in an artefact.
    del model.metadata_props[:], model.graph.metadata_props[:]
    del model.graph.value_info[:]  # sizes between the nodes, some of the example's batch, which stop other runtimes
    for item in (*model.graph.node, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    is_the_papers = any(isinstance(module, Encoder) for module in network.modules())
    if is_the_papers and any(isinstance(layer, nn.MaxPool2d) for layer in network.modules()):
        _crop(model, example.shape[-1] - UNUSED_PIXELS)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _crop(model: onnx.ModelProto, size: int) -> None:
    """Cut x to its first ``size`` rows and columns, which leaves every output as it was.

    Pooling drops the odd row and column of 11×11; what these alone depend on need not be computed, a sixth of both
    convolutions.
    """
    graph = model.graph
    bounds = {"crop.starts": [0, 0], "crop.ends": [size, size], "crop.axes": [2, 3]}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array(value), name) for name, value in bounds.items())
    for node in graph.node:
        node.input[:] = ["x_used" if name == "x" else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("Slice", ["x", *bounds], ["x_used"]))
