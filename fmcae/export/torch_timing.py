"""The PyTorch side of ``fmcae bench``: an artefact's own network and weights, run eagerly beside ONNX Runtime."""

from collections.abc import Callable

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from fmcae.errors import ArtefactError, FmcaeError
from fmcae.runtime.model import Artefact
from fmcae.runtime.session import NVIDIA, short_reason
from fmcae.runtime.timing import Runner
from fmcae.train.config import NetworkConfig
from fmcae.train.networks import Classifier, Decoder, Encoder

_NETWORKS: dict[str, type[nn.Module]] = {"encoder": Encoder, "decoder": Decoder, "classifier": Classifier}


def load_network(artefact: Artefact) -> nn.Module:
    """Rebuild the network that an artefact was exported from, in evaluation mode: its card's shape, its file's weights.

    Raises:
        ArtefactError: the artefact is a teacher or has another precision than float32, the file's weights are not this
            network's, or the network does not reproduce the golden vectors.
    """
    card = artefact.card
    if card.training.get("network") == "teacher" or card.precision["name"] != "fp32":
        raise ArtefactError(f"{artefact.path}: only float32 graphs of the paper's networks are rebuilt in PyTorch")
    wrong = ArtefactError(f"{artefact.path}: its weights are not those of the network that its card describes")
    try:
        network = _NETWORKS[card.kind](NetworkConfig(**card.training["config"]["network"]))
        names = network.state_dict().keys()
        initializers = onnx.load_from_string(artefact.content).graph.initializer
        weights = {item.name: numpy_helper.to_array(item).copy() for item in initializers if item.name in names}
        network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except (KeyError, TypeError, RuntimeError, FmcaeError) as error:
        raise wrong from error
    network.eval()
    golden, tolerance = artefact.golden, card.tolerance
    with torch.inference_mode():
        outputs = network(torch.from_numpy(golden.inputs)).numpy()
    if not np.allclose(outputs, golden.outputs, rtol=tolerance["rtol"], atol=tolerance["atol"]):
        raise wrong
    return network


def pytorch_baselines(
    artefact: Artefact, provider: str, threads: int
) -> Callable[[NDArray[np.float32]], dict[str, Runner]]:
    """Return a function that makes the runners of PyTorch's series for an input: numpy in, numpy out.

    The series are "pytorch-cpu", or beside a provider on NVIDIA's GPUs "pytorch-cuda" and "pytorch-cuda-resident".
    PyTorch's threads, and full float32 on CUDA, are set for the whole process.

    Raises:
        ArtefactError: the artefact cannot be rebuilt in PyTorch.
        FmcaeError: PyTorch has no CUDA here, or fails on it.
    """
    if provider in NVIDIA and not torch.cuda.is_available():
        raise FmcaeError("it has no cuda here")
    torch.set_num_threads(threads)
    network = load_network(artefact)
    if provider not in NVIDIA:
        return lambda x: {"pytorch-cpu": lambda: _run(network, torch.from_numpy(x)).numpy()}
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    # The session has TF32 off; PyTorch has it on for convolutions unless told.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]

    def on_cuda(x: NDArray[np.float32]) -> dict[str, Runner]:
        host_x, device_x = torch.from_numpy(x), torch.from_numpy(x).to("cuda")

        def resident() -> None:
            _run(network, device_x)
            torch.cuda.synchronize()

        return {
            "pytorch-cuda": lambda: _run(network, host_x.to("cuda")).cpu().numpy(),
            "pytorch-cuda-resident": resident,
        }

    try:
        network.to("cuda")
        for run in on_cuda(artefact.golden.inputs).values():
            run()
    except RuntimeError as error:  # such as cuDNN's, when ONNX Runtime has loaded another version of it
        raise FmcaeError(f"it fails on CUDA: {short_reason(error)}") from error
    return on_cuda


@torch.inference_mode()
def _run(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network(x)  # type: ignore[no-any-return]
