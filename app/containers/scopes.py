"""Scopes: for how long what was opened is kept, beyond the one call that is the rule.

* call: a lease is opened for one call of one function. Nothing needs to be said for that.
* message: all functions that work on one message share a lease, opened at its first use and closed when the
  message is done. ``Provide["databases.main.per_message"]``.
* container: a lease is opened at its first use and closed when the container stops.
  ``Provide["sockets.feed.per_container"]``.

A message also carries values, such as the tenant or a request's id, which ``ContextValue`` provides.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

from dependency_injector import providers

from app.containers.changes import Copied
from app.containers.errors import ContainerError, NoMessageError
from app.containers.lease import Lease
from app.containers.tasks import to_its_end

T = TypeVar("T")

_MISSING: Any = object()


class _Kept:
    """What a scope has opened: each lease once, closed in reverse when the scope ends."""

    def __init__(self, *, is_async: bool) -> None:
        self.values: dict[str, Any] = {}
        self._is_async = is_async
        self._closed = False
        self._lock = threading.RLock()
        self._opened: dict[object, Any] = {}
        self._opening: dict[object, asyncio.Future[Any]] = {}
        self._stack = ExitStack()
        self._async_stack = AsyncExitStack()

    def get(self, key: object, lease: Lease[Any]) -> Any:
        """Return what ``lease`` opened at the first use of ``key`` in this scope."""
        with self._lock:
            if self._closed:
                raise NoMessageError("a lease of a message that is done")
            if key not in self._opened:
                manager: Any = lease.open()
                self._opened[key] = self._stack.enter_context(manager)
            return self._opened[key]

    async def get_async(self, key: object, lease: Lease[Any]) -> Any:
        """Do what ``get`` does with the asynchronous side of ``lease``; tasks that come together open it once."""
        if self._closed:
            raise NoMessageError("a lease of a message that is done")
        if not self._is_async:
            raise ContainerError(
                "a coroutine shares a lease in a scope that was begun without asyncio and could not close it; "
                "begin it with `async with message_scope_async()`, or `async with Lifecycle(...)`"
            )
        opening = self._opening.get(key)
        if opening is None:
            opening = self._opening[key] = asyncio.ensure_future(self._open(lease))
            opening.add_done_callback(lambda done: self._opening.pop(key) if _failed(done) else None)
        return await asyncio.shield(opening)

    async def _open(self, lease: Lease[Any]) -> Any:
        manager: Any = lease.open()
        if hasattr(manager, "__aenter__"):
            return await self._async_stack.enter_async_context(manager)
        return self._async_stack.enter_context(manager)

    def close(self, *error: Any) -> None:
        """Close what functions opened."""
        with self._lock:
            self._closed = True
            self._opened.clear()
        self._stack.__exit__(*error)

    async def close_async(self, *error: Any) -> None:
        """Close everything, also when the message is cancelled meanwhile."""
        await to_its_end(self._close_async(*error))

    async def _close_async(self, *error: Any) -> None:
        self._closed = True
        pending = [opening for opening in self._opening.values() if not opening.done()]
        if pending:
            await asyncio.wait(pending)
        self._opening.clear()
        try:
            await self._async_stack.__aexit__(*error)
        finally:
            self.close(*error)


def _failed(done: asyncio.Future[Any]) -> bool:
    return done.cancelled() or done.exception() is not None


_message: ContextVar[_Kept | None] = ContextVar("poolwire_message", default=None)


@contextmanager
def message_scope(**values: Any) -> Iterator[None]:
    """Treat the block as the work on one message.

    Tasks and threads that the block starts with a copy of its context (``asyncio`` tasks, ``asyncio.to_thread``)
    belong to the message as well. Messages nest: an inner one sees the outer one's values and has leases of its own.

    Args:
        values: what ``ContextValue`` providers give, by name.
    """
    kept = _inner(values, is_async=False)
    token = _message.set(kept)
    try:
        yield
    except BaseException as error:
        kept.close(type(error), error, error.__traceback__)
        raise
    else:
        kept.close(None, None, None)
    finally:
        _message.reset(token)


@asynccontextmanager
async def message_scope_async(**values: Any) -> AsyncIterator[None]:
    """Do what ``message_scope`` does for a coroutine, whose leases are asynchronous."""
    kept = _inner(values, is_async=True)
    token = _message.set(kept)
    try:
        yield
    except BaseException as error:
        await kept.close_async(type(error), error, error.__traceback__)
        raise
    else:
        await kept.close_async(None, None, None)
    finally:
        _message.reset(token)


def in_message() -> bool:
    """Whether a message is being worked on here."""
    return _message.get() is not None


def _inner(values: dict[str, Any], *, is_async: bool) -> _Kept:
    outer = _message.get()
    kept = _Kept(is_async=is_async)
    kept.values = values if outer is None else {**outer.values, **values}
    return kept


class _Shared:
    """Enters a scope's lease, and leaves it to the scope to close."""

    __slots__ = ("_kept", "_key", "_lease")

    def __init__(self, kept: _Kept, key: object, lease: Lease[Any]) -> None:
        self._kept = kept
        self._key = key
        self._lease = lease

    def __enter__(self) -> Any:
        return self._kept.get(self._key, self._lease)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def __aenter__(self) -> Any:
        return await self._kept.get_async(self._key, self._lease)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PerMessage(Copied[Lease[T]]):
    """Provides the lease that all functions working on one message share.

    Args:
        lease: a ``LeaseProvider``.
    """

    def __init__(self, lease: providers.Provider[Lease[T]]) -> None:
        self.lease = lease
        super().__init__()

    def _copy(self, memo: dict[Any, Any]) -> Self:
        return type(self)(providers.deepcopy(self.lease, memo))

    @property
    def related(self) -> Iterator[providers.Provider[Any]]:
        """The providers that this one needs."""
        yield self.lease
        yield from super().related

    def _provide(self, args: Any, kwargs: Any) -> Any:
        kept = _message.get()
        if kept is None:
            raise NoMessageError("a lease per message")
        return self._share(kept)

    def _share(self, kept: _Kept) -> Any:
        lease: Any = self.lease()
        # What a test put in the lease's place is used as it is.
        return Lease(lambda: _Shared(kept, self, lease)) if type(lease) is Lease else lease


