"""``inject``: one wrapper around a function that resolves its markers and opens its leases for each call.

dependency-injector's ``wire`` finds decorated functions in a registry of its own and writes the providers
that it resolved into a record there. The wrapper made here is entered into that registry, so its ``wire``,
its markers with their modifiers and its overrides work as documented, without a second wrapper around ours.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AsyncExitStack, ExitStack, aclosing
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from dependency_injector import wiring

from app.containers.compiled import compile_wrapper, is_pending
from app.containers.errors import LeaseKindError, NotWiredError
from app.containers.lease import Lease

F = TypeVar("F", bound=Callable[..., Any])

_CLOSING: Any = wiring.Closing  # a class, though its stub says otherwise
_BY_NAME_ONLY = sys.maxsize


def inject(function: F) -> F:
    """Fill in the parameters of ``function`` whose default is a marker, for each call anew.

    A provider of a ``Lease`` has it opened before the body runs and closed when the call ends, in reverse
    order, with the exception or the cancellation that ended it. Any other provider gives its value as
    dependency-injector does. An argument that the caller passes, by position or by name, wins.

    Args:
        function: a function, coroutine function, generator or asynchronous generator. A class or static
            method is decorated inside: ``@classmethod`` above ``@inject``.

    Returns:
        a function with the same signature.

    Raises:
        TypeError: the function has no parameter to inject.
        NotWiredError: at the call, if no container is wired to the function's module.
        LeaseKindError: at the call, if a lease only opens in asyncio and the function is synchronous.
    """
    if isinstance(function, (classmethod, staticmethod)):
        return cast(F, type(function)(inject(function.__func__)))
    _refuse_what_returns_early(function)
    markers = _markers(function, sys._getframe(1).f_locals)
    if not markers:
        raise TypeError(
            f"{function.__module__}.{function.__qualname__} has no parameter to inject; give one a default "
            'such as Provide["databases.main"], or remove @inject'
        )
    closing = {name: marker.provider for name, marker in markers.items() if isinstance(marker, _CLOSING)}
    record = wiring.PatchedCallable(
        original=function, reference_injections={**markers, **closing}, reference_closing=closing
    )
    wrapper = _wrap(function, record)
    record.patched = wrapper
    wiring._patched_registry.register_callable(record)
    return cast(F, wrapper)


def _refuse_what_returns_early(function: Callable[..., Any]) -> None:
    """Refuse what is no function, and a wrapper that returns before the function inside it has ended."""
    if not inspect.isfunction(function):
        raise TypeError(f"@inject takes a function, not {function!r}; decorate the function itself")
    inner = inspect.unwrap(function)
    lazy = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(kind(inner) and not kind(function) for kind in lazy):
        raise TypeError(
            f"{function.__module__}.{function.__qualname__}: another decorator stands between @inject and the "
            "function, and what it makes would outlive the lease; put @inject below it, directly above the function"
        )


def _markers(function: Callable[..., Any], around: Mapping[str, Any]) -> dict[str, Any]:
    """Return the marker of each parameter that has one, as its default or in ``Annotated``."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            annotation = _evaluated(function, annotation, around)
        candidates = [*(get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()), parameter.default]
        marker = next(filter(wiring._is_marker, candidates), None)
        if marker is not None:
            found[name] = marker
    return found


def _evaluated(function: Any, annotation: str, around: Mapping[str, Any]) -> Any:
    """Return what a postponed annotation means, ``None`` if it names what only a type checker sees.

    ``around`` are the names where the function is decorated: an alias may be local to another function.
    """
    try:
        return eval(annotation, function.__globals__, dict(around))
    except Exception as error:
        if "Provide[" in annotation or "Closing[" in annotation:
            raise TypeError(
                f"{function.__module__}.{function.__qualname__}: the annotation {annotation!r} cannot be evaluated "
                f"({error}); import what it names outside of TYPE_CHECKING, or write the marker as the default"
            ) from error
        return None


class _Call:
    """What a wrapper knows about its function: which parameters to fill, and where the providers are."""

    __slots__ = ("name", "parameters", "record")

    def __init__(self, function: Callable[..., Any], record: wiring.PatchedCallable) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.record = record
        # A parameter and the position at which a caller's own argument would fill it.
        self.parameters = tuple(
            (name, _BY_NAME_ONLY if parameter.kind is parameter.KEYWORD_ONLY else position)
            for position, (name, parameter) in enumerate(inspect.signature(function).parameters.items())
            if name in record.reference_injections
        )

    def resolve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
        """Return the parameters that the caller left out, each with its provider's value, in their order."""
        given = len(args)
        providers = self.record.injections
        values = []
        for name, position in self.parameters:
            if position < given or name in kwargs:
                continue
            provider = providers.get(name)
            if provider is None:
                raise NotWiredError(self.name, name)
            values.append((name, provider()))
        return values

    def open(self, stack: ExitStack, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Fill ``kwargs``, with each lease open until ``stack`` closes."""
        for provider in self.record.closing.values():
            stack.callback(_shut_down, provider)
        for name, value in self.resolve(args, kwargs):
            kwargs[name] = stack.enter_context(self.manager(name, value)) if type(value) is Lease else value

    def manager(self, name: str, lease: Lease[Any]) -> Any:
        """Return the synchronous context manager of ``lease``."""
        manager = lease.open()
        if not hasattr(manager, "__enter__"):
            raise LeaseKindError(self.name, name)
        return manager

    async def open_async(self, stack: AsyncExitStack, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Fill ``kwargs`` as ``open`` does, preferring what asyncio offers."""
        for provider in self.record.closing.values():
            stack.push_async_callback(_shut_down_async, provider)
        for name, value in self.resolve(args, kwargs):
            if type(value) is Lease:
                manager: Any = value.open()
                if hasattr(manager, "__aenter__"):
                    kwargs[name] = await stack.enter_async_context(manager)
                else:
                    kwargs[name] = stack.enter_context(manager)
            else:
                kwargs[name] = await value if is_pending(value) else value


def _shut_down(provider: Any) -> Any:
    """Shut down a resource that a ``Closing[...]`` marker names, if this call initialised it."""
    return provider.shutdown() if getattr(provider, "initialized", False) else None


async def _shut_down_async(provider: Any) -> None:
    done = _shut_down(provider)
    if inspect.isawaitable(done):
        await done


def _wrap(function: Callable[..., Any], record: wiring.PatchedCallable) -> Callable[..., Any]:
    call = _Call(function, record)
    if inspect.isasyncgenfunction(function):
        return _wrap_async_generator(function, call)
    if inspect.isgeneratorfunction(function):
        return _wrap_generator(function, call)
    wrapper = None if record.reference_closing else compile_wrapper(function, record)
    if wrapper is not None:
        return wrapper
    if inspect.iscoroutinefunction(function):
        return _wrap_coroutine(function, call)
    return _wrap_function(function, call)


def _wrap_function(function: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            call.open(stack, args, kwargs)
            return function(*args, **kwargs)

    return wrapper


def _wrap_coroutine(function: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with AsyncExitStack() as stack:
            await call.open_async(stack, args, kwargs)
            return await function(*args, **kwargs)

    return wrapper


def _wrap_generator(function: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with ExitStack() as stack:
            call.open(stack, args, kwargs)
            return (yield from function(*args, **kwargs))

    return wrapper


def _wrap_async_generator(function: Callable[..., Any], call: _Call) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with AsyncExitStack() as stack:
            await call.open_async(stack, args, kwargs)
            # As `yield from` does for generators, which has no asynchronous form.
            items = await stack.enter_async_context(aclosing(function(*args, **kwargs)))
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
