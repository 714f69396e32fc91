"""The sockets that the pool leases: ``zmq.Socket``, faster, and aware of what it has been through.

pyzmq's Python layer costs more than libzmq's work on a small message, so the usual calls go straight to the
compiled base class. On the way each socket notes what a lessee leaves behind, which is cheaper than asking
libzmq at the end: ``EVENTS`` and ``RCVMORE`` cost twice as much as a send. A frame that is received knows at no
such cost whether more follow, so every receive goes through one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from zmq.backend import Socket as _Backend

from app.pools.errors import ConnectionLost, NoReply, NotSent
from app.pools.zmq_pool.config import ASKING, FOREVER, SocketConfig

_send: Any = _Backend.send
_recv: Any = _Backend.recv
_get: Any = _Backend.get
_set: Any = _Backend.set

_SNDMORE = int(zmq.SNDMORE)
_NOBLOCK = int(zmq.NOBLOCK)
_RCVMORE = int(zmq.RCVMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

# What a socket has been through since its checkout; 0 is "as new".
_SENT = 1  # the last message went out
_RECEIVED = 2  # the last message came in
_MORE_OUT = 4  # frames were sent of a message that is not complete
_MORE_IN = 8  # frames are left of a message that was received
_RETIMED = 16  # the time limits were set, which are restored
_RCVTIMEO = int(zmq.RCVTIMEO)
_LOOK_EVERY = 0.2
"""Seconds after which a receive that waits looks whether the endpoint is down."""

_BEGUN = _SENT | _RECEIVED | _MORE_OUT
_CHANGED = 32  # other options or connections than the configuration names, or closed

_TIME_LIMITS = {int(zmq.RCVTIMEO): "RCVTIMEO", int(zmq.SNDTIMEO): "SNDTIMEO"}


class SendTimedOut(NotSent, zmq.Again):  # type: ignore[misc]  # both bases describe `strerror`
    """``NotSent`` from a leased socket; code written for ``zmq.Again`` catches it too."""

    def __init__(self, message: str) -> None:
        zmq.ZMQError.__init__(self, zmq.EAGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)


class ReplyTimedOut(NoReply, zmq.Again):  # type: ignore[misc]  # both bases describe `strerror`
    """``NoReply`` from a leased socket; code written for ``zmq.Again`` catches it too."""

    def __init__(self, message: str) -> None:
        zmq.ZMQError.__init__(self, zmq.EAGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)


class ReplyLost(ConnectionLost, NoReply, zmq.Again):  # type: ignore[misc]  # the bases describe `strerror`
    """``NoReply`` from a leased socket whose endpoint went down meanwhile; ``ConnectionLost`` as well."""

    def __init__(self, endpoint: str, why: str) -> None:
        self.endpoint = endpoint
        self.maybe_executed = True
        message = f"{endpoint} went down before the reply came: {why}. It may have executed the request"
        zmq.ZMQError.__init__(self, zmq.EAGAIN, message)

    def __str__(self) -> str:
        return str(self.strerror)


class LeanSocket(zmq.Socket[bytes]):
    """A ``zmq.Socket`` that knows whether the next lessee can have it.

    A send that runs into its time limit raises ``NotSent``, a receive of a REQ or DEALER ``NoReply``, of any
    other type ``zmq.Again``; the first two are ``zmq.Again`` as well.
    """

    config: SocketConfig
    _trace: list[int]
    _pid: int
    _spoiled = _MORE_OUT | _MORE_IN | _CHANGED
    """What makes a socket of this type unfit for the next lessee."""

    def __init__(self, context: zmq.Context[Any], kind: int, config: SocketConfig) -> None:
        super().__init__(context, kind)
        # Into __dict__, because pyzmq's __setattr__ takes attributes for options. The list, because changing
        # an item of it costs a fraction of setting an attribute.
        self.__dict__.update(config=config, diagnose=str, _trace=[0], _pid=os.getpid(), _patience=0.0)

    def __del__(self) -> None:
        # Without pyzmq's warning: whoever loses a lease is warned once, by the lease.
        if not self.closed:
            self.close()

    def reusable(self) -> bool:
        """Say whether the lessee left the socket as it was given, and make it as new."""
        trace = self._trace
        state, trace[0] = trace[0], 0
        if state & self._spoiled:
            return False
        if state & _RETIMED:
            self._restore_time_limits()
        return True

    def settle_timeouts(self, send: float, receive: float) -> None:
        """Set both time limits, in seconds, until the end of the lease."""
        _set(self, zmq.SNDTIMEO, max(0, int(send * 1000)))
        _set(self, zmq.RCVTIMEO, max(0, int(receive * 1000)))
        self._trace[0] |= _RETIMED

    def _restore_time_limits(self) -> None:
        limits = self.config.libzmq_options()
        for option, name in _TIME_LIMITS.items():
            _set(self, option, limits[name])

    # Sending

    def send(self, data: Any, flags: int = 0, copy: bool = True, track: bool = False, **draft: Any) -> Any:  # type: ignore[override]
        """Send one frame, as ``zmq.Socket.send`` does."""
        if draft:
            self._trace[0] |= _CHANGED
            return super().send(data, flags, copy, track, **draft)
        flags = int(flags)
        try:
            sent = _send(self, data, flags, copy, track)
        except zmq.Again as again:
            raise self.not_sent(flags, again) from None
        trace = self._trace
        if flags & _SNDMORE:
            trace[0] |= _MORE_OUT
        else:
            trace[0] = trace[0] & ~(_RECEIVED | _MORE_OUT) | _SENT
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
        try:
            for part in msg_parts[:-1]:
                _send(self, part, flags | _SNDMORE, copy, track)
            sent = _send(self, msg_parts[-1], flags, copy, track)
        except zmq.Again as again:
            raise self.not_sent(flags, again) from None
        trace = self._trace
        if flags & _SNDMORE:
            trace[0] |= _MORE_OUT
        else:
            trace[0] = trace[0] & ~(_RECEIVED | _MORE_OUT) | _SENT
        return sent

    def send_string(self, u: str, flags: int = 0, copy: bool = True, encoding: str = "utf-8", **draft: Any) -> Any:
        """Send ``u`` as one frame, as ``zmq.Socket.send_string`` does."""
        if not isinstance(u, str):
            raise TypeError("str objects only")
        return self.send(u.encode(encoding), flags, copy, **draft)

    def not_sent(self, flags: int = 0, again: zmq.Again | None = None) -> Exception:
        """Return the error for a send that could not be done in time; ``again`` if it was not to wait at all."""
        if again is not None and flags & _NOBLOCK:
            return again
        config = self.config
        what = "no peer is connected, or its queue is full" if not config.bind else "no peer takes it"
        why = self.__dict__["diagnose"]() or what
        return SendTimedOut(f"{config.label} did not send within its time limit: {why}. Sending it again is safe")

    # Receiving

    def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive one frame, as ``zmq.Socket.recv`` does."""
        try:
            frame = _recv(self, int(flags), False, track)
        except zmq.Again as again:
            frame = self._receive_late(int(flags), again, False, track)
        trace = self._trace
        if frame.more:
            trace[0] = trace[0] & ~_SENT | (_RECEIVED | _MORE_IN)
        else:
            trace[0] = trace[0] & ~(_SENT | _MORE_IN) | _RECEIVED
        return frame.bytes if copy else frame

    def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all frames of a message, as ``zmq.Socket.recv_multipart`` does."""
        flags = int(flags)
        try:
            frame = _recv(self, flags, False, track)
        except zmq.Again as again:
            frame = self._receive_late(flags, again, False, track)
        frames = [frame.bytes if copy else frame]
        while frame.more:
            frame = _recv(self, flags, False, track)
            frames.append(frame.bytes if copy else frame)
        trace = self._trace
        trace[0] = trace[0] & ~(_SENT | _MORE_IN) | _RECEIVED
        return frames

    def recv_string(self, flags: int = 0, encoding: str = "utf-8") -> str:
        """Receive one frame as text, as ``zmq.Socket.recv_string`` does."""
        text: str = self.recv(flags).decode(encoding)
        return text

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """Receive one frame into a buffer, as ``zmq.Socket.recv_into`` does."""
        size: int = super().recv_into(*args, **kwargs)
        trace = self._trace
        more = _MORE_IN if _get(self, _RCVMORE) else 0
        trace[0] = trace[0] & ~(_SENT | _MORE_IN) | _RECEIVED | more
        return size

    def _receive_late(self, flags: int, again: zmq.Again, copy: bool, track: bool) -> Any:
        """Receive what did not come within libzmq's time limit, or raise."""
        raise self.not_received(flags, again) from None

    def not_received(self, flags: int = 0, again: zmq.Again | None = None) -> Exception:
        """Return the error for a receive that got nothing in time; ``again`` if it was not to wait at all."""
        config = self.config
        if again is not None and (flags & _NOBLOCK or config.socket_type not in ASKING):
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
        self._trace[0] |= _RETIMED if option in _TIME_LIMITS else _CHANGED
        _set(self, option, optval)

    setsockopt = set

    def connect(self, addr: str) -> Any:
        """Connect to one more peer; the socket is given up afterwards."""
        self._trace[0] |= _CHANGED
        return super().connect(addr)

    def disconnect(self, addr: str | bytes) -> None:
        """Disconnect from a peer; the socket is given up afterwards."""
        self._trace[0] |= _CHANGED
        super().disconnect(addr)

    def bind(self, addr: str) -> Any:
        """Bind one more endpoint; the socket is given up afterwards."""
        self._trace[0] |= _CHANGED
        return super().bind(addr)

    def unbind(self, addr: str | bytes) -> None:
        """Unbind an endpoint; the socket is given up afterwards."""
        self._trace[0] |= _CHANGED
        super().unbind(addr)

    def monitor(self, addr: str | bytes | None, events: int = zmq.EVENT_ALL) -> None:
        """Watch the socket's events; the socket is given up afterwards."""
        self._trace[0] |= _CHANGED
        super().monitor(addr, events)

    def close(self, linger: int | None = None) -> None:
        """Close the socket, which the pool would do as well."""
        self._trace[0] |= _CHANGED
        super().close(linger)
        claim = self.__dict__.pop("_claim", None)
        if claim is not None and self._pid == os.getpid():
            claim.release()


