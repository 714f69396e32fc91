"""Many asyncio requests through one connection.

A DEALER sends ``[id, b"", body]``. A REP, a ROUTER and a broker return everything up to the empty frame as it
came, so the reply says which request it answers, and the server needs no change. What makes it several times
faster than a ``zmq.asyncio`` REQ per task is that each reply costs one dictionary look-up and no second Future.

Three rules make it safe:

* **The window.** A server with libzmq's defaults drops replies, silently, beyond about 500 unanswered requests
  of one connection. So at most 400 are on the way; the others queue here. A request that timed out or was cancelled
  counts until its reply comes. Where too many never come, a new connection is opened and the old one left to its
  last replies; so are four at most, and then requests wait for room as they do for a peer.
* **The edge.** The descriptor becomes readable when something happens, not while something is there, and a send
  may take the edge. So every send is followed by a look for replies.
* **The connection.** When it is lost, what was on the way fails at once, as possibly executed; what was not sent
  yet waits for the next connection. A reply can reach nobody but the request whose id it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from app.pools.errors import NoReply, NotSent, PoolClosed
from app.pools.zmq_pool.attempts import out_of_descriptors
from app.pools.zmq_pool.config import FOREVER, SocketConfig, seconds_of
from app.pools.zmq_pool.connection import MONITORED, WINDOW, Connection, Reply
from app.pools.zmq_pool.ticks import Ticks
from app.pools.zmq_pool.watchful import LOOK_EVERY

_TOO_MANY_UNANSWERED = WINDOW // 2
_RETIRING_AT_MOST = 4  # connections; a server that answers nothing would be given ever more of them


class Multiplexer:
    """Sends the requests of one event loop to one endpoint. Every method belongs to the loop's thread.

    Args:
        loop: the loop.
        config: the REQ configuration whose requests it sends.
        open_socket: opens a DEALER that connects, and a monitor of the events that it is given.
        trouble: says why the endpoint is known to be down, or nothing.
        closed: told when it is closed.
        loss: says why no reply can come any more through a connection made then (monotonic seconds), or nothing.
        lifetime: seconds after which ``renew_if_old`` replaces a connection, less up to 10 % at random.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: SocketConfig,
        open_socket: Callable[[int], tuple[zmq.Socket[bytes], zmq.Socket[bytes]]],
        trouble: Callable[[], str] = str,
        closed: Callable[[], None] = lambda: None,
        loss: Callable[[float], str] = lambda _: "",
        lifetime: float = FOREVER,
    ) -> None:
        self.loop = loop
        self.config = config
        self._open_socket = open_socket
        self._trouble = trouble
        self._tell_closed = closed
        self._loss = loss
        self._looking = False
        self._seen_lost: list[Connection] = []
        self._create_future = loop.create_future
        self._serial = 0
        # In their order, and any of them out of it at once: one that is given up must not keep its body here.
        self._queue: OrderedDict[bytes, tuple[bytes, Reply]] = OrderedDict()
        options = config.libzmq_options()
        self._reply_within, self._send_within = seconds_of(options["RCVTIMEO"]), seconds_of(options["SNDTIMEO"])
        self._limits = Ticks(loop, self._expire)
        self._expiring = self._limits.collecting
        self._limits_of_queue = Ticks(loop, self._expire_in_queue)
        self._closing = threading.RLock()  # re-entrant: a signal's handler may stop the pool
        self._closed = False
        self.leaving = False
        """Whether it was told to close if nobody needs it by the time that its loop comes to that."""
        self._seen_serial = 0
        self._idle_since = time.monotonic()
        self._counts = {"connections": 1, "expired": 0, "lost": 0, "stale": 0}
        self._retiring: list[Connection] = []
        self._lifetime = lifetime
        self._connection = self._connect()

    def _connect(self) -> Connection:
        connection = Connection(self, *self._open_socket(MONITORED))
        self._old_at = time.monotonic() + self._lifetime * random.uniform(0.9, 1.0)
        return connection

    def request(self, body: bytes, timeout: float | None = None) -> tuple[bytes, Reply]:
        """Send ``body``.

        Returns:
            the request's number, for ``give_up``, and the future that gets the reply, or what
            ``ZMQPool.request_async`` raises.
        """
        if self._closed and self.is_closed():
            raise PoolClosed("zmq")
        if body.__class__ is not bytes:
            raise TypeError(f"a request must be bytes, not {type(body).__name__}")
        seconds = self._reply_within if timeout is None else timeout
        reply = self._create_future()
        self._serial = serial = self._serial + 1
        number = b"%x" % serial
        if self._queue or not self._connection.put(number, body, reply):
            self._enqueue(number, body, reply)
        try:
            self._expiring[seconds].append(number)
        except KeyError:
            self._expire_later(seconds, number)
        return number, reply

    def _enqueue(self, number: bytes, body: bytes, reply: Reply) -> None:
        if len(self._queue) >= self.config.backlog:
            raise NotSent(
                f"{self.config.label}: {len(self._queue)} requests wait to be sent. "
                f"This one was not queued; sending it again is safe"
            )
        self._queue[number] = body, reply
        if self._send_within != FOREVER:
            self._limits_of_queue.add(self._send_within, number)
        self._renew_soon()

    def give_up(self, number: bytes) -> None:
        """Take note that nobody waits for a request any more."""
        if self._queue.pop(number, None) is None and self._abandon(number) is not None:
            self.tidy()
            self._renew_soon()

    def _abandon(self, number: bytes) -> Reply | None:
        """Count a request that is on the way as unanswered. Returns what waited for it."""
        for connection in (self._connection, *self._retiring):
            reply = connection.pending.pop(number, None)
            if reply is not None:
                connection.unanswered.add(number)
                return reply
        return None

    def _renew_soon(self) -> None:
        """Have what is queued sent through another connection, if this one's window is too full."""
        if self._queue and self._worn_out():
            self.loop.call_soon(self.flush)

    def _worn_out(self) -> bool:
        """Say whether the connection is to be replaced, and may be."""
        connection = self._connection
        return len(connection.unanswered) >= _TOO_MANY_UNANSWERED and (
            # One that nobody waits for is closed at once.
            len(self._retiring) < _RETIRING_AT_MOST or not connection.pending
        )

    def flush(self) -> None:
        """Send what is queued, as far as the window and the connection allow."""
        if self.is_closed():
            return
        connection, queue = self._connection, self._queue
        if queue and self._worn_out():
            connection = self._renew()
        while queue:
            number, waiting = queue.popitem(last=False)
            body, reply = waiting
            if not reply.done() and not connection.put(number, body, reply):
                queue[number] = waiting
                queue.move_to_end(number, last=False)
                return

    def go_on(self) -> None:
        """Do what has become possible: replies were read, or there is a connection again."""
        if self._retiring:
            self.tidy()
        if self._queue:
            self.flush()

    def _renew(self) -> Connection:
        """Open another connection: this one is old, or its window full of requests that nobody answers."""
        try:
            connection = self._connect()
        except zmq.ZMQError as error:
            if not out_of_descriptors(error):
                raise
            return self._connection  # which has some room, as each late reply makes some; the next flush tries again
        self._retiring.append(self._connection)
        self._connection = connection
        self._counts["connections"] += 1
        self.tidy()
        return connection

    @property
    def old(self) -> bool:
        """Whether the connection has come to the end of its lifetime. May be read from any thread."""
        return time.monotonic() >= self._old_at

    def renew_if_old(self) -> None:
        """Have what comes next sent through another connection, if this one is old. Nothing is broken off."""
        if self.old and not self.is_closed() and len(self._retiring) < _RETIRING_AT_MOST:
            self._renew()

    def tidy(self) -> None:
        """Close connections that were replaced and have nothing to wait for any more."""
        for connection in [each for each in self._retiring if not each.pending]:
            self._retiring.remove(connection)
            connection.close()

    # Expiry

    def _expire_later(self, seconds: float, number: bytes) -> None:
        if not self._looking:
            self._looking = True
            self.loop.call_later(LOOK_EVERY, self._look)
        if seconds != FOREVER:
            self._limits.begin(seconds, number)

    def _expire(self, numbers: list[bytes], seconds: float) -> None:
        for number in numbers:
            if number in self._queue:
                self._fail_unsent(number, seconds)
            elif (reply := self._abandon(number)) is not None:
                self._fail(
                    reply,
                    NoReply(
                        f"{self.config.label} did not reply within {seconds:g} s; "
                        f"the peer may have executed the request"
                    ),
                )
        if not self.is_closed():
            self.tidy()
            self.flush()

    def _expire_in_queue(self, numbers: list[bytes], seconds: float) -> None:
        """Fail what no peer took. What waits for replies to others has the time that it has for its own."""
        if not self._connection.full:
            for number in numbers:
                if number in self._queue:
                    self._fail_unsent(number, seconds)

    def _fail_unsent(self, number: bytes, seconds: float) -> None:
        _, reply = self._queue.pop(number)
        why = self._trouble() or ("too many are unanswered" if self._connection.full else "no peer took it")
        self._fail(
            reply, NotSent(f"{self.config.label} did not send within {seconds:g} s: {why}. Sending it again is safe")
        )

    def _fail(self, reply: Reply, error: Exception) -> None:
        if not reply.done():
            self._counts["expired"] += 1
            reply.set_exception(error)

    def _look(self) -> None:
        """Lose each connection whose peer is gone, and was at the last look, and go on while any is waited for.

        Their own heartbeats are patient, since replies may be long; those of what watches the endpoint are not.
        """
        waited_for = [each for each in (self._connection, *self._retiring) if each.pending]
        self._looking = bool(waited_for) and not self.is_closed()
        if not self._looking:
            self._seen_lost = []
            return
        lost = [each for each in waited_for if self._loss(each.heard_at)]
        for each in lost:
            if each in self._seen_lost:
                each.lose()
        self._seen_lost = lost
        self.loop.call_later(LOOK_EVERY, self._look)

    def rejoin(self) -> None:
        """Connect to whoever binds an ``inproc`` endpoint next. May be called in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._rejoin)

    def _rejoin(self) -> None:
        if not self.is_closed():
            for each in (self._connection, *self._retiring):
                each.lose()
            self.go_on()

    # Life

    @property
    def busy(self) -> int:
        """How many callers wait for a request that is queued or on the way. May be read from any thread."""
        return self._waiting() + sum(self._under_way())

    def idle_seconds(self) -> float:
        """Return for how long nobody has used it, as far as the calls of this have seen. For any thread.

        In a loop that does not run nobody waits for a reply.
        """
        now = time.monotonic()
        if self._serial != self._seen_serial or (self.busy and self.loop.is_running()):
            self._seen_serial = self._serial
            self._idle_since = now
        return now - self._idle_since

    def _waiting(self) -> int:
        return _undone(reply for _, reply in list(self._queue.values()))

    def _under_way(self) -> list[int]:
        """Return for each connection how many wait for a reply through it."""
        connections = (self._connection, *list(self._retiring))
        return [_undone(list(each.pending.values())) for each in connections]

    def is_closed(self) -> bool:
        """Say whether it is closed, also while another thread is about to find out whether it may close it."""
        if not self._closed:
            return False
        with self._closing:
            return self._closed

    def close(self) -> None:
        """Close the connections; what is under way fails with ``PoolClosed``."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._close(PoolClosed("zmq"))

    def close_if_standing(self, error: Exception) -> bool:
        """Close it in another thread than its loop's, unless the loop runs. Returns whether it is closed.

        What is under way fails with ``error``, should the loop run again. Whichever comes second sees the other: a loop
        that begins to run finds it closed, one that has begun is seen.
        """
        with self._closing:
            if self._closed:
                return True
            self._closed = True
            if self.loop.is_running():
                self._closed = False
                return False
        self._close(error)
        return True

    def _close(self, error: Exception) -> None:
        replies = [reply for _, reply in self._queue.values()]
        for connection in (self._connection, *self._retiring):
            connection.close()
            replies += connection.pending.values()
            connection.pending.clear()
        self._queue.clear()
        if not self.loop.is_closed():
            for reply in replies:
                if not reply.done():
                    reply.set_exception(copy.copy(error))
        self._tell_closed()

    def note(self, event: str) -> None:
        """Count an event for the statistics."""
        self._counts[event] += 1

    def figures(self) -> dict[str, Any]:
        """Return the statistics, in the shape of a bucket's."""
        counts = self._counts
        requests, connections = self._serial, counts["connections"]
        waiting, under_way = self._waiting(), self._under_way()
        in_flight, total = sum(under_way), len(under_way)
        active = max(sum(map(bool, under_way)), int(waiting > 0))
        return {
            "total": total,
            "active": active,
            "idle": total - active,
            "waiting": waiting,
            "capacity": 1 + _RETIRING_AT_MOST,
            "hits": max(0, requests - connections),
            "misses": connections,
            "cleaned": 0,
            "in_flight": in_flight,
            **counts,
            "requests": requests,
        }


def _undone(replies: Iterable[Reply]) -> int:
    return sum(not reply.done() for reply in replies)
