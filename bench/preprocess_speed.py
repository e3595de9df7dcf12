"""Measure what preprocessing costs beside decoding: single pictures, a very large one, and folders.

    python bench/preprocess_speed.py --out bench/results/preprocess_speed.json

A picture's time is CPU time of the thread that does all of it, decoding first and then preprocessing, in turns; a ratio is
taken within a round. A folder's is wall time: Pillow decodes its files with as many threads as there are CPUs, and then
``fmcae.runtime.predict`` predicts them with as many. The memory of a picture of 64 megapixels is the largest that the
process had while it was preprocessed above what it had when it was decoded.
"""

import argparse
import io
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fmcae
from fmcae.files import write_atomic
from fmcae.images import read_image
from fmcae.preprocess import preprocess
from fmcae.runtime.machine import available_cpus, describe_machine
from fmcae.runtime.model import shipped_folder
from fmcae.runtime.predict import predict_images

ROUNDS, REPEATS = 7, 15
FOLDERS = {"1024-pixel JPEG": (2_000, 1024, "JPEG"), "28x28 PNG": (10_000, 28, "PNG")}


def photo(size: int, file_format: str, seed: int = 0) -> bytes:
    """A sample on white with a camera's noise, or at 28 pixels itself, as a file's bytes."""
    samples = sorted(shipped_folder("samples").glob("*.png"))
    with Image.open(samples[seed % len(samples)]) as sample:
        image = sample.convert("L")
    if size > 28:
        ink = np.asarray(image.resize((size * 3 // 4, size * 3 // 4), Image.Resampling.BICUBIC))
        page = np.full((size, size, 3), 255.0)
        page[size // 8 : size // 8 + len(ink), size // 8 : size // 8 + len(ink)] -= ink[..., np.newaxis] * 0.9
        page += np.random.default_rng(seed).normal(0, 3, page.shape)
        image = Image.fromarray(page.clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({"quality": 85} if file_format == "JPEG" else {}))
    return buffer.getvalue()


def cpu_ms(call: Callable[[], object]) -> float:
    """The least CPU time of a call in REPEATS, in milliseconds."""
    times = []
    for _ in range(REPEATS):
        started = time.thread_time()
        call()
        times.append(time.thread_time() - started)
    return min(times) * 1e3


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(float(np.median(values)), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def single(content: bytes) -> dict[str, Any]:
    """Decoding alone, and preprocessing what is decoded."""
    image = read_image(content)
    rounds = [(cpu_ms(lambda: read_image(content)), cpu_ms(lambda: preprocess(image))) for _ in range(ROUNDS)]
    return {
        "decoding_ms": spread([decoding for decoding, _ in rounds]),
        "preprocessing_ms": spread([preprocessing for _, preprocessing in rounds]),
        "preprocessing_to_decoding": spread([after / before for before, after in rounds]),
    }


def folder(count: int, size: int, file_format: str) -> dict[str, Any]:
    """Predicting a folder of files beside decoding them, in files a second."""
    model = fmcae.load(only="classifier", threads=1)
    cpus = available_cpus()

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    with tempfile.TemporaryDirectory() as name:
        for index in range(count):
            Path(name, f"{index:05}.{file_format.lower()}").write_bytes(photo(size, file_format, index % 20))
        paths, rounds = sorted(Path(name).iterdir()), []
        for _ in range(3):
            started = time.perf_counter()
            with ThreadPoolExecutor(cpus) as pool:
                list(pool.map(decode, paths))
            decoded = time.perf_counter()
            done = sum(outcome.error is None for outcome in predict_images(model, [name]))
            rounds.append((decoded - started, time.perf_counter() - decoded))
            assert done == count
    return {
        "files": count,
        "cpus": cpus,
        "pillow_files_per_s": spread([count / decoding for decoding, _ in rounds]),
        "predict_files_per_s": spread([count / predicting for _, predicting in rounds]),
        "predict_to_pillow": spread([decoding / predicting for decoding, predicting in rounds]),
    }


def largest() -> dict[str, Any]:
    """The memory that a picture of 64 megapixels takes above the decoded picture."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        image = Image.new("RGB", (8000, 8000), (255, 255, 255))
        image.paste((40, 40, 40), (2000, 1500, 6000, 7000))
        preprocess(photo(64, "PNG"))  # so that ONNX Runtime is there
        before, started = _status("VmRSS"), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark is now's
        preprocess(image)
        os.write(write, json.dumps([_status("VmHWM") - before, time.perf_counter() - started]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    size, seconds = json.loads(os.read(read, 1000))
    return {"pixels": 64_000_000, "bytes_above_decoded": size, "wall_ms": round(seconds * 1e3, 1)}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    report: dict[str, Any] = {"schema_version": 1, "largest": largest(), "pictures": {}, "folders": {}}
    for size, file_format in ((1024, "JPEG"), (256, "JPEG"), (256, "PNG"), (1024, "PNG")):
        name = f"{size}-pixel {file_format}"
        report["pictures"][name] = single(photo(size, file_format))
        print(name, json.dumps(report["pictures"][name]), flush=True)
    for name, settings in FOLDERS.items():
        report["folders"][name] = folder(*settings)
        print(name, json.dumps(report["folders"][name]), flush=True)
    print(json.dumps(report["largest"]))
    if options.out:
        now = datetime.now(timezone.utc).isoformat("T", "seconds")
        report |= {"machine": describe_machine(), "date": now, "command": shlex.join(["python", *sys.argv])}
        write_atomic(options.out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
