"""fmcae: a small image classifier from training to the edge.

    >>> import fmcae
    >>> model = fmcae.load()                      # the classifier, encoder and decoder that ship with fmcae
    >>> prediction = model.predict("exports/samples/bag.png")
    >>> prediction.label, prediction.known        # known_score says how much it looks like what was trained on
    ('Bag', True)
    >>> from fmcae.preprocess import preprocess
    >>> x = preprocess("exports/samples/bag.png")[None]  # (1, 1, 28, 28) float32 in [0, 1]
    >>> logits = model.classify(x)                # (1, 10) float32
    >>> z = model.encode(x)                       # (1, 128) float32
    >>> x_hat = model.decode(z)                   # (1, 1, 28, 28) float32 in [0, 1]
    >>> fmcae.verify("exports/fashion-mnist/classifier.onnx").passed
    True

Nothing heavy is imported before it is used, and torch never.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fmcae.card import Card
    from fmcae.errors import (
        ArtefactError,
        DataError,
        FmcaeError,
        GateError,
        ImageError,
        MissingExtraError,
        ProviderError,
        RunError,
        UsageError,
    )
    from fmcae.runtime.model import Artefact, Model, Prediction, load, read_artefact
    from fmcae.runtime.verify import Difference, Verification, verify

__all__ = [
    "Artefact", "ArtefactError", "Card", "DataError", "Difference", "FmcaeError", "GateError", "ImageError",
    "MissingExtraError", "Model", "Prediction", "ProviderError", "RunError", "UsageError", "Verification",
    "__version__", "load", "read_artefact", "verify",
]  # fmt: skip

_MODULES = {"Card": "fmcae.card"}
_MODULES |= dict.fromkeys(("Difference", "Verification", "verify"), "fmcae.runtime.verify")
_MODULES |= dict.fromkeys(("Artefact", "Model", "Prediction", "load", "read_artefact"), "fmcae.runtime.model")
_MODULES |= {name: "fmcae.errors" for name in __all__ if name.endswith("Error")}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fmcae' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
