"""Sockets that are made and discarded faster than libzmq closes them."""

import subprocess
import sys

import pytest

from tests.support.echo_process import echo_process

_DISCARDS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool

def discard(_):
    for _ in range(1000):
        try:
            with pool.socket(config) as socket:
                if sys.argv[2] == "close":
                    socket.close()
                raise LookupError
        except LookupError:
            pass

config = SocketConfig(SocketType.REQ, sys.argv[1])
with ZMQPool() as pool, ThreadPoolExecutor(8) as threads:
    list(threads.map(discard, range(8)))
    assert b"still served" == pool.request(config, b"still served")
"""


@pytest.mark.parametrize("how", ["close", "raise"])
def test_lessees_that_fail_in_a_row_do_not_use_up_the_descriptors(how):
    """Threads that ruin 8,000 sockets in a row wait for libzmq to close them, and never see "Too many open files"."""
    with echo_process("ROUTER") as server:
        run = [sys.executable, "-c", _DISCARDS, server.endpoint, how]
        result = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
    assert (0, "") == (result.returncode, result.stderr)
