"""Wrappers that keep what they open on a stack, for what is not compiled.

These are generators, whose leases end when the consumer is done, functions with ``Closing[...]`` markers, and those
with a parameter without a default behind one that is injected.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any

from app.containers.compiled import is_pending
from app.containers.errors import LeaseKindError
from app.containers.lease import Lease
from app.containers.records import Record

_BY_NAME_ONLY = sys.maxsize

Arguments = tuple[Any, ...]


def stack_wrapper(function: Callable[..., Any], record: Record) -> Callable[..., Any]:
    """Return a wrapper of ``function``, of its own kind, that injects what ``record`` provides."""
    call = _Call(function, record)
    if inspect.isasyncgenfunction(function):
        return _wrap_async_generator(function, call)
    if inspect.isgeneratorfunction(function):
        return _wrap_generator(function, call)
    if inspect.iscoroutinefunction(function):
        return _wrap_coroutine(function, call)
    return _wrap_function(function, call)


class _Call:
    """What a wrapper knows about its function: which parameters to fill, and where the providers are."""

    __slots__ = ("_parameters", "_record")

    def __init__(self, function: Callable[..., Any], record: Record) -> None:
        self._record = record
        # A parameter and the position at which a caller's own argument would fill it.
        self._parameters = tuple(
            (name, _BY_NAME_ONLY if parameter.kind is parameter.KEYWORD_ONLY else position)
            for position, (name, parameter) in enumerate(inspect.signature(function).parameters.items())
            if name in record.reference_injections
        )

    @contextmanager
    def filled(self, args: Arguments, kwargs: dict[str, Any]) -> Iterator[None]:
        """Fill ``kwargs`` with what the caller left out, each lease open until the block ends."""
        next(self._record.calls.entered)
        try:
            with ExitStack() as stack:
                for provider in self._record.closing.values():
                    stack.callback(_shut_down, provider)
                for name in self._left_out(args, kwargs):
                    value = self._record.provider(name)()
                    kwargs[name] = stack.enter_context(self._manager(name, value)) if type(value) is Lease else value
                yield
        finally:
            next(self._record.calls.left)

    @asynccontextmanager
    async def filled_async(self, args: Arguments, kwargs: dict[str, Any]) -> AsyncIterator[None]:
        """Do what ``filled`` does, preferring what asyncio offers."""
        next(self._record.calls.entered)
        try:
            async with AsyncExitStack() as stack:
                for provider in self._record.closing.values():
                    stack.push_async_callback(_shut_down_async, provider)
                for name in self._left_out(args, kwargs):
                    value = self._record.provider(name)()
                    if type(value) is Lease:
                        kwargs[name] = await _enter_async(stack, value.open())
                    else:
                        kwargs[name] = await value if is_pending(value) else value
                yield
        finally:
            next(self._record.calls.left)

    def _left_out(self, args: Arguments, kwargs: dict[str, Any]) -> Iterator[str]:
        for name, position in self._parameters:
            if position >= len(args) and name not in kwargs:
                yield name

    def _manager(self, name: str, lease: Lease[Any]) -> Any:
        manager = lease.open()
        if not hasattr(manager, "__enter__"):
            raise LeaseKindError(self._record.place, name)
        return manager


async def _enter_async(stack: AsyncExitStack, manager: Any) -> Any:
    if hasattr(manager, "__aenter__"):
        return await stack.enter_async_context(manager)
    return stack.enter_context(manager)


def _shut_down(provider: Any) -> Any:
    """Shut down a resource that a ``Closing[...]`` marker names, if this call initialised it."""
    return provider.shutdown() if getattr(provider, "initialized", False) else None


async def _shut_down_async(provider: Any) -> None:
    done = _shut_down(provider)
    if inspect.isawaitable(done):
        await done


def _wrap_function(function: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with call.filled(args, kwargs):
            return function(*args, **kwargs)

    return wrapper


def _wrap_coroutine(function: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with call.filled_async(args, kwargs):
            return await function(*args, **kwargs)

    return wrapper


def _wrap_generator(function: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with call.filled(args, kwargs):
            return (yield from function(*args, **kwargs))

    return wrapper


def _wrap_async_generator(function: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with call.filled_async(args, kwargs), aclosing(function(*args, **kwargs)) as items:
            # As `yield from` does for generators, which has no asynchronous form.
            step = items.asend(None)
            while True:
                try:
                    item = await step
                except StopAsyncIteration:
                    return
                try:
                    sent = yield item
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, for the body to see
                    step = items.athrow(error)
                else:
                    step = items.asend(sent)

    return wrapper
