"""The graph of a container's providers: what needs what, in which order it starts, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from types import ModuleType
from typing import Any, TypeAlias

from dependency_injector import containers, providers, wiring

from app.containers.errors import CycleError, UnresolvedMarkersError
from app.containers.providers import LeaseProvider, Named, Pooled

AnyContainer: TypeAlias = containers.Container
AnyProvider: TypeAlias = providers.Provider[Any]


def names(container: AnyContainer) -> dict[str, AnyProvider]:
    """Return every provider of ``container`` that a string marker can name, by that name."""
    found: dict[str, AnyProvider] = {}
    for name, provider in container.providers.items():
        found[name] = provider
        if isinstance(provider, Named):
            for resource in provider.names:
                inner = getattr(provider, resource)
                found[f"{name}.{resource}"] = inner
                if isinstance(inner, LeaseProvider):
                    found |= {f"{name}.{resource}.{view}": getattr(inner, view) for view in inner.views}
    return found


def start_order(container: AnyContainer) -> list[list[tuple[str, AnyProvider]]]:
    """Return the parts that ``Lifecycle`` starts, in waves: each needs only parts of earlier waves.

    A part is a ``Pooled`` or a ``Resource`` provider; an overridden one is replaced by what overrides it.

    Raises:
        CycleError: providers need each other in a circle.
    """
    labels = {_effective(provider): name for name, provider in reversed(list(names(container).items()))}
    waves: dict[AnyProvider, int] = {}  # the wave in which a provider is ready
    path: list[AnyProvider] = []

    def visit(provider: AnyProvider) -> int:
        provider = _effective(provider)
        if provider in waves:
            return waves[provider]
        if provider in path:
            circle = [*path[path.index(provider) :], provider]
            raise CycleError([_label(member, labels) for member in circle])
        path.append(provider)
        ready = max((visit(needed) for needed in provider.related), default=0)
        path.pop()
        waves[provider] = ready + isinstance(provider, (Pooled, providers.BaseResource))
        return waves[provider]

    for provider in container.providers.values():
        visit(provider)
    parts = [provider for provider in waves if isinstance(provider, (Pooled, providers.BaseResource))]
    count = max((waves[part] for part in parts), default=0)
    return [[(_label(part, labels), part) for part in parts if waves[part] == number] for number in range(1, count + 1)]


def check_markers(container: AnyContainer, modules: Iterable[ModuleType]) -> None:
    """Make sure that every marker in ``modules``, which are wired, was found in ``container``.

    Raises:
        UnresolvedMarkersError: some were not; names each with its place and the nearest name.
    """
    known = names(container)
    complaints = []
    for function, parameter, marker in _markers(modules):
        record = wiring._patched_registry.get_callable(function)
        if parameter not in record.injections:
            wanted = marker.provider
            place = f"{function.__module__}.{function.__qualname__}, parameter {parameter!r}"
            near = get_close_matches(wanted, known, n=1) if isinstance(wanted, str) else []
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(known))}"
            complaints.append(f"{place}: the container has no {wanted!r}; {hint}")
    if complaints:
        raise UnresolvedMarkersError(complaints)


def _markers(modules: Iterable[ModuleType]) -> Iterator[tuple[Any, str, Any]]:
    for module in modules:
        for function in list(wiring._patched_registry.get_callables_from_module(module)):
            record = wiring._patched_registry.get_callable(function)
            for parameter, marker in record.reference_injections.items():
                yield function, parameter, marker


def _effective(provider: AnyProvider) -> AnyProvider:
    while provider.last_overriding is not None:
        provider = provider.last_overriding
    return provider


def _label(provider: AnyProvider, labels: dict[AnyProvider, str]) -> str:
    return labels.get(provider) or type(provider).__name__
