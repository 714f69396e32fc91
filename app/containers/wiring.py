"""Wiring: telling the functions of some modules which container serves them.

dependency-injector's own ``wire`` looks at every member of every object that a module mentions, which takes a
quarter of a second for a module that star-imports a large library, and replaces inherited class methods by
wrappers of its own. Here only functions that ``inject`` registered, and those that were forgotten, matter.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin

from dependency_injector import wiring

from app.containers.errors import UnresolvedMarkersError
from app.containers.graph import AnyContainer, names


class Wiring:
    """The functions of ``modules``, bound to ``container`` from ``connect`` to ``disconnect``.

    The last container that is wired to a function serves it.

    Args:
        container: an instance of a container.
        modules: modules whose functions, methods and inherited methods are wired.
        unchecked: classes and functions in them whose markers the container need not have, such as agents that
            another process runs; a call of one says what is missing.
    """

    def __init__(
        self, container: AnyContainer, modules: Iterable[types.ModuleType], unchecked: Iterable[Any] = ()
    ) -> None:
        self._container = container
        self._modules = list(modules)
        self._unchecked = {
            function
            for member in unchecked
            for function in map(_function, vars(member).values() if isinstance(member, type) else [member])
        }
        self._bound: list[Callable[..., Any]] = []
        self._attributes: list[wiring.PatchedAttribute] = []

    def connect(self) -> None:
        """Bind every marker.

        Raises:
            UnresolvedMarkersError: the container lacks what a marker names, or a function with markers is not
                decorated; each is named with its place and what to do. Nothing stays bound.
        """
        providers = wiring.ProvidersMap(self._container)
        complaints: list[str] = []
        for module in self._modules:
            for function in _registered(module):
                wiring._bind_injections(function, providers)
                self._bound.append(function)
                if function not in self._unchecked:
                    complaints += self._unresolved(function)
            for owner, name, marker in _marker_attributes(module):
                wiring._patch_attribute(owner, name, marker, providers)
                self._attributes.append(wiring.PatchedAttribute(owner, name, marker))
            complaints += [f"{place} has markers but no decorator; add @inject" for place in self._undecorated(module)]
        if complaints:
            self.disconnect()
            raise UnresolvedMarkersError(list(dict.fromkeys(complaints)))

    def disconnect(self) -> None:
        """Unbind everything."""
        while self._bound:
            wiring._unbind_injections(self._bound.pop())
        while self._attributes:
            wiring._unpatch_attribute(self._attributes.pop())

    def _unresolved(self, function: Callable[..., Any]) -> Iterator[str]:
        record = wiring._patched_registry.get_callable(function)
        for parameter, marker in record.reference_injections.items():
            if parameter in record.injections:
                continue
            known = names(self._container)
            wanted = marker.provider
            near = get_close_matches(wanted, known, n=1) if isinstance(wanted, str) else []
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(known))}"
            place = f"{function.__module__}.{function.__qualname__}, parameter {parameter!r}"
            yield f"{place}: the container has no {wanted!r}; {hint}"

    def _undecorated(self, module: types.ModuleType) -> Iterator[str]:
        for function in _functions(module):
            if function.__module__ != module.__name__ or function in self._unchecked:
                continue
            if not hasattr(function, "__wrapped__") and any(map(wiring._is_marker, _hints(function))):
                yield f"{function.__module__}.{function.__qualname__}"


def marker_names(modules: Iterable[types.ModuleType]) -> set[str]:
    """Return the names that the markers of the decorated functions in ``modules`` ask for."""
    records = [
        wiring._patched_registry.get_callable(function) for module in modules for function in _registered(module)
    ]
    wanted = (marker.provider for record in records for marker in record.reference_injections.values())
    return {name for name in wanted if isinstance(name, str)}


def _members(module: types.ModuleType) -> Iterator[Any]:
    """Return what ``module`` holds, and what its own classes define or inherit, without calling a descriptor."""
    for member in list(vars(module).values()):
        yield member
        if isinstance(member, type) and member.__module__ == module.__name__:
            for base in member.__mro__[:-1]:
                yield from list(vars(base).values())


def _functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    for member in _members(module):
        function = _function(member)
        if function is not None:
            yield function


def _function(member: Any) -> types.FunctionType | None:
    inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    return inner if isinstance(inner, types.FunctionType) else None


def _registered(module: types.ModuleType) -> list[Callable[..., Any]]:
    registry = wiring._patched_registry
    held = [function for function in _functions(module) if registry.has_callable(function)]
    # Those defined inside another function are reachable by their module's name alone.
    return list(dict.fromkeys([*held, *registry.get_callables_from_module(module)]))


def _hints(function: types.FunctionType) -> Iterator[Any]:
    """Return what may be a marker in the signature: defaults, and the extras of `Annotated`."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    annotations: dict[str, Any] = function.__annotations__
    for annotation in annotations.values():
        if get_origin(annotation) is Annotated:
            yield from get_args(annotation)[1:]


def _marker_attributes(module: types.ModuleType) -> Iterator[tuple[Any, str, Any]]:
    """Return the markers that are attributes of ``module`` and of its own classes."""
    owners = [module, *(member for member in vars(module).values() if isinstance(member, type))]
    for owner in owners:
        if owner is module or owner.__module__ == module.__name__:
            for name, value in list(vars(owner).items()):
                if wiring._is_marker(value):
                    yield owner, name, value
