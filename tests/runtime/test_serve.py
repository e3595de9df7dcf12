import contextlib
import http.client
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fmcae
from fmcae import Model, UsageError

uvicorn: Any = pytest.importorskip("uvicorn", reason="needs the [serve] extra")
serve: Any = pytest.importorskip("fmcae.runtime.serve", reason="needs the [serve] extra", exc_type=ImportError)

if TYPE_CHECKING:
    from tests.conftest import Cli

Answer: TypeAlias = tuple[int, Any, http.client.HTTPMessage]
Part: TypeAlias = tuple[str | None, bytes]  # a file's name, or None for a field, and the content
BOUNDARY = "b0undary"


class Server:
    """An application that listens on a free port, in a thread."""

    def __init__(self, model: Model, limits: Any = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(serve.application(model, limits), http="h11", log_config=None))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def __enter__(self) -> "Server":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.listener.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """An answer's status, its JSON (or text) and its headers."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            text = response.read().decode()
        is_json = response.headers["content-type"] == "application/json"
        assert not is_json or text.count("\n") == 1
        return response.status, json.loads(text) if is_json else text, response.headers

    def post(self, body: Any, content_type: str = "image/png", path: str = "/predict") -> Answer:
        return self.ask("POST", path, body, content_type=content_type)

    def post_form(self, *parts: Part) -> Answer:
        return self.post(form(*parts), f"multipart/form-data; boundary={BOUNDARY}")

    def begin(self, length: int, sent: bytes) -> socket.socket:
        """A request that has sent a part of its body."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n")
        connection.sendall(b"Content-Length: %d\r\n\r\n%b" % (length, sent))
        return connection

    def metric(self, name: str, **labels: str) -> float:
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.ask("GET", "/metrics")[1])
        samples = [sample for family in families for sample in family.samples]
        value: float = next(sample.value for sample in samples if sample.name == name and sample.labels == labels)
        return value

    def wait_for_free(self, places: int) -> None:
        for _ in range(500):
            if self.metric("fmcae_free_places") == places:
                return
            time.sleep(0.01)
        pytest.fail(f"never were {places} places free")


def form(*parts: Part) -> bytes:
    body = b""
    for name, content in parts:
        file_name = "" if name is None else f'; filename="{name}"'
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="p"{file_name}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with Server(model, serve.Limits(workers=2, queue=64, max_bytes=100_000, max_pixels=1_000_000)) as running:
        yield running


@pytest.fixture(scope="module")
def samples(shipped: Path) -> list[Path]:
    return sorted((shipped.parent / "samples").glob("*.png"))


def test_an_answer_is_what_predict_json_prints(server: Server, samples: list[Path], cli: "Cli") -> None:
    for path in samples[:3]:
        for options, query in (((), ""), (("--top-k", "3"), "?top_k=3")):
            printed = json.loads(cli("predict", "-", "--json", *options, stdin=path.read_bytes()).stdout)
            status, values, headers = server.post(path.read_bytes(), path=f"/predict{query}")
            assert (status, values) == (200, printed)
            assert list(values["predictions"][0]) == list(printed["predictions"][0])  # in the same order
            assert headers["content-type"] == "application/json"


