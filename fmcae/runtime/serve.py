"""Serve a classifier over HTTP: ``fmcae serve``, or :func:`application` in an ASGI server of your own.

All that a request may take has a limit. It takes one of ``workers + queue`` places before its body is read, or gets 503.
Its body has at most ``max_bytes``, which are counted as they arrive, so that a body of no declared length is limited too.
Decoding has the limits of ``fmcae predict`` and ``max_pixels``. Upload, wait and prediction together have ``timeout_s``.
Pictures stay in memory: nothing is written to disk, and no path that a client names is opened.
"""

import asyncio
import contextlib
import errno
import logging
import mimetypes
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import prometheus_client
import uvicorn
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import fmcae
from fmcae.errors import FmcaeError, UsageError
from fmcae.images import MAX_PIXELS
from fmcae.runtime.as_json import (
    JSON_SCHEMA_VERSION,
    check_top_k,
    facts_of,
    json_text,
    outcome_values,
    ranked_labels,
    without_what_json_lacks,
)
from fmcae.runtime.machine import available_cpus
from fmcae.runtime.model import SHIPPED, Model, shipped_folder
from fmcae.runtime.predict import STDIN, Outcome, predict_content

logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # its warnings stand in the answer

Picture = tuple[str, str, bytes]  # its path in the answer, its name in an error, and the encoded picture

MAX_PARTS = 64  # of a form
RETRY_AFTER_S = 1
# A body of no declared type, and curl's default for --data-binary.
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
MULTIPART = "multipart/form-data"
# The page may share memory between threads, and loads nothing from elsewhere, as with exports/web/serve.js.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
        "img-src 'self' blob:; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
FORM = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>fmcae</title>
<h1>What do these pictures show?</h1>
<form action="predict" method="post" enctype="{MULTIPART}">
<p><label>Pictures: <input type="file" name="picture" accept="image/*" multiple required></label></p>
<p><button>Predict</button></p>
</form>
<p>The answer is JSON. <a href="health">health</a>, <a href="metrics">metrics</a></p>
</html>
"""


@dataclass(frozen=True)
class Limits:
    """What a server takes at most.

    Attributes:
        workers: requests that are predicted at once; by default, as many as this process may use CPUs.
        queue: further requests that are read or wait for a worker.
        timeout_s: seconds from a request's headers to its answer.
        max_bytes: the bytes of a request's body.
        max_pixels: the pixels of a picture.
    """

    workers: int = field(default_factory=available_cpus)
    queue: int = 32
    timeout_s: float = 30.0
    max_bytes: int = 20 * 2**20
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name, least, most in (
            ("workers", 1, 256),
            ("queue", 0, 100_000),
            ("timeout_s", 0.1, 3600),
            ("max_bytes", 1, 2**30),
            ("max_pixels", 1, MAX_PIXELS),
        ):
            value, is_real = getattr(self, name), name == "timeout_s"
            if not isinstance(value, float | int if is_real else int) or not least <= value <= most:
                raise UsageError(
                    f"{name} (={value}) must be {'' if is_real else 'an integer '}from {least:,} to {most:,}"
                )


class _Refused(Exception):
    """A request gets no prediction."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Metrics:
    """What ``/metrics`` shows, of this application alone."""

    def __init__(self, free: Callable[[], float], model: Model) -> None:
        self.registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)
        about = prometheus_client.Info("fmcae", "The version, and what is served.", registry=registry)
        about.info({"version": fmcae.__version__, **without_what_json_lacks(facts_of(model))})
        self.requests = prometheus_client.Counter(
            "fmcae_requests", "Requests to /predict, by the answer's status.", ["status"], registry=registry
        )
        self.pictures = prometheus_client.Counter(
            "fmcae_pictures", "Pictures, by outcome: known, unknown or error.", ["outcome"], registry=registry
        )
        for outcome in ("known", "unknown", "error"):
            self.pictures.labels(outcome)
        self.seconds = prometheus_client.Histogram(
            "fmcae_request_seconds",
            "Seconds from the headers of a request to /predict to its answer.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        prometheus_client.Gauge(
            "fmcae_free_places", "Requests that would be taken now.", registry=registry
        ).set_function(free)


