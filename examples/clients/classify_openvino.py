"""Classify pictures with OpenVINO; what is not OpenVINO's is in classify.py, which must lie beside this file.

    pip install openvino numpy pillow
    python classify_openvino.py picture.onnx PICTURE...

Arguments and output are those of classify.py.
"""

import json
import sys
from typing import Any

import numpy as np
import openvino
from classify import classify
from numpy.typing import NDArray

if len(sys.argv) < 2:
    sys.exit("usage: python classify_openvino.py picture.onnx [--json] PICTURE...")
model = openvino.Core().read_model(sys.argv[1])
# Without the hint, OpenVINO computes in bfloat16 where the processor has it.
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Return the probabilities (K,) and the known score of a picture (H, W, 1, 3 or 4)."""
    outputs = compiled(pixels)
    return outputs["probabilities"], float(outputs["known_score"])


def metadata(key: str) -> dict[str, Any]:
    """Return the JSON of an entry of the file's metadata."""
    values: dict[str, Any] = json.loads(model.get_rt_info(["framework", key]).value)
    return values


classify(run, metadata("fmcae.card"), metadata("fmcae.golden"), sys.argv[2:])
