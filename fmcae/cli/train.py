"""``fmcae train``: the paper's two stages, into one run folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmcae.cli.options import RUNS_FOLDER, DataOption, ThreadsOption, note
from fmcae.cli.progress import watch_training
from fmcae.errors import RunError, UsageError, require_train_extra

if TYPE_CHECKING:
    from fmcae.train.config import TrainConfig
    from fmcae.train.run import Run


def _one_of(name: str, choices: str, help_text: str) -> Any:
    """An option with ``choices`` ("a|b|c"), which the shell completes and TrainConfig checks."""
    return typer.Option(
        name,
        metavar=choices,
        help=help_text,
        autocompletion=lambda incomplete: [choice for choice in choices.split("|") if choice.startswith(incomplete)],
    )


def train(
    context: typer.Context,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run folder. [default: runs/<date>-<time>]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest unfinished one.")
    ] = False,
    stage: Annotated[
        str | None,
        _one_of(
            "--stage",
            "both|autoencoder|classifier",
            "What to train. [default: both; classifier with --from or --encoder random]",
        ),
    ] = None,
    autoencoder_from: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Start the classifier from this run's autoencoder.")
    ] = None,
    latent_dim: Annotated[int, typer.Option("--latent-dim", metavar="N", help="Size of z, the paper's n.")] = 128,
    dropout: Annotated[float, typer.Option("--dropout", metavar="P", help="Dropout probability, the paper's p.")] = 0.1,
    dropout_position: Annotated[
        str, _one_of("--dropout-position", "before-pooling|after-pooling", "Where the encoder drops.")
    ] = "after-pooling",
    output_dropout: Annotated[
        bool, typer.Option("--output-dropout/--no-output-dropout", help="Drop the decoder's output too.")
    ] = False,
    pooling: Annotated[bool, typer.Option("--pooling/--no-pooling", help="Max pooling in the encoder.")] = True,
    encoder: Annotated[
        str, _one_of("--encoder", "pretrained|random", "Where the classifier's encoder starts.")
    ] = "pretrained",
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder/--fine-tune", help="Keep the encoder's weights, or train them on.")
    ] = False,
    labels: Annotated[
        int | None,
        typer.Option("--labels", metavar="N", help="Labelled images that the classifier sees. [default: all of train]"),
    ] = None,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr", metavar="LR", help="Adam's.")] = 0.001,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Images per mini-batch.")] = 100,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", help="Epochs of each stage.")] = 30,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of weights, batch order and dropout.")] = 0,
    device: Annotated[str, _one_of("--device", "auto|cpu|cuda", "Where to train.")] = "auto",
    threads: ThreadsOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Plain lines instead of a progress bar.")] = False,
) -> None:
    """Train the autoencoder, then the classifier on its encoder.

    The defaults are the paper's best configuration. Stop it any way you like: --resume goes on from the last whole
    epoch, to the same weights, bit for bit, as without the stop.
    """
    require_train_extra("torch", "safetensors", "numba", "matplotlib")
    run: Run | None = None
    try:  # from here on: importing torch takes seconds, and a user may stop that too
        from fmcae.data import load_dataset
        from fmcae.runtime.machine import available_cpus
        from fmcae.train.config import NetworkConfig, TrainConfig
        from fmcae.train.loop import adopt_autoencoder, resolve_device
        from fmcae.train.loop import train as train_run
        from fmcae.train.run import create_run

        # Every option is checked here, before the data are read.
        if stage is None:
            stage = "classifier" if autoencoder_from or encoder == "random" else "both"
        config = TrainConfig(
            network=NetworkConfig(latent_dim, dropout, dropout_position, output_dropout, pooling),  # type: ignore[arg-type]
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=epochs,
            encoder_init=encoder,  # type: ignore[arg-type]
            encoder_training="frozen" if freeze_encoder else "fine-tuned",
            seed=seed,
            device=resolve_device(device),
            threads=available_cpus() if threads is None else threads,
            stage=stage,  # type: ignore[arg-type]
            data=str(Path(data).expanduser().resolve()) if data else None,
            autoencoder_from=str(autoencoder_from.resolve()) if autoencoder_from else None,
            labels=labels,
        )
        if resume:
            run = _run_to_resume(out)
            _check_same_options(context, config, run.config)
            if run.finished:
                typer.echo(f"{run.folder} is already finished")
                return
            dataset = load_dataset(run.config.data)
            note(f"going on with {run.folder}")
        else:
            from dataclasses import replace

            dataset = load_dataset(config.data)
            config = replace(config, network=replace(config.network, class_count=len(dataset.class_names)))
            folder = out or _new_folder()
            run = create_run(folder, config, dataset)
            if autoencoder_from:
                try:
                    adopt_autoencoder(run, autoencoder_from)
                except RunError:
                    _remove_new_run(run.folder)
                    raise
        threads_text = "1 thread" if run.config.threads == 1 else f"{run.config.threads} threads"
        counts = f"{len(dataset.train):,} train, {len(dataset.val):,} val, {len(dataset.test):,} test images"
        note(f"{dataset.name}: {counts}; {run.config.device}, {threads_text}; run folder {run.folder}")
        with watch_training(quiet) as progress:
            train_run(run, dataset, progress)
    except KeyboardInterrupt:
        how = f"; go on with:  fmcae train --resume --out {run.folder}" if run else " before a run began"
        note(f"stopped{how}")
        raise typer.Exit(130) from None
    _print_summary(run)


def _run_to_resume(out: Path | None) -> "Run":
    from fmcae.train.run import find_runs, open_run

    if out is not None:
        return open_run(out)
    unfinished = [run for run in find_runs(RUNS_FOLDER) if not run.finished]
    if not unfinished:
        raise RunError(f"no unfinished run in {RUNS_FOLDER}/: name one with --out")
    return unfinished[-1]


def _check_same_options(context: typer.Context, given: "TrainConfig", config: "TrainConfig") -> None:
    """A resumed run keeps its configuration: an option that was typed must agree with it."""
    fields = {"encoder": "encoder_init", "freeze_encoder": "encoder_training"}
    as_typed = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for option in context.params:
        source = context.get_parameter_source(option)
        if source is None or source.name != "COMMANDLINE" or option in ("out", "resume", "quiet"):
            continue
        name = fields.get(option, option)
        of = (given.network, config.network) if hasattr(config.network, name) else (given, config)
        wanted, kept = (getattr(item, name) for item in of)
        if wanted != kept:
            raise UsageError(f"{as_typed[option]} (={wanted}) must be the run's own (={kept}) to resume it")


def _new_folder() -> Path:
    from datetime import datetime

    stem = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = RUNS_FOLDER / stem, 2
    while folder.exists():
        folder, number = RUNS_FOLDER / f"{stem}-{number}", number + 1
    return folder


def _remove_new_run(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _print_summary(run: "Run") -> None:
    for record in run.metrics():
        if record.get("split") == "test":
            values = ", ".join(
                f"{name.removeprefix('test_').replace('_', ' ')} {value:.4f}"
                for name, value in record.items()
                if isinstance(value, float)
            )
            typer.echo(f"{record['stage']}: test {values}")
    typer.echo(f"run folder: {run.folder}")
    typer.echo(f"next: fmcae export --onnx {run.folder}")
