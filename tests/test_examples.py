"""The programs in examples/: each is run, where its packages are installed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import fmcae

EXAMPLES = Path(__file__).parent.parent / "examples"
SAMPLES = sorted((EXAMPLES.parent / "exports" / "samples").glob("*.png"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_named() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{path.name}]({path.name})" in page for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-int8"])
def test_onnxruntime_alone_says_what_fmcae_says(name: str, shipped: Path) -> None:
    classifier, model = shipped.parent / name / "classifier.onnx", fmcae.load(name)
    example: Any = load("bare_onnxruntime")
    for picture in SAMPLES:
        prediction = model.predict(picture)
        label, probability = example.classify(str(classifier), str(picture))
        assert label == prediction.label and probability == pytest.approx(prediction.probability, abs=1e-5)


def test_onnxruntime_alone_from_a_shell(shipped: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "bare_onnxruntime.py"), str(shipped / "classifier.onnx"), str(SAMPLES[1])]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout.split()[0], result.stderr) == (0, "Bag", "")


@pytest.fixture
def server() -> Iterator[str]:
    """The address of the server, started as its first lines say, on a port that is free."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "server:app", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            started = (re.search(r"running on (http://\S+)", line) for line in process.stderr)
            yield next(match[1] for match in started if match)
        finally:
            process.terminate()


def test_the_server_labels_a_picture_and_refuses_what_is_none(server: str) -> None:
    def post(body: bytes) -> tuple[int, Any]:
        try:
            with urlopen(Request(f"{server}/predict", body)) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    code, values = post(SAMPLES[1].read_bytes())
    assert (code, values["label"], values["known"]) == (200, "Bag", True)
    code, values = post(b"no picture")
    assert code == 422 and "is not an image" in values["detail"]
    assert post(b"")[0] == 422
    assert post(bytes(20 * 2**20 + 1)) == (413, {"detail": "a picture may have 20,971,520 bytes"})


def test_the_webcam_loop_labels_the_frames_of_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    film = tmp_path / "film.avi"
    with Image.open(SAMPLES[1]) as image:
        frame = 255 - np.asarray(image.convert("RGB").resize((224, 224)))  # dark on white, as a photo
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (224, 224))
    for _ in range(3):
        writer.write(frame)
    writer.release()
    texts: list[str] = []
    monkeypatch.setattr(cv2, "putText", lambda frame, text, *_: texts.append(text))
    for name in ("imshow", "destroyAllWindows"):  # there is no screen
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: -1)
    load("webcam").main(str(film))
    assert len(texts) == 3 and all(text in ("Bag 0.99", "Bag 1.00") for text in texts)
    with pytest.raises(SystemExit, match=r"nowhere\.avi: no camera or video that OpenCV can open"):
        load("webcam").main(str(tmp_path / "nowhere.avi"))


def test_without_opencv_the_webcam_loop_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('none here')")
    command = [sys.executable, str(EXAMPLES / "webcam.py")]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 1
    assert result.stderr == "this example needs OpenCV: run  pip install opencv-python\n"
