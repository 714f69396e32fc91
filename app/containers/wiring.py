"""Wiring: telling the functions of some modules which container serves them.

dependency-injector's own ``wire`` looks at every member of every object that a module mentions, which takes a
quarter of a second for a module that star-imports a large library, and replaces inherited class methods by
wrappers of its own. Here only functions that ``inject`` registered, and those that were forgotten, matter.
"""

from __future__ import annotations

import inspect
import sys
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from dependency_injector import wiring

from app.containers.errors import AlreadyWiredError, UnresolvedMarkersError
from app.containers.graph import AnyContainer, names
from app.containers.kinds import needs_coroutine
from app.containers.providers import Named
from app.containers.records import Function, Record, decorated_in, is_registered, late, record_of
from app.containers.refusals import Refusal

# Which wiring a function is bound by at this moment: dependency-injector's registry, too, is the process's own.
_served_by: weakref.WeakKeyDictionary[Function, Wiring] = weakref.WeakKeyDictionary()
_late_lock = threading.RLock()

# The providers and the resources to close that a function was bound to.
_Bound: TypeAlias = tuple[dict[Any, Any], dict[Any, Any]]


class Wiring:
    """The functions of ``modules``, bound to ``container`` from ``connect`` to ``disconnect``.

    Args:
        container: an instance of a container.
        modules: modules, or their names, whose functions, methods and inherited methods are wired, also those that
            are decorated later.
        packages: packages, or their names; the modules in them are wired as they are imported.
        unchecked: classes and functions in them whose markers the container need not have, such as agents that
            another process runs; a call of one says what is missing.
    """

    def __init__(
        self,
        container: AnyContainer,
        modules: Iterable[types.ModuleType | str] = (),
        *,
        packages: Iterable[types.ModuleType | str] = (),
        unchecked: Iterable[Any] = (),
    ) -> None:
        self._container = container
        self._packages = [_module(package).__name__ for package in packages]
        self._modules = [_module(module) for module in modules]
        self._unchecked = {
            function
            for member in unchecked
            for function in map(_function, vars(member).values() if isinstance(member, type) else [member])
        }
        # What each function was bound to before: another container's wiring comes back when this one goes.
        self._bound: weakref.WeakKeyDictionary[Function, _Bound] = weakref.WeakKeyDictionary()
        self._attributes: list[wiring.PatchedAttribute] = []
        self._found: Any = None
        self._is_stopping = False
        self._coroutines_only: dict[Any, bool] = {}

    @property
    def running_calls(self) -> int:
        """How many calls of the bound functions are running, in all threads and tasks."""
        records = map(record_of, list(self._bound))
        return sum(record.calls.running for record in records if isinstance(record, Record))

    def connect(self) -> None:
        """Bind every marker.

        Raises:
            UnresolvedMarkersError: the container lacks what a marker names, an asynchronous provider is meant for a
                synchronous function, or a function with markers is not decorated; each is named with its place and
                what to do. Nothing stays bound.
            AlreadyWiredError: another running container serves one of the functions.
        """
        complaints: list[str] = []
        self._is_stopping = False
        self._coroutines_only = {}
        try:
            self._found = wiring.ProvidersMap(self._container)
            for contents in map(_Contents, self._covered()):
                for function in contents.registered:
                    complaints += self._bind(function)
                for owner, name, marker in contents.markers:
                    complaints += self._bind_attribute(owner, name, marker)
                for function in contents.undecorated:
                    if function not in self._unchecked:
                        complaints.append(f"{_place(function)} has markers but no decorator; add @inject")
            if complaints:
                raise UnresolvedMarkersError(list(dict.fromkeys(complaints)))
        except BaseException:
            self.disconnect()
            raise
        late.append(self)

    def _covered(self) -> list[types.ModuleType]:
        if not self._packages:
            return self._modules
        imported = [module for name, module in list(sys.modules.items()) if self._is_in_a_package(name)]
        return list(dict.fromkeys([*self._modules, *imported]))

    def _covers(self, module: str) -> bool:
        return any(module == each.__name__ for each in self._modules) or self._is_in_a_package(module)

    def _is_in_a_package(self, module: str) -> bool:
        return any(module == package or module.startswith(f"{package}.") for package in self._packages)

    def _bind(self, function: Function) -> list[str]:
        """Bind one function; return what is wrong with its markers."""
        if _served_by.setdefault(function, self) is not self:
            raise AlreadyWiredError(_place(function))
        record = record_of(function)
        self._bound.setdefault(function, (record.injections, record.closing))
        record.injections, record.closing = {}, {}
        wiring._bind_injections(function, self._found)
        complaints = [] if function in self._unchecked else list(self._unresolved(function))
        if self._is_stopping:
            _refuse_calls(record)
        return complaints

    def _bind_attribute(self, owner: Any, name: str, marker: Any) -> list[str]:
        if self._found.resolve_provider(marker.provider, marker.modifier) is None:
            return [f"{getattr(owner, '__qualname__', owner.__name__)}.{name}: {self._missing(marker.provider)}"]
        wiring._patch_attribute(owner, name, marker, self._found)
        self._attributes.append(wiring.PatchedAttribute(owner, name, marker))
        return []

    def bind_late(self, function: Function) -> bool:
        """Bind a function that was decorated after ``connect``; return whether this container serves it.

        Raises:
            UnresolvedMarkersError: its markers name what the container does not have.
        """
        with _late_lock:
            if function in self._bound:
                return True
            if not self._covers(function.__module__):
                return False
            complaints = self._bind(function)
            if complaints:
                self._release(function)
                raise UnresolvedMarkersError(complaints)
            return True

    def refuse_new_calls(self) -> None:
        """Refuse calls from now on, except those that a running call or the work on a message makes."""
        with _late_lock:
            self._is_stopping = True
            for function in list(self._bound):
                _refuse_calls(record_of(function))

    def disconnect(self) -> None:
        """Unbind everything, and let what was bound before serve again."""
        with _late_lock:
            if self in late:
                late.remove(self)
            for function in list(self._bound):
                self._release(function)
        while self._attributes:
            wiring._unpatch_attribute(self._attributes.pop())

    def _release(self, function: Function) -> None:
        record = record_of(function)
        record.injections, record.closing = self._bound.pop(function)
        if _served_by.get(function) is self:
            del _served_by[function]

    def _unresolved(self, function: Function) -> Iterator[str]:
        record = record_of(function)
        for parameter, marker in record.reference_injections.items():
            if parameter in record.injections:
                bound = record.injections[parameter]
                if isinstance(bound, Named):
                    one = f"{bound.kind}.{next(iter(bound.names), 'main')}"
                    yield f"{_place(function)}, parameter {parameter!r}: {bound.kind!r} are many; name one: {one!r}"
                if not _is_coroutine(function) and self._needs_coroutine(bound):
                    yield (
                        f"{_place(function)}, parameter {parameter!r}: its provider is asynchronous; "
                        "make the function `async def`"
                    )
                continue
            yield f"{_place(function)}, parameter {parameter!r}: {self._missing(marker.provider)}"

    def _needs_coroutine(self, provider: Any) -> bool:
        # Thousands of functions ask for the same few providers.
        if provider not in self._coroutines_only:
            self._coroutines_only[provider] = needs_coroutine(provider)
        return self._coroutines_only[provider]

    def _missing(self, wanted: Any) -> str:
        known = names(self._container)
        kind, _, rest = wanted.partition(".") if isinstance(wanted, str) else ("", "", "")
        group = self._container.providers.get(kind)
        if isinstance(group, Named) and rest.partition(".")[0] not in group.names:
            return f"the container has no {wanted!r}: {group.unknown(rest.partition('.')[0])}"
        near = get_close_matches(wanted, known, n=1) if isinstance(wanted, str) else []
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(known))}"
        return f"the container has no {wanted!r}; {hint}"


