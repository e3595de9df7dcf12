"""PyTorch to ONNX: trained networks become sealed artefacts, and nothing is written before parity holds.

Opset 18 and IR version 8 are what ONNX Runtime has read since 1.14, older than the oldest version that fmcae declares.
"""

import copy
import json
import warnings
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import fmcae
from fmcae.card import CARD_KEY, GOLDEN_KEY, SEAL_KEY, Card, Golden, Kind, seal
from fmcae.data import Dataset
from fmcae.errors import GateError, RunError, UsageError
from fmcae.export.model_card import model_card
from fmcae.export.parity import Parity, measure_parity
from fmcae.export.precision import (
    ACCURACY_BUDGET,
    FP16_TOLERANCE,
    INT8_TOLERANCE,
    Half,
    Precision,
    Verdict,
    calibration_images,
    int8_graph,
    judge,
    latent_units,
)
from fmcae.files import write_all_atomic
from fmcae.preprocess import DESCRIPTION, scale
from fmcae.runtime.model import Artefact, Model, file_name
from fmcae.runtime.verify import verify
from fmcae.train.networks import Classifier
from fmcae.train.run import CONFIG, METRICS, Run, check_data

OPSET, IR_VERSION = 18, 8
# Float32 sums in another order differ by about 1e-5 here; a wrong weight, layer or scale differs by far more.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
MODEL_CARD = "MODEL_CARD.md"
USED_PIXELS = 26  # of 28, by pooling: 5·2 rows of the second convolution, ·2 of the first block, +2 for each kernel


def export_run(run: Run, dataset: Dataset, folder: Path) -> tuple[list[Path], Parity]:
    """Export what ``run`` trained to ONNX files in ``folder``, if ONNX Runtime gives PyTorch's numbers on all of test.

    An autoencoder becomes ``encoder.onnx`` and ``decoder.onnx``, a classifier ``classifier.onnx``; beside them go a
    model card and the run's configuration and metrics.

    Returns:
        The files written, and the parity evidence that their cards carry.

    Raises:
        RunError: the run has no finished stage, or the data are not the run's.
        UsageError: ``folder`` holds something else than an earlier export, which this one would replace.
        GateError: parity does not hold; nothing was written.
    """
    check_data(run, dataset)
    networks = trained_networks(run)
    _check_folder(folder, networks)
    test_x = scale(dataset.test.images[_one_of_each_class(dataset)])
    artefacts = {
        kind: _artefact(run, kind, network, test_x, folder / file_name(kind)) for kind, network in networks.items()
    }
    parity = measure_parity(networks, Model(artefacts), dataset.test)
    if not parity.passed:
        raise GateError(f"parity does not hold, nothing was written: {parity.failure}")
    evidence = parity.to_json()
    artefacts = {
        kind: _sealed(artefact.path, artefact.content, replace(artefact.card, parity=evidence), artefact.golden)
        for kind, artefact in artefacts.items()
    }
    return _write(run, artefacts, folder), parity


