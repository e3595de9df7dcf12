"""The download, against a server of small files on this machine."""

import hashlib
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import fmcae.data
from fmcae.data import IDX_NAMES, download, idx, load_dataset
from fmcae.errors import DataError

pytest.importorskip("pooch")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with four small files, which the download takes for Fashion-MNIST."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr(fmcae.data, "DEBIAN_FOLDER", tmp_path / "none")
    for name in IDX_NAMES:
        shape = (12, 28, 28) if "images" in name else (12,)
        idx.write(folder / f"{name}.gz", np.full(shape, len(name) % 7, np.uint8))
    contents = {name: (folder / f"{name}.gz").read_bytes() for name in IDX_NAMES}
    plain = {name: hashlib.sha256(idx.read_bytes(folder / f"{name}.gz")).hexdigest() for name in IDX_NAMES}
    monkeypatch.setattr(fmcae.data, "FASHION_MNIST_SHA256", plain)
    digests = {f"{name}.gz": hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(download, "SHA256", digests)
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(download, "URL", f"http://127.0.0.1:{server.server_port}/")
        yield folder
        server.shutdown()
        thread.join()


def cached() -> list[str]:
    cache = fmcae.data.cache_folder()
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_four_files_come_into_the_cache_and_are_used_next_time(served: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = load_dataset()
    assert (dataset.name, len(dataset.test)) == ("Fashion-MNIST", 12)
    assert cached() == sorted(f"{name}.gz" for name in IDX_NAMES)
    assert capfd.readouterr() == ("", ""), "no bar where there is no terminal"
    for path in served.iterdir():
        path.unlink()
    assert load_dataset().fingerprint == dataset.fingerprint


def test_a_terminal_shows_a_bar(
    served: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load_dataset()
    assert "100%" in capfd.readouterr().err


def test_a_file_with_another_digest_is_not_used(served: Path) -> None:
    idx.write(served / f"{IDX_NAMES[1]}.gz", np.ones(12, np.uint8))
    with pytest.raises(DataError, match=f"download .failed: .*SHA256 hash of downloaded file .{IDX_NAMES[1]}") as error:
        load_dataset()
    assert "\n" not in str(error.value) and "apt-get install dataset-fashion-mnist" in str(error.value)
    assert cached() == [f"{IDX_NAMES[0]}.gz"]


def test_a_missing_file_and_a_server_that_is_not_there_fail_at_once(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (served / f"{IDX_NAMES[3]}.gz").unlink()
    with pytest.raises(DataError, match=r"a download \(failed: 404 .*File not found"):
        load_dataset()
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/")
    started = time.monotonic()
    with pytest.raises(DataError, match=r"a download \(failed: .*refused"):
        load_dataset()
    assert time.monotonic() - started < 5


def test_a_server_that_never_answers_is_given_up(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(download, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        started = time.monotonic()
        with pytest.raises(DataError, match=r"a download \(failed: .*timed out"):
            load_dataset()
    assert time.monotonic() - started < 5
