"""Attack fmcae with damaged and hostile files, kills and threads, and count what it does not withstand.

    python bench/faults.py --minutes 60 --jobs 2 --out bench/results/faults.json

The kinds of attack:

    pictures  files of every format that is read, mutated byte by byte and piece by piece, through preprocessing
    models    the files that ship with a mutated graph, card, seal or golden vectors, mostly sealed again, through verify
    idx       IDX files, plain and gzipped
    runs      run folders with mutated configuration, metrics, weights and checkpoint              (needs the train extra)
    results   a study's results.json, through the claims and now and then the report                (needs the train extra)
    threads   16 threads that share a model; every prediction must have the bits that one thread gives
    kills     SIGKILL before each file operation of an export, of one over another, of a training and of a study, which is
              then begun again: nothing may be missing, left over or of other bits                 (needs the train extra)

Every input follows from its kind and its number, so ``--kind pictures --first 1234 --count 1`` repeats one. An input may
be read or refused with one of fmcae's own errors. Anything else is a defect: another exception, a crash of the process, a
line on stderr, more than LIMIT_SECONDS of CPU time, more than LIMIT_BYTES of memory, other bits, or a leftover file.

``--guided card`` (or ``metadata``, ``idx``) lets Atheris search for inputs by the code that they reach. The result file is
written after each kind, which replaces only its own numbers there: kinds and versions can be run one after the other, and
what is done stays when a run is stopped.
"""

import argparse
import base64
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

import fmcae
from fmcae.card import (
    CARD_KEY,
    GOLDEN_KEY,
    METADATA_FIELD,
    SEAL_KEY,
    parity_lines,
    protobuf_fields,
    read_metadata,
    seal,
)
from fmcae.data import idx
from fmcae.errors import FmcaeError
from fmcae.files import write_atomic
from fmcae.images import MAX_PIXELS
from fmcae.preprocess import to_uint8
from fmcae.runtime.machine import describe_hardware
from fmcae.runtime.model import SHIPPED, Model, read_artefact, read_artefacts, shipped_folder
from fmcae.runtime.verify import verify

GOALS = {
    "pictures": 1_000_000, "models": 100_000, "idx": 100_000, "runs": 10_000, "results": 10_000, "threads": 1_000,
    "kills": 480,
}  # fmt: skip
SHARES = {"pictures": 40, "models": 25, "idx": 2, "runs": 6, "results": 6, "threads": 3, "kills": 18}  # of the minutes
NEEDS_TORCH = {"runs", "results", "kills"}
LIMITED = {"pictures", "models", "idx", "runs"}  # in time and memory; a result's report draws for seconds
LIMIT_SECONDS = 2.0
LIMIT_BYTES = 500 * 2**20 + 4 * MAX_PIXELS  # beside the decoded picture itself
THREADS = 16
SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "fashion-mnist-sample"
STUDY = Path(__file__).parent / "results" / "study"
OPERATIONS = {"fcntl.flock", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}  # audited
Rng: TypeAlias = np.random.Generator
# Tries the input of that number and says what came of it; a defect is an exception that is none of fmcae's own.
Try: TypeAlias = Callable[[int, Rng], str]


class Defect(Exception):
    """What fmcae must not do."""


