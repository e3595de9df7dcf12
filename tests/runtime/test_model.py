import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import fmcae
from fmcae import Artefact, Model
from fmcae.cli import options
from fmcae.cli.options import SHIPPED_NAMES
from fmcae.errors import ArtefactError, ProviderError, UsageError
from fmcae.images import MAX_PIXELS
from fmcae.metrics import known_score, softmax
from fmcae.preprocess import scale
from fmcae.runtime.model import SHIPPED, read_artefact, shipped_folder


@pytest.fixture(scope="module")
def x(test_images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return scale(test_images[:8])


def test_the_shipped_names_are_those_of_the_command_line() -> None:
    assert list(SHIPPED) == SHIPPED_NAMES
    assert options.MAX_PIXELS == MAX_PIXELS


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-paper"])
def test_the_shipped_models_have_the_papers_graph(name: str) -> None:
    model, shipped = fmcae.load(name), shipped_folder(name)
    card = model.artefacts["classifier"].card
    assert set(model.artefacts) == {"encoder", "decoder", "classifier"}
    assert card.training["config"]["network"]["latent_dim"] == 128
    assert card.training["config"]["epochs"] == 30
    assert card.metrics["test_accuracy"] >= 0.9
    assert (shipped / "config.json").is_file() and (shipped / "metrics.jsonl").is_file()


def test_shapes_and_one_image_without_a_batch_axis(model: Model, x: NDArray[np.float32]) -> None:
    assert model.classify(x).shape == (8, 10)
    assert model.encode(x).shape == (8, 128)
    assert model.decode(model.encode(x)).shape == (8, 1, 28, 28)
    assert model.reconstruct(x).dtype == np.float32
    for one, many in (
        (model.classify(x[0]), model.classify(x)),
        (model.encode(x[0]), model.encode(x)),
        (model.reconstruct(x[0]), model.reconstruct(x)),
    ):
        np.testing.assert_allclose(one, many[0], rtol=1e-4, atol=1e-5)
    assert model.classify(x[:0]).shape == (0, 10)


def test_reconstructions_resemble_their_inputs(model: Model, x: NDArray[np.float32]) -> None:
    own = ((model.reconstruct(x) - x) ** 2).mean()
    other = ((model.reconstruct(x) - x[::-1]) ** 2).mean()
    assert own < 0.05 and own < other / 2


def test_predict_takes_every_kind_of_image(model: Model, test_images: NDArray[np.uint8], tmp_path: Path) -> None:
    image = test_images[0]
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    expected = model.predict(image)
    assert expected.label == model.class_names[expected.index]
    assert expected.probability == expected.probabilities.max() and expected.probabilities.shape == (10,)
    assert expected.probabilities.sum() == pytest.approx(1, abs=1e-5)
    content = path.read_bytes()
    encoded = (content, bytearray(content), memoryview(content))
    for source in (path, str(path), *encoded, Image.fromarray(image), scale(image)):
        assert model.predict(source).probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_predict_takes_many(model: Model, test_images: NDArray[np.uint8]) -> None:
    logits = model.classify(scale(test_images[:5]))
    for images in (list(test_images[:5]), test_images[:5], scale(test_images[:5])):
        predictions = model.predict(images)
        assert isinstance(predictions, list)
        assert [prediction.index for prediction in predictions] == logits.argmax(axis=1).tolist()
        probabilities = softmax(logits, model.artefacts["classifier"].card.temperature)
        assert np.stack([p.probabilities for p in predictions]) == pytest.approx(probabilities, abs=1e-5)
    assert model.predict([]) == []


def calibrated(artefact: Artefact, **calibration: float) -> Artefact:
    """The artefact with another calibration in its card."""
    return replace(artefact, card=replace(artefact.card, calibration=calibration))


def test_what_scores_below_the_threshold_is_unknown(model: Model, test_images: NDArray[np.uint8]) -> None:
    scores = known_score(model.classify(scale(test_images[:50])))
    threshold = float(np.median(scores))
    artefact = model.artefacts["classifier"]
    by_card = Model({"classifier": calibrated(artefact, threshold=threshold)})
    by_argument = Model({"classifier": artefact}, threshold=threshold)
    over_card = Model({"classifier": calibrated(artefact, threshold=1.0)}, threshold=threshold)
    for judge in (by_card, by_argument, over_card):
        predictions = judge.predict_inputs(scale(test_images[:50]))
        assert judge.threshold == threshold
        assert [prediction.known_score for prediction in predictions] == pytest.approx(scores, abs=1e-6)
        assert all(prediction.known is (prediction.known_score >= threshold) for prediction in predictions)
        assert 0 < sum(prediction.known for prediction in predictions) < 50
        assert [p.index for p in predictions] == model.classify(scale(test_images[:50])).argmax(axis=1).tolist()


def test_a_threshold_of_0_knows_everything(model: Model, test_images: NDArray[np.uint8]) -> None:
    strict = Model({"classifier": calibrated(model.artefacts["classifier"], threshold=1.0)}, threshold=0)
    assert all(prediction.known for prediction in strict.predict_inputs(scale(test_images[:20])))
    assert fmcae.load(only="classifier", threshold=0).threshold == 0


def test_the_cards_threshold_is_the_default(model: Model, shipped: Path) -> None:
    assert model.threshold == read_artefact(shipped / "classifier.onnx").card.threshold
    assert fmcae.load(shipped / "encoder.onnx").threshold == 0


def test_a_temperature_softens_the_probabilities(model: Model, test_images: NDArray[np.uint8]) -> None:
    artefact = model.artefacts["classifier"]
    sharp, soft = (
        Model({"classifier": calibrated(artefact, temperature=value)}).predict(test_images[0]) for value in (0.5, 2)
    )
    assert sharp.label == soft.label and sharp.probability > soft.probability
    assert sharp.known_score == soft.known_score  # which no temperature touches


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((1, 1, 28, 28)), r"x must be an array \(N, 1, 28, 28\) float32, not \(1, 1, 28, 28\) float64"),
        (np.zeros((1, 1, 28, 28), ">f4"), r"x must be an array \(N, 1, 28, 28\) float32, not \(1, 1, 28, 28\) >f4"),
        ([[0.0]], r"x must be an array \(N, 1, 28, 28\) float32, not list"),
        (np.zeros((28, 28), np.float32), r"x must be an array \(N, 1, 28, 28\) float32, not \(28, 28\) float32"),
        (np.zeros((2, 3, 28, 28), np.float32), r"x must be an array \(N, 1, 28, 28\) float32, not \(2, 3, 28, 28\)"),
    ],
)
def test_a_wrong_input_is_named(model: Model, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.classify(value)
    with pytest.raises(ValueError, match=message):
        model.encode(value)


def test_a_single_input_has_no_list_of_predictions(model: Model) -> None:
    with pytest.raises(UsageError, match=r"x must be an array \(N, 1, 28, 28\) float32, not \(1, 28, 28\) float32"):
        model.predict_inputs(np.zeros((1, 28, 28), np.float32))


def test_a_wrong_latent_is_named(model: Model) -> None:
    with pytest.raises(UsageError, match=r"z must be an array \(N, 128\) float32, not \(2, 64\) float32"):
        model.decode(np.zeros((2, 64), np.float32))


def test_one_file_runs_alone_and_says_what_it_lacks(shipped: Path, x: NDArray[np.float32]) -> None:
    model = fmcae.load(shipped / "classifier.onnx")
    assert model.classify(x).shape == (8, 10)
    with pytest.raises(
        ArtefactError, match=r"needs encoder\.onnx; the model was loaded with .*classifier\.onnx only: name its"
    ):
        model.encode(x)


def test_a_run_folder_stands_for_its_export(shipped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(shipped, run / "onnx")
    with pytest.raises(ArtefactError, match="run: holds none of encoder.onnx, decoder.onnx, classifier.onnx"):
        fmcae.load(run)
    (run / "config.json").touch()
    assert fmcae.load(run).artefacts["classifier"].path == run / "onnx" / "classifier.onnx"
    (run / "onnx").rename(tmp_path / "elsewhere")
    (run / "classifier.safetensors").touch()
    with pytest.raises(ArtefactError, match="run: is a run that is not exported .*: run  fmcae export .*run.?$"):
        fmcae.load(run)
    (run / "config.json").write_text('{"config": {"stage": "both"}}')
    with pytest.raises(ArtefactError, match="is a run that is not exported"):
        fmcae.load(run)
    (run / "classifier.safetensors").rename(run / "autoencoder.safetensors")
    with pytest.raises(
        ArtefactError, match="run: is a run that is not finished; go on with  fmcae train --resume --out"
    ):
        fmcae.load(run)


def test_one_of_a_folder_runs_whatever_the_others_are(shipped: Path, x: NDArray[np.float32], tmp_path: Path) -> None:
    shutil.copy(shipped / "classifier.onnx", tmp_path)
    (tmp_path / "encoder.onnx").write_text("damaged")
    assert fmcae.load(tmp_path, only="classifier").classify(x).shape == (8, 10)
    with pytest.raises(ArtefactError, match=r"encoder\.onnx: is not an ONNX model"):
        fmcae.load(tmp_path)
    (tmp_path / "encoder.onnx").unlink()
    with pytest.raises(
        ArtefactError, match=r"needs encoder\.onnx; the model was loaded with .*classifier\.onnx only: there is none"
    ):
        fmcae.load(tmp_path, only="encoder").encode(x)
    with pytest.raises(UsageError, match=r"only \(=head\) must be one of encoder, decoder, classifier"):
        fmcae.load(only="head")  # type: ignore[arg-type]


def test_a_list_may_hold_model_inputs_and_pictures(model: Model, x: NDArray[np.float32], test_images: Any) -> None:
    assert model.predict([x[0], test_images[1]]) == model.predict_inputs(x[:2])


def test_other_processes_can_have_the_model(model: Model, x: NDArray[np.float32]) -> None:
    copied = pickle.loads(pickle.dumps(fmcae.load(threshold=0.5)))
    assert copied.threshold == 0.5 and np.array_equal(copied.classify(x), model.classify(x))


def test_what_a_model_looks_like_has_no_bytes_of_its_files(model: Model) -> None:
    assert len(repr(model.artefacts)) < 100_000


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_an_artefact_error(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / name, tmp_path / name / "classifier.onnx"):
        for read in (fmcae.load, fmcae.read_artefact, fmcae.verify):
            with pytest.raises(ArtefactError):
                read(path)


def test_predictions_are_equal_by_all_that_they_say(model: Model, x: NDArray[np.float32]) -> None:
    first, second = model.predict_inputs(x)[:2]
    other = replace(first, probabilities=second.probabilities)
    assert first == model.predict_inputs(x)[0] and first not in (second, other, "Bag")
    assert len({first, model.predict_inputs(x)[0], second}) == 2
    assert first == mock.ANY


@pytest.mark.parametrize("name", ["./fashion-mnist", "fashion-mnist/"])
def test_a_path_that_only_looks_like_the_name_of_what_ships_is_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fmcae.load("fashion-mnist", only="classifier").artefacts
    with pytest.raises(ArtefactError, match="^fashion-mnist: cannot be read: No such file or directory$"):
        fmcae.load(name)


def test_missing_and_foreign_and_misnamed_models_are_named(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"^fashion-mnits: .*; what ships is fashion-mnist, fashion-mnist-int8, "):
        fmcae.load("fashion-mnits")
    with pytest.raises(ArtefactError, match=r"missing\.onnx: cannot be read: No such file"):
        fmcae.load(tmp_path / "missing.onnx")
    with pytest.raises(ArtefactError, match="holds none of encoder.onnx, decoder.onnx, classifier.onnx"):
        fmcae.load(tmp_path)
    with pytest.raises(UsageError, match=r"path \(=\) must not be empty"):
        fmcae.load("")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ArtefactError, match=r"text\.onnx: is not an ONNX model"):
        fmcae.load(tmp_path / "text.onnx")
    shutil.copy(shipped / "encoder.onnx", tmp_path / "decoder.onnx")
    with pytest.raises(ArtefactError, match="is named decoder but is a encoder"):
        fmcae.load(tmp_path)


@pytest.mark.train
def test_artefacts_fit_together_if_their_autoencoder_is_the_same(
    shipped: Path, tmp_path: Path, resealed: Callable[..., bytes]
) -> None:
    """A classifier that started from another run's autoencoder names that run; encoder and decoder are that run's."""

    def change(name: str, **changes: Any) -> None:
        training = {**read_artefact(shipped / name).card.training, "started": "later", **changes}
        (tmp_path / name).write_bytes(resealed(shipped / name, training=training))

    autoencoder = read_artefact(shipped / "encoder.onnx").card.training
    for kind in ("encoder", "decoder"):
        shutil.copy(shipped / f"{kind}.onnx", tmp_path)
    change("classifier.onnx", autoencoder=autoencoder)
    assert set(fmcae.load(tmp_path).artefacts) == {"encoder", "decoder", "classifier"}
    change("classifier.onnx", autoencoder={**autoencoder, "started": "another"})
    with pytest.raises(ArtefactError, match=r"classifier\.onnx and encoder\.onnx come from different runs"):
        fmcae.load(tmp_path)
    change("decoder.onnx")
    (tmp_path / "classifier.onnx").unlink()
    with pytest.raises(ArtefactError, match=r"decoder\.onnx and encoder\.onnx come from different runs"):
        fmcae.load(tmp_path)


def test_a_precision_runs_only_on_the_providers_that_it_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_nothing(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded before the provider was checked")

    monkeypatch.setattr("fmcae.runtime.model.Session", load_nothing)
    model = fmcae.load("fashion-mnist-int8", provider="cuda")
    with pytest.raises(
        ProviderError, match=r"classifier\.onnx: provider \(=cuda\) must be cpu, which int8 is made for"
    ):
        model.predict(np.zeros((28, 28), np.uint8))
    with pytest.raises(ProviderError, match="which int8 is made for"):
        fmcae.verify(model.artefacts["classifier"], provider="cuda")
    with pytest.raises(UsageError, match=r"provider \(=tpu\) must be one of cpu, cuda"):
        fmcae.verify(model.artefacts["classifier"], provider="tpu")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"provider": "tpu"}, r"provider \(=tpu\) must be one of cpu, cuda"),
        ({"threads": 0}, r"threads \(=0\) must be an integer from 1 to 1,024"),
        ({"threshold": 2.0}, r"threshold \(=2.0\) must be a number from 0 to 1; 0 turns it off"),
        ({"threshold": -0.1}, r"threshold \(=-0.1\) must be a number from 0 to 1"),
        ({"threshold": float("nan")}, r"threshold \(=nan\) must be a number from 0 to 1"),
        ({"threshold": "high"}, r"threshold \(=high\) must be a number from 0 to 1"),
        ({"threads": "x"}, r"threads \(=x\) must be an integer from 1 to 1,024"),
    ],
)
def test_a_wrong_option_is_named_at_load(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fmcae.load(**option)


def test_threads_can_share_a_model(test_images: NDArray[np.uint8]) -> None:
    model = fmcae.load()
    x = scale(test_images)
    expected = model.classify(x)
    fresh = fmcae.load()  # its sessions are created by the threads, at once
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(fresh.classify, np.array_split(x, 40)))
    np.testing.assert_allclose(np.concatenate(rows), expected, rtol=1e-4, atol=1e-5)


