import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import fmcae
from fmcae.card import GoldenPictures
from fmcae.errors import ArtefactError, ProviderError
from fmcae.export import picture
from fmcae.export.picture import golden_pictures, picture_artefact
from fmcae.images import pixels_of, read_image
from fmcae.preprocess import preprocess
from fmcae.runtime.model import read_artefact
from fmcae.runtime.verify import verify

pytestmark = pytest.mark.train


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-int8"])
def test_what_ships_is_made_of_the_classifier_beside_it(name: str) -> None:
    folder = fmcae.runtime.model.shipped_folder(name)
    made, ships = picture_artefact(read_artefact(folder / "classifier.onnx")), read_artefact(folder / "picture.onnx")
    assert made.card == replace(ships.card, fmcae_version=fmcae.__version__)
    first, second = (onnx.ModelProto.FromString(content).graph for content in (made.content, ships.content))
    assert [node.op_type for node in first.node] == [node.op_type for node in second.node]
    assert verify(ships).passed and len(ships.golden_pictures.pictures) == 10


def test_plain_onnx_runtime_gives_what_python_gives(exported: Path) -> None:
    model = fmcae.load(exported)
    session = onnxruntime.InferenceSession(exported / "picture.onnx", providers=["CPUExecutionProvider"])
    assert [(item.name, item.shape) for item in session.get_outputs()] == [
        ("probabilities", [10]),
        ("known_score", []),
        ("x", [1, 1, 28, 28]),
    ]
    for sample in sorted(fmcae.runtime.model.shipped_folder("samples").glob("*.png")):
        for size in (28, 300):
            image = read_image(sample).resize((size, size))
            probabilities, known_score, x = session.run(None, {"image": np.atleast_3d(pixels_of(image))})
            prediction = model.predict(image)
            assert np.abs(probabilities - prediction.probabilities).max() < 1e-4
            assert known_score == pytest.approx(prediction.known_score, abs=1e-4)
            assert np.abs(x[0] - preprocess(image)).max() < 1e-4


def test_golden_pictures_are_small_and_of_several_kinds() -> None:
    files = golden_pictures(list(np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)))
    assert len({Image.open(io.BytesIO(file)).mode for file in files}) == 3 and max(map(len, files)) < 60_000


def test_a_picture_that_differs_from_python_fails(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "softmax", lambda logits, _: np.full(logits.shape, 0.1, np.float32))
    failure = verify(picture_artefact(read_artefact(exported / "classifier.onnx"))).failure
    assert failure is not None and failure.startswith("what comes out of golden pictures differs by up to 0.")


def test_it_is_no_model_to_load_and_runs_on_the_cpu(exported: Path) -> None:
    path = exported / "picture.onnx"
    with pytest.raises(ArtefactError, match=r"is for other programs; name classifier\.onnx beside it"):
        fmcae.load(path)
    with pytest.raises(ProviderError, match=r"is made for cpu; on cuda take classifier\.onnx"):
        verify(path, provider="cuda")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pictures": []}, "golden pictures are damaged"),
        ({"pictures": ["!"]}, "golden pictures are damaged"),
        ({"labels": ["Coat"]}, "not that of its card"),
        ({"probabilities": [[0.5], [0.5, 0.5]]}, "golden pictures are damaged"),
        ({"known_scores": [2]}, "golden pictures are damaged"),
    ],
)
def test_damaged_golden_pictures_are_named(exported: Path, change: dict[str, object], reason: str) -> None:
    artefact = read_artefact(exported / "picture.onnx")
    values = json.loads(artefact.golden_text) | change
    with pytest.raises(ArtefactError, match=reason):
        verify(replace(artefact, golden_text=json.dumps(values)))


def test_golden_pictures_that_are_none_or_give_something_else_fail(exported: Path) -> None:
    artefact = read_artefact(exported / "picture.onnx")
    golden = artefact.golden_pictures
    none = replace(golden, pictures=(b"no picture", *golden.pictures[1:]))
    with pytest.raises(ArtefactError, match=r"picture\.onnx: its golden pictures are damaged: image bytes"):
        verify(replace(artefact, golden_text=none.to_text()))
    other = replace(golden, labels=tuple(reversed(golden.labels)))
    failure = verify(replace(artefact, golden_text=other.to_text())).failure
    assert failure is not None and failure.startswith("labels differ from the golden ones")
    assert GoldenPictures.from_text(golden.to_text()).labels == golden.labels