@dataclass
class Tally:
    """What came of the inputs of one kind."""

    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0  # of CPU time
    slowest: int = 0  # its number
    largest_bytes: int = 0  # of memory, above what was in use before
    largest: int = 0
    defects: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add what another process counted."""
        self.tried += other.tried
        self.outcomes += other.outcomes
        self.defects += other.defects
        if other.slowest_seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest = other.slowest_seconds, other.slowest
        if other.largest_bytes > self.largest_bytes:
            self.largest_bytes, self.largest = other.largest_bytes, other.largest


# --- mutation -------------------------------------------------------------------------------------------------------

EXTREMES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


def mutated(content: bytes, rng: Rng, others: list[bytes] | None = None) -> bytes:
    """Change, cut, repeat, move or splice pieces of ``content``."""
    data = bytearray(content)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 8]))):
        if not data:
            break
        at, length = int(rng.integers(len(data))), int(2 ** rng.integers(0, 9))
        match rng.integers(9):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = int(rng.choice([0, 1, 127, 128, 254, 255]))
            case 2:
                value = int(rng.choice(EXTREMES))
                size = int(rng.choice([2, 4]))
                order = "big" if rng.random() < 0.5 else "little"
                data[at : at + size] = (value % 256**size).to_bytes(size, order)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length] * int(rng.choice([1, 1, 2, 50]))
            case 5:
                data[at:at] = rng.bytes(min(length, 64))
            case 6:
                other = others[int(rng.integers(len(others)))] if others else bytes(data)
                start = int(rng.integers(len(other)))
                data[at : at + length] = other[start : start + length]
            case 7:
                if rng.random() < 0.3:
                    del data[at:]
            case 8:
                piece = data[at : at + length]
                del data[at : at + length]
                to = int(rng.integers(len(data) + 1))
                data[to:to] = piece
    return bytes(data)


def mutated_json(value: Any, rng: Rng) -> Any:
    """A copy of a JSON value with one to three places, at any depth, deleted, added or replaced."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        place = value
        while isinstance(place, dict | list) and place:
            keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[int(rng.integers(len(keys)))]
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
                match rng.integers(4):
                    case 0:
                        del place[key]
                    case 1 if isinstance(place, dict):
                        place[str(rng.integers(100))] = any_json(rng)
                    case _:
                        place[key] = any_json(rng)
                break
            place = inner
    return value if rng.random() < 0.98 else any_json(rng)


def any_json(rng: Rng) -> Any:
    """A JSON value that is not meant to fit anywhere."""
    values: list[Any] = [
        None, True, False, 0, -1, 1, 10, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
        "x", "\x1b]52;c;eA==\x07", "\ud800", "../../etc/passwd", "$\\frac$", "a\nb", "9" * 5000, [], [[]], [1, 2], {},
        {"a": 1}, [None] * 300, "fp32", "classifier", {"name": []}, [[1, 2], [3]],
    ]  # fmt: skip
    return values[int(rng.integers(len(values)))]


# --- the kinds of attack; each makes its base files in a folder and returns what tries one input -----------------------


def pictures(folder: Path) -> Try:
    """Preprocess mutants of small pictures in every format and mode that is read."""
    bases = _pictures()

    def try_one(number: int, rng: Rng) -> str:
        content = mutated(bases[int(rng.integers(len(bases)))], rng, bases)
        if content[:4] == b"\x89PNG" and rng.random() < 0.7:
            content = _with_checksums(content)
        image = to_uint8(content)
        if image.shape != (28, 28) or image.dtype != np.uint8:
            raise Defect(f"a picture became {image.shape} {image.dtype}")
        return "read"

    return try_one


