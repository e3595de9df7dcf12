"""A Ray cluster, for ``fmcae study --ray`` and ``fmcae predict --ray``."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from fmcae.errors import RunError

CONNECT_SECONDS = 10


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster and yield the package ``ray``; what is started for the connection ends with it.

    What this process prints to stdout meanwhile is lost, because Ray prints there that a machine died.

    Args:
        address: "local" for a new cluster of this machine alone, "auto" for one that runs on it, HOST:PORT, or
            ray://HOST:PORT for one that this machine is not part of.

    Raises:
        RunError: there is no cluster at that address.
    """
    import ray

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            _check_port(address)  # Ray itself tries for five minutes, and then ends the process
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            # the first sentence: the next may advise an option of Ray's own
            reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
            raise RunError(f"ray (={address}) has no cluster that can be reached: {reason}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_port(address: str) -> None:
    if place := re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d{1,5})", address):
        socket.create_connection((place[1], int(place[2])), CONNECT_SECONDS).close()
