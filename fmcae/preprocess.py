"""Turn an image into the model's input: the one path of training, export, parity, bench and predict.

The work is done by ``preprocess.onnx``, a graph that any language can run and that ``picture.onnx`` begins with:
:mod:`fmcae.export.preprocessing` builds it and says what it does. Here images are decoded for it.
"""

from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import ImageError
from fmcae.images import MAX_PIXELS, ImageSource, pixels_of, read_image, source_name

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

SIZE = 28  # pixels
GRAPH = Path(__file__).with_name("preprocess.onnx")
DESCRIPTION: dict[str, Any] = {
    "28x28 grey image": "taken as it is",
    "other image": "turned upright, trimmed to the item, longest edge to 28 pixels, sharpened, centred, background to 0",
    "graph": "preprocess.onnx of fmcae, which picture.onnx begins with",
    "scale": "uint8 / 255",
    "source": "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2",
}


def preprocess(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Floats:
    """Return the model's input for one image, (1, 28, 28) float32 in [0, 1]. A blank picture gives zeros.

    Args:
        source: a path, an image file's bytes, a PIL image, or an array of uint8, uint16 or bool of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4).
        max_pixels: how many it may have.

    Raises:
        ImageError: the source cannot be read as an image or preprocessed; the message names it and says why.
    """
    image = read_image(source, max_pixels)
    pixels = pixels_of(image)
    del image  # a large one's memory is free from here on
    if pixels.shape == (SIZE, SIZE):  # the graph would give the same
        return scale(pixels)
    session = _session()
    try:
        x: Floats = session.run(None, {"image": np.atleast_3d(pixels)})[0][0]
    except Exception as error:  # ONNX Runtime's own, such as where there is no room
        reason = str(error).split("\n")[0]
        raise ImageError(f"{source_name(source)}: cannot be preprocessed: {reason}") from error
    return x


def scale(images: Bytes) -> Floats:
    """Scale uint8 (28, 28) or (N, 28, 28) to float32 (1, 28, 28) or (N, 1, 28, 28) in [0, 1]."""
    scaled: Floats = np.divide(images[..., np.newaxis, :, :], np.float32(255), dtype=np.float32)
    return scaled


def to_uint8(source: ImageSource) -> Bytes:
    """Return :func:`preprocess` of one image as data sets store it and people look at it: (28, 28) uint8, rounded."""
    return as_bytes(preprocess(source))


def as_bytes(x: Floats) -> Bytes:
    """Round a model's input (1, 28, 28) in [0, 1] to (28, 28) uint8."""
    rounded: Bytes = np.rint(x[0] * 255).astype(np.uint8)
    return rounded


@cache
def _session() -> Any:
    return image_session(GRAPH.read_bytes())


def image_session(graph: bytes) -> Any:
    """Start an ONNX Runtime session, which threads may share, for a graph that takes ``image``.

    For tensors as small as those behind the image one thread and no planning is fastest.
    """
    from fmcae.runtime.session import import_onnxruntime  # which imports this module

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # fatal
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
