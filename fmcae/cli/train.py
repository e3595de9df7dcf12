"""``fmcae train``: the paper's two stages, into one run folder."""

import math
import os
import signal
from contextlib import ExitStack, suppress
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from fmcae.cli.options import (
    RUNS_FOLDER,
    DataOption,
    ThreadsOption,
    check_out_folder,
    complete_run,
    echo,
    note,
    printable,
)
from fmcae.cli.progress import watch_training
from fmcae.errors import RunError, UsageError, command_line, require_extra
from fmcae.shape import Channels, Size
from fmcae.train.config import (
    LIMITS,
    ROBUST,
    DeviceChoice,
    DropoutPosition,
    EncoderInit,
    Keep,
    NetworkConfig,
    Recipe,
    Stage,
    TrainConfig,
)

if TYPE_CHECKING:
    from fmcae.data import Dataset
    from fmcae.train.run import Run

DEFAULT = TrainConfig()
NETWORK = DEFAULT.network
FEW_STEPS = 50  # mini-batches of an epoch; that there are fewer is said
UNBALANCED = 10  # so many times the images of the smallest class are said
NOT_SETTINGS = ("out", "resume", "tensorboard", "quiet")
NETWORK_FIELDS = {item.name for item in fields(NetworkConfig)}
RECIPE_HELP = (
    "paper: the study's. robust: for pictures of your own; it trains a teacher too, and knows what is unknown."
)
EPOCHS_HELP = f"""Epochs of each stage.
[default: {DEFAULT.epochs}; robust: {DEFAULT.epochs}, {ROBUST.teacher_epochs} of the teacher, {ROBUST.classifier_epochs}]"""


def _integer(name: str, help_text: str) -> Any:
    """An option for an integer of the configuration, within its limits."""
    low, high = LIMITS[name]
    return Option(metavar="N", min=low, max=high, help=help_text)


