"""The model card for people: Markdown from ``model_card.md.jinja``, made of the cards that the artefacts carry."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from fmcae.card import Card, Kind, parity_lines
from fmcae.export.markdown import render
from fmcae.export.tradeoff import Tradeoff
from fmcae.runtime.model import Artefact

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def model_card(artefacts: Mapping[Kind, Artefact]) -> str:
    """Render the model card of the artefacts of one export."""
    files = list(artefacts.values())
    artefacts = {kind: artefact for kind, artefact in artefacts.items() if kind != "picture"}
    cards = [artefact.card for artefact in artefacts.values()]
    network = cards[0].training["config"]["network"]
    return render(
        TEMPLATE,
        {"text": _as_text},
        files=files,
        foreign_operators=_foreign_operators(files),
        artefacts=list(artefacts.values()),
        card=cards[0],
        runs=_training_runs([card.training for card in cards]),
        kept=_kept(cards),
        measured={name: value for card in cards for name, value in card.metrics.items() if name != "confusion"},
        confusion=next((card.metrics["confusion"] for card in cards if "confusion" in card.metrics), None),
        calibration=next((card.calibration for card in cards if card.calibration), None),
        tradeoff=Tradeoff.from_json(cards[0].precision["tradeoff"]) if "tradeoff" in cards[0].precision else None,
        parity_lines=parity_lines(cards[0].parity) if cards[0].parity else None,
        has_grey_edge="decoder" in artefacts and network["pooling"] and network.get("decoder_padding", True),
    )


def _as_text(name: str) -> str:
    """A foreign name on one line, in which nothing is Markdown or HTML."""
    return re.sub(r"[^\w\s.,:;()/+%-]|(?<!\w)_|_(?!\w)", lambda found: f"&#{ord(found[0])};", " ".join(name.split()))


def _foreign_operators(files: list[Artefact]) -> list[str]:
    """The operators in the files that are not ONNX's own, such as com.microsoft.QLinearConv."""
    nodes = [node for file in files for node in onnx.ModelProto.FromString(file.content).graph.node]
    return sorted({f"{node.domain}.{node.op_type}" for node in nodes if node.domain})


def _training_runs(trainings: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """What was trained, and its facts: one run, or two where a classifier started from another run's autoencoder."""
    first, last = trainings[-1].get("autoencoder", trainings[0]), trainings[-1]
    is_one = first["name"] == last["name"] and first["started"] == last["started"]
    return [("Networks", last)] if is_one else [("Autoencoder", first), ("Classifier", last)]


def _kept(cards: list[Card]) -> dict[str, dict[str, Any]]:
    """By network, the facts of the training that it comes from, where they say which epoch is kept."""
    found: dict[str, dict[str, Any]] = {}
    for card in cards:
        training = card.training
        if "autoencoder" in training:
            found["autoencoder"] = training["autoencoder"]
        name = "classifier" if card.kind == "classifier" else "autoencoder"
        found[training.get("network", name)] = training
    return {name: training for name, training in found.items() if "kept_epoch" in training}
