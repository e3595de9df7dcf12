"""Predict any number of pictures on a Ray cluster, into a folder of Parquet files: ``fmcae predict --ray``.

The pictures are divided, in order, into shards; ``part-00000.parquet`` has the first shard's predictions, a row for each
picture. A Ray Data job makes the shards that the folder lacks, so what is stopped or fails goes on with what is left.
``_job.json`` in the folder says which pictures, model and options its files are of, and no others are added to it.

An actor on the cluster's head drives the Ray Data job, because Ray Data cannot be driven over ray://.
"""

import hashlib
import io
import json
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from fmcae import __version__, schema
from fmcae.errors import DataError, FmcaeError, ImageError, RunError, UsageError
from fmcae.preprocess import graph_path
from fmcae.runtime.as_json import (
    JSON_SCHEMA_VERSION,
    check_top_k,
    facts_of,
    json_text,
    outcome_values,
    ranked_labels,
    without_what_json_lacks,
)
from fmcae.runtime.cluster import connected
from fmcae.runtime.model import Artefact, Model
from fmcae.runtime.predict import BATCH_SIZE, Found, predict_found
from fmcae.runtime.storage import Source, find_sources, is_uri, list_folder, open_file, read_source, write_file

SHARD_SIZE = 64 * BATCH_SIZE  # pictures; whole batches, because the last bits of a probability depend on its batch
MANIFEST = "_job.json"  # what reads a folder of Parquet files passes over such a name
JOB_SCHEMA_VERSION = 1
ATTEMPTS = 5  # for a shard whose worker dies
REMOTE_READS = 16  # at once in a worker: a picture of a bucket is waited for
WHAT_DIFFERS = {  # by the keys of _job.json that must be the same when a job goes on
    "schema_version": "made by another version of fmcae",
    "pictures_digest": "of other pictures, by their names, sizes or times of change",
    "shard_size": "of shards of another size",
    "model_digest": "of another model (--model)",
    "preprocessing_digest": "of another version of preprocessing",
    "threshold": "of another threshold (--threshold)",
    "top_k": "of another top_k (--top-k)",
}


@dataclass(frozen=True)
class Work:
    """What a worker needs beside a shard: the folder to write into, the model's file and the options.

    ``folder`` is what relative paths start from.
    """

    out: str
    artefact: Artefact
    threshold: float
    top_k: int
    threads: int
    jobs: int | None
    folder: str
    version: str = __version__