def test_every_picture_of_a_form_has_its_own_prediction_or_error(
    server: Server, samples: list[Path], cli: "Cli", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.png").write_bytes(b"no picture")
    Path("bag.png").write_bytes(samples[1].read_bytes())
    printed = json.loads(cli("predict", "bad.png", "bag.png", "--json").stdout)
    answer = server.post_form(("bad.png", b"no picture"), ("bag.png", samples[1].read_bytes()))
    assert answer[:2] == (200, printed)
    status, values, _ = server.post_form((None, b"a field"), ("../../etc/passwd", b""), ("", b"x"))
    assert status == 422
    assert [item["path"] for item in values["predictions"]] == ["../../etc/passwd", "picture 3"]
    assert values["error"] == values["predictions"][0]["error"] == "../../etc/passwd: is empty"


@pytest.mark.parametrize("name", ["\N{DRESS}.png", "a\\b.png", "x" * 300])
def test_a_file_may_have_any_name(server: Server, samples: list[Path], name: str) -> None:
    status, values, _ = server.post_form((name, samples[0].read_bytes()))
    assert status == 200 and values["predictions"][0]["path"] == name


def test_no_path_that_a_client_names_is_opened(server: Server, samples: list[Path]) -> None:
    path = str(samples[0])
    for status, values, _ in (server.post_form((path, b"x")), server.post(path.encode())):
        assert status == 422 and "is not an image" in values["error"]


@pytest.mark.parametrize("content_type", ["image/png", "Image/JPEG; x=y", "application/octet-stream", ""])
def test_the_type_of_a_picture_may_be_open(server: Server, samples: list[Path], content_type: str) -> None:
    assert server.post(samples[0].read_bytes(), content_type)[0] == 200


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"content_type": "text/plain"}, "content-type (=text/plain) must be image/*"),
        ({"content_type": "application/json"}, "content-type (=application/json)"),
        ({"content_type": "multipart/mixed; boundary=x"}, "content-type (=multipart/mixed)"),
        ({"content_type": "image/png", "content_encoding": "gzip"}, "content-encoding (=gzip) must be identity"),
    ],
)
def test_what_is_no_picture_by_its_type_is_415(
    server: Server, samples: list[Path], headers: dict[str, str], named: str
) -> None:
    status, values, _ = server.ask("POST", "/predict", samples[0].read_bytes(), **headers)
    assert status == 415 and named in values["error"]


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        (b"", "image/png", "body: is empty"),
        (b"no picture", "image/png", "body: is not an image in a format that is read"),
        (b"a=b", "application/x-www-form-urlencoded", "body: is not an image"),
        (form(), f"multipart/form-data; boundary={BOUNDARY}", "the form has no file: each picture is a part with a"),
        (form((None, b"x")), f"multipart/form-data; boundary={BOUNDARY}", "the form has no file"),
        (form(("a", b"x")), "multipart/form-data", "the form cannot be read: its content-type has no boundary"),
        (form(("a", b"x"))[:-8], f"multipart/form-data; boundary={BOUNDARY}", "its last boundary is missing"),
        (b"x" + form(("a", b"x")), f"multipart/form-data; boundary={BOUNDARY}", "the form cannot be read: "),
        (
            form(*[("a", b"x")] * (serve.MAX_PARTS + 1)),
            f"multipart/form-data; boundary={BOUNDARY}",
            f"the form cannot be read: it has more than {serve.MAX_PARTS} parts",
        ),
    ],
)
def test_what_holds_no_picture_is_422(server: Server, body: bytes, content_type: str, error: str) -> None:
    status, values, _ = server.post(body, content_type)
    assert status == 422 and error in values["error"]


@pytest.mark.parametrize("top_k", ["0", "11", "-1", "1.0", "", "9" * 5000, "x", "\N{SUPERSCRIPT TWO}"])
def test_top_k_is_from_1_to_the_number_of_classes(server: Server, samples: list[Path], top_k: str) -> None:
    from urllib.parse import quote

    status, values, _ = server.post(samples[0].read_bytes(), path=f"/predict?top_k={quote(top_k)}")
    assert status == 422 and f"top_k (={top_k}) must be an integer from 1 to 10" in values["error"]


def test_a_picture_of_too_many_pixels_is_422_before_it_is_decoded(
    server: Server, encoded: Callable[..., bytes]
) -> None:
    assert server.post(encoded(Image.new("1", (1000, 1000))))[0] == 200
    status, values, _ = server.post(encoded(Image.new("1", (1000, 1001))))
    assert status == 422 and "body: has 1000×1001 pixels; 1 to 1,000,000 are read" in values["error"]


def test_a_body_that_is_too_large_is_413_however_it_comes(server: Server) -> None:
    large = bytes(5_000_000)
    chunks = (large[i : i + 50_000] for i in range(0, len(large), 50_000))
    answers = [
        server.post(large),
        server.post(chunks),  # of no declared length
        server.post_form(("a.png", large)),
        server.post_form(*[("a.png", bytes(60_000))] * 2),
        server.post(bytes(100_001)),
    ]
    for status, values, _ in answers:
        assert (status, values["error"]) == (413, "the body has more than 100,000 bytes")
    assert server.post(bytes(100_000))[0] == 422
    assert server.metric("fmcae_free_places") == 66


def test_a_client_that_asks_before_it_sends_sends_no_body_that_is_too_large(server: Server) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    with connection, connection.makefile("rb") as answer:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 999999\r\n\r\n"
        )
        assert answer.readline().startswith(b"HTTP/1.1 413 ")
        assert b"connection: close\r\n" in answer.read().lower()


def test_many_clients_at_once_get_their_own_answers(server: Server, model: Model, samples: list[Path]) -> None:
    expected = {path: model.predict(path) for path in samples}

    def check(path: Path) -> bool:
        status, values, _ = server.post(path.read_bytes())
        (values,) = values["predictions"]
        return status == 200 and values["probabilities"] == expected[path].probabilities.tolist()

    with ThreadPoolExecutor(20) as clients:
        assert all(clients.map(check, samples * 20))


