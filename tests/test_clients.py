"""The programs in examples/clients: picture.onnx in other languages and runtimes, which must all give the same answers.

Node's packages and OpenVINO are installed beside, once; what cannot be had is skipped with the reason.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw

import fmcae
from fmcae.runtime.session import release

REPOSITORY = Path(__file__).parent.parent
CLIENTS = REPOSITORY / "examples" / "clients"
NAMES = ("fashion-mnist", "fashion-mnist-int8")
BARE = [sys.executable, str(CLIENTS / "classify.py")]

Command: TypeAlias = list[str]
Answers: TypeAlias = list[dict[str, Any]]


def model(name: str) -> Path:
    path = REPOSITORY / "exports" / name / "picture.onnx"
    if not path.exists():
        pytest.skip(f"exports/{name}/picture.onnx is missing")
    return path


def run(command: Command, *arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    full = [*command, *map(str, arguments)]
    return subprocess.run(full, capture_output=True, text=True, encoding="utf-8", env=environment, **options)


def install(command: Command, **options: Any) -> None:
    """Install packages, or skip where there is no registry."""
    result = run(command, timeout=300, **options)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "error" in line.lower()]
        pytest.skip(f"{Path(command[0]).name} cannot install it: {errors[0] if errors else result.stderr}")


@pytest.fixture(scope="module")
def pictures(fifty_pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for name, content in fifty_pictures.items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def answers(pictures: list[Path]) -> Callable[..., Answers]:
    """What a program says of the fifty pictures: ``answers(command, name)``."""

    def ask(command: Command, name: str) -> Answers:
        result = run(command, model(name), "--json", *pictures)
        assert (result.returncode, result.stderr) == (0, "10 golden pictures agree\n")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["path"] for line in lines] == list(map(str, pictures))
        return lines

    return ask


@pytest.fixture(scope="module")
def expected(answers: Callable[..., Answers]) -> dict[str, Answers]:
    """What ONNX Runtime in Python says of them, by the model's name."""
    return {name: answers(BARE, name) for name in NAMES}


def check_same(found: Answers, expected: Answers, atol: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one["label"], one["known"]) == (other["label"], other["known"]), one["path"]
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], rtol=0, atol=atol, err_msg=one["path"])
        assert one["known_score"] == pytest.approx(other["known_score"], abs=atol)


def check_manners(command: Command, folder: Path, of_damage: str) -> None:
    """What people read, and that a file with other numbers than it was shipped with is refused."""
    Image.new("RGB", (50, 40), "ivory").save(folder / "blank.png")
    outline = Image.new("L", (400, 400), 255)  # which preprocessing shrinks in a way of its own
    ImageDraw.Draw(outline).polygon([(150, 40), (250, 40), (300, 360), (100, 360)], outline=0, width=4)
    outline.save(folder / "outline.png")
    shown = [REPOSITORY / "exports" / "samples" / "bag.png", folder / "blank.png", folder / "outline.png"]
    result = run(command, model(NAMES[0]), *shown)
    bag, blank, drawn = result.stdout.splitlines()
    prediction = fmcae.load().predict(outline)
    assert f" {prediction.label}, " in drawn
    assert float(drawn.rpartition(" ")[2]) == pytest.approx(prediction.known_score, abs=1e-4)
    assert bag == f"{shown[0]}: Bag, probability 0.9999, known score 0.9999"
    assert blank.startswith(f"{shown[1]}: unknown, nearest ")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = run(command, model(NAMES[0]), folder / "broken.png", *shown)
    assert (result.returncode, len(result.stdout.splitlines())) == (1, 3)
    error = result.stderr.splitlines()[1]
    assert error.startswith(f"error: {folder / 'broken.png'}: ")
    assert re.fullmatch(r"(error: )?usage: .*picture\.onnx \[--json\] PICTURE\.\.\.\n", run(command).stderr)
    content = model(NAMES[0]).read_bytes()
    start = b'"probabilities": [[0.'
    assert content.count(start) == 1
    (folder / "other.onnx").write_bytes(content.replace(start, start[:-2] + b"1."))
    result = run(command, folder / "other.onnx", *shown)
    assert result.returncode != 0 and result.stdout == "" and of_damage in result.stderr