def export_smaller(
    run: Run,
    dataset: Dataset,
    folder: Path,
    precision: Precision,
    budget_points: float = ACCURACY_BUDGET,
    provider: str = "cpu",
) -> tuple[list[Path], Verdict]:
    """Export ``run``'s classifier in int8 or fp16 to ``folder``, if that costs little accuracy and gains size or speed.

    Its golden outputs are its own, those of ``provider`` here.

    Args:
        budget_points: the loss of accuracy on test that is allowed, in hundredths.

    Returns:
        The files written, and the verdict that the card carries.

    Raises:
        RunError: the run has no finished classifier, or the data are not the run's.
        UsageError: as for :func:`export_run`.
        ProviderError: ``provider`` is not the one that would run.
        GateError: the verdict is against it; nothing was written.
    """
    check_data(run, dataset)
    network = trained_networks(run).get("classifier")
    if not isinstance(network, Classifier):
        raise RunError(f"{run.folder}: has no classifier; in {precision} nothing else is exported")
    _check_folder(folder, ["classifier"])
    x = scale(dataset.test.images[_one_of_each_class(dataset)])
    path = folder / file_name("classifier")
    fp32 = _artefact(run, "classifier", network, x, path)
    facts: dict[str, Any] = {"name": precision}
    if precision == "int8":
        calibration = calibration_images(dataset)
        model, tolerance = int8_graph(network, calibration), INT8_TOLERANCE
        facts |= {"calibration_images": len(calibration), "latent_units": latent_units(model)}
    else:
        model, tolerance = to_onnx(Half(copy.deepcopy(network)), "classifier", x), FP16_TOLERANCE
    draft = _sealed(path, model.SerializeToString(deterministic=True), fp32.card, fp32.golden)
    verdict = judge(draft, fp32, dataset.test, budget_points, provider)
    if verdict.failure:
        raise GateError(f"{precision} is not worth keeping, nothing was written: {verdict.failure}")
    outputs = draft.session(provider, 1).run(x)
    labels = tuple(fp32.card.class_names[index] for index in outputs.argmax(axis=1))
    card = replace(
        fp32.card,
        precision={**facts, "verdict": verdict.to_json()},
        metrics={"test_accuracy": verdict.accuracy},
        tolerance=tolerance,
    )
    return _write(run, {"classifier": _sealed(path, draft.content, card, Golden(x, outputs, labels))}, folder), verdict


def _write(run: Run, artefacts: dict[Kind, Artefact], folder: Path) -> list[Path]:
    """Verify the artefacts, and write them and their companions, all or none."""
    for artefact in artefacts.values():
        if failure := verify(artefact).failure:
            raise GateError(f"{artefact.path.name}: {failure}; nothing was written")
    files: dict[str, bytes | str] = {artefact.path.name: artefact.content for artefact in artefacts.values()}
    files[MODEL_CARD] = model_card({kind: artefact.card for kind, artefact in artefacts.items()}, files)
    files |= {name: (run.folder / name).read_bytes() for name in (CONFIG, METRICS)}
    folder.mkdir(parents=True, exist_ok=True)
    write_all_atomic({folder / name: content for name, content in files.items()})
    return [folder / name for name in files]


