"""``inject``: one wrapper around a function that resolves its markers and opens its leases for each call."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from dependency_injector import wiring

from app.containers.compiled import compile_wrapper
from app.containers.records import Record, register
from app.containers.stacked import stack_wrapper

F = TypeVar("F", bound=Callable[..., Any])

_CLOSING: Any = wiring.Closing  # a class, though its stub says otherwise


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
    record = Record(function, {**markers, **closing}, closing)
    lazy = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    wrapper = None if lazy or closing else compile_wrapper(function, record)
    record.patched = wrapper = wrapper or stack_wrapper(function, record)
    register(record)
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
