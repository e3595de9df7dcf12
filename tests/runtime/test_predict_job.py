import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fmcae import Model, load
from fmcae.errors import DataError, FmcaeError, ImageError, UsageError
from fmcae.files import write_atomic
from fmcae.runtime import predict_job
from fmcae.runtime.predict import predict_images
from fmcae.runtime.predict_job import MANIFEST, PredictJob, open_job, part_name, predict_shard, run_job

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the [ray] extra")
SHARD_SIZE = 16


@pytest.fixture
def pictures(tmp_path: Path, test_images: NDArray[np.uint8]) -> Path:
    """A folder of forty pictures in other sizes and one that cannot be read: three shards."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(40):
        Image.fromarray(test_images[index]).resize((28 + index, 60)).save(folder / f"{index:02}.png")
    (folder / "07 bad.png").write_bytes(b"bad")
    return folder


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # and back, wherever a worker goes
    monkeypatch.setattr(predict_job, "_models", {})


def make(job: PredictJob) -> None:
    """Do without Ray what a cluster does."""
    write_atomic(f"{job.work.out}/{MANIFEST}", json.dumps(job.manifest))
    for index, found in job.missing.items():
        predict_shard(job.work, index, predict_job.unpacked(found))


def rows(out: Path) -> list[dict[str, Any]]:
    """All rows of the Parquet files in a folder, without what is null."""
    table = parquet.read_table(out)
    return [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]


@pytest.mark.parametrize("options", [(), ("--top-k", "3", "--threshold", "0.999", "--model", "fashion-mnist-int8")])
def test_the_rows_are_what_predict_prints(
    options: tuple[str, ...], cli: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    given = dict(zip(options[::2], options[1::2], strict=True))
    model = load(given.get("--model"), only="classifier", threshold=float(given["--threshold"]) if given else None)
    job = open_job(model, ["pictures", "nothing*.png"], "out", int(given.get("--top-k", 1)), shard_size=SHARD_SIZE)
    (tmp_path / "out").mkdir()
    make(job)
    printed = json.loads(cli("predict", "pictures", "nothing*.png", "--json", *options).stdout)
    assert rows(tmp_path / "out") == printed["predictions"] and job.images == len(printed["predictions"]) == 42
    assert [parquet.read_metadata(tmp_path / "out" / part_name(index)).num_rows for index in range(3)] == [16, 16, 10]
    facts = json.loads(parquet.read_schema(tmp_path / "out" / part_name(0)).metadata[b"fmcae"])
    assert facts == {"schema_version": printed["schema_version"], "class_names": printed["class_names"]}


@pytest.fixture
def done(model: Model, pictures: Path, tmp_path: Path) -> Path:
    """The folder of a job that is done."""
    (tmp_path / "out").mkdir()
    make(open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE))
    return tmp_path / "out"


def test_only_what_is_missing_is_made_again_to_the_same_bytes(done: Path, model: Model) -> None:
    job = open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE)
    assert (job.missing, job.images_before, job.unreadable_before) == ({}, 41, 1)
    assert list(run_job(job, "no address")) == []
    content = (done / part_name(1)).read_bytes()
    (done / part_name(1)).unlink()
    job = open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE)
    assert (list(job.missing), job.images_before, job.shards) == ([1], 25, 3)
    make(job)
    assert (done / part_name(1)).read_bytes() == content


def test_another_job_is_refused_and_loses_nothing(done: Path, model: Model, pictures: Path) -> None:
    before = {path: path.read_bytes() for path in done.iterdir()}
    int8, bolder = load("fashion-mnist-int8"), load(threshold=0)
    picture = (pictures / "01.png").read_bytes()
    for other, names, top_k, reason in (
        (int8, ["pictures"], 1, "another model (--model), of another threshold (--threshold)"),
        (bolder, ["pictures"], 2, "another threshold (--threshold), of another top_k (--top-k)"),
        (model, ["pictures/0*"], 1, "other pictures, by their names, sizes or times of change"),
        (model, ["pictures", "pictures/01.png"], 1, "other pictures"),
    ):
        with pytest.raises(UsageError) as caught:
            open_job(other, names, "out", top_k, shard_size=SHARD_SIZE)
        assert str(caught.value).startswith(f"out (=out) must be a new folder: its job is of {reason}")
    (pictures / "01.png").write_bytes((pictures / "02.png").read_bytes())
    with pytest.raises(UsageError, match="other pictures"):
        open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE)
    (pictures / "01.png").write_bytes(picture)
    (done / MANIFEST).unlink()
    with pytest.raises(UsageError, match="must be a new folder, or one of the same job: part-00000.parquet"):
        open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE)
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != MANIFEST)


def test_a_damaged_file_is_named(done: Path, model: Model) -> None:
    part = done / part_name(2)
    content = part.read_bytes()
    for damaged, reason in (
        (content[:-20], "cannot be read: "),
        ((done / part_name(0)).read_bytes(), "has 16 rows instead of 9; "),
        (b"", "cannot be read: "),
    ):
        part.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{part}: {reason}.*if it is damaged, delete it, and the same command"):
            open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE)
    part.write_bytes(content)
    (done / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=f"{MANIFEST}: is damaged"):
        open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE)


def test_a_wrong_name_makes_no_job_and_bad_values_are_named(model: Model, pictures: Path, tmp_path: Path) -> None:
    for names in (["missing.png"], ["missing.png"] * 40, ["nothing*", "missing.png"]):
        with pytest.raises(ImageError, match=f"^{names[0][:7]}"):
            open_job(model, names, "out", shard_size=SHARD_SIZE)
    for values in ({"top_k": 11}, {"threads": 0}, {"jobs": 0}, {"out": ""}):
        with pytest.raises(UsageError, match=rf"^{next(iter(values))} \(="):
            open_job(model, ["pictures"], **{"out": "out", **values})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_machine_without_the_pictures_fails_and_writes_nothing(model: Model, pictures: Path, tmp_path: Path) -> None:
    job = open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE)
    (tmp_path / "out").mkdir()
    pictures.rename(tmp_path / "elsewhere")
    with pytest.raises(FmcaeError, match="pictures/00.png: does not exist on a machine of the cluster"):
        make(job)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MANIFEST]


@pytest.mark.parametrize(
    ("attempt", "version", "failure"),
    [(5, "0.0", "its worker has fmcae "), (6, "0.0", "its worker died 5 times"), (5, None, None)],
)
def test_a_shard_that_fails_is_said_and_is_not_tried_for_ever(
    attempt: int, version: str | None, failure: str | None, model: Model, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))
    driver = SimpleNamespace(begin=SimpleNamespace(remote=lambda index: attempt))
    job = open_job(model, ["pictures"], "out", shard_size=SHARD_SIZE)
    work = replace(job.work, version=version) if version else job.work
    result = json.loads(predict_job._make_shard({"shard": 2, "found": job.missing[2]}, work, driver)["result"])
    if failure is None:
        assert result == {"index": 2, "images": 9, "errors": []} and len(rows(tmp_path / "out")) == 9
    else:
        assert result["index"] == 2 and result["failure"].startswith(failure) and not (tmp_path / "out").exists()


@pytest.fixture
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray.data", reason="needs the [ray] extra")
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 0, "include_dashboard": False, "_system_config": {"health_check_period_ms": 1000}}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()  # type: ignore[no-untyped-call]


def busy_worker(raylet: int) -> int | None:
    """The process, among the children of a machine's raylet, that makes a shard, which its title says."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            is_child = int(status.read_text().rpartition(")")[2].split()[1]) == raylet
            if is_child and status.with_name("cmdline").read_text().startswith("ray::Map"):
                return int(status.parent.name)
    return None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it needs /proc")