class _Body:
    """A request's body, counted as it arrives."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self._receive = request.receive
        self._waits = request.headers.get("expect", "").lower() == "100-continue"
        self._max_bytes = max_bytes
        self.ended = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body's parts.

        Raises:
            _Refused: it has more than ``max_bytes``.
            ClientDisconnect: the client has gone.
        """
        size = 0
        while not self.ended:
            chunk = await self._next()
            size += len(chunk)
            if size > self._max_bytes:
                raise _Refused(413, f"the body has more than {self._max_bytes:,} bytes")
            yield chunk

    async def drop(self, seconds: float) -> None:
        """Throw away what still arrives within ``seconds``: most clients read no answer before they have sent everything."""
        if self._waits and not self.ended:
            return  # the client asks before it sends
        with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect):
            await asyncio.wait_for(self._drop(), seconds)

    async def _drop(self) -> None:
        while not self.ended:
            await self._next()

    async def _next(self) -> bytes:
        message = await self._receive()
        self._waits = False  # the server has told the client to go on
        if message["type"] == "http.disconnect":
            self.ended = True
            raise ClientDisconnect
        self.ended = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk


class _Predictor:
    """The route ``/predict``: a bounded pool of workers, and the answers."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.facts = facts_of(model)
        self.free = limits.workers + limits.queue
        self.executor = ThreadPoolExecutor(limits.workers, "fmcae-worker")
        self.metrics = _Metrics(lambda: self.free, model)

    async def answer(self, request: Request) -> Response:
        """Answer one request, and count it."""
        if request.method != "POST":  # looked at here, because where a page is, it would be asked for /predict
            raise HTTPException(405, headers={"allow": "POST"})
        start = time.monotonic()
        deadline = start + self.limits.timeout_s
        body = _Body(request, self.limits.max_bytes)
        try:
            response = await self._predict(request, body, deadline)
        except _Refused as error:
            response = _error(error.status, str(error))
        except ClientDisconnect:
            response = _error(499, "the client has gone")  # which nobody reads
        except Exception:
            self.metrics.requests.labels(500).inc()
            raise
        self.metrics.seconds.observe(time.monotonic() - start)
        self.metrics.requests.labels(response.status_code).inc()
        await body.drop(deadline - time.monotonic())
        if not body.ended:
            response.headers["connection"] = "close"
        return response

    async def _predict(self, request: Request, body: _Body, deadline: float) -> Response:
        content_type = _content_type(request)
        top_k = self._top_k(request.query_params.get("top_k", "1"))
        if int(request.headers.get("content-length", "0")) > self.limits.max_bytes:
            raise _Refused(413, f"the body has more than {self.limits.max_bytes:,} bytes")
        if self.free == 0:
            raise _Refused(503, f"{self.limits.workers + self.limits.queue:,} requests are under way: try again later")
        self.free -= 1
        work: Future[list[Outcome]] | None = None
        try:
            pictures = await _within(deadline, _read_pictures(request, content_type, body))
            work = self.executor.submit(self._outcomes, pictures, deadline)
            outcomes = await _within(deadline, asyncio.wrap_future(work))
        except asyncio.TimeoutError:
            raise _Refused(503, f"it took more than {self.limits.timeout_s:g} s: try again later") from None
        except MemoryError:
            raise _Refused(503, "out of memory: try again later") from None
        finally:
            # A worker that has begun goes on, and keeps its place until it is done.
            loop = asyncio.get_running_loop()
            if work is None:
                self._release()
            else:
                work.add_done_callback(lambda _: _call_soon(loop, self._release))
        return self._answer_of(outcomes, top_k)

    def _top_k(self, text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) < 10
        try:
            return check_top_k(int(text) if is_number else 0, self.model.class_names)
        except UsageError as error:
            raise _Refused(422, str(error).replace("(=0)", f"(={text})")) from None

    def _release(self) -> None:
        self.free += 1

    def _outcomes(self, pictures: list[Picture], deadline: float) -> list[Outcome]:
        """Predict pictures, in a worker; after the deadline nobody waits for the rest."""
        outcomes = []
        for path, name, content in pictures:
            if time.monotonic() > deadline:
                raise asyncio.TimeoutError
            outcomes.append(predict_content(self.model, path, content, name, self.limits.max_pixels))
        return outcomes

    def _answer_of(self, outcomes: list[Outcome], top_k: int) -> Response:
        class_names = self.model.class_names
        rows = []
        for outcome in outcomes:
            prediction = outcome.prediction
            ranked = ranked_labels(prediction, class_names, top_k) if prediction else []
            rows.append(outcome_values(outcome, ranked, self.facts))
            self.metrics.pictures.labels(
                "error" if prediction is None else "known" if prediction.known else "unknown"
            ).inc()
        values = {"class_names": list(class_names), "predictions": rows}
        if any(outcome.prediction for outcome in outcomes):
            return _json(200, values)
        return _json(422, {"error": str(outcomes[0].error), **values})


def application(model: Model, limits: Limits | None = None) -> Starlette:
    """The server as an ASGI application: ``/``, ``/predict``, ``/health`` and ``/metrics``.

    Args:
        model: from :func:`fmcae.load`, with a classifier. Workers share it, and each prediction takes its threads.
        limits: None for the defaults.

    Raises:
        ArtefactError: the model has no classifier, or ONNX Runtime cannot load it.
        ProviderError: its provider does not run here.
    """
    predictor = _Predictor(model, limits or Limits())
    trained = model.artefacts["classifier"].card.training["started"]
    health = {"status": "ok", "version": fmcae.__version__, **predictor.facts, "training_started": trained}

    async def say_health(request: Request) -> Response:
        return _json(200, health)

    async def show_metrics(request: Request) -> Response:
        content = prometheus_client.generate_latest(predictor.metrics.registry)
        return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def show_form(request: Request) -> Response:
        return HTMLResponse(FORM)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        yield
        predictor.executor.shutdown(wait=False, cancel_futures=True)

    async def name_models(request: Request) -> Response:
        return Response(json_text(list(_picture_graphs(model))) + "\n", media_type="application/json")

    async def send_model(request: Request) -> Response:
        name = request.path_params["name"]
        if (path := _picture_graphs(model).get(name)) is None:
            return _error(404, f"there is no picture.onnx of a model {name}")
        return FileResponse(path, media_type="application/octet-stream")

    page = shipped_folder("web") / "dist"
    has_page = (page / "index.html").is_file() and _own_picture_graph(model).is_file()
    for suffix, kind in ((".js", "text/javascript"), (".mjs", "text/javascript"), (".wasm", "application/wasm")):
        mimetypes.add_type(kind, suffix)  # which the system may lack, and a browser insists on
    routes: list[Any] = [
        Route("/predict", predictor.answer, methods=["POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]),
        Route("/health", say_health),
        Route("/metrics", show_metrics),
        Route("/models/names.json", name_models),
        Route("/models/{name}/picture.onnx", send_model),
        Mount("/", StaticFiles(directory=page, html=True)) if has_page else Route("/", show_form),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _internal_error}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False  # an answer without an error's text
    app.add_middleware(_WithHeaders)
    return app


def _own_picture_graph(model: Model) -> Path:
    return model.artefacts["classifier"].path.with_name("picture.onnx")


def _picture_graphs(model: Model) -> dict[str, Path]:
    """The graphs that the page can run in the browser, by name: that of the served model first, then those that ship."""
    shipped = {name: shipped_folder(name) / "picture.onnx" for name in SHIPPED}
    own = _own_picture_graph(model)
    name = next((name for name, path in shipped.items() if path.resolve() == own.resolve()), "served")
    return {name: path for name, path in ({name: own} | shipped).items() if path.is_file()}


class _Server(uvicorn.Server):
    """Says on stderr where it serves, once it handles signals."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self.line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self.line, file=sys.stderr, flush=True)


