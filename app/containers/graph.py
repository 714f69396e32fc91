"""The graph of a container's providers: what there is by which name, whether it is sound, and how it starts."""

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


class Graph:
    """The providers of a container, as they are now: one that is overridden is replaced by what overrides it.

    Args:
        container: an instance of a container.
    """

    def __init__(self, container: AnyContainer) -> None:
        self._providers = container.providers.values()
        self.names = names(container)
        """Every provider that a string marker can name."""
        self._labels: dict[AnyProvider, str] = {}
        for name, provider in reversed(self.names.items()):
            self._labels |= {provider: name, effective(provider): name}

    def check(self) -> None:
        """Make sure that the container can give what it promises.

        Raises:
            UnresolvedMarkersError: a pool has not the method that gives a lease, and names the nearest; or a ``Pooled``
                cannot be started and stopped.
            CycleError: providers need each other in a circle.
            CapturedLeaseError: what lives as long as the container is given a lease, through factories too.
        """
        self._refuse_missing_methods()
        self.start_order()
        self._refuse_captured_leases()

    def start_order(self) -> list[list[tuple[str, AnyProvider]]]:
        """Return the parts that ``Lifecycle`` starts, in waves: each needs only parts of earlier waves.

        A part is a ``Pooled``, ``Resource`` or ``PerContainer`` provider.

        Raises:
            CycleError: providers need each other in a circle.
        """
        waves: dict[AnyProvider, int] = {}  # the wave in which a provider is ready
        path: list[AnyProvider] = []

        def visit(provider: AnyProvider) -> int:
            provider = effective(provider)
            if provider in waves:
                return waves[provider]
            if provider in path:
                circle = [*path[path.index(provider) :], provider]
                raise CycleError([self._label(member) for member in circle])
            path.append(provider)
            ready = max((visit(needed) for needed in provider.related), default=0)
            path.pop()
            waves[provider] = ready + isinstance(provider, _PARTS)
            return waves[provider]

        for provider in self._providers:
            visit(provider)
        parts = [provider for provider in waves if isinstance(provider, _PARTS)]
        count = max((waves[part] for part in parts), default=0)
        return [[(self._label(part), part) for part in parts if waves[part] == wave] for wave in range(1, count + 1)]

    def _refuse_missing_methods(self) -> None:
        complaints = []
        for name, provider in self.names.items():
            if isinstance(provider, LeaseProvider):
                kind = _class_of(provider.pool)
                if kind is not None and not hasattr(kind, provider.method):
                    near = get_close_matches(provider.method, dir(kind), n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    complaints.append(f"{name}: {kind.__name__} has no method {provider.method!r}{hint}")
            elif isinstance(effective(provider), Pooled):
                kind = _class_of(provider)
                complaints += [
                    f"{name}: {kind.__name__} has no {action}(); a Pooled has start() and stop(timeout), as "
                    "app.pools.Pool says; what needs neither is a providers.Singleton"
                    for action in ("start", "stop")
                    if kind is not None and not (hasattr(kind, action) or hasattr(kind, f"{action}_async"))
                ]
        if complaints:
            raise UnresolvedMarkersError(complaints)

    def _refuse_captured_leases(self) -> None:
        for holder in map(effective, providers.traverse(*self._providers)):
            if isinstance(holder, _LONG_LIVED):
                lease = _captured(holder, set())
                if lease is not None:
                    raise CapturedLeaseError(self._label(holder), self._label(lease))

    def _label(self, provider: AnyProvider) -> str:
        return self._labels.get(provider) or type(provider).__name__


def _captured(provider: AnyProvider, seen: set[AnyProvider]) -> AnyProvider | None:
    for needed in map(effective, provider.related):
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


def effective(provider: AnyProvider) -> AnyProvider:
    """Return what overrides ``provider``, or ``provider`` itself."""
    while provider.last_overriding is not None:
        provider = provider.last_overriding
    return provider


def _class_of(provider: AnyProvider) -> type | None:
    """Return the class of what ``provider`` makes, if that is known."""
    made: Any = getattr(effective(provider), "provides", None)
    return made if isinstance(made, type) else None