def _pictures() -> list[bytes]:
    item = Image.new("RGB", (40, 30), "white")
    item.paste((60, 90, 160), (8, 6, 30, 26))
    Image.init()
    formats: list[tuple[str, tuple[str, ...], list[dict[str, Any]]]] = [
        ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), [{}, {"optimize": True}]),
        ("JPEG", ("L", "RGB", "CMYK"), [{}, {"progressive": True}, {"quality": 5}, {"exif": _exif()}]),
        ("GIF", ("L", "P"), [{}, {"save_all": True, "append_images": [item.rotate(90).convert("P")]}]),
        ("BMP", ("1", "L", "P", "RGB", "RGBA"), [{}]),
        ("PPM", ("1", "L", "RGB", "I", "F"), [{}]),
        ("WEBP", ("RGB", "RGBA"), [{}, {"lossless": True}]),
        ("TIFF", ("1", "L", "RGB", "RGBA", "CMYK", "LAB", "I;16", "F"), [{}, {"compression": "tiff_lzw"}]),
        ("TIFF", ("RGB",), [{"compression": "jpeg"}, {"compression": "tiff_deflate"}, {"compression": "packbits"}]),
        ("JPEG2000", ("L", "RGB", "RGBA"), [{}]),
        ("ICO", ("RGBA",), [{}]),
        ("AVIF", ("RGB",), [{}]),
    ]
    found = []
    for name, modes, options in formats:
        for mode in modes:
            for option in options:
                image = item.convert("L").convert(mode) if mode in ("I;16", "F", "I") else item.convert(mode)
                buffer = io.BytesIO()
                try:
                    image.save(buffer, name, **option)
                except (OSError, KeyError, ValueError):  # a format, mode or compression that this Pillow does not write
                    continue
                found.append(buffer.getvalue())
    return found


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    return exif.tobytes()


def _with_checksums(png: bytes) -> bytes:
    """The PNG with right checksums, so that its damaged chunks are read."""
    parts, at = [png[:8]], 8
    while at + 12 <= len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        body = png[at + 4 : at + 8 + size]
        parts.append(png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(parts) + png[at:]


def models(folder: Path) -> Try:
    """Read, verify and use mutants of the files that ship."""
    bases = [
        path
        for name in SHIPPED
        for path in sorted(shipped_folder(name).glob("*.onnx"))
        if name != "fashion-mnist-large"
    ]
    split = [_split_model(path.read_bytes()) for path in bases]
    picture = np.zeros((28, 28), np.uint8)
    file = folder / "model.onnx"

    def try_one(number: int, rng: Rng) -> str:
        graph, entries = split[int(rng.integers(len(split)))]
        entries = dict(entries)
        sealed = True
        match rng.integers(6):
            case 0:
                sealed = False
            case 1 | 2:
                values = mutated_json(json.loads(entries[CARD_KEY]), rng)
                entries[CARD_KEY] = json.dumps(values, ensure_ascii=bool(rng.random() < 0.99))
                if rng.random() < 0.1:
                    entries[CARD_KEY] = mutated(entries[CARD_KEY].encode(errors="replace"), rng).decode(
                        errors="replace"
                    )
            case 3:
                if entries[GOLDEN_KEY].startswith("{"):  # golden pictures
                    values = mutated_json(json.loads(entries[GOLDEN_KEY]), rng)
                    entries[GOLDEN_KEY] = json.dumps(values, ensure_ascii=bool(rng.random() < 0.99))
                else:
                    raw = zlib.decompress(base64.b85decode(entries[GOLDEN_KEY]))
                    entries[GOLDEN_KEY] = base64.b85encode(zlib.compress(mutated(raw, rng), 1)).decode()
            case _:
                # most bytes are weights; the graph's structure is at its ends
                head = int(rng.integers(1, 4096))
                graph = mutated(graph[:head], rng) + graph[head:] if rng.random() < 0.5 else _mutated_end(graph, rng)
        try:
            content = _joined_model(graph, entries, sealed)
        except ValueError:
            sealed, content = False, graph
        if not sealed:
            content = mutated(content, rng)
        file.write_bytes(content)
        artefact = read_artefact(file)
        if artefact.card.parity:
            parity_lines(artefact.card.parity)
        outcome = verify(artefact)
        if artefact.card.kind == "classifier":
            prediction = Model({"classifier": artefact}).predict(picture)
            if prediction.label not in artefact.card.class_names:
                raise Defect("a label is not of the classes")
        return "passed" if outcome.passed else "failed"

    return try_one


def _mutated_end(graph: bytes, rng: Rng) -> bytes:
    tail = int(rng.integers(1, 4096))
    return graph[:-tail] + mutated(graph[-tail:], rng)


def _split_model(content: bytes) -> tuple[bytes, dict[str, str]]:
    graph = b"".join(raw for number, _, raw in protobuf_fields(content) if number != METADATA_FIELD)
    return graph, read_metadata(content)


def _joined_model(graph: bytes, entries: dict[str, str], sealed: bool) -> bytes:
    if sealed:
        entries[SEAL_KEY] = seal(graph, entries[CARD_KEY], entries[GOLDEN_KEY])
    pairs = [_field(1, key.encode()) + _field(2, text.encode(errors="replace")) for key, text in entries.items()]
    return graph + b"".join(_field(METADATA_FIELD, pair) for pair in pairs)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, head = len(content), bytes([number << 3 | 2])
    while size > 0x7F:
        head, size = head + bytes([size & 0x7F | 0x80]), size >> 7
    return head + bytes([size]) + content


def idx_files(folder: Path) -> Try:
    """Read mutants of IDX files."""
    array = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28)
    plain = bytes([0, 0, 8, 3]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 4, 1, 2, 3, 4])
    file = folder / "images-idx"

    def try_one(number: int, rng: Rng) -> str:
        content = mutated(plain if rng.random() < 0.6 else labels, rng)
        if rng.random() < 0.5:
            content = gzip.compress(content, 1)
            content = mutated(content, rng) if rng.random() < 0.5 else content
        file.write_bytes(content)
        idx.parse(idx.read_bytes(file), "file")
        return "read"

    return try_one


