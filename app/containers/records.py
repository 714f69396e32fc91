"""What is known about each decorated function: its markers, the providers they were bound to, its running calls.

dependency-injector's ``wire`` finds decorated functions in a registry of its own and writes the providers that it
resolved into a record there. Ours are entered into that registry, so that its ``wire``, its markers with their
modifiers and its overrides work as documented.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from dependency_injector import wiring

from app.containers.changes import changes
from app.containers.errors import NotWiredError
from app.containers.providers import LeaseProvider

Function = Callable[..., Any]


class Calls:
    """How many calls of a function have begun and ended. ``next`` on a counter is atomic and takes no lock."""

    __slots__ = ("entered", "left")

    def __init__(self) -> None:
        self.entered = itertools.count()
        self.left = itertools.count()

    @property
    def running(self) -> int:
        """How many are running now."""
        left = _reading(self.left)  # first: a call that ends in between must not make this negative
        return _reading(self.entered) - left


def _reading(counter: itertools.count[int]) -> int:
    # "count(7)": the one way to read a counter that takes nothing from it and is not deprecated.
    return int(repr(counter).removeprefix("count(").removesuffix(")"))


class Record(wiring.PatchedCallable):
    """What is known about one function that ``inject`` decorated.

    The wrapper holds its record and the function; the record holds both weakly, or a function that is decorated
    inside another one could never be freed.

    Args:
        function: the function.
        markers: its markers by parameter, in the order of the signature.
        closing: those of them that ask for a resource to be shut down after the call.
    """

    __slots__ = ("_injections", "_original", "_patched", "_unplanned", "calls", "place", "plan")

    def __init__(self, function: Function, markers: dict[str, Any], closing: dict[str, Any]) -> None:
        self.place = f"{function.__module__}.{function.__qualname__}"
        """Module and name, for errors."""
        self.calls = Calls()
        self._unplanned = (None, False, (), *(None,) * (2 * len(markers)))
        self.plan: tuple[Any, ...] = self._unplanned
        """What the next call does, as ``make_plan`` says. Out of date unless it begins with ``changes.latest``."""
        super().__init__(None, function, markers, closing)

    @property
    def original(self) -> Any:
        """The function itself."""
        return self._original()

    @original.setter
    def original(self, function: Function | None) -> None:
        self._original = _weakly(function)

    @property
    def patched(self) -> Any:
        """The wrapper, which is what the module that defines the function holds."""
        return self._patched()

    @patched.setter
    def patched(self, wrapper: Function | None) -> None:
        self._patched = _weakly(wrapper)

    @property
    def injections(self) -> dict[Any, Any]:
        """The providers that the markers are bound to, by parameter."""
        return self._injections

    @injections.setter
    def injections(self, injections: dict[Any, Any]) -> None:
        self._injections = injections
        self.plan = self._unplanned  # it would keep a stopped container's pools
        changes.note()

    def add_injection(self, kwarg: Any, injection: Any) -> None:
        """Bind one parameter."""
        super().add_injection(kwarg, injection)
        changes.note()

    def make_plan(self) -> tuple[Any, ...]:
        """Look the providers up, and remember and return what a call does with them.

        Returns:
            the mark under which it holds; whether each parameter is a lease that can be opened directly; for each
            parameter what to call for a value or for a ``Lease``; then for each parameter the pool's method and the
            configuration that together open its lease, or ``None`` twice.
        """
        latest = changes.latest
        gives = tuple(self.provider(parameter) for parameter in self.reference_injections)
        openers = [self._opener(provider) for provider in gives]
        plan = (latest, all(opener for opener, _ in openers), gives, *itertools.chain.from_iterable(openers))
        self.plan = plan
        return plan

    @staticmethod
    def _opener(provider: Any) -> tuple[Any, Any]:
        opener = provider.opener() if type(provider) is LeaseProvider else None
        return (None, None) if opener is None else (opener, provider.config)

    def provider(self, parameter: str) -> Callable[[], Any]:
        """Return what gives the value of ``parameter``, or raises the error that says why there is none."""
        found: Callable[[], Any] | None = self.injections.get(parameter)
        return functools.partial(self._late_value, parameter) if found is None else found

    def _late_value(self, parameter: str) -> Any:
        """Return the value for a function that was decorated after its container was wired.

        Raises:
            NotWiredError: no running container serves it.
        """
        if any(container.bind_late(self.patched) for container in reversed(late)) and parameter in self.injections:
            return self.injections[parameter]()
        raise NotWiredError(self.place, parameter)


def _weakly(function: Function | None) -> Callable[[], Function | None]:
    return (lambda: None) if function is None else weakref.ref(function)


class BindsLate(Protocol):
    """What serves functions that are decorated after it began."""

    def bind_late(self, function: Function) -> bool:
        """Bind ``function`` if it is one of those; return whether it is."""


late: list[BindsLate] = []
"""The wirings of the containers that run, the latest last."""


class _Registered(weakref.WeakKeyDictionary[Any, wiring.PatchedCallable]):
    """The decorated functions of this process, ours and dependency-injector's, for as long as they exist."""

    def get(self, function: Any, default: Any = None) -> Any:
        try:
            return super().get(function, default)
        except TypeError:  # what has no weak references is none of them
            return default


# dependency-injector's own is a dict that keeps every function for ever, also those made by the million in factories.
wiring._patched_registry._callables = _Registered(wiring._patched_registry._callables)  # type: ignore[assignment]


def register(record: Record) -> None:
    """Make a decorated function known."""
    wiring._patched_registry.register_callable(record)


def is_registered(function: Any) -> bool:
    """Whether ``inject``, ours or dependency-injector's, made ``function``."""
    return wiring._patched_registry.has_callable(function)


def record_of(function: Any) -> wiring.PatchedCallable:
    """Return the record of a decorated function."""
    return wiring._patched_registry.get_callable(function)


def decorated_in(module: Any) -> list[Function]:
    """Return the decorated functions that say that they are of ``module``, also those inside other functions."""
    found = list(wiring._patched_registry.get_callables_from_module(module))
    return [function for function in found if function is not None]  # one may have been freed meanwhile
