"""``fmcae serve`` as a process: its start, its signals, and what keeps it from starting."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Cli

NEEDS = ("starlette", "uvicorn", "prometheus_client", "python_multipart")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="it needs POSIX's signals")


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """The process of ``fmcae serve`` and its port."""
    for module in NEEDS:
        pytest.importorskip(module, reason="needs the [serve] extra")
    command = [sys.executable, "-m", "fmcae", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.fullmatch(r"serving on http://127\.0\.0\.1:(\d+)/\n", line)
            assert found is not None, line
            yield process, int(found[1])
        finally:
            process.kill()


@pytest.fixture
def picture(shipped: Path) -> bytes:
    return (shipped.parent / "samples" / "bag.png").read_bytes()


def test_sigterm_lets_a_request_finish_and_exits_0(picture: bytes) -> None:
    with serving() as (process, port), socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=30)  # which is kept alive
        idle.request("GET", "/health")
        idle.getresponse().read()
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n")
        connection.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(picture), picture[:50]))
        while not _free_places(port) < _places(process):
            pass
        process.send_signal(signal.SIGTERM)
        with pytest.raises(OSError):  # it takes no new ones
            while True:
                socket.create_connection(("127.0.0.1", port), timeout=30).close()
        connection.sendall(picture[50:])
        with connection.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
            (prediction,) = json.loads(answer.read().split(b"\r\n\r\n", 1)[1])["predictions"]
        assert prediction["label"] == "Bag"
        idle.close()
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0


def _free_places(port: int) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        found = re.search(r"^fmcae_free_places (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def _places(process: "subprocess.Popen[str]") -> int:
    return len(os.sched_getaffinity(process.pid)) + 32 if hasattr(os, "sched_getaffinity") else 33


def test_ctrl_c_exits_130() -> None:
    with serving() as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "") and process.returncode == 130


def test_a_request_that_would_upgrade_is_answered_without_advice() -> None:
    with serving() as (process, port):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x"}
            connection.request("GET", "/health", headers=headers)
            assert connection.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == ("", "")


def test_options_reach_the_server(picture: bytes) -> None:
    options = ("--model", "fashion-mnist-int8", "--threshold", "1", "--max-bytes", "1000", "--workers", "1")
    with serving(*options) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/predict", picture)
        (prediction,) = json.loads(connection.getresponse().read())["predictions"]
        assert prediction["model"].endswith("fashion-mnist-int8/classifier.onnx") and prediction["known"] is False
        connection.request("POST", "/predict", bytes(1001))
        assert connection.getresponse().status == 413
        connection.close()
        process.terminate()
        assert process.communicate(timeout=30) == ("", "") and process.returncode == 0


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (("--host", "192.0.2.1"), 1, "--host 192.0.2.1 must be an address of this machine: Cannot assign"),
        (("--host", "no such host"), 1, "--host 'no such host' must be an address of this machine: "),
        (("--host", "x" * 300), 1, "must be an address of this machine: "),
        (("--timeout", "nan"), 2, "--timeout nan must be from 0.1 to 3,600"),
        (("--model", "missing.onnx"), 1, "missing.onnx: cannot be read: No such file"),
        (("--threshold", "2"), 2, "--threshold 2.0 must be a number from 0 to 1"),
        (("--model", "fashion-mnist-int8", "--provider", "cuda"), 4, "--provider cuda must be cpu"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    cli: "Cli", options: tuple[str, ...], exit_code: int, message: str
) -> None:
    for module in NEEDS:
        pytest.importorskip(module, reason="needs the [serve] extra")
    result = cli("serve", "--port", "0", *options)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and message in result.stderr


def test_a_port_that_is_taken_is_one_line(cli: "Cli") -> None:
    for module in NEEDS:
        pytest.importorskip(module, reason="needs the [serve] extra")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = cli("serve", "--port", port)
    error = f"error: --port {port} is not to be had on 127.0.0.1: Address already in use\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", error)


def test_without_the_extra_the_command_to_run_is_named(cli: "Cli", monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = cli("serve")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert "needs starlette, which is not installed: run  pip install '.[serve]'" in result.stderr
