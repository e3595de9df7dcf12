from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fmcae import Model
from fmcae.errors import DataError, ImageError, UsageError
from fmcae.preprocess import preprocess
from fmcae.runtime import storage
from fmcae.runtime.storage import find_sources, is_uri, list_folder, open_file, read_source, write_file

fs = pytest.importorskip("pyarrow.fs", reason="needs the [ray] extra")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: Callable[..., bytes]) -> Path:
    """The folder that s3://bucket is for pyarrow in this test; it has pictures."""
    folder = tmp_path / "bucket"
    for name in ("b.png", "a/c d.JPG", "a/.hidden/e.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(Image.new("L", (40, 30), 200)))

    real = storage._file_system

    def file_system(root: str) -> tuple[Any, str]:
        if root == "file://":
            return real(root)
        if root != "s3://bucket":
            raise OSError(f"no such bucket: {root}")
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket"

    monkeypatch.setattr(storage, "_file_system", file_system)
    return folder


def found(*names: str) -> list[str]:
    sources = list(find_sources(names))
    assert all(error is None and stamp is not None for _, error, stamp in sources)
    return [path for path, _, _ in sources]


def test_a_buckets_pictures_are_found_as_those_of_a_folder(bucket: Path) -> None:
    everything = [f"s3://bucket/{name}" for name in ("a/c d.JPG", "b.png")]
    assert found("s3://bucket") == found("s3://bucket/") == everything
    assert found("s3://bucket/a") == everything[:1] and found("s3://bucket/notes.txt") == ["s3://bucket/notes.txt"]
    assert found("s3://bucket/**/*.[Jp]*", "s3://bucket/?.png") == [*everything, everything[1]]
    assert found(str(bucket), "s3://bucket/b.png")[-2:] == [str(bucket / "b.png"), "s3://bucket/b.png"]
    ((_, _, stamp),) = find_sources(["s3://bucket/b.png"])
    assert stamp == ((bucket / "b.png").stat().st_size, (bucket / "b.png").stat().st_mtime_ns)


def test_what_is_not_there_is_named(bucket: Path) -> None:
    (bucket / "a" / "IMG_1.HEIC").touch()
    _, _, (path, error, _) = find_sources(["s3://bucket"])
    assert path == "s3://bucket" and "its HEIC files (1) are not read" in str(error)
    for name, reason in (("s3://bucket/x.png", "does not exist"), ("s3://bucket/*.gif", "matches no file")):
        ((path, error, stamp),) = find_sources([name])
        assert (path, stamp) == (name, None) and isinstance(error, ImageError) and reason in str(error)
    with pytest.raises(DataError, match="s3://other/x: cannot be read: no such bucket"):
        list(find_sources(["s3://other/x"]))
    with pytest.raises(UsageError, match="must hold no credentials") as caught:
        list(find_sources(["s3://key:secret@bucket/x"]))
    assert "secret" not in str(caught.value)


def test_a_picture_of_a_bucket_is_read_as_a_file_is(model: Model, bucket: Path) -> None:
    for source, path in (("s3://bucket/a/c d.JPG", bucket / "a" / "c d.JPG"), (f"{bucket}/b.png", bucket / "b.png")):
        assert np.array_equal(read_source(model, source), preprocess(path))
    (bucket / "bad.png").write_bytes(b"bad")
    (bucket / "empty.png").touch()
    for name, reason in (("bad.png", "is not an image"), ("empty.png", "is empty"), ("x.png", "cannot be read")):
        with pytest.raises(ImageError, match=f"^s3://bucket/{name}: {reason}"):
            read_source(model, f"s3://bucket/{name}")


@pytest.mark.parametrize("kind", ["path", "file", "bucket"])
def test_files_are_written_listed_and_read(kind: str, tmp_path: Path, bucket: Path) -> None:
    folder = {"path": str(tmp_path / "new"), "file": f"file://{tmp_path}/new", "bucket": "s3://bucket/a"}[kind]
    before = list_folder(folder)
    for content in (b"first", b"second"):
        write_file(f"{folder}/name", content)
    assert list_folder(folder) == before | {"name"}
    with open_file(f"{folder}/name") as file:
        assert file.read() == b"second"
    with pytest.raises(DataError, match="missing: cannot be read"), open_file(f"{folder}/missing"):
        pass


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"{tmp_path}/file/name: cannot be written"):
        write_file(f"{tmp_path}/file/name", b"")


@given(st.lists(st.sampled_from(["a", "bc", "c.png", ".h"]), min_size=1, max_size=4))
def test_two_stars_match_a_path_at_any_depth_but_a_hidden_one(parts: list[str]) -> None:
    is_hidden = any(part.startswith(".") for part in parts)
    assert storage._matches(parts, ["**"]) is not is_hidden
    assert storage._matches(parts, ["**", "c.png"]) is (not is_hidden and parts[-1] == "c.png")
    assert storage._matches(parts, parts)


def test_a_windows_path_is_no_uri() -> None:
    assert [is_uri(name) for name in ("s3://a", "gs://a", "file:///a", "C:\\a", "http://a", "a/s3://b")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