def test_a_full_queue_is_503_and_says_when_to_come_back(model: Model, samples: list[Path]) -> None:
    content = samples[0].read_bytes()
    with Server(model, serve.Limits(workers=1, queue=1)) as server:
        held = [server.begin(len(content), content[:100]) for _ in range(2)]
        server.wait_for_free(0)
        status, values, headers = server.post(content)
        assert (status, headers["retry-after"]) == (503, "1")
        assert values["error"] == "2 requests are under way: try again later"
        assert server.ask("GET", "/health")[0] == 200
        for connection in held:
            connection.sendall(content[100:])
            with connection, connection.makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        server.wait_for_free(2)
        assert server.post(content)[0] == 200


def test_a_slow_upload_is_503_and_gives_its_place_back(model: Model) -> None:
    with Server(model, serve.Limits(workers=1, queue=0, timeout_s=0.2)) as server:
        with server.begin(1000, b"a part") as connection, connection.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 503 ")
            text = answer.read()
        assert b"it took more than 0.2 s: try again later" in text and b"connection: close" in text.lower()
        assert server.metric("fmcae_free_places") == 1


def test_a_prediction_that_takes_long_is_503_and_keeps_its_place_until_it_ends(
    model: Model, samples: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:

    goes_on, predict_content, predicted = threading.Event(), serve.predict_content, []

    def slowly(*arguments: Any) -> Any:
        predicted.append(arguments)
        assert goes_on.wait(30)
        return predict_content(*arguments)

    monkeypatch.setattr("fmcae.runtime.serve.predict_content", slowly)
    content = samples[0].read_bytes()
    with Server(model, serve.Limits(workers=1, queue=1, timeout_s=0.3)) as server:
        assert server.post_form(("a.png", content), ("b.png", content))[0] == 503
        assert server.metric("fmcae_free_places") == 1  # its worker is still busy
        assert server.post(content)[0] == 503  # which waited for that worker
        assert server.metric("fmcae_free_places") == 1  # and leaves the queue
        goes_on.set()
        server.wait_for_free(2)
        assert len(predicted) == 1  # the form's second picture, and what left the queue, are not predicted
        assert server.post(content)[0] == 200
        assert server.metric("fmcae_requests_total", status="503") == 2


def test_a_client_that_goes_away_gives_its_place_back(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.begin(1000, b"a part").close()
    server.wait_for_free(66)
    assert server.metric("fmcae_requests_total", status="499") >= 1
    assert caplog.text == ""


def test_too_little_memory_is_503(server: Server, samples: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fmcae.runtime.serve.predict_content", fail)
    status, values, _ = server.post(samples[0].read_bytes())
    assert (status, values["error"]) == (503, "out of memory: try again later")


def test_what_goes_wrong_inside_is_500_without_its_details(
    server: Server, samples: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("fmcae.runtime.serve.predict_content", fail)
    status, values, _ = server.post(samples[0].read_bytes())
    assert (status, values) == (500, {"schema_version": 1, "error": "internal error"})
    for _ in range(500):  # it is told to who runs the server, after the answer
        if "a secret" in caplog.text:
            break
        time.sleep(0.01)
    assert "a secret" in caplog.text
    monkeypatch.undo()
    assert server.post(samples[0].read_bytes())[0] == 200


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.binary(max_size=200), content=st.binary(max_size=300), is_form=st.booleans())
def test_any_body_is_answered(server: Server, start: bytes, content: bytes, is_form: bool) -> None:
    body = form(("a.png", content)) + start if is_form else start + content
    status, values, _ = server.post(body, f"multipart/form-data; boundary={BOUNDARY}" if is_form else "image/png")
    assert status == 422 and values["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("OPTIONS", "/predict", 405),
        ("GET", "/health/", 404),
        ("POST", "/health", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/models/nothing/picture.onnx", 404),
        ("GET", "/models/%2e%2e/picture.onnx", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
    ],
)
def test_other_requests_are_refused_in_one_line(server: Server, method: str, path: str, status: int) -> None:
    answer = server.ask(method, path)
    assert answer[0] == status and set(answer[1]) == {"schema_version", "error"}


def test_an_application_that_mounts_it_keeps_its_logs(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("uvicorn.error").error("the database's upgrade failed")
    assert caplog.messages == ["the database's upgrade failed"]


def test_an_address_with_a_scope_is_listened_on_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 8000, 0, 7))
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
    monkeypatch.setattr(socket, "create_server", lambda address, **_: asked.append(address))
    serve._listen("fe80::1%eth0", 8000)
    assert asked == [("fe80::1", 8000, 0, 7)]


def test_health_and_metrics(server: Server, model: Model, samples: list[Path]) -> None:
    status, values, _ = server.ask("GET", "/health")
    assert (status, values["status"], values["provider"]) == (200, "ok", "cpu")
    assert values["training_started"] == model.artefacts["classifier"].card.training["started"]
    before = [server.metric("fmcae_pictures_total", outcome=name) for name in ("known", "unknown", "error")]
    blank = b"P1 30 20 " + b"0" * 600
    assert server.post_form(("a", samples[0].read_bytes()), ("b", blank), ("c", b"x"), ("d", b"x"))[0] == 200
    after = [server.metric("fmcae_pictures_total", outcome=name) for name in ("known", "unknown", "error")]
    assert [round(b - a) for a, b in zip(before, after, strict=True)] == [1, 1, 2]
    assert server.metric("fmcae_request_seconds_count") >= 1
    assert server.ask("GET", "/metrics")[2]["content-type"].startswith("text/plain; version=")


def test_without_a_built_page_there_is_a_form(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmcae.runtime.serve.shipped_folder", lambda name: tmp_path / name)
    with Server(model) as server:
        status, text, headers = server.ask("GET", "/")
        assert status == 200 and 'action="predict"' in text and headers["content-type"] == "text/html; charset=utf-8"
        assert server.ask("GET", "/models/fashion-mnist/picture.onnx")[0] == 404


def test_the_built_page_is_served_so_that_its_threads_work(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (
        ("web/dist/index.html", "<!doctype html>the page"),
        ("web/dist/app.mjs", "import './x.js'"),
        ("web/dist/ort.wasm", "\0asm"),
        ("fashion-mnist/picture.onnx", "a graph"),
        ("secret.txt", "nothing for others"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("fmcae.runtime.serve.shipped_folder", lambda name: tmp_path / name)
    with Server(model) as server:
        for path, kind, text in (
            ("/", "text/html; charset=utf-8", "<!doctype html>the page"),
            ("/app.mjs", "text/javascript; charset=utf-8", "import './x.js'"),
            ("/ort.wasm", "application/wasm", "\0asm"),
            ("/models/fashion-mnist/picture.onnx", "application/octet-stream", "a graph"),
        ):
            status, found, headers = server.ask("GET", path)
            assert (status, headers["content-type"], found) == (200, kind, text)
            assert headers["cross-origin-opener-policy"] == "same-origin"
            assert headers["cross-origin-embedder-policy"] == "require-corp"
            assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval';" in headers["content-security-policy"]
            assert "unsafe-inline" not in headers["content-security-policy"]
        assert server.ask("GET", "/models/names.json")[1] == ["served", "fashion-mnist"]
        own = model.artefacts["classifier"].path.with_name("picture.onnx")
        assert server.ask("HEAD", "/models/served/picture.onnx")[2]["content-length"] == str(own.stat().st_size)
        assert server.ask("GET", "/predict")[0] == 405
        for path in ("/../../secret.txt", "/%2e%2e/%2e%2e/secret.txt", "/nowhere.js"):
            assert server.ask("GET", path)[0] == 404


def test_the_page_starts_with_the_model_that_is_served(model: Model) -> None:
    with Server(model) as server, Server(fmcae.load("fashion-mnist-int8")) as other:
        assert server.ask("GET", "/models/names.json")[1] == ["fashion-mnist", "fashion-mnist-int8"]
        assert other.ask("GET", "/models/names.json")[1] == ["fashion-mnist-int8", "fashion-mnist"]


def test_a_model_that_the_page_cannot_run_has_the_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "web/dist").mkdir(parents=True)
    (tmp_path / "web/dist/index.html").touch()
    large = fmcae.load("fashion-mnist-large")
    monkeypatch.setattr("fmcae.runtime.serve.shipped_folder", lambda name: tmp_path / name)
    with Server(large) as server:
        assert 'action="predict"' in server.ask("GET", "/")[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("workers", 0), ("queue", -1), ("timeout_s", float("nan")), ("max_bytes", 0), ("max_pixels", 0),
     ("workers", 1.5), ("queue", "2"), ("timeout_s", "1")],
)  # fmt: skip
def test_a_limit_that_is_none_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{name} \(={value}\) must be (an integer )?from "):
        serve.Limits(**{name: value})


def test_a_damaged_form_leaves_no_line_of_another_library() -> None:
    """In a process of its own: pytest's handlers would take the line."""
    code = (
        "import fmcae.runtime.serve\n"
        "from python_multipart.multipart import FormParser\n"
        "from python_multipart.exceptions import FormParserError\n"
        "parser = FormParser('multipart/form-data', None, None, boundary='b0undary')\n"
        "try:\n    parser.write(b'no boundary')\nexcept FormParserError:\n    print('refused')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("refused\n", "")