class PerContainer(PerMessage[T]):
    """Provides the lease that the container keeps from its first use to its stop.

    The container's ``Lifecycle`` closes it. Whoever uses it at the same time as others must know that what it
    opens may be shared between threads.
    """

    def __init__(self, lease: providers.Provider[Lease[T]]) -> None:
        super().__init__(lease)
        self._kept = _Kept(is_async=False)

    def begin(self, *, is_async: bool) -> None:
        """Start with nothing open; ``Lifecycle`` says whether it can close what coroutines open."""
        self._kept = _Kept(is_async=is_async)

    def _provide(self, args: Any, kwargs: Any) -> Any:
        return self._share(self._kept)

    def close(self) -> None:
        """Close what functions opened."""
        self._kept.close(None, None, None)

    async def close_async(self) -> None:
        """Close everything."""
        await self._kept.close_async(None, None, None)


class ContextValue(Copied[T]):
    """Provides a value of the message that is being worked on, such as its tenant.

    Args:
        name: the name under which ``message_scope`` or an agent's ``context`` gives it.
        default: what is provided if the message does not have it; without one that is an error.
    """

    def __init__(self, name: str, default: Any = _MISSING) -> None:
        self._name = name
        self._default = default
        super().__init__()

    def _copy(self, memo: dict[Any, Any]) -> Self:
        return type(self)(self._name, self._default)

    def _provide(self, args: Any, kwargs: Any) -> Any:
        kept = _message.get()
        value = self._default if kept is None else kept.values.get(self._name, self._default)
        if value is _MISSING:
            raise NoMessageError(f"the value {self._name!r}")
        return value