# Every parameter but those of NOT_SETTINGS has the name of the configuration's field that it sets. Its options make the
# function long.
def train(
    context: typer.Context,
    data: DataOption = None,
    out: Annotated[Path | None, Option(metavar="RUN", help="The run folder. [default: runs/<date>-<time>]")] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on with the run in --out, or the newest unfinished one.")
    ] = False,
    recipe: Annotated[Recipe, Option(help=RECIPE_HELP)] = DEFAULT.recipe,
    stage: Annotated[
        Stage | None, Option(help="What to train. [default: both; classifier with --from or --encoder random]")
    ] = None,
    autoencoder_from: Annotated[
        Path | None,
        Option(
            "--from",
            metavar="RUN",
            help="Start the classifier from this run's autoencoder.",
            autocompletion=complete_run,
        ),
    ] = None,
    latent_dim: Annotated[int, _integer("latent_dim", "The size of z, the paper's n.")] = NETWORK.latent_dim,
    dropout: Annotated[float, Option(metavar="P", help="The dropout probability, the paper's p.")] = NETWORK.dropout,
    dropout_position: Annotated[DropoutPosition, Option(help="Where the encoder drops.")] = NETWORK.dropout_position,
    output_dropout: Annotated[bool, Option(help="Drop the decoder's output too.")] = NETWORK.output_dropout,
    pooling: Annotated[bool, Option(help="Max pooling in the encoder.")] = NETWORK.pooling,
    channels: Annotated[Channels, Option(help="1 for grey images, 3 where colour tells classes.")] = NETWORK.channels,
    size: Annotated[Size, Option(help="Pixels of the images' edges; more show smaller details.")] = NETWORK.size,
    decoder_padding: Annotated[
        bool | None, Option(help="Pad the decoder's output: an edge of 3 pixels stays grey. [default: on; robust: off]")
    ] = None,
    latent_activation: Annotated[bool, Option(help="ReLU and dropout on z.")] = NETWORK.latent_activation,
    decoder_relu: Annotated[bool, Option(help="ReLU in the decoder's hidden layers.")] = NETWORK.decoder_relu,
    encoder_init: Annotated[
        EncoderInit, Option("--encoder", help="Where the classifier's encoder starts.")
    ] = DEFAULT.encoder_init,
    encoder_training: Annotated[
        bool, Option("--freeze-encoder/--fine-tune", help="Keep the encoder's weights, or train them on.")
    ] = DEFAULT.encoder_training == "frozen",
    labels: Annotated[
        int | None, _integer("labels", "Labelled images that the classifier sees. [default: all of train]")
    ] = DEFAULT.labels,
    class_weights: Annotated[
        bool, Option("--class-weights", help="Let every class count the same in the classifier's loss.")
    ] = DEFAULT.class_weights,
    steps_per_epoch: Annotated[
        int | None, _integer("steps_per_epoch", "The classifier's mini-batches of an epoch. [default: all images]")
    ] = DEFAULT.steps_per_epoch,
    learning_rate: Annotated[
        float, Option("--learning-rate", "--lr", metavar="LR", help="Adam's learning rate.")
    ] = DEFAULT.learning_rate,
    batch_size: Annotated[int, _integer("batch_size", "Images per mini-batch.")] = DEFAULT.batch_size,
    epochs: Annotated[int | None, _integer("epochs", EPOCHS_HELP)] = None,
    keep: Annotated[Keep, Option(help="Which epoch's weights to keep; the best is by validation.")] = DEFAULT.keep,
    patience: Annotated[
        int | None, _integer("patience", "Stop a stage after N epochs without a better one by validation.")
    ] = DEFAULT.patience,
    seed: Annotated[int, _integer("seed", "The seed of weights, batch order and dropout.")] = DEFAULT.seed,
    device: Annotated[DeviceChoice, Option(help="Where to train.")] = "auto",
    threads: ThreadsOption = None,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Write the metrics for TensorBoard too.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Plain lines instead of a progress bar.")] = False,
) -> None:
    """Train the autoencoder, then the classifier on its encoder.

    The defaults are the paper's best configuration; --recipe robust is for pictures of your own, and has settings of its
    own but for --latent-dim, --decoder-padding, --epochs, --class-weights and --seed. Stop it any way you like: --resume
    goes on from the last whole epoch, to the same weights, bit for bit, as without the stop.
    """
    if out is not None:
        check_out_folder(out)
    require_extra("train", "torch", "safetensors", "numba", "matplotlib", "filelock")
    if tensorboard:
        require_extra("tensorboard", "tensorboard")
    run: Run | None = None
    stack = ExitStack()
    try:  # from here on: importing torch takes seconds, and a user may stop that too
        from fmcae.data import ENVIRONMENT_VARIABLE, check_outside, load_dataset
        from fmcae.files import is_utf8
        from fmcae.train.loop import train as train_run
        from fmcae.train.run import changes_since, create_run, data_of, locked
        from fmcae.train.tensorboard import also_to_tensorboard

        settings = _settings(context)  # every option is checked here, before the data are read
        if resume:
            run = _run_to_resume(out)
            stack.enter_context(locked(run.folder))
            _check_same_options(context, settings, run.config)
            if run.finished:
                echo(f"{run.folder} is already finished")
                return
            network = run.config.network
            dataset = load_dataset(data_of(run, settings["data"]), network.channels, network.size)
            note(f"going on with {run.folder}")
            if changes := "; ".join(changes_since(run)):
                note(f"warning: {changes}: the weights may differ in the last bits from those of an uninterrupted run")
        else:
            _config(settings)
            dataset = load_dataset(settings["data"], channels, size)
            check_outside(out or RUNS_FOLDER, settings["data"])
            if not settings["data"] and is_utf8(found := os.environ.get(ENVIRONMENT_VARIABLE, "")) and found:
                settings["data"] = str(Path(os.path.expanduser(found)).resolve())  # where --resume and export look
            config = _config(settings | {"class_count": len(dataset.class_names)})
            run = create_run(_lock_folder(stack, out), config, dataset, autoencoder_from)
        threads_text = "1 thread" if run.config.threads == 1 else f"{run.config.threads} threads"
        counts = f"{len(dataset.train):,} train, {len(dataset.val):,} val, {len(dataset.test):,} test images"
        note(f"{printable(dataset.name)}: {counts}; {run.config.device}, {threads_text}; run folder {run.folder}")
        for sentence in dataset.notes:
            note(f"note: {printable(sentence)}")
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # how to go on is said after a stop in an import too
        if not resume:
            _note_classes(run.config, dataset)
        with watch_training(quiet) as progress, also_to_tensorboard(run, progress, tensorboard) as watcher:
            train_run(run, dataset, watcher)
    except KeyboardInterrupt:
        how = (
            f"; go on with:  {command_line('fmcae', 'train', '--resume', '--out', run.folder)}"
            if run
            else " before a run began"
        )
        note(f"stopped{how}")
        raise typer.Exit(130) from None
    finally:
        stack.close()
    _print_summary(run, settings["data"])