def _check_folder(folder: Path, kinds: Collection[Kind]) -> None:
    """Nothing but an earlier export is ever overwritten, and that as a whole: graphs of two runs do not fit together."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"out (={folder}) must be a folder; it is a file")
    graphs = {file_name(kind) for kind in kinds}
    present = {path.name for path in folder.iterdir()}
    strange = sorted(present - graphs - {MODEL_CARD, CONFIG, METRICS})
    if present and not present & graphs:  # a run that has just begun looks like this
        strange = sorted(present)
    if strange:
        raise UsageError(
            f"out (={folder}) must be new, empty or hold an earlier export of the kind; it holds {strange[0]}"
        )


def trained_networks(run: Run) -> dict[Kind, nn.Module]:
    """The networks of a run's finished stages, by the kind of artefact that each becomes, in evaluation mode.

    Raises:
        RunError: no stage is finished, or weights are damaged.
    """
    networks: dict[Kind, nn.Module] = {}
    if run.weights("autoencoder").is_file():
        autoencoder = run.network("autoencoder")
        networks |= {"encoder": autoencoder.encoder, "decoder": autoencoder.decoder}  # type: ignore[dict-item]
    if run.weights("classifier").is_file():
        networks["classifier"] = run.network("classifier")
    if not run.finished or not networks:
        raise RunError(f"{run.folder}: is not finished; go on with  fmcae train --resume --out {run.folder}")
    return networks


def to_onnx(network: nn.Module, kind: Kind, example: NDArray[np.float32]) -> onnx.ModelProto:
    """An ONNX graph of ``network`` with named input and output and a dynamic batch, checked by ONNX's own checker.

    Args:
        example: an input (2 or more, ...) float32.
    """
    input_name, output_name = INPUT_NAMES[kind], OUTPUT_NAMES[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not the user's
        program = torch.onnx.export(
            network.eval(),
            (torch.from_numpy(example),),
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # only where the exporter writes a file itself
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    # The exporter notes where in the Python source each node comes from; that is of no use in an artefact.
    del model.metadata_props[:], model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del item.metadata_props[:]
        item.doc_string = ""
    if any(isinstance(layer, nn.MaxPool2d) for layer in network.modules()) and input_name == "x":
        _crop(model, USED_PIXELS)
    onnx.checker.check_model(model, full_check=True)
    return model


def _crop(model: onnx.ModelProto, size: int) -> None:
    """Cut x to its first ``size`` rows and columns, which leaves every output as it was.

    Pooling drops the odd row and column of 11×11; what these alone depend on need not be computed, a sixth of both
    convolutions.
    """
    graph = model.graph
    bounds = {"crop.starts": [0, 0], "crop.ends": [size, size], "crop.axes": [2, 3]}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array(value), name) for name, value in bounds.items())
    del graph.value_info[:]  # the sizes between the nodes, which change
    for node in graph.node:
        node.input[:] = ["x_used" if name == "x" else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("Slice", ["x", *bounds], ["x_used"]))


INPUT_NAMES: dict[Kind, str] = {"encoder": "x", "decoder": "z", "classifier": "x"}
OUTPUT_NAMES: dict[Kind, str] = {"encoder": "z", "decoder": "x_hat", "classifier": "logits"}


def _artefact(run: Run, kind: Kind, network: nn.Module, x: NDArray[np.float32], path: Path) -> Artefact:
    """A sealed artefact without parity evidence; x (G, 1, 28, 28) float32 are the golden images."""
    if kind == "decoder":
        x = _reference(run.network("autoencoder").encoder, x)
    outputs = _reference(network, x)
    class_names = tuple(run.data["class_names"])
    labels = tuple(class_names[index] for index in outputs.argmax(axis=1)) if kind == "classifier" else ()
    card = Card(
        kind=kind,
        name=run.folder.resolve().name,
        fmcae_version=fmcae.__version__,
        class_names=class_names,
        input=_tensor_spec(INPUT_NAMES[kind], x.shape),
        output=_tensor_spec(OUTPUT_NAMES[kind], outputs.shape),
        preprocessing=DESCRIPTION,
        training=_training_facts(run),
        metrics=_test_metrics(run, "classifier" if kind == "classifier" else "autoencoder"),
        parity={},
        tolerance=TOLERANCE,
    )
    model = to_onnx(network, kind, x)
    return _sealed(path, model.SerializeToString(deterministic=True), card, Golden(x, outputs, labels))


def _sealed(path: Path, content: bytes, card: Card, golden: Golden) -> Artefact:
    """The model's bytes with card, golden vectors and seal in its metadata, whatever metadata it had before."""
    model = onnx.ModelProto.FromString(content)
    del model.metadata_props[:]
    body = model.SerializeToString(deterministic=True)
    entries = {CARD_KEY: card.to_json(), GOLDEN_KEY: golden.to_text()}
    entries[SEAL_KEY] = seal(body, entries[CARD_KEY], entries[GOLDEN_KEY])
    onnx.helper.set_model_props(model, entries)
    return Artefact(path, model.SerializeToString(deterministic=True), card, entries[GOLDEN_KEY])


def _training_facts(run: Run) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run.folder / CONFIG).read_text())
    del values["schema_version"]
    for folder in ("data", "autoencoder_from"):  # where things lay on one machine is nobody else's business
        del values["config"][folder]
    return values


def _test_metrics(run: Run, stage: str) -> dict[str, Any]:
    for record in run.metrics():
        if record["stage"] == stage and record.get("split") == "test":
            return {name: value for name, value in record.items() if name not in ("stage", "split")}
    return {}


def _tensor_spec(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    ranges = {"x": "[0, 1]", "x_hat": "[0, 1]", "z": "[0, inf)", "logits": "(-inf, inf)"}
    return {"name": name, "shape": ["batch", *shape[1:]], "dtype": "float32", "range": ranges[name]}


def _one_of_each_class(dataset: Dataset) -> NDArray[np.intp]:
    """Indices of the first test image of each class that test has; at least two, which the exporter needs."""
    _, first = np.unique(dataset.test.labels, return_index=True)
    return first if len(first) > 1 else np.arange(min(2, len(dataset.test)))


@torch.no_grad()
def _reference(network: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return network.eval()(torch.from_numpy(x)).numpy()  # type: ignore[no-any-return]
