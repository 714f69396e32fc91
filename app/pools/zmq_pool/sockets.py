"""The sockets that the pool leases: ``zmq.Socket``, faster, and aware of what it has been through.

pyzmq's Python layer costs more than libzmq's work on a small message, so the usual calls go straight to the
compiled base class. On the way each socket notes what a lessee leaves behind, which is cheaper than asking
libzmq at the end: ``EVENTS`` and ``RCVMORE`` cost twice as much as a send.

A signal's handler may raise when libzmq has done what it was told, and before the call is back. So the worst that a
call may leave behind is noted before it and settled after it; only if something was in between, libzmq is asked.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import zmq

from app.pools.zmq_pool.backend import (
    EVENTS,
    NOBLOCK,
    POLLIN,
    POLLOUT,
    RCVMORE,
    SNDMORE,
    frames_left_of,
    raw_address,
    raw_get,
    raw_recv,
    raw_send,
    raw_set,
)
from app.pools.zmq_pool.config import ASKING, SocketConfig, milliseconds
from app.pools.zmq_pool.timeouts import ReplyTimedOut, SendTimedOut
from app.pools.zmq_pool.trace import CHANGED, MORE_IN, MORE_OUT, RECEIVED, RETIMED, SENT

R = TypeVar("R")

_TIME_LIMITS = {int(zmq.RCVTIMEO): "RCVTIMEO", int(zmq.SNDTIMEO): "SNDTIMEO"}

_COUNTED_AT_MOST = 100_000


class LeanSocket(zmq.Socket[bytes]):
    """A ``zmq.Socket`` that knows whether the next lessee can have it.

    A send that runs into its time limit raises ``NotSent``, a receive of a REQ or DEALER ``NoReply``, of any
    other type ``zmq.Again``; the first two are ``zmq.Again`` as well.
    """

    config: SocketConfig
    _trace: list[int] = [0]  # noqa: RUF012 - each has its own; this one is for what an interrupt left half made
    _pid: int = 0
    _frames_left: Callable[[], int]
    """Says, truthy or not, whether frames are left of the message that was received last."""
    _spoiled = MORE_OUT | MORE_IN | CHANGED
    """What makes a socket of this type unfit for the next lessee."""
    _reading = MORE_IN
    """What a receive may leave behind if an interrupt ends it."""

    def __init__(self, context: zmq.Context[Any], kind: int, config: SocketConfig) -> None:
        super().__init__(context, kind)
        # Into __dict__, because pyzmq's __setattr__ takes attributes for options. The list, because changing
        # an item of it costs a fraction of setting an attribute.
        self.__dict__.update(config=config, diagnose=str, mourn=str, _trace=[0], _pid=os.getpid(), _patience=0.0)
        self.__dict__["_frames_left"] = frames_left_of(self)

    def __del__(self) -> None:
        # Without pyzmq's warning: whoever loses a lease is warned once, by the lease.
        if not self.closed:
            self.close()

    @property
    def frames_left(self) -> bool:
        """Whether frames are left of the message that was received last."""
        return bool(self._trace[0] & MORE_IN)

    def reusable(self) -> bool:
        """Say whether the lessee left the socket as it was given, and make it as new."""
        trace = self._trace
        state, trace[0] = trace[0], 0
        try:
            if state & self._spoiled and self._is_spoiled(state):
                return False
            if state & RETIMED:
                self._restore_time_limits()
        except zmq.ZMQError:  # closed, or the context was terminated: the lease outlived its pool
            return False
        return True

    def _is_spoiled(self, state: int) -> bool:
        """Say whether the socket is unfit. An interrupted receive may have left no frames: libzmq knows."""
        if state & MORE_IN and not raw_get(self, RCVMORE):
            state &= ~MORE_IN
        return bool(state & self._spoiled)

    def quiet(self) -> bool:
        """Say whether no message waits."""
        try:
            return not raw_get(self, EVENTS) & POLLIN
        except zmq.ZMQError:  # the context was terminated: the lease outlived its pool
            return False

    def settle_timeouts(self, send: float, receive: float) -> None:
        """Set both time limits, in seconds, until the end of the lease."""
        self._trace[0] |= RETIMED
        raw_set(self, zmq.SNDTIMEO, milliseconds(send))
        raw_set(self, zmq.RCVTIMEO, milliseconds(receive))

    def _restore_time_limits(self) -> None:
        limits = self.config.libzmq_options()
        for option, name in _TIME_LIMITS.items():
            raw_set(self, option, limits[name])

    # Sending

    def send(self, data: Any, flags: int = 0, copy: bool = True, track: bool = False, **draft: Any) -> Any:  # type: ignore[override]
        """Send one frame, as ``zmq.Socket.send`` does."""
        if draft:
            self._trace[0] |= CHANGED
            return super().send(data, flags, copy, track, **draft)
        if data.__class__ is not bytes:
            _check_frame(data)
        flags = int(flags)
        trace = self._trace
        before = trace[0]
        trace[0] = before | (MORE_OUT if flags & SNDMORE else SENT)
        try:
            sent = raw_send(self, data, flags, copy, track)
        except zmq.ZMQError as error:
            raise self._unsent(before, flags, error) from None
        if not flags & SNDMORE:
            trace[0] = before & ~(RECEIVED | MORE_OUT) | SENT
        return sent

    def send_multipart(
        self, msg_parts: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False, **draft: Any
    ) -> Any:
        """Send a message of several frames, as ``zmq.Socket.send_multipart`` does."""
        if draft:
            return super().send_multipart(msg_parts, flags, copy, track, **draft)
        for part in msg_parts:
            if part.__class__ is not bytes:
                _check_frame(part)  # now, because half a message would spoil the socket
        flags = int(flags)
        trace = self._trace
        before = so_far = trace[0]
        trace[0] = before | (SENT | MORE_OUT if len(msg_parts) > 1 or flags & SNDMORE else SENT)
        try:
            for part in msg_parts[:-1]:
                raw_send(self, part, flags | SNDMORE, copy, track)
                so_far = trace[0]  # whoever loses the connection now has begun a message
            sent = raw_send(self, msg_parts[-1], flags, copy, track)
        except zmq.ZMQError as error:
            raise self._unsent(so_far, flags, error) from None
        if not flags & SNDMORE:
            trace[0] = before & ~(RECEIVED | MORE_OUT) | SENT
        return sent

    def send_string(self, u: str, flags: int = 0, copy: bool = True, encoding: str = "utf-8", **draft: Any) -> Any:
        """Send ``u`` as one frame, as ``zmq.Socket.send_string`` does."""
        if not isinstance(u, str):
            raise TypeError("str objects only")
        return self.send(u.encode(encoding), flags, copy, **draft)

    def _unsent(self, before: int, flags: int, error: zmq.ZMQError) -> Exception:
        """Take note that a send did nothing; if it was out of turn, another was. Returns what it is to raise."""
        self._trace[0] = before | SENT if error.errno == zmq.EFSM else before
        return self.not_sent(flags, error) if isinstance(error, zmq.Again) else error

    def not_sent(self, flags: int = 0, again: zmq.Again | None = None) -> Exception:
        """Return the error for a send that could not be done in time; ``again`` if it was not to wait at all."""
        if again is not None and flags & NOBLOCK:
            return again
        config = self.config
        what = "no peer is connected, or its queue is full" if not config.bind else "no peer takes it"
        why = self.__dict__["diagnose"]() or what
        return SendTimedOut(f"{config.label} did not send within its time limit: {why}. Sending it again is safe")

    # Receiving

    def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive one frame, as ``zmq.Socket.recv`` does."""
        flags = int(flags)
        trace = self._trace
        before = trace[0]
        trace[0] = before | self._reading
        try:
            received = raw_recv(self, flags, copy, track)
        except zmq.ZMQError as error:
            received = self._receive_late(before, flags, error, copy, track)
        if self._frames_left():
            trace[0] = before & ~SENT | (RECEIVED | MORE_IN)
        else:
            trace[0] = before & ~(SENT | MORE_IN) | RECEIVED
        return received

    def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all frames of a message, as ``zmq.Socket.recv_multipart`` does."""
        flags = int(flags)
        trace = self._trace
        before = trace[0]
        trace[0] = before | self._reading
        try:
            frames = [raw_recv(self, flags, copy, track)]
        except zmq.ZMQError as error:
            frames = [self._receive_late(before, flags, error, copy, track)]
        while self._frames_left():
            frames.append(raw_recv(self, flags, copy, track))
        trace[0] = before & ~(SENT | MORE_IN) | RECEIVED
        return frames

    def recv_string(self, flags: int = 0, encoding: str = "utf-8") -> str:
        """Receive one frame as text, as ``zmq.Socket.recv_string`` does."""
        text: str = self.recv(flags).decode(encoding)
        return text

    def recv_into(self, buffer: Any, /, *, nbytes: int = 0, flags: int = 0) -> int:
        """Receive one frame into a buffer, as ``zmq.Socket.recv_into`` does."""
        receive = partial(super().recv_into, buffer, nbytes=nbytes, flags=flags)
        trace = self._trace
        before = trace[0]
        trace[0] = before | self._reading
        try:
            size: int = receive()
        except zmq.ZMQError as error:
            size = self._do_late(before, int(flags), error, receive)
        more = MORE_IN if self._frames_left() else 0
        trace[0] = before & ~(SENT | MORE_IN) | RECEIVED | more
        return size

    def unread(self) -> int:
        """Read away the messages that wait, of a socket about to be closed. Returns how many, if not very many."""
        count = 0
        with contextlib.suppress(zmq.ZMQError):
            while not self.closed and count < _COUNTED_AT_MOST:  # peers may send on all the while
                raw_recv(self, NOBLOCK)
                while self._frames_left():
                    raw_recv(self, NOBLOCK)
                count += 1
        return count

    def _receive_late(
        self, before: int, flags: int, error: zmq.ZMQError, copy: bool = True, track: bool = False
    ) -> Any:
        """Receive a frame that did not come within libzmq's time limit; or raise, with ``before`` noted."""
        return self._do_late(before, flags, error, lambda: raw_recv(self, flags, copy, track))

    def _do_late(self, before: int, flags: int, error: zmq.ZMQError, receive: Callable[[], R]) -> R:
        try:
            if isinstance(error, zmq.Again):
                return self._try_longer(flags, error, receive)
            raise error
        except zmq.ZMQError as final:
            if final.errno != zmq.EFSM:  # out of turn: what is noted is asked for at the end of the lease
                self._trace[0] = before
            raise

    def _try_longer(self, flags: int, again: zmq.Again, receive: Callable[[], R]) -> R:
        """Do ``receive``, which came to nothing within libzmq's time limit, until the socket's own; or raise."""
        raise self.not_received(flags, again) from None

    def not_received(self, flags: int = 0, again: zmq.Again | None = None) -> Exception:
        """Return the error for a receive that got nothing in time; ``again`` if it was not to wait at all."""
        config = self.config
        if again is not None and (flags & NOBLOCK or config.socket_type not in ASKING):
            return again
        if config.socket_type not in ASKING:
            return zmq.Again()
        return ReplyTimedOut(
            f"{config.label} got no reply within its time limit. The peer may have executed the request: "
            f"send it again only if that does no harm"
        )

    # Changes that the next lessee must not see

    def set(self, option: int, optval: int | bytes) -> None:
        """Set an option, as ``zmq.Socket.set`` does; the socket is given up afterwards, time limits excepted."""
        self._trace[0] |= RETIMED if option in _TIME_LIMITS else CHANGED
        raw_set(self, option, optval)

    setsockopt = set

    @property
    def underlying(self) -> int:
        """The address of libzmq's socket, which may be used there unseen; the socket is given up afterwards."""
        self._trace[0] |= CHANGED
        return raw_address(self)

    def connect(self, addr: str) -> Any:
        """Connect to one more peer; the socket is given up afterwards."""
        self._trace[0] |= CHANGED
        return super().connect(addr)

    def disconnect(self, addr: str | bytes) -> None:
        """Disconnect from a peer; the socket is given up afterwards."""
        self._trace[0] |= CHANGED
        super().disconnect(addr)

    def bind(self, addr: str) -> Any:
        """Bind one more endpoint; the socket is given up afterwards."""
        self._trace[0] |= CHANGED
        return super().bind(addr)

    def unbind(self, addr: str | bytes) -> None:
        """Unbind an endpoint; the socket is given up afterwards."""
        self._trace[0] |= CHANGED
        super().unbind(addr)

    def monitor(self, addr: str | bytes | None, events: int = zmq.EVENT_ALL) -> None:
        """Watch the socket's events; the socket is given up afterwards."""
        self._trace[0] |= CHANGED
        self._end_witness()  # a socket has one monitor
        super().monitor(addr, events)

    def close(self, linger: int | None = None) -> None:
        """Close the socket, which the pool would do as well."""
        self._trace[0] |= CHANGED
        self._end_witness()
        bind = self.__dict__.pop("_inproc_bind", None)
        if bind is not None and self._pid == os.getpid():
            bind.end(self)
        super().close(linger)
        claim = self.__dict__.pop("_claim", None)
        if claim is not None and self._pid == os.getpid():
            claim.release()

    def _end_witness(self) -> None:
        witness = self.__dict__.pop("_witness", None)
        if witness is not None and self._pid == os.getpid():
            witness.end(self)


class ReplySocket(LeanSocket):
    """A REP: spoiled by a request without its reply, which would keep it from receiving another."""

    _spoiled = LeanSocket._spoiled | RECEIVED
    _reading = LeanSocket._reading | RECEIVED

    def _is_spoiled(self, state: int) -> bool:
        if state & RECEIVED and not raw_get(self, EVENTS) & POLLOUT:  # it is no reply's turn
            state &= ~RECEIVED
        return super()._is_spoiled(state)


def _check_frame(part: object) -> None:
    if isinstance(part, zmq.Frame):
        return
    try:
        memoryview(part)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"a frame must be bytes or another buffer, not {type(part).__name__}") from None
