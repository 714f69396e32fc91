"""What ``connection``, ``transaction`` and ``session`` return: leases for ``with`` and for ``async with``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Generic, TypeVar

from app.pools.core.holders import CallSite, call_site

S = TypeVar("S")
A = TypeVar("A")

_SITE_DEPTH = 10


class Lease(Generic[S, A]):
    """A connection or session for one block: ``with`` gives the synchronous kind, ``async with`` the other.

    A lease is entered once; ask the pool for another.
    """

    __slots__ = ("_entered", "_opening", "_opening_async")

    def __init__(
        self,
        opening: Callable[[CallSite], AbstractContextManager[S]],
        opening_async: Callable[[CallSite], AbstractAsyncContextManager[A]],
    ) -> None:
        self._opening = opening
        self._opening_async = opening_async
        self._entered: AbstractContextManager[S] | AbstractAsyncContextManager[A] | None = None

    def __enter__(self) -> S:
        entered = self._opening(call_site(_SITE_DEPTH))
        self._claim(entered)
        return entered.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert isinstance(self._entered, AbstractContextManager)
        return self._entered.__exit__(kind, error, trace)

    async def __aenter__(self) -> A:
        entered = self._opening_async(call_site(_SITE_DEPTH))
        self._claim(entered)
        return await entered.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert isinstance(self._entered, AbstractAsyncContextManager)
        return await self._entered.__aexit__(kind, error, trace)

    def _claim(self, entered: AbstractContextManager[S] | AbstractAsyncContextManager[A]) -> None:
        if self._entered is not None:
            raise RuntimeError("this lease was entered before; ask the pool for another one")
        self._entered = entered
