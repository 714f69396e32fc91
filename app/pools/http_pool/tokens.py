"""Tokens that a function provides: fetched once for everyone who needs them, and again when they expire."""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from app.pools.errors import ConfigError


class TokenSource:
    """The current token of a configuration whose ``auth`` is a function.

    However many callers find the token missing, one calls the function and the others wait for it: threads and
    loops together for a plain function, each loop for itself for a coroutine function, which belongs to a loop.

    Args:
        provide: returns a token.
    """

    def __init__(self, provide: Callable[[], str] | Callable[[], Awaitable[str]]) -> None:
        self._provide: Callable[[], Any] = provide
        self._asynchronous = inspect.iscoroutinefunction(provide) or inspect.iscoroutinefunction(
            getattr(provide, "__call__", None)  # noqa: B004 - an object with an asynchronous __call__
        )
        self._token: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()

    def get(self, seconds: float) -> str | None:
        """Return the token, or ``None`` if another thread did not fetch it within ``seconds``.

        Raises:
            ConfigError: the function is a coroutine function, or returned no text.
            Exception: what the function raises.
        """
        token = self._token
        if token is not None:
            return token
        if self._asynchronous:
            raise ConfigError("HTTPConfig(auth=...) is a coroutine function, which only request_async can call")
        if not self._lock.acquire(timeout=seconds):
            return None
        try:
            if self._token is None:
                self._token = _checked(self._provide())
            return self._token
        finally:
            self._lock.release()

    async def get_async(self, seconds: float) -> str | None:
        """Do what ``get`` does without blocking the event loop; a plain function runs in a thread."""
        token = self._token
        if token is not None:
            return token
        if not self._asynchronous:
            return await asyncio.to_thread(self.get, seconds)
        async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if self._token is None:
                self._token = _checked(await self._provide())
            return self._token

    def expire(self, token: str) -> None:
        """Forget ``token``, which the server refused, unless a newer one took its place meanwhile."""
        if self._token == token:
            self._token = None

    def forget_after_fork(self) -> None:
        """Replace the locks in a child process; the token is as good there."""
        self._reset()


def _checked(token: object) -> str:
    if not isinstance(token, str) or not token:
        raise ConfigError(f"the function in HTTPConfig(auth=...) must return a token as text, not {type(token)}")
    return token