def serve(model: Model, host: str = "127.0.0.1", port: int = 8000, limits: Limits | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, after which requests that are under way are still answered; call it in the main thread.

    Where it listens is said on stderr; port 0 takes a free one.

    Raises:
        FmcaeError: it cannot listen there.
        SystemExit: SIGTERM came, with exit code 0.
        KeyboardInterrupt: Ctrl-C came.
    """
    limits = limits or Limits()
    app = application(model, limits)
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        log_config=None,
        access_log=False,
        http="h11",
        ws="none",
        lifespan="on",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.timeout_s) + 5,
    )
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn repeats the signal once it has stopped
    log = logging.getLogger("uvicorn.error")
    log.addFilter(_is_no_advice)
    shown = f"[{host}]" if ":" in host else host
    try:
        _Server(config, f"serving on http://{shown}:{listener.getsockname()[1]}/").run(sockets=[listener])
    finally:
        log.removeFilter(_is_no_advice)
        signal.signal(signal.SIGTERM, before)
        listener.close()


def _is_no_advice(record: logging.LogRecord) -> bool:
    """A request that would upgrade is answered as any other; uvicorn's advice on WebSockets helps nobody here."""
    return not re.search("(?i)upgrade|websocket", str(record.msg))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # UnicodeError: by what cannot be a name
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        if isinstance(error, UnicodeError | socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise FmcaeError(f"host (={host}) must be an address of this machine: {reason}") from error
        raise FmcaeError(f"port (={port}) is not to be had on {host}: {reason}") from error


def _content_type(request: Request) -> str:
    content_type: str = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in (*RAW_TYPES, MULTIPART) and not content_type.startswith("image/"):
        raise _Refused(415, f"content-type (={content_type}) must be image/*, application/octet-stream or {MULTIPART}")
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise _Refused(415, f"content-encoding (={coding}) must be identity")
    return content_type


async def _read_pictures(request: Request, content_type: str, body: _Body) -> list[Picture]:
    """Read the picture that a body is, or those in the parts of a form."""
    if content_type != MULTIPART:
        return [(STDIN, "body", b"".join([chunk async for chunk in body.chunks()]))]
    pictures: list[Picture] = []
    parts = count(1)
    ends: list[bool] = []

    def add(part: Any, is_file: bool = True) -> None:
        if (number := next(parts)) > MAX_PARTS:
            raise FormParserError(f"it has more than {MAX_PARTS} parts")
        if is_file:
            name = part.file_name.decode(errors="replace") or f"picture {number}"
            part.file_object.seek(0)
            pictures.append((name, name, part.file_object.read()))

    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    try:
        if not boundary:
            raise FormParserError("its content-type has no boundary")
        in_memory: Any = {"MAX_MEMORY_FILE_SIZE": float("inf")}  # of what the body's own limit allows
        ended = partial(ends.append, True)
        parser = FormParser(MULTIPART, partial(add, is_file=False), add, ended, boundary=boundary, config=in_memory)
        async for chunk in body.chunks():
            parser.write(chunk)
        if not ends:
            raise FormParserError("its last boundary is missing")
    except FormParserError as error:
        raise _Refused(422, f"the form cannot be read: {error}") from error
    if not pictures:
        raise _Refused(
            422, "the form has no file: each picture is a part with a file name, by filename= and not filename*="
        )
    return pictures


async def _within(deadline: float, work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, max(0, deadline - time.monotonic()))


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the server has stopped
        loop.call_soon_threadsafe(function)


def _json(status: int, values: dict[str, Any]) -> Response:
    content = json_text({"schema_version": JSON_SCHEMA_VERSION, **values}) + "\n"
    return Response(content, status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    response = _json(status, {"error": message})
    if status == 503:
        response.headers["retry-after"] = str(RETRY_AFTER_S)
    return response


async def _http_error(request: Request, error: HTTPException) -> Response:
    response = _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    response.headers.update(error.headers or {})
    return response


async def _internal_error(request: Request, error: Exception) -> Response:
    return _error(500, str(error) if isinstance(error, FmcaeError) else "internal error")


class _WithHeaders:
    """Middleware that adds HEADERS to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