def test_python_without_fmcae_says_what_fmcae_says(
    pictures: list[Path], expected: dict[str, Answers], tmp_path: Path
) -> None:
    for name in NAMES:
        loaded = fmcae.load(name)
        for path, answer in zip(pictures, expected[name], strict=True):
            prediction = loaded.predict(path)
            np.testing.assert_allclose(answer["probabilities"], prediction.probabilities, rtol=0, atol=1e-4)
            assert (answer["label"], answer["known"]) == (prediction.label, prediction.known), path
            assert answer["known_score"] == pytest.approx(prediction.known_score, abs=1e-4)
    check_manners(BARE, tmp_path, "Not equal to tolerance")


def test_node_says_the_same(answers: Callable[..., Answers], expected: dict[str, Answers], tmp_path: Path) -> None:
    missing = [name for name in ("node", "npm") if not shutil.which(name)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    installed = CLIENTS / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (CLIENTS / "package-lock.json").stat().st_mtime:
        install(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=CLIENTS)
    node = ["node", str(CLIENTS / "classify.mjs")]
    for name in NAMES:
        check_same(answers(node, name), expected[name])
    check_manners(node, tmp_path, "its golden pictures changed since")


def test_chromium_says_the_same(answers: Callable[..., Answers], expected: dict[str, Answers], web: Path) -> None:
    program = REPOSITORY / "tests" / "web" / "classify.js"  # which opens the page of ``web``
    for name in NAMES:
        # Eight bits are rounded where WebAssembly and the CPU may differ in the last bit before it.
        atol = 0.005 if name.endswith("int8") else 1e-4
        check_same(answers(["node", str(program)], name), expected[name], atol)


def test_cpp_says_the_same(answers: Callable[..., Answers], expected: dict[str, Answers], tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("needs g++ or clang++")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip("ONNX Runtime's package has no libonnxruntime.so here")
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", str(CLIENTS / "classify.cpp")]
    # Others, such as those of ONNX Runtime's release, come from $CPLUS_INCLUDE_PATH. Code of others may have warnings.
    command += [part for name in ("onnxruntime", "stb") for part in ("-isystem", f"/usr/include/{name}")]
    macros = run(command, "-E", "-dM")
    version = re.search(r"#define ORT_API_VERSION (\d+)", macros.stdout)
    if version is None:
        pytest.skip("needs onnxruntime_cxx_api.h, stb_image.h and nlohmann/json.hpp where the compiler looks for them")
    if int(version[1]) > release(onnxruntime.__version__)[1]:
        pytest.skip(f"the headers of ONNX Runtime 1.{version[1]} are newer than ONNX Runtime {onnxruntime.__version__}")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    program = tmp_path / "classify"
    built = run(command, "-o", program, tmp_path / "libonnxruntime.so.1", f"-Wl,-rpath,{tmp_path}")
    assert (built.returncode, built.stderr) == (0, "")
    for name in NAMES:
        found, of_python = answers([str(program)], name), expected[name]
        is_png = [answer["path"].endswith(".png") for answer in found]
        check_same(select(found, is_png), select(of_python, is_png))
        # stb_image turns a JPEG's colours and sizes into pixels in its own way.
        is_jpeg = [not png for png in is_png]
        check_same(select(found, is_jpeg), select(of_python, is_jpeg), atol=0.05)
    check_manners([str(program)], tmp_path, "golden picture 0: another probability of T-shirt/top")


def select(answers: Answers, wanted: list[bool]) -> Answers:
    return [answer for answer, is_wanted in zip(answers, wanted, strict=True) if is_wanted]


def test_openvino_says_the_same_in_full_float32(
    answers: Callable[..., Answers], expected: dict[str, Answers], environment: Callable[..., Path], tmp_path: Path
) -> None:
    python = sys.executable if find_spec("openvino") else environment("openvino", "openvino", "pillow")
    command = [str(python), str(CLIENTS / "classify_openvino.py")]
    check_same(answers(command, NAMES[0]), expected[NAMES[0]])
    check_manners(command, tmp_path, "Not equal to tolerance")
    result = run(command, model(NAMES[1]))
    assert result.returncode != 0 and "com.microsoft.QLinearConv" in result.stderr