def runs(folder: Path) -> Try:
    """Open, and read all of, mutants of a run folder."""
    from fmcae.data import load_dataset
    from fmcae.train.config import NetworkConfig, TrainConfig
    from fmcae.train.cpu import adam_state
    from fmcae.train.networks import Autoencoder, Classifier
    from fmcae.train.run import changes_since, check_data, create_run, open_run
    from fmcae.train.weights import load_checkpoint, save_checkpoint, save_weights

    dataset = load_dataset(SAMPLE)
    config = TrainConfig(NetworkConfig(latent_dim=2), epochs=2, data=str(SAMPLE))
    run = create_run(folder / "run", config, dataset)
    networks = {"autoencoder": Autoencoder(config.network), "classifier": Classifier(config.network)}
    records: list[dict[str, Any]] = []
    for stage, network in networks.items():
        save_weights(network, run.weights(stage))
        names = ("train_mse", "val_mse") if stage == "autoencoder" else ("train_accuracy", "val_accuracy")
        records += [{"stage": stage, "epoch": n, **dict.fromkeys(names, 0.5), "seconds": 1.0} for n in (1, 2)]
    records.append({"stage": "classifier", "split": "test", "test_accuracy": 0.5, "confusion": [[1] * 10] * 10})
    run.write_metrics(records)

    adam: dict[Any, Any] = {parameter: adam_state(parameter) for parameter in networks["classifier"].parameters()}
    save_checkpoint(run.checkpoint, "classifier", 1, networks["classifier"], adam)
    whole = {path.name: path.read_bytes() for path in run.folder.iterdir()}

    def try_one(number: int, rng: Rng) -> str:
        name = sorted(whole)[int(rng.choice(len(whole)))]
        content = whole[name]
        if name == "config.json" and rng.random() < 0.8:
            content = json.dumps(mutated_json(json.loads(content), rng)).encode()
        elif name == "metrics.jsonl" and rng.random() < 0.8:
            lines = [json.loads(line) for line in content.splitlines()]
            lines = mutated_json(lines, rng)
            content = b"".join(
                json.dumps(line).encode() + b"\n" for line in (lines if isinstance(lines, list) else [lines])
            )
        else:
            content = mutated(content, rng)
        path = run.folder / name
        path.write_bytes(content)
        try:
            opened = open_run(run.folder)
            opened.metrics()
            changes_since(opened)
            for stage in networks:
                opened.facts(stage)
                opened.network(stage)
            load_checkpoint(opened.checkpoint, "classifier", networks["classifier"], adam)
            check_data(opened, dataset)
        finally:
            path.write_bytes(whole[name])
        return "read"

    return try_one


