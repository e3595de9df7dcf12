from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fmcae.card import Kind
from fmcae.errors import ArtefactError, FmcaeError
from fmcae.export.torch_timing import load_network, pytorch_baselines
from fmcae.runtime.model import Artefact, read_artefacts


@pytest.fixture(scope="module")
def artefacts(shipped: Path) -> dict[Kind, Artefact]:
    return read_artefacts(shipped)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "classifier"])
def test_the_network_in_pytorch_gives_the_artefacts_outputs(artefacts: dict[Kind, Artefact], kind: Kind) -> None:
    golden = artefacts[kind].golden
    threads = torch.get_num_threads()
    runners = pytorch_baselines(artefacts[kind], "cpu", threads)(golden.inputs)
    assert list(runners) == ["pytorch-cpu"]
    outputs = runners["pytorch-cpu"]()
    assert isinstance(outputs, np.ndarray)
    np.testing.assert_allclose(outputs, golden.outputs, rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_the_cards_are_not_timed(artefacts: dict[Kind, Artefact]) -> None:
    encoder = artefacts["encoder"]
    training = encoder.card.training
    network = training["config"]["network"]
    wider = {**training, "config": {**training["config"], "network": {**network, "latent_dim": 7}}}
    unknown = {**training, "config": {**training["config"], "network": {"layers": 3}}}
    for broken in (
        replace(encoder, card=replace(encoder.card, training=wider)),
        replace(encoder, card=replace(encoder.card, training=unknown)),
        replace(encoder, card=replace(encoder.card, training={})),
        replace(encoder, golden_text=replace(encoder.golden, outputs=encoder.golden.outputs + 1).to_text()),
        replace(encoder, content=artefacts["decoder"].content),
    ):
        with pytest.raises(ArtefactError, match="weights are not those of the network that its card describes"):
            load_network(broken)


@pytest.mark.parametrize("name", ["fashion-mnist-int8", "fashion-mnist-large"])
def test_other_networks_than_the_papers_in_float32_are_not_timed(name: str) -> None:
    with pytest.raises(ArtefactError, match="only float32 graphs of the paper's networks are rebuilt in PyTorch"):
        load_network(read_artefacts(name)["classifier"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_pytorch_without_cuda_says_so(artefacts: dict[Kind, Artefact]) -> None:
    with pytest.raises(FmcaeError, match="it has no cuda here"):
        pytorch_baselines(artefacts["encoder"], "cuda", 1)
