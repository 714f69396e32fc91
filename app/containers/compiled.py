"""Compiles a function's wrapper, and holds what its text calls when the common case does not apply."""

from __future__ import annotations

import functools
import inspect
from asyncio import iscoroutine, isfuture
from collections.abc import Callable
from inspect import Parameter
from types import CodeType
from typing import Any

from app.containers import text
from app.containers.changes import changes
from app.containers.errors import LeaseKindError
from app.containers.lease import Lease
from app.containers.records import Record

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "<injected>"})()
"""The default of an injected parameter: the caller gave nothing."""

FILE = "<inject> "
"""What the file name of every compiled wrapper begins with."""

# How many types of values a function remembers as plain, in case each of its calls receives another one.
_MOST_TYPES = 100


def compile_wrapper(function: Callable[..., Any], record: Record) -> Callable[..., Any] | None:
    """Return a wrapper of ``function`` that injects what ``record`` provides.

    Args:
        function: a function or a coroutine function, no generator.
        record: what wiring fills.

    Returns:
        the wrapper, or ``None`` if the signature cannot be written with defaults for what is injected.
    """
    parameters = inspect.signature(function).parameters
    is_async = inspect.iscoroutinefunction(function)
    written = text.write(parameters, list(record.reference_injections), is_async=is_async)
    if written is None:
        return None
    file = f"{FILE}{record.place}"
    code, source = _compiled(written, file)
    namespace: dict[str, Any] = {}
    values = (_AsyncValues if is_async else _Values)(record.place, namespace)
    namespace |= {
        "__name__": function.__module__,
        "__loader__": _Source(source),
        "_inject_function": function,
        "_inject_record": record,
        "_inject_make_plan": record.make_plan,
        "_inject_changes": changes,
        "_inject_absent": ABSENT,
        "_inject_entered": record.calls.entered,
        "_inject_left": record.calls.left,
        "_inject_managed": values.managed,
        "_inject_plain": values.plain,
        "_inject_settled": values.settled,
        "_inject_leave": _leave_async if is_async else _leave,
        "_inject_Lease": Lease,
    }
    for name in record.reference_injections:
        namespace[text.kind_name(name)] = None
    for parameter in parameters.values():
        if parameter.default is not Parameter.empty:
            namespace[text.default_name(parameter.name)] = parameter.default
    exec(code, namespace)
    return functools.wraps(function)(namespace["wrapper"])


@functools.lru_cache(maxsize=512)
def _compiled(source: str, file: str) -> tuple[CodeType, str]:
    """Compile once what a factory of functions decorates again and again; the source is returned to be shared, too."""
    return compile(source, file, "exec"), source


class _Source:
    """Shows tracebacks the lines of a wrapper: ``linecache`` asks the loader of the module that a frame is in."""

    __slots__ = ("_source",)

    def __init__(self, source: str) -> None:
        self._source = source

    def get_source(self, name: str) -> str:
        return self._source


class _Values:
    """What one function has learnt about the values and the managers that its providers give."""

    def __init__(self, place: str, namespace: dict[str, Any]) -> None:
        self._place = place
        self._namespace = namespace
        self.plain: set[type] = set()
        """Types of values that are injected as they are."""

    def settled(self, value: Any) -> Any:
        """Return what is injected for ``value``, which is no lease."""
        self._is_plain(type(value))
        return value

    def managed(self, parameter: str, manager: Any) -> Any:
        """Return ``manager`` as something that the function can enter.

        Raises:
            LeaseKindError: only a coroutine can.
        """
        if not hasattr(type(manager), "__enter__"):
            raise LeaseKindError(self._place, parameter)
        self._namespace[text.kind_name(parameter)] = type(manager)
        return manager

    def _is_plain(self, kind: type) -> None:
        if len(self.plain) >= _MOST_TYPES:
            self.plain.clear()
        self.plain.add(kind)


class _AsyncValues(_Values):
    """The same for a coroutine function."""

    async def settled(self, value: Any) -> Any:
        if is_pending(value):
            return await value
        if not hasattr(type(value), "__await__"):  # another value of this type might be pending
            self._is_plain(type(value))
        return value

    def managed(self, parameter: str, manager: Any) -> Any:
        if not hasattr(type(manager), "__aenter__"):
            return _AsAsync(manager)
        self._namespace[text.kind_name(parameter)] = type(manager)
        return manager


def is_pending(value: Any) -> bool:
    """Whether ``value`` is what an asynchronous provider gives: a future or a coroutine."""
    return isfuture(value) or iscoroutine(value)


class _AsAsync:
    """Lets a coroutine enter a manager that has no asynchronous side."""

    __slots__ = ("_manager",)

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return self._manager.__enter__()

    async def __aexit__(self, *error: Any) -> Any:
        return self._manager.__exit__(*error)


def _leave(opened: list[Any], failure: BaseException | None) -> BaseException | None:
    """Leave the managers, the last one first, and return the error that remains, as nested ``with`` would."""
    try:
        while opened:
            manager = opened.pop()
            try:
                if failure is None:
                    manager.__exit__(None, None, None)
                elif manager.__exit__(type(failure), failure, failure.__traceback__):
                    failure = None
            except BaseException as error:  # noqa: BLE001 - becomes the error that the next manager sees
                failure = error
        return failure
    finally:
        failure = None  # its traceback holds this frame: they would keep each other, and a connection


async def _leave_async(opened: list[Any], failure: BaseException | None) -> BaseException | None:
    """Do what ``_leave`` does with asynchronous managers."""
    try:
        while opened:
            manager = opened.pop()
            try:
                if failure is None:
                    await manager.__aexit__(None, None, None)
                elif await manager.__aexit__(type(failure), failure, failure.__traceback__):
                    failure = None
            except BaseException as error:  # noqa: BLE001 - becomes the error that the next manager sees
                failure = error
        return failure
    finally:
        failure = None
