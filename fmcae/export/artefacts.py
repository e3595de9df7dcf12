"""Trained networks become sealed artefacts, and nothing is written before a gate holds.

In float32 the gate is parity with PyTorch; for a smaller precision it is the accuracy that it loses. Each step is a
module: :mod:`graph` converts, :mod:`precision` makes smaller graphs, :mod:`parity` and :mod:`tradeoff` measure,
:mod:`calibration` fits temperature and threshold, :mod:`sealing` makes the files and :mod:`folder` writes them.
"""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fmcae.card import Golden, Kind
from fmcae.data import Dataset
from fmcae.errors import GateError, RunError, UsageError, command_line
from fmcae.export.calibration import calibrate, calibrated
from fmcae.export.folder import check_folder, write_export
from fmcae.export.graph import to_onnx
from fmcae.export.parity import Parity, measure_parity
from fmcae.export.picture import picture_artefact
from fmcae.export.precision import Half, SmallerPrecision, calibration_images, int8_graph, latent_units
from fmcae.export.sealing import make_card, seal_graph
from fmcae.export.tradeoff import ACCURACY_BUDGET, Tradeoff, measure_tradeoff
from fmcae.preprocess import scale
from fmcae.runtime.model import Artefact, file_name
from fmcae.runtime.session import Session
from fmcae.train.networks import Classifier
from fmcae.train.run import Run, check_data

# Float32 sums in another order differ by about 1e-5 here; a wrong weight, layer or scale differs by far more.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
# Integers do not differ between machines; what is left is the first convolution's rounding, which may move a sum's last bit.
SMALLER_TOLERANCE = {"int8": {"atol": 0.05, "rtol": 1e-3}, "fp16": {"atol": 0.05, "rtol": 1e-2}}


def export_run(
    run: Run, dataset: Dataset, folder: Path, teacher: bool = False, sample_code: bool = False
) -> tuple[list[Path], Parity]:
    """Export what ``run`` trained to ONNX files in ``folder``, if ONNX Runtime gives PyTorch's numbers on all of test.

    An autoencoder becomes ``encoder.onnx`` and ``decoder.onnx``, a classifier ``classifier.onnx``, calibrated on the
    validation images, and ``picture.onnx``, which takes pictures of any size. The result is the files written, and the
    parity evidence that the networks' cards carry.

    Args:
        teacher: export the robust recipe's teacher as ``classifier.onnx``, and nothing else.
        sample_code: write ``predict.py`` beside ``picture.onnx``, which runs it without fmcae.

    Raises:
        RunError: the run has no finished stage, or no teacher where one is asked for, or the data are not the run's.
        UsageError: ``folder`` holds something else than an earlier export, which this one would replace, or there is no
            classifier for the sample code.
        GateError: parity does not hold; nothing was written.
    """
    check_data(run, dataset)
    networks = trained_networks(run, teacher)
    if sample_code and "classifier" not in networks:
        raise UsageError(
            f"sample_code (={sample_code}) must come with a classifier, whose picture.onnx predict.py runs"
        )
    check_folder(folder, [*networks, "picture"])
    golden = golden_vectors(networks, dataset)
    graphs = {kind: to_onnx(network, kind, golden[kind].inputs) for kind, network in networks.items()}
    sessions = {kind: Session(graph) for kind, graph in graphs.items()}
    parity = measure_parity(networks, sessions, dataset.test, TOLERANCE)
    if not parity.passed:
        raise GateError(f"parity does not hold, nothing was written: {parity.failure}")
    calibration = {}
    if "classifier" in sessions:
        calibration = calibrate(sessions["classifier"], dataset)
        golden["classifier"] = calibrated(golden["classifier"], calibration["temperature"])
    artefacts: dict[Kind, Artefact] = {}
    for kind, graph in graphs.items():
        facts = calibration if kind == "classifier" else {}
        card = make_card(run, kind, golden[kind], TOLERANCE, parity.to_json(), calibration=facts, teacher=teacher)
        artefacts[kind] = seal_graph(folder / file_name(kind), graph, card, golden[kind])
    if "classifier" in artefacts:
        artefacts["picture"] = picture_artefact(artefacts["classifier"])
    return write_export(run, artefacts, folder, sample_code=sample_code), parity


