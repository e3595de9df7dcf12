"""A prediction as JSON: what ``fmcae predict --json`` prints and ``fmcae serve`` answers, made in one place."""

import json
import math
from typing import TYPE_CHECKING, Any

from fmcae.errors import UsageError

if TYPE_CHECKING:
    from fmcae.runtime.model import Model, Prediction
    from fmcae.runtime.predict import Outcome

JSON_SCHEMA_VERSION = 1
RANK_COLUMNS = ("label", "index", "probability")
KNOWN_COLUMNS = ("known", "known_score")


def json_text(values: Any, indent: int | None = None) -> str:
    """``values`` as JSON in ASCII, which any encoding of stdout can show; a number that is not finite becomes null."""
    return json.dumps(without_what_json_lacks(values), indent=indent, allow_nan=False)


def without_what_json_lacks(values: Any) -> Any:
    """``values`` with null for a number that is not finite, and with escapes for what UTF-8 cannot hold."""
    if isinstance(values, str):  # a file name in an unknown encoding has lone surrogates
        return values.encode("utf-8", "backslashreplace").decode()
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, dict):
        return {key: without_what_json_lacks(value) for key, value in values.items()}
    return [without_what_json_lacks(value) for value in values] if isinstance(values, list | tuple) else values


def check_top_k(top_k: int, class_names: tuple[str, ...]) -> int:
    """Return ``top_k`` itself; raise UsageError if there are fewer classes, or it is below 1."""
    if not 1 <= top_k <= len(class_names):
        raise UsageError(f"top_k (={top_k}) must be an integer from 1 to {len(class_names)}, the number of classes")
    return top_k


def facts_of(model: "Model") -> dict[str, str]:
    """What each prediction says of the classifier that made it: the provider that runs it, and its file."""
    return {"provider": model.session("classifier").provider, "model": str(model.artefacts["classifier"].path)}


def ranked_labels(prediction: "Prediction", class_names: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    """The ``top_k`` most probable labels, the first one first, each with RANK_COLUMNS."""
    probabilities = prediction.probabilities
    order = (-probabilities).argsort(kind="stable")[:top_k].tolist()
    return [dict(zip(RANK_COLUMNS, (class_names[i], i, float(probabilities[i])), strict=True)) for i in order]


def outcome_values(outcome: "Outcome", ranked: list[dict[str, Any]], facts: dict[str, str]) -> dict[str, Any]:
    """One picture's element of ``predictions``: its prediction with its ``ranked`` labels, or its error."""
    if outcome.prediction is None:
        return {"path": outcome.path, "error": str(outcome.error)}
    known = {name: getattr(outcome.prediction, name) for name in KNOWN_COLUMNS}
    probabilities = outcome.prediction.probabilities.tolist()
    values = {"path": outcome.path, **ranked[0], **known, "probabilities": probabilities, **facts}
    return values | ({"top_k": ranked} if len(ranked) > 1 else {})
