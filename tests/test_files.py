import io
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fmcae.files import read_at_most, write_all_atomic, write_atomic


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def fail(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device.*a\.txt"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_of_several_files_none_is_renamed_before_all_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    write_all_atomic({first: "old", second: "old"})
    with pytest.raises(OSError, match=r"nowhere/c\.txt"):
        write_all_atomic({first: "new", tmp_path / "nowhere" / "c.txt": "new"})
    assert first.read_text() == "old"
    replace = os.replace

    def fail_on_second(source: Path, target: Path) -> None:
        if target == second:
            raise OSError(5, "Input/output error", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_on_second)
    with pytest.raises(OSError, match=r"Input/output error.*b\.txt"):
        write_all_atomic({first: "new", second: "new"})
    assert (first.read_text(), second.read_text()) == ("new", "old"), "what the docstring says of this case"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


def test_missing_folder_names_the_file_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere/a\.txt"):
        write_atomic(tmp_path / "nowhere" / "a.txt", "x")


def test_reads_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    content = bytes(3 << 20)
    path.write_bytes(content)
    for source in (path, str(path), io.BytesIO(content)):
        assert read_at_most(source, len(content)) == content
    for source in (path, io.BytesIO(content)):
        with pytest.raises(OSError, match="it has more than 2 MiB"):
            read_at_most(source, 2 << 20)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_what_has_no_end_is_not_read() -> None:
    with pytest.raises(OSError, match="it is a device, not a file"):
        read_at_most("/dev/zero", 1 << 20)
    with open("/dev/zero", "rb") as stream, pytest.raises(OSError, match="it has more than 1 MiB"):
        read_at_most(stream, 1 << 20)
