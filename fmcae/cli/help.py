"""What every verb's ``--help`` shows beyond its options' own texts, and how its errors name them.

Groups of options go by their names, because verbs share them. They are not Typer's ``rich_help_panel``, which only Rich's
help has: plain text starts faster, fits 80 columns and can be piped.
"""

import re
import shlex
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fmcae.cli.options import shows_colours
from fmcae.errors import FmcaeError, ProviderError, UsageError

GROUPS = {
    "Model": ("model", "threshold", "top_k", "precision", "teacher", "budget"),
    "Data": ("data", "split", "labels", "class_weights"),
    "Networks": (
        "latent_dim", "dropout", "dropout_position", "output_dropout", "pooling", "channels", "size", "decoder_padding",
        "latent_activation", "decoder_relu", "encoder_init", "encoder_training",
    ),
    "Training": (
        "resume", "recipe", "stage", "autoencoder_from", "learning_rate", "batch_size", "epochs", "steps_per_epoch",
        "seed", "keep", "patience", "only", "seeds", "interior",
    ),
    "Measurement": ("batch", "seconds"),
    "Output": (
        "out", "sample_code", "show", "as_json", "json_output", "as_jsonl", "as_csv", "plot", "onnx", "list_runs", "quiet",
        "tensorboard",
    ),
    "Server": ("host", "port", "queue", "timeout", "max_bytes"),
    "Machine": ("provider", "device", "threads", "workers", "jobs", "max_pixels", "ray"),
}  # fmt: skip
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

# Of each verb, what two commands do, and the commands.
EXAMPLES: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "": (
        ("Name what the pictures in a folder show", "fmcae predict exports/samples"),
        ("Train networks, then export them", "fmcae train && fmcae export"),
    ),
    "train": (
        ("Train for pictures of your own, a folder for each class", "fmcae train --recipe robust --data DIR"),
        ("Train where colour tells the classes, on 64 pixels", "fmcae train --data DIR --channels 3 --size 64"),
    ),
    "export": (
        ("Export the newest finished run into its folder onnx/", "fmcae export"),
        ("Export its classifier in 8 bits, if that costs at most 0.5 points", "fmcae export --precision int8 --budget 0.5"),
    ),
    "parity": (
        ("Compare an export with the run that it came from", "fmcae parity runs/first runs/first/onnx"),
        ("The same on a GPU, as JSON", "fmcae parity runs/first runs/first/onnx --provider cuda --json"),
    ),
    "verify": (
        ("Verify what ships", "fmcae verify"),
        ("Verify files of your own", "fmcae verify runs/first/onnx"),
    ),
    "info": (
        ("Print the card of the classifier that ships", "fmcae info"),
        ("Print another one as JSON", "fmcae info fashion-mnist-int8 --json"),
    ),
    "predict": (
        ("Name each picture in a folder, and draw what the larger model sees of it",
         "fmcae predict exports/samples --show sheet.png --model fashion-mnist-large"),
        ("Predict many pictures on all CPUs with Ray, into Parquet files",
         "fmcae predict exports/samples --ray local --out predictions"),
    ),
    "evaluate": (
        ("Measure what ships on Fashion-MNIST's test images", "fmcae evaluate"),
        ("Measure a smaller one on your own, with a report", "fmcae evaluate fashion-mnist-int8 DIR --out evaluation"),
    ),
    "reconstruct": (
        ("See what the autoencoder keeps of a picture", "fmcae reconstruct exports/samples/bag.png -o pair.png"),
        ("The same of a picture on stdin, with the study's networks",
         "cat bag.png | fmcae reconstruct - -o pair.png --model fashion-mnist-paper"),
    ),
    "encode": (
        ("Write the latents of a folder of pictures", "fmcae encode exports/samples -o latents.npy"),
        ("The same with networks of your own", "fmcae encode exports/samples -o latents.npy --model runs/first"),
    ),
    "bench": (
        ("Time what ships on one thread", "fmcae bench --threads 1"),
        ("Draw single images and batches of 256 on a GPU", "fmcae bench --provider cuda --batch 1,256 --plot bench.png"),
    ),
    "doctor": (
        ("See what works here, and what to run for the rest", "fmcae doctor"),
        ("Print the same as JSON, such as for an issue", "fmcae doctor --json"),
    ),
    "serve": (
        ("Serve what ships on this machine", "fmcae serve"),
        ("Let other machines in, with a smaller model", "fmcae serve --host 0.0.0.0 --model fashion-mnist-int8"),
    ),
    "study": (
        ("See how long a part of the paper would take", "fmcae study plan --only table-2"),
        ("Run it, and write the report", "fmcae study run --only table-2 && fmcae study report"),
    ),
    "study plan": (
        ("See how long the whole study would take", "fmcae study plan"),
        ("Print the commands of one part's runs", "fmcae study plan --only table-2 --list"),
    ),
    "study run": (
        ("Run one part of the paper with one seed", "fmcae study run --only table-2 --seeds 1"),
        ("Run everything on a GPU", "fmcae study run --device cuda"),
    ),
    "study report": (
        ("Write the report of runs/study", "fmcae study report"),
        ("Write that of another folder", "fmcae study report DIR"),
    ),
}  # fmt: skip

