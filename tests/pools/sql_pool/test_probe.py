"""The probe of a connection's socket, which the driver may close at any time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from app.pools.sql_pool.probe import Probe


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a socket, and its peer."""
    one, other = socket.socketpair()
    with one, other:
        other.settimeout(10)
        yield one, other


@pytest.mark.parametrize("end", [Probe.cut, Probe.sever])
def test_a_number_that_is_anothers_by_now_is_left_alone(pair: tuple[socket.socket, socket.socket], end: object) -> None:
    """What ends a connection does nothing to a socket that has got the descriptor of a closed one since."""
    theirs, peer = pair
    ours, nobody = socket.socketpair()
    with nobody:
        descriptor = ours.detach()
        probe = Probe(descriptor)
        os.dup2(theirs.fileno(), descriptor)  # as when it is closed, and the number given to the next file
        with socket.socket(fileno=descriptor) as reused:
            end(probe)  # type: ignore[operator]

            reused.sendall(b"still there")
            assert peer.recv(100) == b"still there"
    probe.close()


@pytest.mark.parametrize("end", [Probe.cut, Probe.sever])
def test_a_closed_socket_is_not_replaced(pair: tuple[socket.socket, socket.socket], end: object) -> None:
    """What ends a connection opens nothing in the place of one that is closed."""
    descriptor = pair[0].fileno()
    probe = Probe(descriptor)
    pair[0].close()

    end(probe)  # type: ignore[operator]

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    probe.close()


def test_a_cut_is_seen_by_both_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    """A cut ends the connection for whoever reads from it, here and at the peer."""
    probe = Probe(pair[0].fileno())

    probe.cut()

    assert probe.readable()
    assert pair[0].recv(1) == pair[1].recv(1) == b""
    probe.close()