class RequestSocket(LeanSocket):
    """A REQ: spoiled by a request without its reply, which the next lessee would be handed.

    The calls that most requests consist of are written out, because on a local socket each call inside another one
    shows. Nor do they ask whether a reply has more frames, which costs more than the receive: frames that a lessee
    left unread make libzmq refuse the next one's request, and are thrown away then. To a receive before the first
    send they would look like a reply, so that is refused here.

    libzmq would wait for the reply of a server that is gone until the time limit. So it is told a short one, and
    between two of them the endpoint's sentinel is asked.
    """

    _patience: float
    """How many seconds a receive may wait in all; 0 where libzmq keeps the limit."""

    _spoiled = LeanSocket._spoiled | _SENT

    def reusable(self) -> bool:
        """Say whether the lessee left the socket as it was given, and make it as new."""
        trace = self._trace
        if trace[0] == _RECEIVED:
            trace[0] = 0
            return True
        return super().reusable()

    def send(self, data: Any, flags: int = 0, copy: bool = True, track: bool = False, **draft: Any) -> Any:  # type: ignore[override]
        """Send one frame, as ``zmq.Socket.send`` does."""
        trace = self._trace
        if flags or draft or trace[0] & ~_RECEIVED:
            return self._send_with_care(super().send, data, flags, copy, track, **draft)
        try:
            sent = _send(self, data, 0, copy, track)
        except zmq.Again:
            raise self.not_sent() from None
        except zmq.ZMQError:
            return self._send_with_care(super().send, data, flags, copy, track)
        trace[0] = _SENT
        return sent

    def send_string(self, u: str, flags: int = 0, copy: bool = True, encoding: str = "utf-8", **draft: Any) -> Any:
        """Send ``u`` as one frame, as ``zmq.Socket.send_string`` does."""
        trace = self._trace
        if flags or draft or trace[0] & ~_RECEIVED or u.__class__ is not str:
            return super().send_string(u, flags, copy, encoding, **draft)
        try:
            sent = _send(self, u.encode(encoding), 0, copy, False)
        except zmq.Again:
            raise self.not_sent() from None
        except zmq.ZMQError:
            return super().send_string(u, flags, copy, encoding)
        trace[0] = _SENT
        return sent

    def send_multipart(
        self, msg_parts: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False, **draft: Any
    ) -> Any:
        """Send a message of several frames, as ``zmq.Socket.send_multipart`` does."""
        return self._send_with_care(super().send_multipart, msg_parts, flags, copy, track, **draft)

    def _send_with_care(self, send: Callable[..., Any], *arguments: Any, **draft: Any) -> Any:
        """Send; a refusal because the last lessee left frames unread is not this one's."""
        try:
            return send(*arguments, **draft)
        except zmq.ZMQError as error:
            if error.errno != zmq.EFSM or self._trace[0] & _BEGUN or not self._skip_frames():
                raise
        return send(*arguments, **draft)

    def _skip_frames(self) -> bool:
        """Throw away what is left of a message. Returns whether there was anything."""
        left = bool(_get(self, _RCVMORE))
        while _get(self, _RCVMORE):
            _recv(self, _NOBLOCK)
        return left

    def be_watchful(self) -> None:
        """Have receives look, now and then, whether the endpoint is down."""
        if not self.config.bind and not self.config.endpoint.startswith("inproc:"):
            limit = int(_get(self, _RCVTIMEO))
            self._wait_at_most(FOREVER if limit < 0 else limit / 1000)

    def _wait_at_most(self, seconds: float) -> None:
        self.__dict__["_patience"] = seconds
        _set(self, _RCVTIMEO, max(0, int(1000 * min(seconds, _LOOK_EVERY))))

    def settle_timeouts(self, send: float, receive: float) -> None:
        """Set both time limits, in seconds, until the end of the lease."""
        super().settle_timeouts(send, receive)
        if self._patience:
            self._wait_at_most(receive)

    def _restore_time_limits(self) -> None:
        super()._restore_time_limits()
        self.be_watchful()

    def set(self, option: int, optval: int | bytes) -> None:
        """Set an option, as ``zmq.Socket.set`` does; the socket is given up afterwards, time limits excepted."""
        super().set(option, optval)
        if option == _RCVTIMEO:
            self.__dict__["_patience"] = 0.0

    setsockopt = set

    def get(self, option: int) -> Any:
        """Return an option, as ``zmq.Socket.get`` does."""
        if option == _RCVTIMEO and self._patience:
            return -1 if self._patience == FOREVER else int(1000 * self._patience)
        return _get(self, option)

    getsockopt = get

    def _receive_late(self, flags: int, again: zmq.Again, copy: bool, track: bool) -> Any:
        if flags & _NOBLOCK or self._patience <= _LOOK_EVERY:
            raise self.not_received(flags, again) from None
        deadline = time.monotonic() - _LOOK_EVERY + self._patience
        was_down = False
        while (left := deadline - time.monotonic()) > 0:
            _set(self, _RCVTIMEO, max(1, int(1000 * min(left, _LOOK_EVERY))))
            with contextlib.suppress(zmq.Again):
                reply = _recv(self, flags, copy, track)
                _set(self, _RCVTIMEO, int(1000 * _LOOK_EVERY))
                return reply
            # Twice, for the sentinel may have lost a connection that this socket has not, and get it back.
            why = self.__dict__["diagnose"]()
            if why and was_down:
                raise ReplyLost(self.config.endpoint, why) from None
            was_down = bool(why)
        raise self.not_received(flags, again) from None

    def _expect_request(self) -> None:
        """Refuse a receive before the first send."""
        if not self._trace[0] & _BEGUN:
            raise zmq.ZMQError(zmq.EFSM)

    def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive one frame, as ``zmq.Socket.recv`` does."""
        trace = self._trace
        if flags or not copy or trace[0] != _SENT:
            self._expect_request()
            return super().recv(flags, copy, track)
        try:
            body = _recv(self, 0, True, False)
        except zmq.Again as again:
            body = self._receive_late(0, again, True, False)
        trace[0] = _RECEIVED
        return body

    def recv_string(self, flags: int = 0, encoding: str = "utf-8") -> str:
        """Receive one frame as text, as ``zmq.Socket.recv_string`` does."""
        trace = self._trace
        if flags or trace[0] != _SENT:
            return super().recv_string(flags, encoding)
        try:
            body: bytes = _recv(self, 0, True, False)
        except zmq.Again as again:
            body = self._receive_late(0, again, True, False)
        trace[0] = _RECEIVED
        return body.decode(encoding)

    def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all frames of a message, as ``zmq.Socket.recv_multipart`` does."""
        self._expect_request()
        return super().recv_multipart(flags, copy, track)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """Receive one frame into a buffer, as ``zmq.Socket.recv_into`` does."""
        self._expect_request()
        return super().recv_into(*args, **kwargs)


