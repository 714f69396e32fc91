"""What the whole suite shares."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def free_endpoint(free_port: int) -> str:
    """An endpoint on which nobody listens."""
    return f"tcp://127.0.0.1:{free_port}"


@pytest.fixture
def users_folder() -> Iterator[Path]:
    """A folder of an ordinary user, as whom this process acts meanwhile: root may read and write everything."""
    with tempfile.TemporaryDirectory(prefix="poolwire-") as name:
        folder = Path(name)
        if os.geteuid() != 0:
            yield folder
            return
        os.chown(folder, NOBODY, NOBODY)
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)
            os.setegid(0)
