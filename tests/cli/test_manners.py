"""What a user meets when a run is stopped, its streams are closed, memory is short or a path is odd."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from fmcae.runtime.session import import_onnxruntime

if TYPE_CHECKING:
    from tests.conftest import Cli

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it needs POSIX's signals, streams and limits")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "item.png"
    Image.new("L", (28, 28), 99).save(path)
    return path


def _shell(command: str, *arguments: object, **environment: str) -> tuple[int, str, str]:
    """Run a shell's command, in which FMCAE stands for the command line and $1 for the first of ``arguments``."""
    command = command.replace("FMCAE", '"$0" -m fmcae')
    full = ["sh", "-c", command, sys.executable, *map(str, arguments)]
    result = subprocess.run(full, capture_output=True, text=True, env={**os.environ, **environment})
    return result.returncode, result.stdout, result.stderr


def _fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: Any) -> None:
        raise error

    monkeypatch.setattr("fmcae.runtime.model.load", fail)


def test_ctrl_c_exits_130(cli: "Cli", monkeypatch: pytest.MonkeyPatch) -> None:
    _fails_with(monkeypatch, KeyboardInterrupt())
    result = cli("predict", "x.png")
    assert (result.exit_code, result.stdout) == (130, "")


CTRL_C = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    pass
raise ImportError("initialization failed")  # as the start of a library in C++ makes of it
"""


@pytest.mark.parametrize("module", ["typer", "numpy", "onnxruntime"])
def test_ctrl_c_during_an_import_is_nothing_else(module: str, image: Path, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(CTRL_C)
    assert _shell('FMCAE predict "$1"', image, PYTHONPATH=str(tmp_path)) == (130, "", "")


def test_ctrl_c_that_a_shell_ignores_is_ignored(image: Path, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(CTRL_C)
    code, _, stderr = _shell("trap '' INT; FMCAE predict \"$1\"", image, PYTHONPATH=str(tmp_path))
    assert code == 1 and "initialization failed" in stderr


@pytest.mark.parametrize(
    ("cause", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (MemoryError("Exception caught: std::bad_alloc"), MemoryError)],
)
def test_a_library_that_cannot_start_for_another_reason_needs_no_new_installation(
    cause: BaseException, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise ImportError(str(cause)) from cause

    monkeypatch.setattr("fmcae.runtime.session.import_module", fail)
    with pytest.raises(raised):
        import_onnxruntime()


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("FMCAE --version >&-", (1, "", "error: stdout: Bad file descriptor\n")),
        ("FMCAE --version >/dev/full", (1, "", "error: stdout: No space left on device\n")),
        ("FMCAE info --json >/dev/full", (1, "", "error: stdout: No space left on device\n")),
        ("FMCAE fly 2>&-", (2, "", "")),
        ("FMCAE predict missing.png 2>/dev/full", (1, "", "")),
        ("FMCAE info missing.onnx <&- >&- 2>&-", (1, "", "")),
        ("{ FMCAE --version; echo $? >&2; } | true", (0, "", "141\n")),
        ("{ FMCAE fly 2>&1; echo $? >&2; } | true", (0, "", "141\n")),
    ],
)
def test_closed_full_and_broken_streams(command: str, result: tuple[int, str, str]) -> None:
    if "/dev/full" in command and not os.path.exists("/dev/full"):
        pytest.skip("no such device")
    assert _shell(command) == result


def test_a_full_pipe_that_does_not_block_loses_nothing(shipped: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as another process does that shares it
    samples = [shipped.parent / "samples"] * 300
    process = subprocess.Popen(
        [sys.executable, "-m", "fmcae", "predict", "--jsonl", *samples], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    time.sleep(1)
    with open(reader) as stream:
        lines = stream.read().splitlines()
    assert process.communicate()[1] == b"" and process.returncode == 0
    assert len(lines) == 3000 and all(line.endswith("}") for line in lines)


@pytest.mark.parametrize("arguments", [["--model", ""], ["--model="], ["--show", ""], ["--threshold="]])
def test_an_option_without_a_value_is_named(cli: "Cli", image: Path, arguments: list[str]) -> None:
    result = cli("predict", image, *arguments)
    name = arguments[0].rstrip("=")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {name} '' must not be empty\n")


def test_a_reader_that_stops_early_ends_it_silently(shipped: Path) -> None:
    command = '{ FMCAE predict --csv "$@"; echo $? >&2; } | head -n 1'
    code, stdout, stderr = _shell(command, *[shipped.parent / "samples"] * 200)
    assert code == 0 and stdout.startswith("path,label") and stderr == "141\n"


NO_ROOM = "many lines of advice\n\nOriginal error was: libx.so: failed to map segment from shared object\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "error: out of memory"),
        (ImportError(NO_ROOM), "error: out of memory"),
        (OSError("libtorch.so: failed to map segment from shared object"), "error: out of memory"),
        (
            ImportError("advice\nNo module named 'x'\n"),
            "error: a package cannot be imported (No module named 'x'): fmcae",
        ),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_line(
    cli: "Cli", monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    _fails_with(monkeypatch, error)
    result = cli("predict", "x.png")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(line)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process says of itself that ``ulimit -v`` allows it 1 MiB."""
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, resource.RLIM_INFINITY))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits it")
@pytest.mark.usefixtures("little_memory")
def test_threads_that_have_no_room_are_not_started(cli: "Cli", image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("predict", image, "--threads", "64")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "--threads 64 must be at most 1 here: " in result.stderr
    monkeypatch.setattr("fmcae.runtime.session.available_cpus", lambda: 64)
    assert cli("predict", image).exit_code == 0


@pytest.mark.usefixtures("little_memory")
def test_a_limit_on_memory_is_named(cli: "Cli", monkeypatch: pytest.MonkeyPatch) -> None:
    _fails_with(monkeypatch, MemoryError())
    assert cli("predict", "x.png").stderr == "error: out of memory: ulimit -v allows this process 1 MiB\n"


LONG = "x" * 251  # with .png it is as long as a name may be


@pytest.mark.parametrize(
    ("out", "exit_code", "message"),
    [
        (f"{LONG}.png", 0, ""),
        (f"{LONG}x.png", 1, f"error: {LONG}x.png: File name too long\n"),
        ("folder.png", 2, "error: --out folder.png must be a file in a folder that exists\n"),
        ("pipe.png", 2, "error: --out pipe.png must be a file in a folder that exists\n"),
        ("nowhere/a.png", 2, "error: --out nowhere/a.png must be a file in a folder that exists\n"),
        ("a.qoi", 2, "error: --out a.qoi must end in a"),
        ("a.palm", 2, "error: --out a.palm must end in another picture format's suffix, such as .png: cannot write"),
    ],
)
def test_what_cannot_be_written_is_named_as_typed_and_leaves_nothing(
    cli: "Cli", image: Path, monkeypatch: pytest.MonkeyPatch, out: str, exit_code: int, message: str
) -> None:
    monkeypatch.chdir(image.parent)
    Path("folder.png").mkdir()
    os.mkfifo("pipe.png")
    before = sorted(os.listdir())
    result = cli("reconstruct", image, "-o", out)
    assert result.exit_code == exit_code and result.stderr.startswith(message)
    assert result.stderr.count("\n") == (exit_code > 0)
    assert sorted(os.listdir()) == sorted(before + [out] * (exit_code == 0))


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "item.png", "-o", "folder.npy"),
        ("predict", "item.png", "--show", "folder.png"),
        ("predict", "item.png", "--show", "astray.png"),
        ("train", "--out", "item.png"),
        ("train", "--out", "item.png/run"),
        ("export", "--out", "item.png/run/onnx"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_any_work(
    cli: "Cli", image: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(image.parent)
    for name in ("folder.npy", "folder.png"):
        Path(name).mkdir()
    Path("astray.png").symlink_to("missing/sheet.png")
    before = sorted(os.listdir())
    result = cli(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f" {arguments[-1]} must be a f" in result.stderr and sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "--plot", "locked/plot.png"),
        ("encode", "item.png", "-o", "locked/z.npy"),
        ("evaluate", "pictures", "--out", "locked/evaluation"),
        ("predict", "item.png", "--show", "locked/sheet.png"),
        ("train", "--out", "locked/run"),
    ],
)
def test_a_folder_that_is_read_only_is_said_before_any_work(
    cli: "Cli", image: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(image.parent)
    Path("pictures/bag").mkdir(parents=True)
    Path("locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "locked" or not mode & os.W_OK)  # root may do all
    result = cli(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f" {arguments[-1]} must be where this user may write; locked is read-only" in result.stderr


def test_a_pipe_that_nobody_writes_is_not_waited_for(cli: "Cli", shipped: Path, image: Path) -> None:
    pipe = image.with_name("pipe.png")
    os.mkfifo(pipe)
    shutil.copy(shipped / "classifier.onnx", image.parent)
    for arguments in (
        ("predict", pipe),
        ("predict", image, "--model", pipe),
        ("info", pipe),
        ("reconstruct", pipe, "-o", image),
    ):
        result = cli(*arguments)
        assert result.exit_code == 1 and "it is a pipe that nothing is written to" in result.stderr, arguments
    assert cli("predict", image.parent / "*.png").stdout.count("\n") == 1