def results(folder: Path) -> Try:
    """Judge the claims on mutants of a study's results.json, and now and then write the report."""
    from fmcae.study.claims import CLAIMS, FINDINGS, evaluate
    from fmcae.study.report import usual_epochs, write_report
    from fmcae.study.results import read

    content = json.loads((STUDY / "results.json").read_text())
    kept = sorted(content["runs"])[::16]
    content["runs"] = {name: content["runs"][name] for name in kept}
    file = folder / "results.json"
    (folder / "report").mkdir()

    def try_one(number: int, rng: Rng) -> str:
        text = json.dumps(mutated_json(content, rng))
        file.write_bytes(text.encode() if rng.random() < 0.9 else mutated(text.encode(), rng))
        found = read(folder)
        seeds = sorted({run.config["seed"] for run in found.runs.values()}) or [0]
        evaluate((*CLAIMS, *FINDINGS), found, seeds, usual_epochs(found))
        if rng.random() < 0.01:
            write_report(folder / "report", found)
        return "read"

    return try_one


def threads(folder: Path) -> Try:
    """Let threads share a model, and compare the bits with one thread's."""
    model = fmcae.load(threads=1)
    images = [Image.new("L", (30 + n, 50), n * 10) for n in range(4)]
    images += [Image.open(path) for path in sorted(shipped_folder().with_name("samples").glob("*.png"))[:4]]
    alone = [model.predict(image).probabilities.tobytes() for image in images]

    def try_one(number: int, rng: Rng) -> str:
        wrong: list[str] = []
        order = [rng.permutation(len(images)) for _ in range(THREADS)]

        def work(numbers: Any) -> None:
            for number in numbers:
                if model.predict(images[number]).probabilities.tobytes() != alone[number]:
                    wrong.append(f"picture {number} got other bits")

        workers = [threading.Thread(target=work, args=(numbers,)) for numbers in order]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if wrong:
            raise Defect(wrong[0])
        return f"{THREADS * len(images)} predictions"

    return try_one


