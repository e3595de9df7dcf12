import socket

import pytest

from fmcae.errors import RunError
from fmcae.runtime.cluster import connected

pytest.importorskip("ray", reason="needs the [ray] extra")


def test_where_no_cluster_is_that_is_said_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]  # nobody listens there
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "nonsense"):
            with pytest.raises(RunError) as caught, connected(address):
                pass
            assert str(caught.value).startswith(f"ray (={address}) has no cluster that can be reached: ")
            assert "\n" not in str(caught.value)
