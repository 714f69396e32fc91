"""Every error that a pool raises. Each carries its facts as attributes and renders them, secrets never among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MORE_DESCRIPTORS = "Raise the limit (ulimit -n, LimitNOFILE=), or have the process open less at a time"
"""What to do when a process has no file descriptor left."""
MORE_THREADS = "Raise the limit of threads (ulimit -u, TasksMax=), or have the process start fewer"
"""What to do when a process can start no thread."""


class PoolError(Exception):
    """The base of every error that poolwire's pools raise. It can be pickled, to reach another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is otherwise made anew from its arguments, which are not those of a constructor with facts.
        return _remade, (type(self), self.args), self.__dict__


def _remade(kind: type[PoolError], args: tuple[Any, ...]) -> PoolError:
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class ConfigError(PoolError, ValueError):
    """A configuration value is wrong. The message names the value and what is allowed."""


class MissingDriver(PoolError, ImportError):
    """A driver that is not installed is needed. The message names the extra that brings it."""


class PoolClosed(PoolError):
    """The pool was stopped, before the call or while it waited.

    Args:
        pool: the pool's name, such as ``"sql"``.
    """

    def __init__(self, pool: str) -> None:
        self.pool = pool
        super().__init__(
            f"the {pool} pool is stopped and hands out nothing more; "
            f"start() it again, or call get_{pool}_pool() for the process's default pool"
        )


class PoolTimeout(PoolError, TimeoutError):
    """Every connection of a key was in use until the caller's deadline, or none was handed out or made until then.

    Attributes:
        pool: the pool's name.
        key: the key's label, without secrets.
        capacity: how many connections the key may have.
        in_use: how many of them were checked out.
        waiters: how many callers were still waiting.
        waited: how long this caller waited, in seconds.
        longest_holder: where the connection held longest was checked out, or ``None``.
        total: the cap that the key shares with others, if that is what was reached.
        sharers: who shares it.
        setting: the setting that holds the cap which was reached, or ``""`` if nothing raises it.
        paused: whether the pool, or the key alone, is paused.
        connecting: for how long a connection has been in the making that the server has not answered, in seconds, or
            ``None``.
    """

    def __init__(
        self,
        pool: str,
        key: str,
        *,
        capacity: int,
        in_use: int,
        waiters: int,
        waited: float,
        longest_holder: str | None = None,
        total: int | None = None,
        sharers: str = "the pool",
        setting: str | None = None,
        paused: bool = False,
    ) -> None:
        self.pool = pool
        self.key = key
        self.setting = f"{pool.upper()}_POOL_MAX_CONNECTIONS" if setting is None else setting
        self.paused = paused
        self.connecting: float | None = None
        self.capacity = capacity
        self.in_use = in_use
        self.waiters = waiters
        self.waited = waited
        self.longest_holder = longest_holder
        self.total = total
        self.sharers = sharers
        super().__init__(pool, key)

    def __str__(self) -> str:
        message = f"no {self.pool} connection for {self.key} within {self.waited:.2f} s: "
        if self.paused:
            return f"{message}paused, {self.waiters} waiting. Call resume() to have connections handed out again"
        message += f"{self.in_use} of {self.capacity} in use, {self.waiters} waiting"
        if self.total is not None:
            message += f"; all {self.total} connections that {self.sharers} may have are taken"
        if self.longest_holder is not None:
            message += f"; held longest: {self.longest_holder}"
        if self.connecting is not None:
            message += f"; connecting for {self.connecting:.2f} s, no answer"
        return f"{message}. {self._advice()}"

    def _advice(self) -> str:
        if self.connecting is not None and not self.in_use:
            return "Check that the server answers, or give it more time"
        return "Give connections back sooner" + (f", or raise {self.setting}" if self.setting else "")


class LeaseLeaked(PoolError):
    """A pool was stopped while connections were still checked out.

    Attributes:
        pool: the pool's name.
        holders: one line for each lease: its key, its age and where it was checked out.
    """

    def __init__(self, pool: str, holders: Sequence[str]) -> None:
        self.pool = pool
        self.holders = tuple(holders)
        super().__init__(pool, self.holders)

    def __str__(self) -> str:
        held = "; ".join(self.holders)
        return f"the {self.pool} pool stopped with {len(self.holders)} lease(s) not given back: {held}"


# ZMQ


class NotSent(PoolError, TimeoutError):
    """A ZMQ message never left this process, so sending it again is safe."""


class NoReply(PoolError, TimeoutError):
    """A ZMQ request was sent and no reply came in time; the peer may have executed it."""


class ConnectionLost(PoolError, ConnectionError):
    """The connection to a ZMQ peer broke while a request was on its way.

    Attributes:
        endpoint: where the peer listens.
        maybe_executed: whether the peer may have executed the request; if not, sending it again is safe.
    """

    def __init__(self, endpoint: str, *, maybe_executed: bool) -> None:
        self.endpoint = endpoint
        self.maybe_executed = maybe_executed
        advice = "it may have executed the request" if maybe_executed else "sending the request again is safe"
        super().__init__(f"the connection to {endpoint} was lost before the reply came; {advice}")


class EndpointBusy(PoolError):
    """A ZMQ endpoint that this process binds is leased already; a bound endpoint has one owner."""