@dataclass(frozen=True)
class ShardResult:
    """What came of a shard: how many pictures it has, and the errors of those that cannot be read.

    ``failure`` says why its file was not written.
    """

    index: int
    images: int = 0
    errors: tuple[str, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class PredictJob:
    """Shards that must be made, and what the others in the folder have: ``images`` and ``unreadable`` of all."""

    work: Work
    manifest: dict[str, Any]
    missing: dict[int, bytes]  # each shard's list of Found, pickled and compressed
    images_before: int
    unreadable_before: int

    @property
    def shards(self) -> int:
        """The number of all shards."""
        return int(self.manifest["shards"])

    @property
    def images(self) -> int:
        """The number of all pictures."""
        return int(self.manifest["pictures"])


def part_name(index: int) -> str:
    """The name of a shard's file."""
    return f"part-{index:05}.parquet"


def open_job(
    model: Model,
    names: Iterable[str],
    out: str,
    top_k: int = 1,
    threads: int | None = None,
    jobs: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> PredictJob:
    """Find the pictures, and what the folder ``out`` has of their predictions already. Nothing is written.

    Args:
        names: files, folders, globs and URIs.
        out: a folder that all machines of the cluster see under this path, or a URI. It is new, or of the same job.
        top_k: how many labels a row has.
        threads: ONNX Runtime's on each worker, and the CPUs that a worker takes; None for 1.
        jobs: pictures that a worker reads at once; None for 1, or 16 from a bucket.
        shard_size: pictures in a file.

    Raises:
        UsageError: ``out`` is of another job; or ``top_k``, ``threads`` or ``jobs`` is out of range.
        ImageError: there is no picture at all.
        DataError: a folder cannot be listed, or a file in ``out`` is damaged.
    """
    for name, value in (("threads", threads), ("jobs", jobs)):
        if value is not None and value < 1:
            raise UsageError(f"{name} (={value}) must be at least 1")
    if not out:
        raise UsageError("out (=) must not be empty")
    check_top_k(top_k, model.class_names)
    facts_of(model)  # which starts the session: a file that does not run here runs nowhere
    folder = out.rstrip("/") if is_uri(out) else os.path.abspath(out)
    artefact = model.artefacts["classifier"]
    work = Work(folder, artefact, model.threshold, top_k, threads or 1, jobs, os.getcwd())
    sources, digest = iter(find_sources(names)), hashlib.sha256()
    shards: list[bytes] = []
    pictures, nothing = 0, None
    while batch := list(islice(sources, shard_size)):
        pictures += len(batch)
        nothing = _first_error(batch) if nothing or not shards else None
        digest.update("".join(f"{json.dumps([path, str(error), stamp])}\n" for path, error, stamp in batch).encode())
        shards.append(_packed([(path, error) for path, error, _ in batch]))
    if nothing is not None:  # more likely a wrong name than a job
        raise nothing
    manifest = {
        "schema_version": JOB_SCHEMA_VERSION,
        "fmcae": __version__,
        "pictures": pictures,
        "pictures_digest": digest.hexdigest(),
        "shard_size": shard_size,
        "shards": len(shards),
        "model": str(artefact.path),
        "model_digest": hashlib.sha256(artefact.content).hexdigest(),
        "preprocessing_digest": hashlib.sha256(graph_path(model.channels, model.size).read_bytes()).hexdigest(),
        "threshold": model.threshold,
        "top_k": top_k,
        "class_names": list(model.class_names),
    }
    present = list_folder(folder)
    _check_is_same(out, folder, manifest, present)
    done = [index for index in range(len(shards)) if part_name(index) in present]

    def counted(index: int) -> tuple[int, int]:
        return _count_rows(f"{folder}/{part_name(index)}", min(shard_size, pictures - index * shard_size))

    with ThreadPoolExecutor(REMOTE_READS) as pool:
        counts = list(pool.map(counted, done))
    missing = {index: shards[index] for index in sorted(set(range(len(shards))) - set(done))}
    return PredictJob(work, manifest, missing, sum(rows for rows, _ in counts), sum(bad for _, bad in counts))


def _first_error(batch: Sequence[Source]) -> ImageError | None:
    """The error of the first source if none of them is there."""
    if any(stamp is not None for _, _, stamp in batch):
        return None
    path, error, _ = batch[0]
    return error or ImageError(f"{path}: cannot be read: it does not exist")


def _packed(found: list[Found]) -> bytes:
    """What was found, small enough that the names of millions of pictures fit into memory."""
    return zlib.compress(pickle.dumps(found), 1)


def unpacked(found: bytes) -> list[Found]:
    """A shard of ``PredictJob.missing``."""
    pictures: list[Found] = pickle.loads(zlib.decompress(found))
    return pictures


def _check_is_same(out: str, folder: str, manifest: dict[str, Any], present: set[str]) -> None:
    if MANIFEST not in present:
        parts = sorted(name for name in present if name.startswith("part-") and name.endswith(".parquet"))
        if parts:
            raise UsageError(
                f"out (={out}) must be a new folder, or one of the same job: {parts[0]} is of no _job.json"
            )
        return
    path = f"{folder}/{MANIFEST}"
    try:
        with open_file(path) as file:
            there = schema.parse(file.read(1 << 20), dict[str, Any])
    except ValueError as error:
        raise DataError(f"{path}: is damaged: {error}") from error
    differences = [text for key, text in WHAT_DIFFERS.items() if there.get(key) != manifest[key]]
    if differences:
        raise UsageError(f"out (={out}) must be a new folder: its job is {', '.join(differences)}")


def _count_rows(path: str, expected: int) -> tuple[int, int]:
    """The rows of a shard's file, and those that have an error."""
    from pyarrow.parquet import ParquetFile

    advice = "if it is damaged, delete it, and the same command makes it again"
    try:
        with open_file(path) as file:
            errors = ParquetFile(file, pre_buffer=False).read(["error"], use_threads=False).column("error")
    except DataError as error:
        raise DataError(f"{error}; {advice}") from error
    except KeyError as error:
        raise DataError(f"{path}: has no column error; {advice}") from error
    if len(errors) != expected:
        raise DataError(f"{path}: has {len(errors):,} rows instead of {expected:,}; {advice}")
    return len(errors), len(errors) - errors.null_count


def run_job(job: PredictJob, address: str) -> Iterator[ShardResult]:
    """Make the shards that are missing on a Ray cluster, and yield what comes of each as it is done.

    A shard whose worker dies is tried again elsewhere.

    Args:
        address: as for :func:`fmcae.runtime.cluster.connected`. The machines need fmcae with its [ray] extra.

    Raises:
        RunError: there is no cluster, the job cannot run on it, or files that workers wrote are not in the folder.
        UsageError: no machine of the cluster has as many CPUs as a worker takes.
    """
    if not job.missing:
        return
    with connected(address) as ray:
        cpus = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if 0 < cpus < job.work.threads:
            raise UsageError(
                f"threads (={job.work.threads}) must be at most {cpus:.0f}, as a machine of the cluster has"
            )
        write_file(f"{job.work.out}/{MANIFEST}", json_text(job.manifest, indent=1).encode())
        # On the head, with whose end the cluster ends too; it answers workers while it waits for the next result.
        on_head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_concurrency=8)(_Driver)
        driver = on_head.remote(job.work, job.missing)
        made = []
        try:
            while (text := ray.get(driver.next.remote())) is not None:
                result = ShardResult(**json.loads(text))
                made += [] if result.failure else [part_name(result.index)]
                yield result
        except (ray.exceptions.RayError, ConnectionError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise RunError(f"ray (={address}) has stopped the job: {lines[-1].strip()}") from error
    if lost := sorted(set(made) - list_folder(job.work.out)):
        raise RunError(f"{job.work.out}: lacks {lost[0]}, which a worker wrote: all machines must share the folder")


class _Driver:
    """The Ray actor that runs the Ray Data job, and counts how often each shard is begun."""

    def __init__(self, work: Work, missing: dict[int, bytes]) -> None:
        self.work, self.missing = work, missing
        self.begun: Counter[int] = Counter()
        self.results: Iterator[dict[str, str]] | None = None

    def begin(self, index: int) -> int:
        """Count one more attempt at a shard, and return which it is."""
        self.begun[index] += 1
        return self.begun[index]

    def next(self) -> str | None:
        """Wait for the next shard's result, as JSON; None when all are done."""
        if self.results is None:
            self.results = self._start()
        row = next(self.results, None)
        return None if row is None else row["result"]

    def _start(self) -> Iterator[dict[str, str]]:
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"shard": index, "found": found} for index, found in self.missing.items()]
        self.missing = {}
        make = partial(_make_shard, work=self.work, driver=ray.get_runtime_context().current_actor)
        shards = ray.data.from_items(rows, override_num_blocks=len(rows))  # a task for each
        return iter(shards.map(make, num_cpus=self.work.threads).iter_rows())


