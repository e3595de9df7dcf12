"""``fmcae parity``: PyTorch against exported files, any time, on any provider."""

from pathlib import Path
from typing import Annotated

import typer

from fmcae.cli.options import (
    JsonOption,
    ProviderOption,
    RunDataOption,
    ThreadsOption,
    complete_model,
    complete_run,
    echo_parity,
    print_json,
    status,
)
from fmcae.errors import EXPORT_PACKAGES, GateError, UsageError, require_extra

RUN_HELP = "The run folder with PyTorch's weights."
EXPORT_HELP = "An exported file, a folder of them, or a run that is exported."


def parity(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=complete_run)],
    export: Annotated[str, typer.Argument(metavar="EXPORT", help=EXPORT_HELP, autocompletion=complete_model)],
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
    data: RunDataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare exported files with PyTorch on the test split.

    Labels must agree on every image and every difference be within the tolerance, or the exit code is 5.
    """
    require_extra("train", *EXPORT_PACKAGES)
    from fmcae.data import load_dataset
    from fmcae.export.artefacts import trained_networks
    from fmcae.export.parity import measure_parity
    from fmcae.runtime.model import load
    from fmcae.train.run import check_data, data_of, open_run

    opened = open_run(run)
    model = load(export, provider=provider, threads=threads)
    is_teacher = any(artefact.card.training.get("network") == "teacher" for artefact in model.artefacts.values())
    networks = trained_networks(opened, is_teacher)
    if missing := [kind for kind in model.artefacts if kind not in networks]:
        raise UsageError(f"export (={export}) must hold only what the run {run} trained; it has no {missing[0]}")
    smaller = [
        item.card.precision["name"] for item in model.artefacts.values() if item.card.precision["name"] != "fp32"
    ]
    if smaller:
        rule = "must be in float32; what it loses was measured by its export, and fmcae verify replays it"
        raise UsageError(f"export (={export}) {rule}: it is in {smaller[0]}")
    if list(model.artefacts) == ["decoder"]:
        raise UsageError(f"export (={export}) must come with its encoder: name the folder that holds both")
    # A provider that is missing is found before the data are read.
    sessions = {kind: model.session(kind) for kind in model.artefacts}
    network = opened.config.network
    if (model.channels, model.size) != (network.channels, network.size):
        own, other = (f"{item.channels}×{item.size}×{item.size}" for item in (model, network))
        raise UsageError(f"export (={export}) must be of the run {run}: it is for images {own}, the run's are {other}")
    dataset = load_dataset(data_of(opened, data), network.channels, network.size)
    check_data(opened, dataset)
    tolerance = next(iter(model.artefacts.values())).card.tolerance
    with status(f"comparing {export} with {run} on {len(dataset.test):,} images ..."):
        evidence = measure_parity(networks, sessions, dataset.test, tolerance)
    if as_json:
        print_json(evidence.to_json())
    else:
        echo_parity(evidence.to_json())
    if not evidence.passed:
        raise GateError(f"parity does not hold: {evidence.failure}")