def export_smaller(
    run: Run,
    dataset: Dataset,
    folder: Path,
    precision: SmallerPrecision,
    budget_points: float = ACCURACY_BUDGET,
    provider: str = "cpu",
    sample_code: bool = False,
) -> tuple[list[Path], Tradeoff]:
    """Export ``run``'s classifier in int8 or fp16 to ``folder``, if that costs little accuracy and gains size or speed.

    Its golden outputs and its calibration are its own, those of ``provider`` here. The result is the files written, and
    the tradeoff that the card carries.

    Args:
        budget_points: the loss of accuracy on test that is allowed, in hundredths.
        sample_code: as for :func:`export_run`.

    Raises:
        RunError: the run has no finished classifier, or the data are not the run's.
        UsageError: as for :func:`export_run`.
        ProviderError: ``provider`` is not one that the precision is made for, or not the one that would run.
        GateError: the tradeoff is not worth it; nothing was written.
    """
    check_data(run, dataset)
    network = trained_networks(run).get("classifier")
    if not isinstance(network, Classifier):
        raise RunError(f"{run.folder}: has no classifier; in {precision} nothing else is exported")
    check_folder(folder, ["classifier", "picture"])
    x = golden_vectors({"classifier": network}, dataset)["classifier"].inputs
    fp32 = to_onnx(network, "classifier", x)
    facts: dict[str, Any] = {"name": precision}
    if precision == "int8":
        images = calibration_images(dataset)
        graph = int8_graph(network, images)
        facts |= {"calibration_images": len(images), "latent_units": latent_units(graph)}
    else:
        graph = to_onnx(Half(copy.deepcopy(network)), "classifier", x)
    tradeoff = measure_tradeoff(graph, fp32, precision, dataset.test, budget_points, provider)
    if tradeoff.failure:
        raise GateError(f"{precision} is not worth keeping, nothing was written: {tradeoff.failure}")
    session = Session(graph, provider=provider, threads=1)
    calibration = calibrate(session, dataset)
    golden = calibrated(_with_labels(x, session.run(x), dataset.class_names), calibration["temperature"])
    facts["tradeoff"], test = asdict(tradeoff), {"test_accuracy": tradeoff.accuracy}
    tolerance = SMALLER_TOLERANCE[precision]
    card = make_card(run, "classifier", golden, tolerance, precision=facts, metrics=test, calibration=calibration)
    path = folder / file_name("classifier")
    artefacts: dict[Kind, Artefact] = {"classifier": seal_graph(path, graph, card, golden)}
    if "cpu" in card.providers:
        artefacts["picture"] = picture_artefact(artefacts["classifier"])
    return write_export(run, artefacts, folder, provider, sample_code), tradeoff


def trained_networks(run: Run, teacher: bool = False) -> dict[Kind, nn.Module]:
    """Load the networks of a run's finished stages, by the kind of artefact that each becomes, in evaluation mode.

    Args:
        teacher: load the robust recipe's teacher as the classifier, and nothing else.

    Raises:
        RunError: no stage is finished, or weights are damaged, or there is no teacher where one is asked for.
    """
    if teacher:
        if "teacher" not in run.config.stages:
            raise RunError(f"{run.folder}: has no teacher: train one with  fmcae train --recipe robust")
        return {"classifier": run.network("teacher")}
    networks: dict[Kind, nn.Module] = {}
    if run.weights("autoencoder").is_file():
        autoencoder = run.network("autoencoder")
        networks |= {"encoder": autoencoder.encoder, "decoder": autoencoder.decoder}  # type: ignore[dict-item]
    if run.weights("classifier").is_file():
        networks["classifier"] = run.network("classifier")
    if not run.finished and any(run.folder.glob("*.onnx")):
        raise RunError(f"{run.folder}: is an export, not a run: name the run that it comes from")
    if not run.finished or not networks:
        command = command_line("fmcae", "train", "--resume", "--out", run.folder)
        raise RunError(f"{run.folder}: is not finished; go on with  {command}")
    return networks


def golden_vectors(networks: dict[Kind, nn.Module], dataset: Dataset) -> dict[Kind, Golden]:
    """Make the golden vectors of each network: the first test image of each class, and PyTorch's outputs for them.

    There are at least two, which the exporter needs: a test image alone is there twice. A decoder's inputs are its
    encoder's outputs.
    """
    _, first = np.unique(dataset.test.labels, return_index=True)
    x = scale(dataset.test.images[first if len(first) > 1 else np.arange(2) % len(dataset.test)])
    golden: dict[Kind, Golden] = {}
    for kind, network in networks.items():
        inputs = golden["encoder"].outputs if kind == "decoder" else x
        with torch.no_grad():
            outputs = network.eval()(torch.from_numpy(inputs)).numpy()
        is_classifier = kind == "classifier"
        golden[kind] = _with_labels(inputs, outputs, dataset.class_names) if is_classifier else Golden(inputs, outputs)
    return golden


def _with_labels(x: NDArray[np.float32], logits: NDArray[np.float32], class_names: tuple[str, ...]) -> Golden:
    return Golden(x, logits, tuple(class_names[index] for index in logits.argmax(axis=1)))