def _make_shard(row: dict[str, Any], work: Work, driver: Any) -> dict[str, str]:
    """Predict a shard in a worker; no error stops the others."""
    import ray

    index = int(row["shard"])
    try:
        if ray.get(driver.begin.remote(index)) > ATTEMPTS:  # Ray Data itself would go on for ever
            raise RunError(f"its worker died {ATTEMPTS} times")
        if work.version != __version__:
            raise RunError(f"its worker has fmcae {__version__}, and not {work.version}")
        images, errors = predict_shard(work, index, unpacked(row["found"]))
        result: dict[str, Any] = {"images": images, "errors": errors}
    except Exception as error:
        result = {"failure": str(error) if isinstance(error, FmcaeError) else f"{type(error).__name__}: {error}"}
    return {"result": json.dumps({"index": index, **result})}


def predict_shard(work: Work, index: int, found: Sequence[Found]) -> tuple[int, list[str]]:
    """Predict the pictures of a shard and write its file; return their number and the errors of those that have one.

    Raises:
        RunError: this machine sees none of the pictures.
        DataError: the file cannot be written.
    """
    import pyarrow
    from pyarrow.parquet import write_table

    with suppress(OSError):
        os.chdir(work.folder)  # relative paths are read as they are shown
    local = [path for path, error in found if error is None and not is_uri(path)]
    if local and not any(map(os.path.lexists, local)):
        raise RunError(
            f"{os.path.abspath(local[0])}: does not exist on a machine of the cluster: all must see the pictures"
        )
    model = _model_of(work)
    facts, class_names = facts_of(model), model.class_names
    jobs = work.jobs or (1 if len(local) == len(found) else REMOTE_READS)
    rows, errors = [], []
    for outcome in predict_found(model, found, jobs, read_source):
        if outcome.error is not None:
            errors.append(str(outcome.error))
        ranked = ranked_labels(outcome.prediction, class_names, work.top_k) if outcome.prediction else []
        rows.append(without_what_json_lacks(outcome_values(outcome, ranked, facts)))
    buffer = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows, table_schema(work.top_k, class_names)), buffer, compression="zstd")
    write_file(f"{work.out}/{part_name(index)}", buffer.getvalue())
    return len(rows), errors


_models: dict[object, Model] = {}  # of a worker, which has one and makes many shards with it


def _model_of(work: Work) -> Model:
    key = work.artefact.path, work.artefact.content, work.threshold, work.threads
    if key not in _models:
        _models.clear()
        _models[key] = Model({"classifier": work.artefact}, threads=work.threads, threshold=work.threshold)
    return _models[key]


def table_schema(top_k: int, class_names: Sequence[str]) -> Any:
    """The columns of a shard's file: what ``predict --json`` has of a picture; null where it could not be read.

    The metadata entry ``fmcae`` is JSON with the class names, in the order of ``probabilities``.
    """
    from pyarrow import bool_, field, float32, float64, int32, list_, string, struct
    from pyarrow import schema as columns_of

    label = [field("label", string()), field("index", int32()), field("probability", float32())]
    columns = [
        field("path", string()),
        *label,
        field("known", bool_()),
        field("known_score", float64()),
        field("probabilities", list_(float32())),
        field("provider", string()),
        field("model", string()),
        *([field("top_k", list_(struct(label)))] if top_k > 1 else []),
        field("error", string()),
    ]
    facts = {"schema_version": JSON_SCHEMA_VERSION, "class_names": list(class_names)}
    return columns_of(columns, metadata={"fmcae": json_text(facts)})