def test_the_runtime_never_imports_torch(shipped: Path) -> None:
    code = (
        "import sys, fmcae, numpy as np; m = fmcae.load(); m.predict(np.zeros((28, 28), np.uint8)); "
        "import fmcae.cli; m.reconstruct(np.zeros((1, 28, 28), np.float32)); "
        "print([n for n in ('torch', 'onnx', 'matplotlib', 'torchvision') if n in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_public_names_exist() -> None:
    assert set(fmcae.__all__) <= set(dir(fmcae))
    for name in fmcae.__all__:
        assert getattr(fmcae, name) is not None
    for function in (fmcae.load, fmcae.verify, fmcae.read_artefact):
        for kind in get_type_hints(function).values():
            for part in (kind, *get_args(kind)):
                assert getattr(part, "__module__", "").partition(".")[0] != "fmcae" or part.__name__ in fmcae.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        fmcae.nonsense  # noqa: B018


@given(count=st.integers(0, 70))
@settings(max_examples=30)
def test_on_cuda_batches_are_filled_up_so_that_their_size_changes_less_often(count: int) -> None:
    model, sizes = fmcae.load(), list[int]()
    on_cpu = model.session("classifier")
    x = np.random.default_rng(count).random((count, 1, 28, 28), dtype=np.float32)

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes.append(len(batch))
        return on_cpu.run(batch)

    expected = model.classify(x)
    model._sessions["classifier"] = SimpleNamespace(provider="cuda", run=run)  # type: ignore[assignment]
    np.testing.assert_allclose(model.classify(x), expected, rtol=1e-4, atol=1e-4)
    assert sizes == [2 ** math.ceil(math.log2(max(1, count)))]
    model._sessions["classifier"] = SimpleNamespace(provider="openvino", run=run)  # type: ignore[assignment]
    assert len(model.classify(x)) == count and sizes[1] == max(1, count)  # which answers none with the last ones


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error_and_huge_ones_are_not(value: float) -> None:
    model, logits = fmcae.load(), np.full((1, 10), -3e38, np.float32)
    logits[0, 3] = 3e38
    model._sessions["classifier"] = SimpleNamespace(provider="cpu", run=lambda x: logits)  # type: ignore[assignment]
    x = np.zeros((1, 1, 28, 28), np.float32)
    (prediction,) = model.predict_inputs(x)
    assert (prediction.index, prediction.probability, prediction.known_score) == (3, 1, 1)
    logits[0, 4] = value
    with pytest.raises(ArtefactError, match=r"classifier\.onnx: gives logits that are not finite"):
        model.predict_inputs(x)
