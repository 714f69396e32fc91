"""Ending a lease after the pool's stop, on a context that is terminated by then."""

import pytest

from app.pools.errors import LeaseLeaked
from app.pools.zmq_pool import SocketConfig, SocketType, ZMQPool


@pytest.mark.parametrize("kind", [SocketType.REQ, SocketType.DEALER, SocketType.PUSH, SocketType.SUB])
@pytest.mark.parametrize("retimed", [False, True])
def test_a_lease_ended_after_the_stop_ends_quietly(free_endpoint, kind, retimed):
    """Who ends a lease after the stop gets no error, and the socket is closed."""
    pool = ZMQPool()
    lease = pool.socket(SocketConfig(kind, free_endpoint, linger=0.01))
    socket = lease.__enter__()
    if retimed:
        socket.rcvtimeo = 5
    with pytest.raises(LeaseLeaked):
        pool.stop(timeout=0.1)
    try:
        lease.__exit__(None, None, None)
        assert socket.closed
    finally:
        socket.close()
