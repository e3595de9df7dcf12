"""``fmcae serve``: predictions over HTTP, and the page where it is built."""

from typing import Annotated

import typer

from fmcae.cli.options import MAX_PIXELS, MaxPixelsOption, ModelOption, ProviderOption, ThresholdOption
from fmcae.errors import require_extra

PORT_HELP = "Port to listen on; 0 takes a free one."
HOST_HELP = "Address to listen on; 0.0.0.0 lets other machines in."
WORKERS_HELP = "Requests predicted at once. [default: CPUs that this process may use]"
QUEUE_HELP = "Further requests that may wait; one more gets 503."
TIMEOUT_HELP = "Seconds that a request may take, upload included; else 503."


def serve(
    model: ModelOption = None,
    threshold: ThresholdOption = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help=HOST_HELP)] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help=PORT_HELP)] = 8000,
    provider: ProviderOption = "cpu",
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, max=256, help=WORKERS_HELP)] = None,
    queue: Annotated[int, typer.Option(metavar="N", min=0, max=100_000, help=QUEUE_HELP)] = 32,
    timeout: Annotated[float, typer.Option(metavar="S", min=0.1, max=3600, help=TIMEOUT_HELP)] = 30,
    max_bytes: Annotated[
        int, typer.Option(metavar="N", min=1, max=2**30, help="Bytes of a request's body; one with more gets 413.")
    ] = 20 * 2**20,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
) -> None:
    """Serve predictions over HTTP, with a page to try them.

    POST a picture, or a form of several, to /predict; the answer is that of predict --json. / is a page, /health says what
    is served, and /metrics is for Prometheus. Ctrl-C or SIGTERM stops it once the requests under way are answered.
    """
    require_extra("serve", "starlette", "uvicorn", "prometheus_client", "python_multipart")
    from fmcae.runtime.machine import available_cpus
    from fmcae.runtime.model import load
    from fmcae.runtime.serve import Limits
    from fmcae.runtime.serve import serve as run

    limits = Limits(workers or available_cpus(), queue, timeout, max_bytes, max_pixels)
    # Requests run side by side, so each needs one thread only.
    run(load(model, provider=provider, threads=1, only="classifier", threshold=threshold), host, port, limits)
