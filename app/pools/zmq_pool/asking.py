"""The sockets that ask: REQ and DEALER, of which the next lessee must not be handed somebody else's reply."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import zmq

from app.pools.zmq_pool.backend import (
    NOBLOCK,
    SMALL,
    SNDMORE,
    raw_address,
    raw_recv,
    raw_send,
    send_now,
    sizes,
)
from app.pools.zmq_pool.busy_poll import BusyPoll
from app.pools.zmq_pool.config import SocketConfig
from app.pools.zmq_pool.trace import ALONE_AT, MORE_IN, MORE_OUT, RECEIVED, RETIMED, SENT
from app.pools.zmq_pool.watchful import WatchfulSocket

_SENT_RETIMED = SENT | RETIMED
_ANSWERED = SENT | RECEIVED  # what changes when the reply is there


class RequestSocket(WatchfulSocket):
    """A REQ: spoiled by a request without its reply, which the next lessee would be handed.

    That it was sent is noted before the send, and that the reply came after the receive: whatever an interrupt breaks
    off, the socket counts as spoiled.

    The calls that most requests consist of are written out, because on a local socket each call inside another one
    shows.
    """

    _address: ctypes.c_void_p
    """Of libzmq's socket, for ``send_now``."""

    _busy_poll: BusyPoll
    """Receives the replies if no other thread asks at the same time."""

    _spoiled = WatchfulSocket._spoiled | SENT

    def __init__(self, context: zmq.Context[Any], kind: int, config: SocketConfig) -> None:
        super().__init__(context, kind, config)
        self.__dict__.update(_address=ctypes.c_void_p(raw_address(self)), _trace=[0, True], _busy_poll=BusyPoll(0))

    def reusable(self) -> bool:
        """Say whether the lessee left the socket as it was given, and make it as new."""
        trace = self._trace
        if trace[0] == RECEIVED:
            trace[0] = 0
            return True
        return super().reusable()

    def send(self, data: Any, flags: int = 0, copy: bool = True, track: bool = False, **draft: Any) -> Any:  # type: ignore[override]
        """Send one frame, as ``zmq.Socket.send`` does."""
        trace = self._trace
        if flags or draft or trace[0] & ~RECEIVED:
            return super().send(data, flags, copy, track, **draft)
        sent = None
        trace[0] = SENT
        if (
            trace[ALONE_AT]
            or track
            or data.__class__ is not bytes
            or (length := len(data)) > SMALL
            or send_now(self._address, data, sizes[length], NOBLOCK) < 0
        ):
            try:
                sent = raw_send(self, data, 0, copy, track)
            except zmq.ZMQError as error:
                raise self._unsent(0, 0, error) from None
        return sent

    def send_string(self, u: str, flags: int = 0, copy: bool = True, encoding: str = "utf-8", **draft: Any) -> Any:
        """Send ``u`` as one frame, as ``zmq.Socket.send_string`` does."""
        trace = self._trace
        if flags or draft or trace[0] & ~RECEIVED or u.__class__ is not str:
            return super().send_string(u, flags, copy, encoding, **draft)
        data = u.encode(encoding)
        trace[0] = SENT
        if (
            trace[ALONE_AT]
            or (length := len(data)) > SMALL
            or send_now(self._address, data, sizes[length], NOBLOCK) < 0
        ):
            try:
                raw_send(self, data, 0, copy, False)
            except zmq.ZMQError as error:
                raise self._unsent(0, 0, error) from None
        return None

    def send_multipart(
        self, msg_parts: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False, **draft: Any
    ) -> Any:
        """Send a message of several frames, as ``zmq.Socket.send_multipart`` does."""
        trace = self._trace
        plain = not (flags or track or draft or trace[0] & ~RECEIVED)
        for part in msg_parts:
            plain = plain and part.__class__ is bytes
        if not plain:
            return super().send_multipart(msg_parts, flags, copy, track, **draft)
        so_far = 0
        trace[0] = SENT | MORE_OUT
        try:
            for part in msg_parts[:-1]:
                raw_send(self, part, SNDMORE, copy, False)
                so_far = SENT | MORE_OUT
            raw_send(self, msg_parts[-1], 0, copy, False)
        except zmq.ZMQError as error:
            raise self._unsent(so_far, 0, error) from None
        trace[0] = SENT
        return None

    def poll_busily(self, seconds: float) -> None:
        """Have receives look for the reply, for so many seconds, before they sleep, where that is faster."""
        self.__dict__["_busy_poll"] = BusyPoll(seconds)

    def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive one frame, as ``zmq.Socket.recv`` does."""
        trace = self._trace
        state = trace[0]
        if flags or not copy or track or (state != SENT and state != _SENT_RETIMED):
            return super().recv(flags, copy, track)
        try:
            data = self._busy_poll.receive(self) if trace[ALONE_AT] else raw_recv(self, 0, True, False)
        except zmq.ZMQError as error:
            data = self._receive_late(state, 0, error)
        trace[0] = state ^ _ANSWERED | MORE_IN if self._frames_left() else state ^ _ANSWERED
        return data

    def recv_string(self, flags: int = 0, encoding: str = "utf-8") -> str:
        """Receive one frame as text, as ``zmq.Socket.recv_string`` does."""
        trace = self._trace
        if flags or trace[0] != SENT:
            return super().recv_string(flags, encoding)
        try:
            data = self._busy_poll.receive(self) if trace[ALONE_AT] else raw_recv(self, 0, True, False)
        except zmq.ZMQError as error:
            data = self._receive_late(SENT, 0, error)
        trace[0] = RECEIVED | MORE_IN if self._frames_left() else RECEIVED
        text: str = data.decode(encoding)
        return text

    def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all frames of a message, as ``zmq.Socket.recv_multipart`` does."""
        trace = self._trace
        if flags or not copy or track or trace[0] != SENT:
            return super().recv_multipart(flags, copy, track)
        try:
            data = self._busy_poll.receive(self) if trace[ALONE_AT] else raw_recv(self, 0, True, False)
        except zmq.ZMQError as error:
            data = self._receive_late(SENT, 0, error)
        frames = [data]
        while self._frames_left():
            frames.append(raw_recv(self, 0, True, False))
        trace[0] = RECEIVED
        return frames


