"""Fixtures of several tests. Without the [train] extra, everything that needs torch is left out and the rest runs."""

import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

import fmcae
from fmcae.cli import main
from fmcae.data import Dataset, load_dataset

HAS_TORCH = find_spec("torch") is not None
collect_ignore = [] if HAS_TORCH else ["train", "export", "study"]
SAMPLE = Path(__file__).parent / "data" / "fashion-mnist-sample"
settings.register_profile("fmcae", deadline=None)  # a busy machine is no failure
settings.load_profile("fmcae")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_TORCH:
        return
    for item in items:
        if "train" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs the [train] extra"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No data set, cache or colour setting of the machine's own reaches a test."""
    monkeypatch.delenv("FMCAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session")
def sample() -> Path:
    """Folder of the real sample of Fashion-MNIST: 1,200 training and 400 test images."""
    return SAMPLE


@pytest.fixture(scope="session")
def shipped() -> Path:
    """Folder of the artefacts that ship with fmcae."""
    from fmcae.runtime.model import shipped_folder

    return shipped_folder()


@pytest.fixture(scope="session")
def model() -> fmcae.Model:
    """The shipped model."""
    return fmcae.load()


@pytest.fixture(scope="session")
def dataset(sample: Path) -> Dataset:
    """The sample, loaded."""
    return load_dataset(sample)


@pytest.fixture(scope="session")
def test_images(dataset: Dataset) -> NDArray[np.uint8]:
    """The sample's 400 test images, (400, 28, 28) uint8."""
    return dataset.test.images


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """A PIL image as a file's bytes: ``encoded(image, "JPEG", quality=85)``."""

    def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, file_format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def fifty_pictures() -> dict[str, bytes]:
    """Fifty encoded pictures by file name, in many presentations."""
    made: dict[str, bytes] = runpy.run_path(str(Path(__file__).with_name("pictures.py")))["pictures"]()
    return made


@pytest.fixture(scope="session")
def web() -> Path:
    """The folder exports/web, with what ``npm ci`` installs there; $CHROMIUM names the browser."""
    os.environ["CHROMIUM"] = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
    missing = [name for name in ("node", "npm") if not shutil.which(name)]
    missing += [] if os.environ["CHROMIUM"] else ["chromium"]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    folder = SAMPLE.parents[2] / "exports" / "web"
    if not (folder.parent / "fashion-mnist" / "picture.onnx").exists():
        pytest.skip("exports/fashion-mnist/picture.onnx is missing")

    def packages(lock: Path) -> dict[str, Any]:
        """What a lock file of npm pins, or what npm noted that it installed."""
        found = json.loads(lock.read_text())["packages"] if lock.exists() else {}
        return {name: facts for name, facts in found.items() if name}

    with FileLock(Path(tempfile.gettempdir()) / "fmcae-web.lock", timeout=300):  # tests run in several processes
        if packages(folder / "package-lock.json") != packages(folder / "node_modules" / ".package-lock.json"):
            subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def environment(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Install packages into an environment of their own: ``environment("openvino", "openvino", "pillow")`` is its Python.

    It is made once and kept in pytest's cache. Where the packages cannot be had, the test is skipped with the reason.
    """
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    if cache is None:
        pytest.skip("pytest's cache is off")

    def make(name: str, *requirements: str) -> Path:
        folder = cache.mkdir(name)
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        ready, contents = folder / "ready", "\n".join([sys.version, *requirements])
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--retries", "1"]
        commands = (
            [sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)],
            [*pip, "--no-compile", "--only-binary=:all:", *requirements],
        )
        with FileLock(folder.with_suffix(".lock")):  # tests run in several processes
            if ready.exists() and ready.read_text() == contents:
                return python
            for command in commands:
                try:
                    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
                except subprocess.TimeoutExpired:
                    pytest.skip(f"{requirements[0]} cannot be installed in five minutes")
                if done.returncode != 0:
                    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr]
                    pytest.skip(f"{requirements[0]} cannot be installed: {errors[0]}")
            ready.write_text(contents)
        return python

    return make


@pytest.fixture
def item_on_white() -> Image.Image:
    """A photo, in short: a dark grey rectangle, off the centre of a white picture."""
    image = Image.new("RGB", (400, 300), "white")
    image.paste((60, 60, 60), (40, 120, 140, 280))
    return image


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


Cli: TypeAlias = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run ``fmcae`` in this process: ``cli("predict", path, stdin=b"...")``."""

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["fmcae", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capfd.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def trained_run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: four epochs of both stages on the sample."""
    from fmcae.train.config import NetworkConfig, TrainConfig
    from fmcae.train.loop import train
    from fmcae.train.run import create_run

    config = TrainConfig(NetworkConfig(latent_dim=32), learning_rate=0.003, batch_size=20, epochs=4, data=str(SAMPLE))
    run = create_run(tmp_path_factory.mktemp("runs") / "small", config, dataset)
    train(run, dataset)
    return run.folder


@pytest.fixture(scope="session")
def to_onnx_once() -> Callable[..., bytes]:
    """``to_onnx``, which takes seconds; what was converted before is remembered."""
    from fmcae.export.graph import to_onnx

    graphs: dict[Any, bytes] = {}

    def convert(network: Any, kind: Any, example: NDArray[np.float32]) -> bytes:
        weights = [tensor.numpy().tobytes() for tensor in network.state_dict().values()]
        key = (repr(network), *weights, kind, example.tobytes())
        if key not in graphs:
            graphs[key] = to_onnx(network, kind, example)
        return graphs[key]

    return convert


@pytest.fixture
def graphs_are_kept(to_onnx_once: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert no network that an earlier test has converted, for tests of what happens to the graphs."""
    monkeypatch.setattr("fmcae.export.artefacts.to_onnx", to_onnx_once)


@pytest.fixture(scope="session")
def exported(trained_run: Path, to_onnx_once: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of ``trained_run``: encoder.onnx, decoder.onnx, classifier.onnx and their companions."""
    from fmcae.export.artefacts import export_run
    from fmcae.train.run import open_run

    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmcae.export.artefacts.to_onnx", to_onnx_once)
        export_run(open_run(trained_run), load_dataset(SAMPLE), folder)
    return folder


@pytest.fixture
def resealed() -> Callable[..., bytes]:
    """An artefact's bytes with another card, sealed again: ``resealed(path, name="other")``."""
    from fmcae.export.sealing import seal_graph

    def seal(path: Path, **changes: Any) -> bytes:
        artefact = fmcae.read_artefact(path)
        return seal_graph(path, artefact.content, replace(artefact.card, **changes), artefact.golden).content

    return seal


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out a run's pictures, which take longer than a small training, where a test is not about them."""
    monkeypatch.setattr("fmcae.train.loop._draw", lambda *_: None)


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a part of the sample: 240 training and 100 test images."""
    from fmcae.data import idx

    folder = tmp_path_factory.mktemp("small-sample")
    for path in SAMPLE.glob("*.gz"):
        idx.write(
            folder / path.name, idx.parse(idx.read_bytes(path), path.name)[: 240 if "train" in path.name else 100]
        )
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a study's runs here, where torch is imported already, not in fresh processes."""
    from fmcae.study import runner

    @contextmanager
    def executor(*_: object) -> Iterator[Callable[..., Future[None]]]:
        def submit(*arguments: Any) -> Future[None]:
            future: Future[None] = Future()
            try:
                runner.run_task(*arguments)
                future.set_result(None)
            except Exception as error:
                future.set_exception(error)
            return future

        yield submit

    monkeypatch.setattr(runner, "executor", executor)
