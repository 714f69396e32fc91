"""The graph of a container's providers: what there is by which name, and in which order it starts."""

from __future__ import annotations

from typing import Any, TypeAlias

from dependency_injector import containers, providers

from app.containers.errors import CycleError
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


def _effective(provider: AnyProvider) -> AnyProvider:
    while provider.last_overriding is not None:
        provider = provider.last_overriding
    return provider


def _label(provider: AnyProvider, labels: dict[AnyProvider, str]) -> str:
    return labels.get(provider) or type(provider).__name__
