import ctypes
import errno
import io
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmcae import files
from fmcae.files import read_at_most, replace_folder, write_all_atomic, write_atomic


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


@pytest.mark.skipif(os.name != "posix", reason="it needs POSIX's links and permissions")
def test_a_link_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real", tmp_path / "link"
    real.touch(mode=0o600)
    link.symlink_to(real)
    write_atomic(link, "new")
    assert link.is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "link", "real"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    write_atomic(tmp_path / "loop", "new")
    assert (tmp_path / "loop").read_text() == "new"


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
    with pytest.raises(OSError, match="No such file or directory: '[^']*'$"):  # and no second name
        write_atomic(tmp_path / "none" / "a.txt", "x")


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


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no paths for open files")
def test_a_pipe_is_read_to_its_end_and_not_waited_for(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"abc")
    os.close(writer)
    assert read_at_most(f"/dev/fd/{reader}", 3) == b"abc"  # as a shell's <(...) is named
    os.close(reader)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a pipe that nothing is written to"):
        read_at_most(tmp_path / "pipe", 3)


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    file, folder = tmp_path / f"{'é' * 125}.png", tmp_path / ("x" * 255)
    (tmp_path / f".{'é' * 64}.0123abcd.part").touch()  # what a killed write of the first leaves
    for content in ("1", "2"):
        write_atomic(file, content)
        replace_folder(folder, {"a": content})
    assert sorted(tmp_path.iterdir()) == [folder, file]
    assert file.read_text() == (folder / "a").read_text() == "2"


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # fails as a full disk does
        for write in (write_atomic, lambda path, data: replace_folder(path, {"a": data})):
            with pytest.raises(OSError) as caught:
                write(tmp_path / "a.txt", "x" * 101)
            assert caught.value.filename == str(tmp_path / "a.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not os.listdir(tmp_path)


def test_a_folder_in_the_way_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path, "x")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path), None)
    assert not [path for path in tmp_path.parent.iterdir() if path.name.startswith(f".{tmp_path.name}")]


def test_what_a_killed_write_left_is_removed_and_what_is_held_is_not(tmp_path: Path) -> None:
    script = """
import os, sys
from fmcae import files
os.replace = lambda *_: (print("writing", flush=True), sys.stdin.read())
files.write_atomic(sys.argv[1], "new")
"""
    path = tmp_path / "a.txt"
    (tmp_path / ".other.txt.0123abcd.part").touch()
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        assert len(os.listdir(tmp_path)) == 2
        write_atomic(path, "mine")
        assert len(os.listdir(tmp_path)) == 3, "another process still writes it"
        writer.kill()
        writer.wait()
    write_atomic(path, "mine")
    assert sorted(os.listdir(tmp_path)) == [".other.txt.0123abcd.part", "a.txt"]


def test_without_locks_a_leftover_is_what_is_an_hour_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    old, young = tmp_path / ".a.txt.0123abcd.part", tmp_path / ".a.txt.4567abcd.part"
    old.mkdir()
    young.touch()
    os.utime(old, (0, 0))
    write_atomic(tmp_path / "a.txt", "new")
    assert sorted(os.listdir(tmp_path)) == [young.name, "a.txt"]


def test_on_windows_a_rename_waits_for_who_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old, rename, refused = tmp_path / "new", tmp_path / "old", os.replace, [True, True]
    new.write_text("new")

    def replace(source: Path, target: Path) -> None:
        if refused:
            refused.pop()
            raise PermissionError(errno.EACCES, "Access is denied")
        rename(source, target)

    with monkeypatch.context() as windows:
        windows.setattr(os, "replace", replace)
        windows.setattr(os, "name", "nt")
        files._rename(new, old)
    assert old.read_text() == "new" and not new.exists()


def test_a_file_system_that_cannot_force_a_folder_to_disk_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        force(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_atomic(tmp_path / "a.txt", "new")
    replace_folder(tmp_path / "folder", {"x": "new"})
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "folder" / "x").read_text() == "new"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "export"
    replace_folder(folder, {"x": "1", "y": b"1"})
    folder.chmod(0o750)
    (folder.parent / ".export.0123abcd.part").mkdir()
    (tmp_path / "link").symlink_to(folder)
    replace_folder(tmp_path / "link", {"y": "2", "z": "ä"})
    assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == {"y": "2", "z": "ä"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert os.listdir(folder.parent) == ["export"] and (tmp_path / "link").is_symlink()


def test_a_folder_that_cannot_be_written_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "export"
    replace_folder(folder, {"x": "old"})

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        replace_folder(folder, {"x": "new"})
    assert os.listdir(tmp_path) == ["export"] and (folder / "x").read_text() == "old"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EXDEV])
def test_where_folders_cannot_be_exchanged_they_are_renamed_or_their_files_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Library:
        @staticmethod
        def renameat2(*_: Any) -> int:
            ctypes.set_errno(code)
            return -1

    folder = tmp_path / "export"
    replace_folder(folder, {"x": "old"})
    inode = folder.stat().st_ino
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library)
    replace_folder(folder, {"x": "new"})
    assert os.listdir(tmp_path) == ["export"] and (folder / "x").read_text() == "new"
    assert (folder.stat().st_ino == inode) == (code == errno.EXDEV)


def test_an_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename, made = tmp_path / "export", files._rename, list[Path]()
    replace_folder(folder, {"x": "old"})

    def refuse_the_second(source: Path, target: Path) -> None:
        made.append(target)
        if len(made) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # has no renameat2
    monkeypatch.setattr(files, "_rename", refuse_the_second)
    with pytest.raises(OSError, match="Input/output error"):
        replace_folder(folder, {"x": "new"})
    assert os.listdir(tmp_path) == ["export"] and (folder / "x").read_text() == "old"
