"""``fmcae predict``: a label and a probability for each image, or that it is unknown."""

import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from fmcae.cli.help import in_flags
from fmcae.cli.options import (
    MAX_PIXELS,
    JsonOption,
    MaxPixelsOption,
    ModelOption,
    ProviderOption,
    ThreadsOption,
    ThresholdOption,
    check_is_no_input,
    check_out,
    check_out_folder,
    counting,
    echo,
    error_line,
    note,
    printable,
    read_stdin,
    status,
)
from fmcae.errors import ImageError, UsageError, require_extra
from fmcae.runtime.as_json import (
    JSON_SCHEMA_VERSION,
    KNOWN_COLUMNS,
    RANK_COLUMNS,
    check_top_k,
    facts_of,
    json_text,
    outcome_values,
    ranked_labels,
)

if TYPE_CHECKING:
    from PIL import Image

    from fmcae.runtime.model import Model
    from fmcae.runtime.predict import Outcome

    Row: TypeAlias = tuple[Outcome, list[dict[str, Any]]]  # with its top labels, none if it has an error

PATHS_HELP = "Image files, folders, globs, or - for an image on stdin"
PathsArgument = Annotated[list[str], typer.Argument(metavar="PATH", help=f"{PATHS_HELP}.")]
JOBS_HELP = "Pictures read at once, with --ray by each worker. [default: one on each CPU]"
OUT_HELP = "With --ray: the folder or URI of the Parquet files, new or of a job to go on with."
RAY_HELP = "Predict on this Ray cluster (local, auto, HOST:PORT or ray://HOST:PORT), into --out."
SHOW_HELP = "Write a contact sheet: each picture, what the model sees of it, label and probability."


def predict(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help=f"{PATHS_HELP}; with --ray also s3:// and gs:// URIs.")
    ],
    model: ModelOption = None,
    top_k: Annotated[int, typer.Option(metavar="K", min=1, help="Print the K most probable labels.")] = 1,
    as_json: JsonOption = False,
    threshold: ThresholdOption = None,
    show: Annotated[Path | None, typer.Option(metavar="OUT.png", help=SHOW_HELP)] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print a line of JSON for each image, as it comes.")
    ] = False,
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", min=1, max=1024, help=JOBS_HELP)] = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help=RAY_HELP)] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help=OUT_HELP)] = None,
) -> None:
    """Classify images of any size, colour and format.

    An image in the model's form (28x28 grey, by default) is taken as it is, and others are brought into it. One that
    looks like nothing that the model was trained on is unknown, and the nearest label comes with it. A file that cannot
    be read gets its line on stderr, the rest goes on, and the exit code is 1.
    """
    from fmcae.runtime.model import load
    from fmcae.runtime.predict import predict_images

    formats = [name for name, chosen in (("json", as_json), ("jsonl", as_jsonl), ("csv", as_csv)) if chosen]
    if len(formats) > 1:
        raise UsageError(f"--{formats[0]} must not come with --{formats[1]}: choose one")
    if ray is not None or out is not None:
        if ray is not None and max_pixels != MAX_PIXELS:
            raise UsageError(f"max_pixels (={max_pixels}) must not come with --ray")
        _check_ray(ray, out, [*formats, *(["show"] if show else [])], paths, provider)
    if show is not None:
        _check_show(show, paths)
    loaded = load(model, provider=provider, threads=threads, only="classifier", threshold=threshold)
    class_names = loaded.class_names
    check_top_k(top_k, class_names)
    if ray is not None and out is not None:
        _predict_on_ray(context, loaded, paths, ray, out, top_k, threads, jobs)
        return
    facts = facts_of(loaded)
    stdin = read_stdin(paths)
    failed: list[str] = []
    sheet = _Sheet(stdin)

    def rows() -> "Iterator[Row]":
        with counting() as count:
            for outcome in predict_images(loaded, paths, stdin, jobs, max_pixels):
                count()
                if outcome.error is not None:
                    error_line(in_flags(outcome.error, context))
                    failed.append(outcome.path)
                elif show is not None:
                    sheet.add(outcome)
                yield outcome, ranked_labels(outcome.prediction, class_names, top_k) if outcome.prediction else []

    if as_json:
        _write_json(rows(), top_k, facts, class_names)
    else:
        write = _write_jsonl if as_jsonl else _write_csv if as_csv else _write_lines
        write(rows(), top_k, facts)
    if show is not None:
        sheet.write(show)
    if failed:
        raise typer.Exit(1)


def _check_ray(ray: str | None, out: str | None, formats: list[str], paths: list[str], provider: str) -> None:
    """Check that --ray and --out come together, and with no option that a Ray job has no use for."""
    if ray is None:
        raise UsageError(f"out (={out}) must come with --ray")
    if out is None:
        raise UsageError(f"ray (={ray}) must come with --out")
    if formats:
        raise UsageError(f"ray (={ray}) must not come with --{formats[0]}: the predictions go to --out")
    if "-" in paths:
        raise UsageError(f"ray (={ray}) must not come with -, because the cluster's machines cannot read this stdin")
    if provider != "cpu":  # preprocessing, which takes nearly all of the time, runs there anyway
        raise UsageError(f"provider (={provider}) must be cpu with --ray")
    require_extra("ray", "ray", "pyarrow", "pandas")
    from fmcae.runtime.storage import is_uri

    if not is_uri(out):
        check_out_folder(Path(out))