class DealerSocket(WatchfulSocket):
    """A DEALER: spoiled unless as many messages came in as went out, and none is waiting.

    One that binds is kept as any other socket that does: what waits in it is for its next lessee.
    """

    def __init__(self, context: zmq.Context[Any], kind: int, config: SocketConfig) -> None:
        super().__init__(context, kind, config)
        self.__dict__["_trace"] = [0, 0]

    def reusable(self) -> bool:
        """Say whether the lessee left the socket as it was given, and make it as new."""
        trace = self._trace
        unanswered, trace[1] = trace[1], 0
        # A message that came after a lease's end is its lessee's, and nobody else's.
        return super().reusable() and (self.config.bind or (not unanswered and self.quiet()))

    def _expects_reply(self) -> bool:
        return self._trace[1] > 0

    def send(self, data: Any, flags: int = 0, copy: bool = True, track: bool = False, **draft: Any) -> Any:  # type: ignore[override]
        """Send one frame, and count the message it completes."""
        trace = self._trace
        one = not flags & SNDMORE
        trace[1] += one
        try:
            return super().send(data, flags, copy, track, **draft)
        except zmq.ZMQError:
            trace[1] -= one
            raise

    def send_multipart(
        self, msg_parts: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False, **draft: Any
    ) -> Any:
        """Send a message of several frames, and count it."""
        trace = self._trace
        one = not draft and not flags & SNDMORE  # drafts are counted as their frames are sent
        trace[1] += one
        try:
            return super().send_multipart(msg_parts, flags, copy, track, **draft)
        except zmq.ZMQError:
            trace[1] -= one
            raise

    def recv(self, flags: int = 0, copy: bool = True, track: bool = False) -> Any:
        """Receive one frame, and count the message it completes."""
        received = super().recv(flags, copy, track)
        self._trace[1] -= not self._trace[0] & MORE_IN
        return received

    def recv_multipart(self, flags: int = 0, copy: bool = True, track: bool = False) -> list[Any]:
        """Receive all frames of a message, and count it."""
        frames = super().recv_multipart(flags, copy, track)
        self._trace[1] -= 1
        return frames

    def recv_into(self, buffer: Any, /, *, nbytes: int = 0, flags: int = 0) -> int:
        """Receive one frame into a buffer, and count the message it completes."""
        size = super().recv_into(buffer, nbytes=nbytes, flags=flags)
        self._trace[1] -= not self._trace[0] & MORE_IN
        return size