class ReplySocket(LeanSocket):
    """A REP: spoiled by a request without its reply, which would keep it from receiving another."""

    _spoiled = LeanSocket._spoiled | _RECEIVED


class DealerSocket(LeanSocket):
    """A DEALER: spoiled unless as many messages came in as went out, and none is waiting."""

    def __init__(self, context: zmq.Context[Any], kind: int, config: SocketConfig) -> None:
        super().__init__(context, kind, config)
        self.__dict__["_trace"] = [0, 0]

    def reusable(self) -> bool:
        """Say whether the lessee left the socket as it was given, and make it as new."""
        trace = self._trace
        unanswered, trace[1] = trace[1], 0
        return super().reusable() and not unanswered and not _get(self, _EVENTS) & _POLLIN

    def send(self, data: Any, flags: int = 0, copy: bool = True, track: bool = False, **draft: Any) -> Any:  # type: ignore[override]
        """Send one frame, and count the message it completes."""
        sent = super().send(data, flags, copy, track, **draft)
        self._trace[1] += not flags & _SNDMORE
        return sent

    def send_multipart(
        self, msg_parts: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False, **draft: Any
    ) -> Any:
        """Send a message of several frames, and count it."""
        sent = super().send_multipart(msg_parts, flags, copy, track, **draft)
        self._trace[1] += not draft and not flags & _SNDMORE
        return sent

    def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive one frame, and count the message it completes."""
        received = super().recv(flags, copy, track)
        self._trace[1] -= not self._trace[0] & _MORE_IN
        return received

    def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all frames of a message, and count it."""
        frames = super().recv_multipart(flags, copy, track)
        self._trace[1] -= 1
        return frames


def _check_frame(part: object) -> None:
    if isinstance(part, zmq.Frame):
        return
    try:
        memoryview(part)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"a frame must be bytes or another buffer, not {type(part).__name__}") from None
