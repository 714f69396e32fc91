"""The providers that poolwire adds to dependency-injector's: pools, leases on them, and leases by name.

Each follows its guide for custom providers: ``__deepcopy__`` (in ``Copied``), ``related`` (the edges of the graph)
and ``_provide``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any, Self, TypeVar

from dependency_injector import providers
from dependency_injector.errors import NoSuchProviderError

from app.containers.changes import Copied, Observed, changes
from app.containers.lease import Lease
from app.containers.resources import how_to_configure

T = TypeVar("T")


class Pooled(Observed[T], providers.ThreadSafeSingleton[T]):
    """A pool that lives as long as its container runs: ``Lifecycle`` starts it, stops it and then forgets it."""

    storage_lock: threading.RLock

    def __init__(self, provides: type[T] | Callable[..., T] | str | None = None, *args: Any, **kwargs: Any) -> None:
        # dependency-injector takes the lock from the class, so that slow pools would be made one after the other.
        type(self).storage_lock = threading.RLock()
        super().__init__(provides, *args, **kwargs)

    def reset(self) -> Any:
        """Let the next use make a new pool."""
        context = super().reset()
        changes.note()
        return context


class LeaseProvider(Observed[Lease[T]], Copied[Lease[T]]):
    """Provides leases on a pool.

    Args:
        pool: provides the pool.
        method: the name of the pool's method that returns a context manager for a configuration, such as
            ``"connection"``. A decorated function looks it up once for each pool: what a test replaces in a running
            container is this provider or the pool's, with ``override``, not the method of the pool's class.
        config: the configuration that the method takes.
        views: further providers for the same pool and configuration, by name, made when first asked for:
            ``provider.session``.
    """

    def __init__(
        self,
        pool: providers.Provider[Any],
        method: str,
        config: Any,
        views: dict[str, Callable[[providers.Provider[Any], Any], providers.Provider[Any]]] | None = None,
    ) -> None:
        self.pool = pool
        self.method = method
        self.config = config
        self._views = views or {}
        self._made: dict[str, providers.Provider[Any]] = {}
        super().__init__()

    def _copy(self, memo: dict[Any, Any]) -> Self:
        copied = type(self)(providers.deepcopy(self.pool, memo), self.method, self.config, self._views)
        copied._made = providers.deepcopy(self._made, memo)
        return copied

    def __getattr__(self, name: str) -> providers.Provider[Any]:
        if name.startswith("_") or name not in self._views:
            raise NoSuchProviderError(
                f"a lease provider has no view {name!r}; it has {', '.join(self._views) or 'none'}"
            )
        if name not in self._made:
            self._made[name] = self._views[name](self.pool, self.config)
        return self._made[name]

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the further providers."""
        return tuple(self._views)

    @property
    def related(self) -> Iterator[providers.Provider[Any]]:
        """The providers that this one needs."""
        yield self.pool
        yield from self._made.values()
        yield from super().related

    def opener(self) -> Callable[[Any], Any] | None:
        """Return the pool's method if that is what opens every lease until ``changes`` notes something."""
        pool = self.pool
        if self.last_overriding is None and type(pool) is Pooled and pool.last_overriding is None:
            method: Callable[[Any], Any] = getattr(pool(), self.method)
            return method
        return None

    def open(self) -> Any:
        """Return a new context manager for one lease. Ignores overrides of this provider."""
        return getattr(self.pool(), self.method)(self.config)

    def _provide(self, args: Any, kwargs: Any) -> Lease[T]:
        return Lease(self.open)


class Named(Copied[Any]):
    """Providers by a name that configuration gives: ``container.databases.library``.

    Args:
        kind: what is named, for errors: ``"databases"``.
        resources: provides the ``Resources``.
        pool: provides the pool that serves this kind.
        make: makes the provider for a pool's provider and a configuration.
    """

    def __init__(
        self,
        kind: str,
        resources: providers.Provider[Any],
        pool: providers.Provider[Any],
        make: Callable[[providers.Provider[Any], Any], providers.Provider[Any]],
    ) -> None:
        self.kind = kind
        self._resources = resources
        self._pool = pool
        self._make = make
        self._made: dict[str, providers.Provider[Any]] = {}
        super().__init__()

    def _copy(self, memo: dict[Any, Any]) -> Self:
        resources = providers.deepcopy(self._resources, memo)
        copied = type(self)(self.kind, resources, providers.deepcopy(self._pool, memo), self._make)
        copied._made = providers.deepcopy(self._made, memo)
        return copied

    def __getattr__(self, name: str) -> providers.Provider[Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        made = self._made.get(name)
        if made is None:
            if name not in self.names:
                raise NoSuchProviderError(self.unknown(name))
            made = self._made[name] = self._make(self._pool, self._resources().config(self.kind, name))
        return made

    @property
    def names(self) -> tuple[str, ...]:
        """The names that configuration gives, and those that were put in place by hand."""
        return tuple(dict.fromkeys([*getattr(self._resources(), self.kind), *self._made]))

    def unknown(self, name: str) -> str:
        """Say that ``name`` is not configured, and what to do."""
        near = get_close_matches(name, self.names, n=1)
        if near:
            return f"no [{self.kind}.{name}] is configured; did you mean {near[0]!r}?"
        others = f"; configured are: {', '.join(self.names)}" if self.names else ""
        return f"no [{self.kind}.{name}] is configured{others}; {how_to_configure(self.kind, name)}"

    def place(self, name: str, provider: providers.Provider[Any] | None) -> providers.Provider[Any] | None:
        """Let ``provider`` stand for ``name``; ``None`` leaves it to configuration again.

        Returns:
            what stood there before, for undoing it.
        """
        before = self._made.pop(name, None)
        if provider is not None:
            self._made[name] = provider
        return before

    @property
    def related(self) -> Iterator[providers.Provider[Any]]:
        """The providers that this one needs."""
        yield self._resources
        yield self._pool
        yield from self._made.values()
        yield from super().related

    def _provide(self, args: Any, kwargs: Any) -> dict[str, providers.Provider[Any]]:
        return {name: getattr(self, name) for name in self.names}
