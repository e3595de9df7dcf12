"""Name what pictures show, with ONNX Runtime, NumPy and Pillow alone, by the picture.onnx beside this file.

pip install onnxruntime numpy pillow
python predict.py PICTURE...
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def printable(text: str) -> str:
    """A foreign text without what would steer the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", text)


session = onnxruntime.InferenceSession(Path(__file__).with_name("picture.onnx").read_bytes())
card = json.loads(session.get_modelmeta().custom_metadata_map["fmcae.card"])
threshold = card.get("calibration", {}).get("threshold", 0)  # of the known score; a picture below it is unknown
failed = False
sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name that the terminal cannot show
for path in sys.argv[1:]:
    shown = printable(path)
    try:
        image = ImageOps.exif_transpose(Image.open(path))  # upright
        if image.mode.startswith("I"):  # 16 bits, which convert would clip
            image = Image.fromarray(np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
        mode = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
        pixels = np.atleast_3d(np.asarray(image.convert(mode)))  # (height, width, 1, 3 or 4) uint8 of any size
    except Exception as error:  # no picture, or a damaged one, of which Pillow raises anything
        print(f"{shown}: {printable(str(error))}", file=sys.stderr)
        failed = True
        continue
    probabilities, known_score = session.run(["probabilities", "known_score"], {"image": pixels})
    nearest = printable(card["class_names"][probabilities.argmax()])
    label = nearest if known_score >= threshold else f"unknown, nearest {nearest}"
    print(f"{shown}: {label}, probability {probabilities.max():.4f}")
sys.exit(failed)
