"""What the ZMQ tests share."""

import socket

import pytest


@pytest.fixture
def free_endpoint():
    """An endpoint on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