def _settings(context: typer.Context) -> dict[str, Any]:
    """The options as values of the configuration's fields."""
    from fmcae.runtime.machine import available_cpus
    from fmcae.train.loop import resolve_device

    settings = {name: value for name, value in context.params.items() if name not in NOT_SETTINGS}
    if settings["stage"] is None:
        is_classifier = settings["autoencoder_from"] or settings["encoder_init"] == "random"
        settings["stage"] = "classifier" if is_classifier else DEFAULT.stage
    for name in ("data", "autoencoder_from"):
        settings[name] = str(Path(os.path.expanduser(settings[name])).resolve()) if settings[name] else None
    settings["encoder_training"] = "frozen" if settings["encoder_training"] else "fine-tuned"
    settings["device"] = resolve_device(settings["device"], note)
    if settings["threads"] is None:
        settings["threads"] = available_cpus()
    if settings["decoder_padding"] is None:
        settings["decoder_padding"] = settings["recipe"] != "robust"
    epochs, settings["robust"] = settings["epochs"], ROBUST if settings.pop("recipe") == "robust" else None
    if epochs is None:
        settings["epochs"] = DEFAULT.epochs
    elif settings["robust"]:
        settings["robust"] = replace(ROBUST, teacher_epochs=epochs, classifier_epochs=epochs)
    return settings


def _config(settings: dict[str, Any]) -> TrainConfig:
    network = {name: value for name, value in settings.items() if name in NETWORK_FIELDS}
    others = {name: value for name, value in settings.items() if name not in NETWORK_FIELDS}
    return TrainConfig(network=NetworkConfig(**network), **others)


def _run_to_resume(out: Path | None) -> "Run":
    from fmcae.train.run import find_runs, open_run

    if out is not None:
        return open_run(out)
    unfinished = [run for run in find_runs(RUNS_FOLDER) if not run.finished]
    if not unfinished:
        raise RunError(f"no unfinished run in {RUNS_FOLDER}/: name one with --out")
    return unfinished[-1]


def _check_same_options(context: typer.Context, settings: dict[str, Any], config: TrainConfig) -> None:
    """A resumed run keeps its configuration: an option that was typed must agree with it, but data may have moved."""
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name, value in {**settings, "recipe": "robust" if settings["robust"] else "paper"}.items():
        source = context.get_parameter_source(name)
        own = getattr(config.network if name in NETWORK_FIELDS else config, name)
        if name != "data" and source is not None and source.name == "COMMANDLINE" and value != own:
            raise UsageError(f"{flags[name]} (={value}) must be the run's own (={own}) to resume it")


def _lock_folder(stack: ExitStack, out: Path | None) -> Path:
    """Lock the run folder that was named, or a new one, until ``stack`` is closed."""
    from fmcae.train.run import locked

    if out is not None:
        stack.enter_context(locked(out))
        return out
    stem, number = datetime.now().strftime("%Y%m%d-%H%M%S"), 1
    while True:
        folder, number = RUNS_FOLDER / (f"{stem}-{number}" if number > 1 else stem), number + 1
        with suppress(RunError):  # another process begins a run in the same second
            stack.enter_context(locked(folder))
            if not folder.exists():
                return folder


def _note_classes(config: TrainConfig, dataset: "Dataset") -> None:
    """Say so where a split has no image of a class, or train many more of one than of another that it has."""
    if "classifier" not in config.stages:
        return
    steps = math.ceil(len(dataset.train) / config.batch_size)
    if config.robust is None and (config.labels, config.steps_per_epoch) == (None, None) and steps < FEW_STEPS:
        has_robust = config.stage == "both" and (config.network.channels, config.network.size) == (1, 28)
        advice = f"{'--recipe robust, or ' * has_robust}more --epochs suit a folder of this size"
        note(f"note: an epoch has {steps} mini-batch{'es' * (steps > 1)}: {advice}")
    names, counts = [printable(name) for name in dataset.class_names], dataset.counts
    for split, of_split in counts.items():
        if missing := ", ".join(name for name, count in zip(names, of_split, strict=True) if not count):
            note(f"note: {split} has no image of {missing}")
    (fewest, small), *_, (most, large) = sorted(item for item in zip(counts["train"], names, strict=True) if item[0])
    if not config.class_weights and not config.labels and most >= UNBALANCED * fewest:
        shown = f"{fewest:,} of {small} and {most:,} of {large}"
        note(f"note: train has {shown}: with --class-weights every class counts the same")


def _print_summary(run: "Run", data: str | None) -> None:
    for record in run.metrics():
        if record.get("split") == "test":
            measured = {name.removeprefix("test_"): value for name, value in record.items() if isinstance(value, float)}
            values = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())
            echo(
                f"{record['stage']}: test {values}" + (f" (epoch {kept})" if (kept := record.get("kept_epoch")) else "")
            )
    echo(f"run folder: {run.folder}")
    moved = ["--data", data] if data and data != run.config.data else []
    echo(f"next: {command_line('fmcae', 'export', '--onnx', run.folder, *moved)}")
