"""Classify pictures with ONNX Runtime, NumPy and Pillow alone.

    pip install onnxruntime numpy pillow
    python classify.py picture.onnx PICTURE...

prints a line for each picture; with --json, a line of JSON with the probabilities of all classes.
"""

import base64
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], float]]  # pixels -> probabilities (K,), known score


def decode(source: Any) -> NDArray[np.uint8]:
    """A picture's pixels, upright: (H, W, 1), (H, W, 3) or, with transparency, (H, W, 4)."""
    with Image.open(source) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits, which convert would clip
        upright = Image.fromarray(np.rint(np.asarray(upright) / 257).clip(0, 255).astype(np.uint8))
    mode = "RGBA" if upright.has_transparency_data else "L" if upright.mode in ("1", "L") else "RGB"
    return np.atleast_3d(np.asarray(upright.convert(mode)))


def classify(run: Run, card: dict[str, Any], golden: dict[str, Any], arguments: list[str]) -> None:
    """Replay the file's golden pictures, then print what each picture shows."""
    # This runtime and this decoder must give the numbers that the file was shipped with.
    for picture, expected in zip(golden["pictures"], golden["probabilities"], strict=True):
        probabilities, _ = run(decode(io.BytesIO(base64.b64decode(picture))))
        np.testing.assert_allclose(probabilities, expected, **card["tolerance"])
    print(f"{len(golden['pictures'])} golden pictures agree", file=sys.stderr)

    failed = False
    for path in (argument for argument in arguments if argument != "--json"):
        try:
            pixels = decode(path)
        except Exception as error:  # Pillow raises anything on damaged data
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
            continue
        probabilities, score = run(pixels)
        index = int(probabilities.argmax())
        label, known = card["class_names"][index], score >= card["calibration"]["threshold"]
        if "--json" in arguments:
            values = {"path": path, "label": label, "known": known, "known_score": score}
            print(json.dumps(values | {"probabilities": probabilities.tolist()}))
        else:
            text = label if known else f"unknown, nearest {label}"
            print(f"{path}: {text}, probability {probabilities[index]:.4f}, known score {score:.4f}")
    sys.exit(failed)


if __name__ == "__main__":
    import onnxruntime

    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name that the terminal cannot show
    if len(sys.argv) < 2:
        sys.exit("usage: python classify.py picture.onnx [--json] PICTURE...")
    session = onnxruntime.InferenceSession(sys.argv[1])
    metadata = session.get_modelmeta().custom_metadata_map
    if "image" not in [tensor.name for tensor in session.get_inputs()]:
        sys.exit(f"error: {sys.argv[1]} takes no image: name the picture.onnx of an export")

    def run(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
        probabilities, score = session.run(["probabilities", "known_score"], {"image": pixels})
        return probabilities, float(score)

    classify(run, json.loads(metadata["fmcae.card"]), json.loads(metadata["fmcae.golden"]), sys.argv[2:])