# A parameter with its value as the library's errors have it, such as "top_k (=11) must be"; some name a flag too.
_NAMED = re.compile(
    r"(?<!\S)(?P<name>--[\w-]+|\w+)(?: \(--[\w-]+\))? \(=(?P<value>.*?)\)(?= (?:must|is|has|in) )", re.DOTALL
)
# Another parameter that such an error speaks of: "stage=classifier", or "autoencoder_from (--from)".
_OTHER = re.compile(r"(?<!\S)(?P<name>[a-z_]+)(?:=(?P<value>[\w.-]+)(?: \(--[\w-]+\))?| \(--[\w-]+\))")


class _Help:
    """The help of a verb or of a group of them, with two examples at its end."""

    def get_help(self, ctx: Any) -> str:
        """The text, whose headings are bold on a terminal."""
        text: str = super().get_help(ctx)  # type: ignore[misc]
        if not shows_colours():
            return text
        return re.sub(r"(?m)^[A-Z]\w+:", lambda heading: typer.style(heading[0], bold=True), text)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            for what, command in EXAMPLES[ctx.command_path.partition(" ")[2]]:
                formatter.write(f"  {what}:\n    {command}\n")


class Verbs(_Help, TyperGroup):
    """A group of verbs."""


class Verb(_Help, TyperCommand):
    """A verb, whose help has its options in groups, and whose errors name its flags."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line's parts, with arguments as most commands show them: FILE, [FILE], PATH... or [PATH]...."""
        options, *pieces = super().collect_usage_pieces(ctx)
        arguments = (parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument")
        ends = ("..." if argument.nargs == -1 else "" for argument in arguments)
        return [options, *(piece.strip("{}") + end for piece, end in zip(pieces, ends, strict=True))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List the arguments, then each group of options."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *GROUPS, "Options")}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            group = "Arguments" if is_argument else _GROUP_OF.get(parameter.name or "", "Options")
            if record := parameter.get_help_record(ctx):
                groups[group].append(record)
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; an option's value that is empty, as of a variable that is not set, is refused."""
        options: list[Any] = [item for item in self.get_params(ctx) if item.param_type_name == "option"]
        flags = {flag for option in options if not option.is_flag for flag in option.opts}
        before_rest = args[: args.index("--")] if "--" in args else args
        for flag, value in pairwise([*before_rest, "--"]):
            is_empty = (flag in flags and not value) or (flag.endswith("=") and flag[:-1] in flags)
            if is_empty and not ctx.resilient_parsing:  # the shell completes lines that are not whole yet
                raise UsageError(f"{flag.rstrip('=')} '' must not be empty")
        if "" in args and not ctx.resilient_parsing:
            values = self.make_parser(ctx).parse_args(args=list(args))[0]
            for item in self.get_params(ctx):  # an empty path would stand for the current folder
                if item.param_type_name == "argument" and item.type.name == "path" and values.get(str(item.name)) == "":
                    raise UsageError(f"{str(item.metavar).strip('[]')} '' must not be empty")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; an error of the library comes out with the verb's own flags in it."""
        try:
            return super().invoke(ctx)
        except FmcaeError as error:
            if (message := in_flags(error, ctx)) != str(error):
                error.args = (message,)
            raise


def in_flags(error: FmcaeError, context: typer.Context) -> str:
    """The message of an error with the names of the library's parameters as the flags of the verb that runs.

    ``top_k (=11) must be ...`` becomes ``--top-k 11 must be ...``. What names no parameter of the verb stays as it is, and
    so does the rest of a message that a file's content is to blame for.
    """
    message = str(error)
    first = _NAMED.search(message)
    is_of_arguments = isinstance(error, UsageError | ProviderError)
    if first is None or (first.start() and not is_of_arguments):
        return message

    def shown(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        parameter = _parameter(context, name, value)
        return match[0] if parameter is None else _with_value(parameter, value)

    named = _NAMED.sub(shown, message)
    return _OTHER.sub(shown, named) if named != message else message


def _parameter(context: typer.Context, name: str, value: str | None) -> Any:
    """The verb's parameter of that name or flag; else what was given that value, as a model's ``path`` is --model's."""
    parameters = context.command.params
    found = (item for item in parameters if name == item.name or name in item.opts)
    sources = ((item, context.get_parameter_source(item.name or "")) for item in parameters)
    typed = (item for item, source in sources if source is not None and source.name == "COMMANDLINE")
    if value is None or value.isdigit():  # many may have been given the same number
        return next(found, None)
    holders = (item for item in typed if _holds(context.params.get(item.name or ""), value))
    return next(found, None) or next(holders, None)


def _holds(given: Any, value: str) -> bool:
    return value in map(str, given) if isinstance(given, list | tuple) else given is not None and str(given) == value


def _with_value(parameter: Any, value: str | None) -> str:
    if parameter.param_type_name == "argument":
        name = str(parameter.human_readable_name).strip("[]")
    else:
        flags = (value == "False" and parameter.secondary_opts) or parameter.opts
        name = str(next(flag for flag in flags if flag.startswith("--")))
        if parameter.is_flag:
            return name
    return name if value in (None, "None") else f"{name} {shlex.quote(value)}"
