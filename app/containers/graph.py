"""The graph of a container's providers: what there is by which name, and in which order it starts."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeAlias

from dependency_injector import containers, providers

from app.containers.errors import CapturedLeaseError, CycleError, UnresolvedMarkersError
from app.containers.providers import LeaseProvider, Named, Pooled
from app.containers.scopes import PerContainer, PerMessage

AnyContainer: TypeAlias = containers.Container
AnyProvider: TypeAlias = providers.Provider[Any]


_PARTS = (Pooled, PerContainer, providers.BaseResource)
_LONG_LIVED = (providers.BaseSingleton, providers.BaseResource)


def names(container: AnyContainer) -> dict[str, AnyProvider]:
    """Return every provider of ``container`` that a string marker can name, by that name."""
    found: dict[str, AnyProvider] = {}
    for name, provider in container.providers.items():
        if name == "__self__":
            continue
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

    A part is a ``Pooled``, ``Resource`` or ``PerContainer`` provider; one that is overridden is replaced by what
    overrides it.

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
        waves[provider] = ready + isinstance(provider, _PARTS)
        return waves[provider]

    for provider in container.providers.values():
        visit(provider)
    parts = [provider for provider in waves if isinstance(provider, _PARTS)]
    count = max((waves[part] for part in parts), default=0)
    return [[(_label(part, labels), part) for part in parts if waves[part] == number] for number in range(1, count + 1)]


def refuse_unknown_methods(container: AnyContainer) -> None:
    """Make sure that each lease's pool has the method that gives it.

    Raises:
        UnresolvedMarkersError: one has not; names the provider, the method and the nearest.
    """
    complaints = []
    for name, provider in names(container).items():
        if isinstance(provider, LeaseProvider):
            pool: Any = _effective(provider.pool)
            kind = getattr(pool, "provides", None)
            if isinstance(kind, type) and not hasattr(kind, provider.method):
                near = get_close_matches(provider.method, dir(kind), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                complaints.append(f"{name}: {kind.__name__} has no method {provider.method!r}{hint}")
    if complaints:
        raise UnresolvedMarkersError(complaints)


def refuse_captured_leases(container: AnyContainer) -> None:
    """Make sure that nothing that lives as long as ``container`` is given a lease, which lives for one call.

    Raises:
        CapturedLeaseError: a singleton, a pool or a resource is; through factories too.
    """
    labels = {provider: name for name, provider in reversed(list(names(container).items()))}
    for holder in map(_effective, providers.traverse(*container.providers.values())):
        if isinstance(holder, _LONG_LIVED):
            lease = _captured(holder, set())
            if lease is not None:
                raise CapturedLeaseError(_label(holder, labels), _label(lease, labels))


def _captured(provider: AnyProvider, seen: set[AnyProvider]) -> AnyProvider | None:
    for needed in map(_effective, provider.related):
        if isinstance(needed, (LeaseProvider, PerMessage)):
            return needed
        # Another long-lived one is looked at for itself; a group of names is no lease.
        # What is given as a provider is asked for a lease at each use.
        if needed not in seen and not isinstance(needed, (*_LONG_LIVED, Named, providers.Delegate)):
            seen.add(needed)
            lease = _captured(needed, seen)
            if lease is not None:
                return lease
    return None


def _effective(provider: AnyProvider) -> AnyProvider:
    while provider.last_overriding is not None:
        provider = provider.last_overriding
    return provider


def _label(provider: AnyProvider, labels: dict[AnyProvider, str]) -> str:
    return labels.get(provider) or type(provider).__name__