def kills(folder: Path) -> Try:
    """Kill an export, a training or a study before one of its file operations, begin again, and compare what is there.

    The number decides the job and the operation, so that enough numbers in a row try every one.
    """
    from fmcae.data import load_dataset
    from fmcae.export.folder import check_folder, write_export
    from fmcae.study.grid import autoencoder, classifier
    from fmcae.study.results import collect
    from fmcae.study.runner import run_task
    from fmcae.train.config import NetworkConfig, TrainConfig
    from fmcae.train.loop import train
    from fmcae.train.run import create_run, open_run

    folder, dataset = folder.resolve(), load_dataset(SAMPLE)
    config = TrainConfig(NetworkConfig(latent_dim=2), epochs=2, data=str(SAMPLE))
    tasks = [autoencoder(0, epochs=1), classifier(0, epochs=1)]
    older, newer = (_contents(shipped_folder(name)) for name in ("fashion-mnist-paper", "fashion-mnist"))
    exported, artefacts = open_run(shipped_folder()), read_artefacts(shipped_folder())
    artefacts["picture"] = read_artefact(shipped_folder() / "picture.onnx")

    def export_into(out: Path) -> None:
        """All of an export that touches files; what comes before takes seconds and touches none."""
        check_folder(out / "onnx", artefacts)
        write_export(exported, artefacts, out / "onnx")

    def train_into(out: Path) -> None:
        path = out / "run"
        train(open_run(path) if (path / "config.json").is_file() else create_run(path, config, dataset), dataset)

    def study_into(out: Path) -> None:
        for task in tasks:
            run_task(out, task, str(SAMPLE))
        collect(out, dataset)

    jobs = {"export": export_into, "export over another": export_into, "train": train_into, "study": study_into}

    def begin(name: str, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if name == "export over another":
            shutil.copytree(shipped_folder("fashion-mnist-paper"), out / "onnx")

    train_into(folder / "warm")  # what a first training imports and loads, each child then has
    if os.path.isdir("/proc/self/task") and len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a fork beside threads may hang")
    whole, orders = {}, {}
    for name, job in jobs.items():
        begin(name, folder / name)
        orders[name] = 1 + np.random.default_rng(0).permutation(_in_child(job, folder / name))
        whole[name] = _contents(folder / name)

    def try_one(number: int, rng: Rng) -> str:
        name, out = list(jobs)[number % len(jobs)], folder / "attacked"
        at = int(orders[name][number // len(jobs) % len(orders[name])])
        where = f"{name} killed before operation {at} of {len(orders[name])}"
        begin(name, out)
        _in_child(jobs[name], out, at)
        if (out / "onnx").exists() and _contents(out / "onnx") not in (older, newer):
            raise Defect(f"{where}: what is there is not whole")
        _in_child(jobs[name], out)
        if (found := _contents(out)) != whole[name]:
            changed = sorted({path for path, _ in found.items() ^ whole[name].items()})
            raise Defect(f"{where}: {changed[:3]} are not as without")
        return f"{name} went on"

    return try_one


def _in_child(job: Callable[[Path], None], out: Path, kill_at: int | None = None) -> int:
    """Run a job in a child process, which is killed before its file operation number ``kill_at``; return their number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        signal.alarm(300)  # ends a child that hangs
        try:
            operations = 0

            def count() -> None:
                nonlocal operations
                operations += 1
                if operations == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            def hear(event: str, arguments: tuple[Any, ...]) -> None:
                if event in OPERATIONS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                    path = arguments[0]  # or a descriptor
                    if isinstance(path, int) or os.path.join(out, os.fsdecode(path)).startswith(str(out)):
                        count()

            def fsync(descriptor: Any, force: Callable[[Any], None] = os.fsync) -> None:
                count()
                force(descriptor)

            sys.addaudithook(hear)
            os.fsync = fsync  # type: ignore[assignment]  # of which no hook hears
            job(out)
            os.write(writer, str(operations).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != (0 if kill_at is None else -signal.SIGKILL):
        raise Defect(f"the job ended with {status}")
    return int(text or 0)


def _contents(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, and the digest of its content where that has no times."""
    found = {}
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() and path.suffix != ".json" else b""
        content = re.sub(rb'"seconds": [^}]*', b"", content)  # of metrics.jsonl
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


KINDS: dict[str, Callable[[Path], Try]] = {
    "pictures": pictures, "models": models, "idx": idx_files, "runs": runs, "results": results, "threads": threads,
    "kills": kills,
}  # fmt: skip


# --- trying --------------------------------------------------------------------------------------------------------


def attack(
    kind: str, numbers: Iterator[int], seconds: float = float("inf"), trying: Callable[[int], None] = lambda n: None
) -> Tally:
    """Try the inputs of those numbers until the time is over; ``trying`` hears each number before."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        try_one = KINDS[kind](Path(name))
        until = time.monotonic() + seconds
        with _stderr() as printed:
            before = _peak_bytes()
            for number in numbers:
                if time.monotonic() > until:
                    break
                trying(number)
                started = time.process_time()
                try:
                    outcome = try_one(number, np.random.default_rng([list(KINDS).index(kind), number]))
                except FmcaeError:
                    outcome = "refused"
                except (Exception, RecursionError) as error:
                    outcome = "defect"
                    tally.defects.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:200]}")
                took, peak = time.process_time() - started, _peak_bytes()
                tally.tried += 1
                tally.outcomes[outcome] += 1
                if took > tally.slowest_seconds:
                    tally.slowest_seconds, tally.slowest = took, number
                if peak - before > tally.largest_bytes:
                    tally.largest_bytes, tally.largest = peak - before, number
                if kind in LIMITED:
                    if took > LIMIT_SECONDS:
                        tally.defects.append(f"{kind} {number}: took {took:.1f} s")
                    if peak - before > LIMIT_BYTES:
                        tally.defects.append(f"{kind} {number}: took {(peak - before) / 2**20:,.0f} MiB")
                        before = peak
                if text := printed():
                    tally.defects.append(f"{kind} {number}: printed {text[:200]!r}")
    return tally


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _stderr() -> Iterator[Callable[[], bytes]]:
    """Catch what reaches the process's stderr from any library; the call returns it and forgets it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def take() -> bytes:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            file.seek(0)
            text = file.read()
            file.truncate(0)
            file.seek(0)
            return text

        try:
            yield take
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _work(kind: str, first: int, step: int, count: int, seconds: float, place: str, sender: Connection) -> None:
    with open(place, "r+b", buffering=0) as file:

        def trying(number: int) -> None:
            os.pwrite(file.fileno(), struct.pack("<q", number), 0)

        sender.send(attack(kind, iter(range(first, first + count, step)), seconds, trying))


def attack_in_processes(kind: str, first: int, count: int, seconds: float, jobs: int) -> Tally:
    """As :func:`attack`, in processes of their own: the death of one is a defect, and another goes on after it."""
    context, tally = multiprocessing.get_context("spawn"), Tally()
    os.environ["OMP_NUM_THREADS"] = "1"  # for what they import: one that has started threads must not be forked
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:

        def start(job: int, at: int) -> tuple[Any, Any, Path]:
            place = Path(folder) / f"{job}"
            place.write_bytes(struct.pack("<q", at - jobs))
            reader, sender = context.Pipe(False)
            left = max(until - time.monotonic(), 0)
            process = context.Process(target=_work, args=(kind, at, jobs, first + count - at, left, str(place), sender))
            process.start()
            sender.close()
            return process, reader, place

        running = {job: start(job, first + job) for job in range(min(jobs, count))}
        while running:
            for job, (process, reader, place) in list(running.items()):
                try:
                    if reader.poll(0.2):
                        tally.add(reader.recv())
                        process.join()
                        del running[job]
                except EOFError:  # it died
                    process.join()
                    number = struct.unpack("<q", place.read_bytes())[0]
                    tally.defects.append(f"{kind} {number}: the process ended with {process.exitcode}")
                    del running[job]
                    if number + jobs < first + count and time.monotonic() < until and number >= first:
                        running[job] = start(job, number + jobs)
    return tally


# --- coverage-guided ------------------------------------------------------------------------------------------------


def guided(parser: str, seconds: int) -> dict[str, Any]:
    """Let Atheris call a parser for so long, in a process of its own; return its runs and defects."""
    with tempfile.TemporaryDirectory() as corpus:
        content = (shipped_folder("fashion-mnist-int8") / "classifier.onnx").read_bytes()
        seeds = {
            "card": read_metadata(content)[CARD_KEY].encode(),
            "metadata": _joined_model(b"", {CARD_KEY: "x", GOLDEN_KEY: "y"}, sealed=True) + _field(7, b"graph"),
            "idx": bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 2]),
        }
        (Path(corpus) / "seed").write_bytes(seeds[parser])
        command = [sys.executable, __file__, "--call", parser, corpus, f"-max_total_time={seconds}", "-max_len=20000"]
        ended = subprocess.run([*command, f"-artifact_prefix={corpus}/"], capture_output=True, text=True)
    counts = re.findall(r"^#(\d+)\t.*", ended.stderr, re.MULTILINE)
    defects = [] if ended.returncode == 0 else [f"{parser}: {ended.stderr.strip()[-300:]}"]
    return {"tried": int(counts[-1]) if counts else 0, "defects": defects}


def call_parser(parser: str, arguments: list[str]) -> None:
    """Hand the process over to Atheris, which calls one parser with what it thinks of."""
    atheris: Any = import_module("atheris")  # which is no dependency, and has no types
    with atheris.instrument_imports(include=["fmcae"], enable_loader_override=False):
        for name in [name for name in sys.modules if name.startswith("fmcae")]:
            del sys.modules[name]
        from fmcae.card import Card, check_seal, read_metadata
        from fmcae.data import idx
        from fmcae.errors import FmcaeError

    def read_card(content: bytes) -> None:
        Card.from_json(content.decode())

    def read_model(content: bytes) -> None:
        check_seal(content, read_metadata(content))

    calls: dict[str, Callable[[bytes], object]] = {
        "card": read_card, "metadata": read_model, "idx": partial(idx.parse, name="file"),
    }  # fmt: skip

    def call(content: bytes) -> None:
        with suppress(FmcaeError, UnicodeDecodeError):
            calls[parser](content)

    atheris.Setup([__file__, *arguments], call)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=60, help="shared by the kinds; a kind that is done leaves its rest"
    )
    parser.add_argument("--kind", nargs="*", choices=list(KINDS), help="default: all that the installed packages allow")
    parser.add_argument("--first", type=int, default=0, help="the first input's number")
    parser.add_argument("--count", type=int, help="inputs of each kind; default: the goal")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--guided", nargs="*", choices=["card", "metadata", "idx"], default=[])
    parser.add_argument("--name", default="newest", help="what the results stand under, as the versions that are tried")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--call", choices=["card", "metadata", "idx"], help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.call:
        call_parser(args.call, rest)
        return
    if rest:
        parser.error(f"unrecognized arguments: {shlex.join(rest)}")
    for name, least in (("minutes", 0), ("first", 0), ("count", 1), ("jobs", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            parser.error(f"{name} (={value}) must be at least {least}")
    kinds = args.kind if args.kind is not None else [kind for kind in KINDS if kind not in NEEDS_TORCH or _has_torch()]
    left, found = args.minutes * 60, {}
    parts = {**{kind: SHARES[kind] for kind in kinds}, **dict.fromkeys((f"guided {name}" for name in args.guided), 3)}
    for position, (name, share) in enumerate(parts.items()):
        seconds = left * share / sum(list(parts.values())[position:])
        started = time.monotonic()
        if name in KINDS:
            tally = attack_in_processes(name, args.first, args.count or GOALS[name], seconds, args.jobs)
            found[name] = {**asdict(tally), "outcomes": dict(tally.outcomes)}
        else:
            found[name] = guided(name.removeprefix("guided "), int(seconds))
        left -= time.monotonic() - started
        found[name]["wall_seconds"] = round(time.monotonic() - started, 1)
        print(name, json.dumps(found[name])[:1000], flush=True)
        if args.out:  # after each kind: a run of an hour may be stopped
            _write(args.out, args.name, name, found[name])
    raise SystemExit(1 if any(item["defects"] for item in found.values()) else 0)


def _write(file: Path, versions_name: str, kind: str, tally: dict[str, Any]) -> None:
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"schema_version": 1, "tried": {}}
    entry = content["tried"].setdefault(versions_name, {"kinds": {}})
    entry["kinds"][kind] = tally
    entry |= {
        "versions": _versions(),
        "machine": describe_hardware(),
        "date": datetime.now(timezone.utc).isoformat("T", "seconds"),
        "command": shlex.join(["python", "bench/faults.py", *sys.argv[1:]]),
    }
    content["limits"] = {"seconds": LIMIT_SECONDS, "bytes": LIMIT_BYTES}
    write_atomic(file, json.dumps(content, indent=1) + "\n")


def _has_torch() -> bool:
    return find_spec("torch") is not None


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("fmcae", "numpy", "pillow", "onnxruntime", "msgspec", "torch", "atheris"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
