from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fmcae.data import load_dataset
from fmcae.errors import GateError, RunError, UsageError
from fmcae.export import precision
from fmcae.export.artefacts import export_smaller
from fmcae.export.precision import Verdict, check_precision, int8_graph, latent_units
from fmcae.preprocess import scale
from fmcae.runtime.model import load, read_artefact
from fmcae.runtime.session import Session
from fmcae.runtime.timing import Ratio
from fmcae.runtime.verify import verify
from fmcae.train.config import NetworkConfig
from fmcae.train.networks import Classifier
from fmcae.train.run import open_run


@pytest.fixture(scope="module")
def dataset(sample):
    return load_dataset(sample)


@pytest.fixture(scope="module")
def int8(trained_run, dataset, tmp_path_factory):
    """The int8 export of ``trained_run``."""
    folder = tmp_path_factory.mktemp("int8")
    export_smaller(open_run(trained_run), dataset, folder, "int8", budget_points=2)  # 400 images: 0.25 points each
    return folder


def weights_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def random_classifier(**config):
    torch.manual_seed(0)
    return Classifier(NetworkConfig(latent_dim=24, **config)).eval()


def test_int8_gives_nearly_the_same_labels_in_a_third_of_the_size(int8, exported, test_images):
    x = scale(test_images)
    small, large = load(int8).classify(x), load(exported).classify(x)
    assert (small.argmax(axis=1) == large.argmax(axis=1)).mean() >= 0.97
    sizes = [(folder / "classifier.onnx").stat().st_size for folder in (int8, exported)]
    assert sizes[0] < sizes[1] / 2


def test_int8_proves_itself(int8, trained_run):
    artefact = read_artefact(int8 / "classifier.onnx")
    assert verify(artefact).passed
    assert {path.name for path in int8.iterdir()} == {
        "classifier.onnx",
        "MODEL_CARD.md",
        "config.json",
        "metrics.jsonl",
    }
    facts = artefact.card.precision
    assert (facts["name"], facts["calibration_images"]) == ("int8", 1_000)
    assert facts["verdict"]["images"] == 400 and set(facts["verdict"]["speedup"]) == {"1", "256"}
    assert artefact.card.metrics == {"test_accuracy": facts["verdict"]["accuracy"]}
    assert "int8 against float32" in (int8 / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("pooling", [True, False])
def test_the_int8_graph_computes_what_the_network_does(pooling, test_images):
    network = random_classifier(pooling=pooling)
    model = int8_graph(network, test_images[:50])
    x = scale(test_images[50:90])
    with torch.no_grad():
        reference = network(torch.from_numpy(x)).numpy()
    difference = np.abs(Session(model.SerializeToString(), threads=1).run(x) - reference)
    assert difference.max() < 0.03 * np.ptp(reference)


def test_no_weight_can_overflow_the_sums_of_older_processors(test_images):
    weights = weights_of(int8_graph(random_classifier(), test_images[:20]))
    for name in ("conv2.weight", "linear.weight"):
        assert weights[name].dtype == np.int8
        assert np.abs(weights[name].astype(int)).max() == 63


def test_latent_units_that_are_never_active_are_left_out(test_images):
    network = random_classifier()
    with torch.no_grad():
        network.encoder[9].bias[[3, 7]] = -100.0
    model = int8_graph(network, test_images[:20])
    assert latent_units(model) == 22 - int((_active(network, test_images[:20]) == 0).sum() - 2)
    x = scale(test_images[:20])
    with torch.no_grad():
        reference = network(torch.from_numpy(x)).numpy()
    assert np.abs(Session(model.SerializeToString(), threads=1).run(x) - reference).max() < 0.03 * np.ptp(reference)


@torch.no_grad()
def _active(network, images):
    return (network.encoder(torch.from_numpy(scale(images))) > 0).sum(dim=0).numpy()


def test_a_dead_network_still_has_a_graph(test_images):
    network = random_classifier()
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.zero_()
    x = scale(test_images[:3])
    with torch.no_grad():
        reference = network(torch.from_numpy(x)).numpy()
    assert np.array_equal(Session(int8_graph(network, test_images[:5]).SerializeToString()).run(x), reference)


def test_fp16_is_half_as_large_and_nearly_equal(trained_run, dataset, exported, tmp_path, test_images):
    files, verdict = export_smaller(open_run(trained_run), dataset, tmp_path, "fp16", budget_points=1)
    assert files[0].stat().st_size < 0.7 * (exported / "classifier.onnx").stat().st_size
    assert verdict.max_abs_difference < 0.1
    model = onnx.load(files[0])
    types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert types == {onnx.TensorProto.FLOAT16}
    assert load(tmp_path).classify(scale(test_images[:2])).dtype == np.float32


def test_too_much_accuracy_lost_writes_nothing(trained_run, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_WEIGHT_LIMIT", 1)
    with pytest.raises(GateError, match=r"int8 is not worth keeping.*accuracy falls from .* the budget of 0.2"):
        export_smaller(open_run(trained_run), dataset, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_neither_smaller_nor_faster_is_not_worth_keeping():
    speed = {1: Ratio(0.9, 0.8, 1.0)}
    verdict = Verdict(100, 0.9, 0.9, 1.0, 0.0, 500, 400, speed, "cpu", 1, {}, 0.2)
    assert "neither smaller (500 bytes) nor faster (0.90 times)" in verdict.failure
    assert replace(verdict, size_bytes=300).failure is None
    assert replace(verdict, speedup={1: Ratio(1.1, 1.0, 1.2)}).failure is None
    assert "by 1.00 points" in replace(verdict, size_bytes=300, accuracy=0.89).failure
    assert replace(verdict, size_bytes=300, accuracy=float("nan")).failure is not None


def test_a_run_without_a_classifier_says_so(trained_run, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("fmcae.export.artefacts.trained_networks", lambda run: {})
    with pytest.raises(RunError, match="has no classifier"):
        export_smaller(open_run(trained_run), dataset, tmp_path, "int8")


def test_precision_is_one_of_three():
    with pytest.raises(UsageError, match=r"precision \(=int4\) must be one of fp32, int8, fp16"):
        check_precision("int4")


def test_the_command_line(cli, trained_run, sample, tmp_path, monkeypatch):
    out = tmp_path / "int8"
    result = cli("export", trained_run, "--precision", "int8", "--budget", "5", "--data", sample, "--out", out)
    assert (result.exit_code, "times as fast at batch 256" in result.stderr) == (0, True)
    assert "classifier.onnx" in result.stdout
    monkeypatch.setattr(precision, "_WEIGHT_LIMIT", 1)
    before = (out / "classifier.onnx").read_bytes()
    result = cli("export", trained_run, "--precision", "int8", "--data", sample, "--out", out)
    assert (result.exit_code, result.stdout) == (5, "") and "not worth keeping" in result.stderr
    assert (out / "classifier.onnx").read_bytes() == before
    for wrong, message in (
        (("--precision", "int4"), "precision (=int4) must be one of fp32, int8, fp16"),
        (("--precision", "int8", "--budget", "-1"), "budget (=-1) must be from 0 to 100 points"),
        (("--precision", "int8", "--provider", "tpu"), "provider (=tpu) must be one of cpu, cuda"),
        (("--provider", "cuda"), "provider (=cuda) must be cpu for fp32"),
    ):
        result = cli("export", trained_run, *wrong, "--data", sample)
        assert (result.exit_code, result.stdout) == (2, "") and message in result.stderr
