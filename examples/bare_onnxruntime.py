"""Classify a 28×28 grey picture with ONNX Runtime, NumPy and Pillow alone: the file carries all that is needed.

    python examples/bare_onnxruntime.py exports/fashion-mnist/classifier.onnx exports/samples/bag.png

The picture must be in Fashion-MNIST's form: light on black, 28×28. `fmcae predict` brings any other into it, and checks the
file's seal, which this program does not.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def classify(model: str, picture: str) -> tuple[str, float]:
    """The label of a picture and its probability in [0, 1]."""
    session = onnxruntime.InferenceSession(model)
    card = json.loads(session.get_modelmeta().custom_metadata_map["fmcae.card"])
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"), np.float32)  # (28, 28)
    logits = session.run(None, {"x": pixels[np.newaxis, np.newaxis] / 255})[0][0]  # (K,)
    scaled = logits.astype(np.float64) / card["calibration"].get("temperature", 1)
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    index = int(probabilities.argmax())
    return card["class_names"][index], float(probabilities[index])


if __name__ == "__main__":
    label, probability = classify(*sys.argv[1:3])
    print(f"{label} {probability:.4f}")
