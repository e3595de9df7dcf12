"""The programs in examples/: each is run, where its packages are installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

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