def test_a_cluster_finishes_when_one_of_its_two_machines_is_killed(
    cluster: Any, model: Model, test_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    picture, out = tmp_path / "picture.png", tmp_path / "out"
    Image.fromarray(test_images[0]).resize((700, 700)).convert("RGB").save(picture)
    (tmp_path / "bad.png").write_bytes(b"bad")
    names = [str(picture)] * 119 + [str(tmp_path / "bad.png")]
    job = open_job(model, names, str(out), shard_size=SHARD_SIZE)
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    assert len(raylets) == 2
    killed: list[int] = []

    def kill() -> None:
        while not finished.wait(0.02):
            for raylet, node in raylets.items():
                if any(out.glob("part-*.parquet")) and (worker := busy_worker(raylet)):
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)
                    cluster.remove_node(node, allow_graceful=False)
                    return

    finished = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        results = list(run_job(job, cluster.address))
    finally:
        finished.set()
        killer.join()
    assert len(killed) == 1
    assert sorted(result.index for result in results) == list(range(8))
    assert {result.failure for result in results} == {None}
    assert [error for result in results for error in result.errors] == [rows(out)[-1]["error"]]
    expected = list(predict_images(model, names))
    assert [row["path"] for row in rows(out)] == names
    assert [row["probabilities"] for row in rows(out)[:-1]] == [
        outcome.prediction.probabilities.tolist() for outcome in expected if outcome.prediction
    ]
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, *map(part_name, range(8))]
    assert open_job(model, names, str(out), shard_size=SHARD_SIZE).missing == {}
