"""Which providers only a coroutine can use, told before anything is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast, get_origin, get_type_hints

from dependency_injector import providers

from app.containers.graph import AnyProvider, effective
from app.containers.lease import Lease
from app.containers.providers import LeaseProvider, Named
from app.containers.scopes import ContextValue, PerMessage

# What they are given is not what they give.
_OPAQUE = (providers.Delegate, providers.Object, providers.Configuration, providers.Selector, Named, ContextValue)


def needs_coroutine(provider: AnyProvider) -> bool:
    """Whether what ``provider`` gives has to be awaited, or is a lease that has no synchronous side.

    What cannot be told from the provider, a function's kind and its annotations is told at the call.
    """
    return _gives_a_future(provider, set()) or _lends_to_coroutines_only(effective(provider))


def _gives_a_future(provider: AnyProvider, seen: set[AnyProvider]) -> bool:
    provider = effective(provider)
    if provider in seen or isinstance(provider, _OPAQUE):
        return False
    seen.add(provider)
    if isinstance(provider, providers.Coroutine):
        return True
    if isinstance(provider, providers.BaseResource) and _is_coroutine(provider.provides):
        return True
    return any(_gives_a_future(needed, seen) for needed in provider.related)


def _is_coroutine(function: Any) -> bool:
    # dependency-injector turns a generator function into a context manager's.
    inner = inspect.unwrap(cast(Callable[..., Any], function))
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)


def _lends_to_coroutines_only(provider: AnyProvider) -> bool:
    if isinstance(provider, PerMessage):
        return _lends_to_coroutines_only(effective(provider.lease))
    if isinstance(provider, LeaseProvider):
        kind = getattr(effective(provider.pool), "provides", None)
        return _opens_for_coroutines_only(getattr(kind, provider.method, None))
    if isinstance(provider, providers.Factory) and provider.provides is Lease and provider.args:
        given = provider.args[0]
        return _opens_for_coroutines_only(given() if isinstance(given, providers.Object) else given)
    return False


def _opens_for_coroutines_only(method: Any) -> bool:
    if not inspect.isroutine(method):
        return False
    if inspect.isasyncgenfunction(inspect.unwrap(method)):  # made by @asynccontextmanager
        return True
    try:
        manager = get_type_hints(method).get("return")
    except (NameError, TypeError):  # what only a type checker knows
        return False
    manager = get_origin(manager) or manager
    return isinstance(manager, type) and hasattr(manager, "__aenter__") and not hasattr(manager, "__enter__")
