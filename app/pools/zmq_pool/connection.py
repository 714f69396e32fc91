"""One connection of a multiplexer: its DEALER, the window of what is on the way through it, and its loss."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Protocol

import zmq

from app.pools.errors import ConnectionLost, UnexpectedReply
from app.pools.zmq_pool.backend import NOBLOCK, NOBLOCK_SNDMORE, POLLIN, frames_left_of, raw_recv, raw_send
from app.pools.zmq_pool.config import FOREVER, SocketConfig
from app.pools.zmq_pool.retries import Retry, connect_anew

WINDOW = 400
"""Requests that may be unanswered at a time."""
_BATCH = 512  # replies read before the loop's other tasks get a turn

MONITORED = int(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CONNECT_RETRIED)
"""The events of its socket that it needs to know."""

Reply = asyncio.Future[bytes]


class Owner(Protocol):
    """The multiplexer, as a connection sees it."""

    loop: asyncio.AbstractEventLoop
    config: SocketConfig

    def is_closed(self) -> bool:
        """Say whether it is closed, in whichever thread."""

    def go_on(self) -> None:
        """Do what has become possible: replies were read, or there is a connection again."""

    def note(self, event: str) -> None:
        """Count an event for the statistics."""


class Connection:
    """One DEALER of a multiplexer, and the requests that are on the way through it."""

    __slots__ = (
        "_descriptors",
        "_frames_left",
        "_monitor",
        "_owner",
        "_retry",
        "_scheduled",
        "_socket",
        "_timer",
        "_usable",
        "heard_at",
        "pending",
        "unanswered",
    )

    def __init__(self, owner: Owner, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        self._owner = owner
        self._socket = socket
        self._frames_left = frames_left_of(socket)
        self._monitor = monitor
        self._scheduled = False
        self._retry = Retry(owner.config)
        self._timer: asyncio.TimerHandle | None = None
        # For a moment after a loss libzmq still accepts messages, and drops them: so none is sent until the next
        # handshake. It begins as true because inproc has no handshakes; before the first one nothing is accepted.
        self._usable = True
        self.heard_at = FOREVER
        """When its peer was heard of last, by a handshake or a reply, in monotonic seconds."""
        self.pending: dict[bytes, Reply] = {}
        self.unanswered: set[bytes] = set()
        """Those on the way that nobody waits for: they expired or were cancelled, and their replies have not come."""
        self._descriptors = (int(socket.get(zmq.FD)), int(self._monitor.get(zmq.FD)))
        owner.loop.add_reader(self._descriptors[0], self.pump)
        owner.loop.add_reader(self._descriptors[1], self._watch)
        owner.loop.call_soon(self._watch)

    @property
    def full(self) -> bool:
        """Whether the window has no room."""
        return len(self.pending) + len(self.unanswered) >= WINDOW

    def put(self, number: bytes, body: bytes, reply: Reply) -> bool:
        """Send a request. Returns ``False`` if there is no connection, or no room in the window."""
        if len(self.pending) + len(self.unanswered) >= WINDOW or not self._usable:
            return False
        socket = self._socket
        try:
            raw_send(socket, number, NOBLOCK_SNDMORE)
        except zmq.Again:
            return False
        try:
            raw_send(socket, b"", NOBLOCK_SNDMORE)
        except zmq.Again:
            # The connection went away under the first frame; libzmq drops what follows, up to the last frame.
            raw_send(socket, body, NOBLOCK)
            return False
        try:
            raw_send(socket, body, NOBLOCK)
        except zmq.Again:
            return False
        self.pending[number] = reply
        if not self._scheduled:
            self._scheduled = True
            self._owner.loop.call_soon(self.pump)
        return True

    def pump(self) -> None:
        """Read the replies that are there, and then send what waited for room."""
        self._scheduled = False
        if self._owner.is_closed() or self._socket.closed:
            return
        self._receive()
        self._owner.go_on()

    def _receive(self) -> None:
        """Hand each reply that is there to its request."""
        socket, pending = self._socket, self.pending
        read = 0
        try:
            while read < _BATCH:
                number = raw_recv(socket, NOBLOCK)
                read += 1
                reply = pending.get(number)
                if reply is None:
                    self._skip_message(number)
                    continue
                del pending[number]
                # The frame that ends the envelope. Without it, what is read next would be another request's reply.
                if raw_recv(socket, NOBLOCK) or not self._frames_left():
                    self._misunderstood(reply, "lacks the end of the request's envelope (multiplexed=False needs none)")
                    continue
                body = raw_recv(socket, NOBLOCK)
                if self._frames_left():
                    self._misunderstood(reply, "has more than one frame")
                    continue
                if not reply.done():  # cancelled this moment
                    reply.set_result(body)
            self._scheduled = True
            self._owner.loop.call_soon(self.pump)
        except zmq.Again:
            pass
        if read:
            self.heard_at = time.monotonic()

    def _skip_message(self, number: bytes) -> None:
        """Skip what answers nothing that is waited for: the reply to a request that was given up."""
        while self._frames_left():
            raw_recv(self._socket, NOBLOCK)
        self.unanswered.discard(number)
        self._owner.note("stale")

    def _misunderstood(self, reply: Reply, reason: str) -> None:
        while self._frames_left():
            raw_recv(self._socket, NOBLOCK)
        if not reply.done():
            reply.set_exception(UnexpectedReply(self._owner.config.endpoint, reason))

    def _watch(self) -> None:
        """Take note of a connection that was lost, and of the next one."""
        if self._owner.is_closed() or self._monitor.closed:
            return
        lost = False
        while int(self._monitor.get(zmq.EVENTS)) & POLLIN:
            (event,) = struct.unpack_from("=H", self._monitor.recv_multipart()[0])
            self._retry.note(event)
            if event == zmq.EVENT_CONNECT_RETRIED:
                continue
            self._usable = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.heard_at = time.monotonic()
            lost = lost or not self._usable
        if lost:
            self._receive()  # replies that came before the loss still count
            self._lose()
        self._connect_when_due()
        self.pump()

    def _connect_when_due(self) -> None:
        """Have the socket connect anew in a while, if libzmq does not try again."""
        if self._timer is None and self._retry.due != FOREVER:
            self._timer = self._owner.loop.call_later(self._retry.due - time.monotonic(), self._connect_if_due)

    def _connect_if_due(self) -> None:
        self._timer = None
        if self._owner.is_closed() or self._socket.closed:
            return
        if time.monotonic() >= self._retry.due:
            self._retry.connect(self._socket, self._owner.config.endpoint)
        else:
            self._connect_when_due()

    def lose(self) -> None:
        """Begin another connection, because the peer of this one is gone."""
        if self._socket.closed:
            return
        self._receive()
        self._lose()
        self._usable = self._owner.config.endpoint.startswith("inproc:")
        connect_anew(self._socket, self._owner.config.endpoint)

    def _lose(self) -> None:
        owner = self._owner
        lost, self.pending = self.pending, {}
        self.unanswered.clear()
        for reply in lost.values():
            if not reply.done():
                owner.note("lost")
                reply.set_exception(ConnectionLost(owner.config.endpoint, maybe_executed=True))

    def close(self) -> None:
        """Close the socket and its monitor."""
        loop = self._owner.loop
        if not loop.is_closed():
            for descriptor in self._descriptors:
                loop.remove_reader(descriptor)
        self._socket.close(0)
