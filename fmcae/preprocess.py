"""Turn an image into the model's input: the one path of training, export, parity, bench and predict.

The work is done by ``preprocess.onnx``, a graph that any language can run and that ``picture.onnx`` begins with:
:mod:`fmcae.export.preprocessing` builds it and says what it does. A model of another shape than 1×28×28 has a graph of its
own, such as ``preprocess-3x64.onnx``. Here images are decoded for them.
"""

from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fmcae.errors import ImageError
from fmcae.images import MAX_PIXELS, ImageSource, pixels_of, read_image, source_name
from fmcae.shape import check_shape

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

SIZE = 28  # pixels, of Fashion-MNIST and by default


def graph_path(channels: int = 1, size: int = SIZE) -> Path:
    """Where the preprocessing graph of a shape lies.

    Raises:
        UsageError: there is no such shape.
    """
    check_shape(channels, size)
    shape = "" if (channels, size) == (1, SIZE) else f"-{channels}x{size}"
    return Path(__file__).with_name(f"preprocess{shape}.onnx")


def description(channels: int = 1, size: int = SIZE) -> dict[str, Any]:
    """What a card says of preprocessing."""
    kind, form = ("grey", "background to 0") if channels == 1 else ("opaque", "in its colours, background to 0")
    steps = f"turned upright, trimmed to the item, longest edge to {size} pixels, sharpened, centred, {form}"
    facts: dict[str, Any] = {
        f"{size}x{size} {kind} image": "taken as it is",
        "other image": steps,
        "graph": f"{graph_path(channels, size).name} of fmcae, which picture.onnx begins with",
        "scale": "uint8 / 255",
        "source": "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, section 2",
    }
    return facts if (channels, size) == (1, SIZE) else facts | {"channels": channels, "size": size}


def preprocess(source: ImageSource, channels: int = 1, size: int = SIZE, max_pixels: int = MAX_PIXELS) -> Floats:
    """Return the model's input for one image, (channels, size, size) float32 in [0, 1]. A blank picture gives zeros.

    Args:
        source: a path, an image file's bytes, a PIL image, or an array of uint8, uint16 or bool of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4).
        channels: 1 for grey, 3 for red, green and blue.
        size: 28, 56 or 64 pixels.
        max_pixels: how many it may have.

    Raises:
        ImageError: the source cannot be read as an image or preprocessed; the message names it and says why.
        UsageError: ``channels`` or ``size`` is none of these.
    """
    check_shape(channels, size)
    image = read_image(source, max_pixels)
    pixels = pixels_of(image)
    del image  # a large one's memory is free from here on
    if pixels.shape == ((size, size) if channels == 1 else (size, size, 3)):  # the graph would give the same
        return scale(pixels)
    session = _session(channels, size)
    try:
        x: Floats = session.run(None, {"image": np.atleast_3d(pixels)})[0][0]
    except Exception as error:  # ONNX Runtime's own, such as where there is no room
        reason = str(error).split("\n")[0]
        raise ImageError(f"{source_name(source)}: cannot be preprocessed: {reason}") from error
    return x


def scale(images: Bytes) -> Floats:
    """Scale the pixels of one image or of several to model inputs (C, S, S) or (N, C, S, S) float32 in [0, 1].

    Args:
        images: uint8, grey (S, S) or (N, S, S), or in colour (S, S, 3) or (N, S, S, 3).
    """
    planes = np.moveaxis(images, -1, -3) if images.shape[-1] == 3 else images[..., np.newaxis, :, :]
    scaled: Floats = np.divide(planes, np.float32(255), dtype=np.float32, order="C")
    return scaled


def to_uint8(source: ImageSource, channels: int = 1, size: int = SIZE) -> Bytes:
    """Return :func:`preprocess` of one image as data sets store it and people look at it: :func:`as_bytes` of it."""
    return as_bytes(preprocess(source, channels, size))


def as_bytes(x: Floats) -> Bytes:
    """Round a model's input (C, S, S) in [0, 1] to pixels uint8: (S, S), or (S, S, 3) of three channels."""
    rounded: Bytes = np.rint(x * 255).astype(np.uint8)
    return rounded[0] if len(x) == 1 else np.ascontiguousarray(rounded.transpose(1, 2, 0))


@cache
def _session(channels: int, size: int) -> Any:
    return image_session(graph_path(channels, size).read_bytes())


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
