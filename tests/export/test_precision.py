import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from fmcae.data import Dataset
from fmcae.errors import GateError, RunError
from fmcae.export import precision
from fmcae.export.artefacts import export_smaller
from fmcae.export.model_card import model_card
from fmcae.export.precision import int8_graph, latent_units
from fmcae.export.tradeoff import Tradeoff
from fmcae.preprocess import scale
from fmcae.runtime.model import load, read_artefact
from fmcae.runtime.session import Session
from fmcae.runtime.verify import verify
from fmcae.train.config import NetworkConfig
from fmcae.train.networks import Classifier
from fmcae.train.run import open_run

pytestmark = pytest.mark.usefixtures("graphs_are_kept")


@pytest.fixture(scope="module")
def int8(trained_run: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 export of ``trained_run``."""
    folder = tmp_path_factory.mktemp("int8")
    export_smaller(open_run(trained_run), dataset, folder, "int8", budget_points=2)  # 400 images: 0.25 points each
    return folder


def weights(graph: bytes) -> dict[str, NDArray[Any]]:
    initializers = onnx.load_from_string(graph).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers}


def random_classifier(**config: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(NetworkConfig(latent_dim=24, **config)).eval()


def test_int8_gives_nearly_the_same_labels_in_a_third_of_the_size(
    int8: Path, exported: Path, test_images: NDArray[np.uint8]
) -> None:
    x = scale(test_images)
    small, large = load(int8).classify(x), load(exported).classify(x)
    assert (small.argmax(axis=1) == large.argmax(axis=1)).mean() >= 0.97
    sizes = [(folder / "classifier.onnx").stat().st_size for folder in (int8, exported)]
    assert sizes[0] < sizes[1] / 2


def test_int8_proves_itself(int8: Path, trained_run: Path) -> None:
    artefact = read_artefact(int8 / "classifier.onnx")
    assert verify(artefact).passed
    assert {path.name for path in int8.iterdir()} == {
        "classifier.onnx",
        "picture.onnx",
        "MODEL_CARD.md",
        "reliability.png",
        "config.json",
        "metrics.jsonl",
    }
    facts = artefact.card.precision
    assert (facts["name"], facts["calibration_images"]) == ("int8", 1_000)
    assert facts["tradeoff"]["images"] == 400 and set(facts["tradeoff"]["speedup"]) == {"1", "256"}
    assert artefact.card.metrics == {"test_accuracy": facts["tradeoff"]["accuracy"]}
    assert "int8 against float32" in (int8 / "MODEL_CARD.md").read_text()


def test_a_model_card_names_the_gpu_of_its_times(int8: Path) -> None:
    artefact = read_artefact(int8 / "classifier.onnx")
    tradeoff = artefact.card.precision["tradeoff"] | {"gpu": {"name": "NVIDIA L4", "driver": "570.86.15"}}
    card = replace(artefact.card, precision=artefact.card.precision | {"tradeoff": tradeoff})
    assert ", NVIDIA L4, driver 570.86.15, ONNX Runtime" in model_card({"classifier": replace(artefact, card=card)})


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 56)])
@pytest.mark.parametrize(("pooling", "latent_activation"), [(True, True), (False, True), (True, False)])
def test_the_int8_graph_computes_what_the_network_does(
    pooling: bool, latent_activation: bool, channels: int, size: int, test_images: NDArray[np.uint8]
) -> None:
    network = random_classifier(pooling=pooling, latent_activation=latent_activation, channels=channels, size=size)
    images = test_images[:90].repeat(size // 28, axis=1).repeat(size // 28, axis=2)
    if channels == 3:
        images = np.stack([images, images[:, ::-1], images[:, :, ::-1]], axis=3)
    graph = int8_graph(network, images[:50])
    x = scale(images[50:90])
    with torch.no_grad():
        reference = network(torch.from_numpy(x)).numpy()
    difference = np.abs(Session(graph, threads=1).run(x) - reference)
    assert difference.max() < 0.03 * np.ptp(reference)


def test_no_weight_can_overflow_the_sums_of_older_processors(test_images: NDArray[np.uint8]) -> None:
    found = weights(int8_graph(random_classifier(), test_images[:20]))
    for name in ("conv2.weight", "linear.weight"):
        assert found[name].dtype == np.int8
        assert np.abs(found[name].astype(int)).max() == 63


def test_latent_units_that_are_never_active_are_left_out(test_images: NDArray[np.uint8]) -> None:
    network = random_classifier()
    with torch.no_grad():
        cast(nn.Linear, network.encoder[9]).bias[[3, 7]] = -100.0
    graph = int8_graph(network, test_images[:20])
    assert latent_units(graph) == 22 - int((_active(network, test_images[:20]) == 0).sum() - 2)
    x = scale(test_images[:20])
    with torch.no_grad():
        reference = network(torch.from_numpy(x)).numpy()
    assert np.abs(Session(graph, threads=1).run(x) - reference).max() < 0.03 * np.ptp(reference)


@torch.no_grad()
def _active(network: Classifier, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = (network.encoder(torch.from_numpy(scale(images))) > 0).sum(dim=0).numpy()
    return counts


def test_a_dead_network_still_has_a_graph(test_images: NDArray[np.uint8]) -> None:
    network = random_classifier()
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.zero_()
    x = scale(test_images[:3])
    with torch.no_grad():
        reference = network(torch.from_numpy(x)).numpy()
    assert np.array_equal(Session(int8_graph(network, test_images[:5])).run(x), reference)


def test_fp16_is_half_as_large_and_nearly_equal(
    trained_run: Path,
    dataset: Dataset,
    exported: Path,
    tmp_path: Path,
    test_images: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tradeoff, "is_slower", False)  # as on a GPU: most CPUs have no kernels for it
    files, tradeoff = export_smaller(open_run(trained_run), dataset, tmp_path, "fp16", budget_points=1)
    assert files[0].stat().st_size < 0.7 * (exported / "classifier.onnx").stat().st_size
    assert tradeoff.max_abs_difference < 0.1
    model = onnx.load(files[0])
    types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert types == {onnx.TensorProto.FLOAT16}
    assert load(tmp_path).classify(scale(test_images[:2])).dtype == np.float32


def test_fp16_that_is_slower_here_is_not_kept(
    cli: Callable[..., Any],
    trained_run: Path,
    int8: Path,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for int8: exit code 5, one line, and an earlier export stays as it is."""
    monkeypatch.setattr(Tradeoff, "is_slower", True)
    monkeypatch.setattr(Tradeoff, "is_faster", False)
    out = shutil.copytree(int8, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = cli("export", trained_run, "--precision", "fp16", "--budget", "5", "--data", sample, "--out", out)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (5, "", 1)
    assert "fp16 is not worth keeping, nothing was written: it is slower than float32 on cpu: " in result.stderr
    assert "times as fast at batch 256 (" in result.stderr and "fp16 is for CUDA: --provider cuda" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_too_much_accuracy_lost_writes_nothing(
    trained_run: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_WEIGHT_LIMIT", 1)
    with pytest.raises(
        GateError, match=r"int8 is not worth keeping.*it loses .* points of accuracy .*, and may lose 0.2 points"
    ):
        export_smaller(open_run(trained_run), dataset, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_classifier_says_so(
    trained_run: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmcae.export.artefacts.trained_networks", lambda run: {})
    with pytest.raises(RunError, match="has no classifier"):
        export_smaller(open_run(trained_run), dataset, tmp_path, "int8")


def test_the_command_line(
    cli: Callable[..., Any], trained_run: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "int8"
    result = cli("export", trained_run, "--precision", "int8", "--budget", "5", "--data", sample, "--out", out)
    assert (result.exit_code, "times as fast at batch 256" in result.stdout, result.stderr) == (0, True, "")
    assert result.stdout.count("int8 is worth keeping") == 1 and " float32 on cpu: " in result.stdout
    assert "classifier.onnx" in result.stdout
    monkeypatch.setattr(precision, "_WEIGHT_LIMIT", 1)
    before = (out / "classifier.onnx").read_bytes()
    result = cli("export", trained_run, "--precision", "int8", "--data", sample, "--out", out)
    assert (result.exit_code, result.stdout) == (5, "") and "not worth keeping" in result.stderr
    assert (out / "classifier.onnx").read_bytes() == before
    for wrong, code, message in (
        (("--precision", "int4"), 2, "'int4' is not one of 'fp32', 'int8', 'fp16'"),
        (("--precision", "int8", "--budget", "-1"), 2, "-1.0 is not in the range 0<=x<=100"),
        (("--precision", "int8", "--provider", "tpu"), 2, "'tpu' is not one of 'cpu', 'cuda'"),
        (("--provider", "cuda"), 2, "--provider cuda must be cpu for fp32"),
        (("--precision", "int8", "--provider", "cuda"), 4, "--provider cuda must be cpu, which int8 is made for"),
    ):
        result = cli("export", trained_run, *wrong, "--data", sample)
        assert (result.exit_code, result.stdout) == (code, "") and message in result.stderr
