from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcae.export.preprocessing import preprocessing_graph
from fmcae.preprocess import graph_path, preprocess
from fmcae.shape import SHAPES

pytestmark = pytest.mark.train


@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_the_graph_that_ships_is_the_one_that_the_code_builds(channels: int, size: int) -> None:
    built, shipped = preprocessing_graph(channels, size), onnx.load(graph_path(channels, size))
    assert [node.op_type for node in shipped.graph.node] == [node.op_type for node in built.graph.node]
    sizes = {name: np.prod(shape) for name, shape in _initializers(built).items()}
    assert sizes == {name: np.prod(shape) for name, shape in _initializers(shipped).items()}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    sessions = [onnxruntime.InferenceSession(model.SerializeToString(), options) for model in (built, shipped)]
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    assert np.array_equal(*(session.run(None, {"image": image})[0] for session in sessions))


def _initializers(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def test_the_default_graph_is_that_of_every_picture_that_was_exported() -> None:
    # With another graph `verify` refuses each of them, so that they must be exported again.
    digest = "d40f1682990178f8e79edcf65a47345ee2467b1e1271bef2cf96e88467f49c12"
    assert sha256(graph_path().read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_it_has_standard_operators_alone_and_nothing_loops(channels: int, size: int) -> None:
    model = onnx.load(graph_path(channels, size))
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    assert not {"If", "Loop", "Scan"} & {node.op_type for node in model.graph.node}
    assert not any(node.domain for node in model.graph.node) and not model.functions


@settings(max_examples=30)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([1, 3, 4]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([SHAPES[0], SHAPES[-1]]),
)
def test_any_client_gets_what_python_gets(
    height: int, width: int, channels: int, seed: int, shape: tuple[int, int]
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    image[: height // 3] = 255  # some have a background
    x = _optimized(*shape).run(None, {"image": image})[0]
    assert x.shape == (1, shape[0], shape[1], shape[1]) and x.dtype == np.float32
    assert np.abs(x[0] - preprocess(image, *shape)).max() < 1e-4


@cache
def _optimized(channels: int, size: int) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph_path(channels, size), providers=["CPUExecutionProvider"])


def test_large_pictures_take_hardly_longer(tmp_path: Path) -> None:
    """The canvas is of a fixed size: of 16 megapixels no float is made but those of the places that are sampled."""
    model = onnx.shape_inference.infer_shapes(onnx.load(graph_path()), data_prop=True)
    free = [
        value.name
        for value in model.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and any(dim.dim_param in ("height", "width") for dim in value.type.tensor_type.shape.dim)
    ]
    assert free == []
