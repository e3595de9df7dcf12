"""The precisions that an artefact may have, the providers of ONNX Runtime, and which of these each is made for."""

from typing import Literal, get_args

from fmcae.errors import ProviderError

Precision = Literal["fp32", "int8", "fp16"]
Provider = Literal["cpu", "cuda", "openvino", "tensorrt", "dml", "coreml"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
# CUDA and OpenVINO have no kernels for the integer operators of int8, and would leave them to the CPU.
PRECISION_PROVIDERS: dict[str, tuple[str, ...]] = {"fp32": PROVIDERS, "int8": ("cpu",), "fp16": ("cpu", "cuda")}


def check_made_for(precision: str, provider: str) -> None:
    """Raise ProviderError if a precision is not made for a provider."""
    providers = PRECISION_PROVIDERS[precision]
    if provider not in providers:
        raise ProviderError(f"provider (={provider}) must be {' or '.join(providers)}, which {precision} is made for")