class OutOfDescriptors(PoolError):
    """A ZMQ socket could not be opened: the process may have no more file descriptors, or ZMQ sockets.

    Attributes:
        key: the socket's configuration.
        waited: for how long it was tried, in seconds.
        limit: how many file descriptors the process may have.
    """

    def __init__(self, key: str, waited: float, limit: int) -> None:
        self.key = key
        self.waited = waited
        self.limit = limit
        super().__init__(
            f"{key}: no socket could be opened within {waited:.2f} s, because the process has as many file descriptors "
            f"as it may ({limit}, and a third of that many ZMQ sockets). {MORE_DESCRIPTORS}"
        )


class RequestFailed(PoolError):
    """A peer answered a request with an error.

    Attributes:
        endpoint: where the peer listens.
        kind: the class name of the peer's error.
        reason: the peer's message.
    """

    def __init__(self, endpoint: str, kind: str, reason: str) -> None:
        self.endpoint = endpoint
        self.kind = kind
        self.reason = reason
        super().__init__(f"{endpoint} answered with {kind}: {reason}")


class ForeignThread(PoolError, RuntimeError):
    """A leased socket was used by another thread than the one that leased it, with ``ZMQ_POOL_CHECK_OWNER=1``.

    Attributes:
        key: the socket's configuration.
        owner: the name of the thread that leased it.
        user: the name of the thread that used it.
    """

    def __init__(self, key: str, owner: str, user: str) -> None:
        self.key = key
        self.owner = owner
        self.user = user
        super().__init__(
            f"the socket of {key} is leased by thread {owner!r} and was used by thread {user!r}, which can corrupt its "
            f"memory. Lease a socket in each thread, or hand over what is to be sent instead of the socket"
        )


class LeaseEnded(PoolError, RuntimeError):
    """A task uses the socket of an asyncio lease that has ended, or from which the socket was detached.

    Attributes:
        key: the socket's configuration.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(
            f"the lease of {key} has ended, or its socket was detached. End each task that uses a leased socket before "
            f"its lease; after detach() use what that returned"
        )


class UnexpectedReply(PoolError):
    """A peer's reply is not of the form that the call returns.

    Attributes:
        endpoint: where the peer listens.
        reason: what is wrong with it.
    """

    def __init__(self, endpoint: str, reason: str = "has more than one frame") -> None:
        self.endpoint = endpoint
        self.reason = reason
        super().__init__(f"the reply of {endpoint} {reason}; lease the socket to receive it as it is")


# SQL


class DatabaseUnavailable(PoolError):
    """The database cannot be reached, or the connection to it was lost. The driver's error is the cause.

    A statement that was under way may or may not have been executed.
    """


class DatabaseUnreachable(DatabaseUnavailable, PoolTimeout):
    """No connection became free until the deadline, and none could be made: the database refuses or is down.

    Attributes:
        reason: what the last attempt to connect failed with.
        advice: what to do about that.
    """

    reason = ""
    advice = "Check host and port, that the server runs, and that it accepts connections from here"

    def __str__(self) -> str:
        message = (
            f"{self.key} could not be reached within {self.waited:.2f} s, the last attempt failed with: {self.reason} "
            f"({self.in_use} of {self.capacity} connections in use, {self.waiters} waiting)"
        )
        if self.longest_holder is not None:
            message += f"; held longest: {self.longest_holder}"
        return f"{message}. {self.advice}"


class ConnectionRefused(DatabaseUnavailable):
    """The database refuses this user, password, name or encryption; trying again would not help."""


class QueryTimeout(PoolError, TimeoutError):
    """A statement did not end within its timeout and was cancelled on the server.

    Attributes:
        database: the database's label, without secrets.
        seconds: the timeout.
    """

    def __init__(self, database: str, seconds: float) -> None:
        self.database = database
        self.seconds = seconds
        super().__init__(
            f"the statement on {database} did not end within {seconds:g} s and was cancelled; "
            f"raise timeout= or make it faster"
        )


# HTTP


class InvalidURL(ConfigError):
    """A path or URL that would leave the configured base URL, or that carries credentials."""


class HTTPUnavailable(PoolError):
    """No response came: the connection failed or broke, and the retries allowed for it are used up."""


class UntrustedServer(HTTPUnavailable):
    """The TLS handshake failed: the server's certificate is not trusted, or it refuses the client's."""


class DeadlineExceeded(PoolError, TimeoutError):
    """An HTTP call, its retries included, did not end within its total timeout."""


class ResponseTooLarge(PoolError):
    """A body, decompressed, is larger than the configuration allows."""


class TooManyRedirects(PoolError):
    """An origin redirected more often than the configuration allows, or in a circle."""


class BlockedAddress(HTTPUnavailable):
    """A name stands for no public address, and the configuration allows no other (``block_private``)."""


class CircuitOpen(PoolError):
    """An origin failed so often in a row that nothing is sent to it for a while.

    Attributes:
        origin: the origin.
        retry_in: seconds until it is tried again.
    """

    def __init__(self, origin: str, retry_in: float) -> None:
        self.origin = origin
        self.retry_in = retry_in
        super().__init__(f"{origin} keeps failing and is left alone; it is tried again in {retry_in:.1f} s")


class NotAnEventStream(PoolError):
    """A response to ``sse`` has another content type than ``text/event-stream``."""
