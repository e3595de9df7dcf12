"""A graph becomes an artefact: its card is filled from the run, and card, golden vectors and seal go into the file."""

from pathlib import Path
from typing import Any

import onnx

import fmcae
from fmcae.card import (
    CARD_KEY,
    GOLDEN_KEY,
    KEPT,
    NAMES_KEY,
    SEAL_KEY,
    TENSORS,
    Card,
    Golden,
    GoldenPictures,
    Kind,
    seal,
)
from fmcae.preprocess import description
from fmcae.runtime.model import Artefact
from fmcae.train.config import NetworkConfig
from fmcae.train.run import Run

_RANGES = {"x": "[0, 1]", "x_hat": "[0, 1]", "z": "(-inf, inf)", "logits": "(-inf, inf)"}


def make_card(
    run: Run,
    kind: Kind,
    golden: Golden,
    tolerance: dict[str, float],
    parity: dict[str, Any] | None = None,
    precision: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    calibration: dict[str, Any] | None = None,
    teacher: bool = False,
) -> Card:
    """Fill the card of one artefact with the facts of the run that trained its network.

    The encoder and decoder of an adopted autoencoder carry the facts of the run that trained it, and the classifier that
    started from it has them in ``training["autoencoder"]``.

    Args:
        parity: the evidence that ONNX Runtime gives PyTorch's numbers; None where it was not measured.
        precision: None for float32.
        metrics: None for what PyTorch measured on test at the end of training.
        calibration: what :func:`fmcae.export.calibration.calibrate` gave; None where it was not called.
        teacher: the network is the robust recipe's teacher, which ``training["network"]`` says then.
    """
    stage = "teacher" if teacher else "classifier" if kind == "classifier" else "autoencoder"
    training = run.facts(stage) | run.kept(stage)
    if teacher:
        training["network"] = "teacher"
    if kind == "classifier" and run.config.stage == "classifier" and run.config.encoder_init == "pretrained":
        training["autoencoder"] = run.facts("autoencoder") | run.kept("autoencoder")
    if metrics is None:
        metrics = {name: value for name, value in run.test_record(stage).items() if name not in KEPT}
    return Card(
        kind=kind,
        name=training["name"],
        fmcae_version=fmcae.__version__,
        class_names=tuple(run.data["class_names"]),
        input=_tensor(TENSORS[kind][0], golden.inputs.shape, run.config.network),
        output=_tensor(TENSORS[kind][1], golden.outputs.shape, run.config.network),
        preprocessing=description(run.config.network.channels, run.config.network.size),
        training=training,
        metrics=metrics,
        parity=parity or {},
        tolerance=tolerance,
        precision=precision or {"name": "fp32"},
        calibration=calibration or {},
    )


def seal_graph(path: Path, graph: bytes, card: Card, golden: Golden | GoldenPictures) -> Artefact:
    """Put card, golden vectors and seal into the metadata of a graph that has none; ``path`` is where it will lie.

    Netron, ONNX Runtime and others show the description and the version, which is the date on which the training started,
    such as 20261126; tools that know Ultralytics' exports read ``names``.
    """
    model = onnx.ModelProto.FromString(graph)
    date = card.training["started"][:10].replace("-", "")
    model.doc_string, model.model_version = describe(card), int(date) if date.isdecimal() else 0
    entries = {CARD_KEY: card.to_json(), GOLDEN_KEY: golden.to_text()}
    if card.kind in ("classifier", "picture"):
        entries[NAMES_KEY] = str(dict(enumerate(card.class_names)))
    content = model.SerializeToString(deterministic=True)
    entries[SEAL_KEY] = seal(content, entries[CARD_KEY], entries[GOLDEN_KEY], entries.get(NAMES_KEY))
    onnx.helper.set_model_props(model, entries)
    return Artefact(path, model.SerializeToString(deterministic=True), card, entries[GOLDEN_KEY])


def describe(card: Card) -> str:
    """What a file is, in a sentence or three: its kind, input and output, data set and accuracy."""

    def tensor(spec: dict[str, Any]) -> str:
        return f"{spec['name']} ({', '.join(map(str, spec['shape']))}) {spec['dtype']} in {spec['range']}"

    kind = "picture classifier" if card.kind == "picture" else card.kind
    text = f"The {kind} of run {card.name}, trained on {card.training['data']['name']} and exported by fmcae "
    text += f"{card.fmcae_version} in {card.precision['name']}: {tensor(card.input)} -> {tensor(card.output)}."
    if "test_accuracy" in card.metrics:
        text += f" Test accuracy {card.metrics['test_accuracy']:.4f}."
    return f"{text} fmcae info prints its card, and fmcae verify replays its golden vectors."


def _tensor(name: str, shape: tuple[int, ...], network: NetworkConfig) -> dict[str, Any]:
    values = "[0, inf)" if name == "z" and network.latent_activation else _RANGES[name]
    return {"name": name, "shape": ["batch", *shape[1:]], "dtype": "float32", "range": values}