def _predict_on_ray(
    context: typer.Context,
    model: "Model",
    paths: list[str],
    ray: str,
    out: str,
    top_k: int,
    threads: int | None,
    jobs: int | None,
) -> None:
    from fmcae.runtime.predict_job import open_job, part_name, run_job

    with status("looking for pictures"):
        job = open_job(model, paths, out, top_k, threads, jobs)
    if not job.missing:
        note("the job is done already")
    elif len(job.missing) < job.shards:
        note(f"{job.shards - len(job.missing):,} of {job.shards:,} files are there already")
    unreadable, failed = job.unreadable_before, 0
    try:
        with counting(job.images) as count:
            count(job.images_before)
            for result in run_job(job, ray):
                for error in result.errors:
                    error_line(in_flags(ImageError(error), context))
                if result.failure is not None:
                    error_line(f"{part_name(result.index)}: {result.failure}")
                    failed += 1
                unreadable += len(result.errors)
                count(result.images)
    except KeyboardInterrupt:
        note("stopped; the same command goes on")
        raise typer.Exit(130) from None
    if failed:
        note(f"{failed:,} of {job.shards:,} files are missing; the same command tries them again")
    else:
        pictures, files = (f"{number:,} {word}{'s' * (number != 1)}" for number, word in (
            (job.images, "picture"), (job.shards, "file"),
        ))  # fmt: skip
        echo(f"{out}: {pictures} in {files}, {unreadable:,} of them unreadable")
    if failed or unreadable:
        raise typer.Exit(1)


class _Sheet:
    """The tiles of ``--show``, drawn as the predictions come."""

    def __init__(self, stdin: bytes) -> None:
        self.stdin, self.count = stdin, 0
        self.tiles: list[Image.Image] = []

    def add(self, outcome: "Outcome") -> None:
        from fmcae.runtime.contact_sheet import MAX_TILES, tile
        from fmcae.runtime.predict import STDIN

        self.count += 1
        if len(self.tiles) == MAX_TILES or outcome.prediction is None or outcome.pixels is None:
            return
        is_stdin = outcome.path == STDIN
        source, name = (self.stdin, "stdin") if is_stdin else (outcome.path, Path(outcome.path).name)
        try:
            self.tiles.append(tile(source, outcome.pixels, outcome.prediction, name))
        except ImageError as error:  # it was readable a moment ago
            note(f"{printable(str(error))}; it is left out of the contact sheet")

    def write(self, out: Path) -> None:
        from fmcae.files import write_atomic
        from fmcae.runtime.contact_sheet import contact_sheet

        if not self.tiles:
            note(f"{printable(str(out))}: not written, because no picture could be read")
            return
        write_atomic(out, contact_sheet(self.tiles))
        if self.count > len(self.tiles):
            note(f"{printable(str(out))}: shows the first {len(self.tiles):,} of {self.count:,} pictures")


def _check_show(show: Path, paths: list[str]) -> None:
    """Check before any work that the contact sheet can be written, and that it is none of the pictures."""
    from fmcae.runtime.predict import find_images

    if show.suffix.lower() != ".png":
        raise UsageError(f"show (={show}) must end in .png")
    check_out(show, "show")
    if show.exists():
        check_is_no_input(show, (path for path, _ in find_images(paths)), "show")


def _write_lines(rows: "Iterable[Row]", top_k: int, facts: dict[str, str]) -> None:
    from fmcae.runtime.predict import prediction_text

    for outcome, ranked in rows:
        if outcome.prediction:
            labels = "  ".join(f"{printable(item['label'])} {item['probability']:.4f}" for item in ranked)
            text = prediction_text(labels, outcome.prediction.known, outcome.pixels)
            print(f"{printable(outcome.path)}: {text}")  # typer.echo would flush each line


def _write_csv(rows: "Iterable[Row]", top_k: int, facts: dict[str, str]) -> None:
    import csv

    columns = [f"{name}{'' if rank == 1 else f'_{rank}'}" for rank in range(1, top_k + 1) for name in RANK_COLUMNS]
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # whatever Windows' own is: programs will read it
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns += [*KNOWN_COLUMNS, *facts]
    writer.writerow(["path", *columns, "error"])
    for outcome, ranked in rows:
        cells: list[Any] = [""] * len(columns)
        if prediction := outcome.prediction:
            cells = [value for item in ranked for value in item.values()]
            cells += ["true" if prediction.known else "false", prediction.known_score, *facts.values()]
            cells = [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells]
        writer.writerow([printable(str(cell)) for cell in (outcome.path, *cells, outcome.error or "")])


def _write_json(rows: "Iterable[Row]", top_k: int, facts: dict[str, str], class_names: tuple[str, ...]) -> None:
    """One object per image, written as it comes, so that memory stays flat over any number of images."""
    names = json_text(list(class_names))
    print(f'{{"schema_version": {JSON_SCHEMA_VERSION}, "class_names": {names}, "predictions": [', end="")
    separator = "\n"
    for outcome, ranked in rows:
        print(f"{separator}  {json_text(outcome_values(outcome, ranked, facts))}", end="")
        separator = ",\n"
    print("\n]}")


def _write_jsonl(rows: "Iterable[Row]", top_k: int, facts: dict[str, str]) -> None:
    for outcome, ranked in rows:
        # at once, because another program may wait for each line
        print(json_text(outcome_values(outcome, ranked, facts)), flush=True)