def _refuse_calls(record: Any) -> None:
    if isinstance(record, Record):  # dependency-injector's wrapper asks for true providers; there the pools refuse
        record.injections = {name: Refusal(record.place, given) for name, given in record.injections.items()}


def _module(module: types.ModuleType | str) -> types.ModuleType:
    return import_module(module) if isinstance(module, str) else module


def marker_names(modules: Iterable[types.ModuleType]) -> set[str]:
    """Return the names that the markers of the decorated functions in ``modules`` ask for."""
    records = [record_of(function) for module in modules for function in _Contents(module).registered]
    wanted = (marker.provider for record in records for marker in record.reference_injections.values())
    return {name for name in wanted if isinstance(name, str)}


class _Contents:
    """What a module holds that wiring cares about, found in one pass and without calling a descriptor.

    A module that star-imports large libraries has hundreds of members; those are looked at once and no deeper.
    """

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module
        self.functions: dict[types.FunctionType, None] = {}
        """Its functions, and those that its own classes define or inherit, in order."""
        self.markers: list[tuple[Any, str, Any]] = []
        """Attributes of the module and of its own classes that are markers: owner, name, marker."""
        name = module.__name__
        for member_name, member in list(vars(module).items()):
            if type(member) is types.FunctionType:
                self.functions[member] = None
            elif isinstance(member, type):
                if member.__module__ == name:
                    self._add_class(member)
            elif wiring._is_marker(member):
                self.markers.append((module, member_name, member))

    def _add_class(self, kind: type) -> None:
        for base in kind.__mro__[:-1]:
            for name, member in list(vars(base).items()):
                function = _function(member)
                if function is not None:
                    self.functions[function] = None
                elif base is kind and wiring._is_marker(member):
                    self.markers.append((kind, name, member))

    @property
    def registered(self) -> list[Function]:
        """The functions that ``inject``, ours or dependency-injector's, has decorated."""
        # Those defined inside another function are reachable by their module's name alone.
        return list(dict.fromkeys([*filter(is_registered, self.functions), *decorated_in(self.module)]))

    @property
    def undecorated(self) -> Iterator[types.FunctionType]:
        """The module's own functions that have markers and were not decorated."""
        name = self.module.__name__
        for function in self.functions:
            own = function.__module__ == name and not hasattr(function, "__wrapped__")
            if own and any(map(wiring._is_marker, _hints(function))):
                yield function


def _is_coroutine(function: Function) -> bool:
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)


def _place(function: Function) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _function(member: Any) -> types.FunctionType | None:
    inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    return inner if isinstance(inner, types.FunctionType) else None


def _hints(function: types.FunctionType) -> Iterator[Any]:
    """Return what may be a marker in the signature: defaults, and the extras of `Annotated`."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    annotations: dict[str, Any] = function.__annotations__
    for annotation in annotations.values():
        if get_origin(annotation) is Annotated:
            yield from get_args(annotation)[1:]
