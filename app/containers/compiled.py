"""Wrappers compiled for their function, as ``dataclasses`` compiles ``__init__``: nothing is packed or looked up twice.

For ``async def handle(self, message, db=Provide["databases.main"])`` the text is, with shorter names::

    async def wrapper(self, message, db=ABSENT):
        if db is not ABSENT:
            return await function(self, message, db)
        try:
            provider = record.injections['db']
        except KeyError:
            raise unwired('db') from None
        if type(provider) is LeaseProvider and provider.last_overriding is None:
            manager = provider.open()
            if type(manager) not in enterable:
                manager = managed('db', manager)
            async with manager as db:
                return await function(self, message, db)
        ...  # a value, or a lease of another provider

With several parameters, of which some are values or given by the caller, the managers are entered one by one
and left by ``leave``, which does what nested ``with`` statements do.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import linecache
from asyncio import iscoroutine, isfuture
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from app.containers.errors import LeaseKindError, NotWiredError
from app.containers.lease import Lease
from app.containers.providers import LeaseProvider

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "<injected>"})()
"""The default of an injected parameter: the caller gave nothing."""


def compile_wrapper(function: Callable[..., Any], record: Any) -> Callable[..., Any] | None:
    """Return a wrapper of ``function`` that injects what ``record.injections`` provides.

    Args:
        function: a function or a coroutine function, no generator.
        record: what wiring fills: its ``injections`` map a parameter to a provider.

    Returns:
        the wrapper, or ``None`` if the signature cannot be written with defaults for what is injected.
    """
    parameters = inspect.signature(function).parameters
    injected = [name for name in parameters if name in record.reference_injections]
    if not _writable(list(parameters.values()), injected):
        return None
    calls = count_calls(record)
    name = f"{function.__module__}.{function.__qualname__}"
    is_async = inspect.iscoroutinefunction(function)
    namespace: dict[str, Any] = {
        "_inject_function": function,
        "_inject_record": record,
        "_inject_absent": ABSENT,
        "_inject_late": functools.partial(late_provider, record),
        "_inject_enter": calls.entered,
        "_inject_done": calls.left,
        "_inject_managed": functools.partial(_managed, name, is_async),
        "_inject_enterable": _ENTERABLE[is_async],
        "_inject_leave": _leave,
        "_inject_leave_async": _leave_async,
        "_inject_is_pending": is_pending,
        "_inject_Lease": Lease,
        "_inject_LeaseProvider": LeaseProvider,
    }
    for parameter in parameters.values():
        if parameter.default is not Parameter.empty:
            namespace[f"_inject_default_{parameter.name}"] = parameter.default
    write = _one if len(injected) == 1 else _several
    source = write(_Text(parameters, is_async), injected)
    file = f"<inject {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
    exec(compile(source, file, "exec"), namespace)
    return functools.wraps(function)(namespace["wrapper"])


def _writable(parameters: list[Parameter], injected: list[str]) -> bool:
    """Whether no parameter without a default follows one that gets a default."""
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    optional = [p.name in injected or p.default is not p.empty for p in positional]
    return optional == sorted(optional)


class _Text:
    """The parts of a wrapper's source that depend on the signature."""

    def __init__(self, parameters: Any, is_async: bool) -> None:
        self.parameters = list(parameters.values())
        self.a = "async " if is_async else ""
        self.wait = "await " if is_async else ""
        self.twin = "_async" if is_async else ""
        self.enter = "__aenter__" if is_async else "__enter__"
        self.is_async = is_async

    def header(self, injected: list[str]) -> str:
        parts: list[str] = []
        previous = None
        for parameter in self.parameters:
            if previous is Parameter.POSITIONAL_ONLY and parameter.kind is not Parameter.POSITIONAL_ONLY:
                parts.append("/")
            keyword_only = parameter.kind is Parameter.KEYWORD_ONLY
            if keyword_only and previous not in (Parameter.KEYWORD_ONLY, Parameter.VAR_POSITIONAL):
                parts.append("*")
            parts.append(self._declare(parameter, injected))
            previous = parameter.kind
        if previous is Parameter.POSITIONAL_ONLY:
            parts.append("/")
        return f"{self.a}def wrapper({', '.join(parts)}):"

    @staticmethod
    def _declare(parameter: Parameter, injected: list[str]) -> str:
        if parameter.kind is Parameter.VAR_POSITIONAL:
            return f"*{parameter.name}"
        if parameter.kind is Parameter.VAR_KEYWORD:
            return f"**{parameter.name}"
        if parameter.name in injected:
            return f"{parameter.name}=_inject_absent"
        if parameter.default is not Parameter.empty:
            return f"{parameter.name}=_inject_default_{parameter.name}"
        return parameter.name

    @property
    def call(self) -> str:
        written = {
            Parameter.VAR_POSITIONAL: "*{0}",
            Parameter.VAR_KEYWORD: "**{0}",
            Parameter.KEYWORD_ONLY: "{0}={0}",
        }
        arguments = ", ".join(written.get(p.kind, "{0}").format(p.name) for p in self.parameters)
        return f"{self.wait}_inject_function({arguments})"

    def lookup(self, name: str, provider: str = "_inject_provider") -> list[str]:
        return [
            "try:",
            f"    {provider} = _inject_record.injections[{name!r}]",
            "except KeyError:",
            f"    {provider} = _inject_late({name!r})",
        ]

    def manager(self, name: str, opened: str) -> list[str]:
        """Open a lease, as something that this kind of function can enter."""
        return [
            f"_inject_manager = {opened}",
            "if type(_inject_manager) not in _inject_enterable:",
            f"    _inject_manager = _inject_managed({name!r}, _inject_manager)",
        ]

    def resolve(self, name: str) -> list[str]:
        """Call the provider, and wait for what an asynchronous one gives."""
        lines = [f"{name} = _inject_provider()"]
        if self.is_async:
            # Few values can be awaited at all, and asking that first is cheap.
            lines += [
                f"if hasattr(type({name}), '__await__') and _inject_is_pending({name}):",
                f"    {name} = await {name}",
            ]
        return lines


def _direct(provider: str = "_inject_provider") -> str:
    """The condition under which a provider's lease is opened without making a ``Lease`` first."""
    return f"type({provider}) is _inject_LeaseProvider and {provider}.last_overriding is None"


def _one(text: _Text, injected: list[str]) -> str:
    (name,) = injected
    body = [
        f"if {name} is not _inject_absent:",
        f"    return {text.call}",
        *text.lookup(name),
        f"if {_direct()}:",
        *_indented(text.manager(name, "_inject_provider.open()")),
        f"    {text.a}with _inject_manager as {name}:",
        f"        return {text.call}",
        *text.resolve(name),
        f"if type({name}) is _inject_Lease:",
        *_indented(text.manager(name, f"{name}.open()")),
        f"    {text.a}with _inject_manager as {name}:",
        f"        return {text.call}",
        f"return {text.call}",
    ]
    return _function(text.header(injected), body)


def _several(text: _Text, injected: list[str]) -> str:
    return _function(text.header(injected), [*_all_leases(text, injected), *_mixed(text, injected)])


def _all_leases(text: _Text, injected: list[str]) -> list[str]:
    """The common case as nested ``with`` statements: the caller gave none, and each is a lease of our provider."""
    providers = {name: f"_inject_provider_{number}" for number, name in enumerate(injected)}
    lines = [f"if {' and '.join(f'{name} is _inject_absent' for name in injected)}:"]
    for name, provider in providers.items():
        lines += _indented(text.lookup(name, provider))
    lines.append(f"    if {' and '.join(_direct(provider) for provider in providers.values())}:")
    depth = 2
    for name, provider in providers.items():
        opened = [*text.manager(name, f"{provider}.open()"), f"{text.a}with _inject_manager as {name}:"]
        lines += _indented(opened, depth)
        depth += 1
    return [*lines, *_indented([f"return {text.call}"], depth)]


def _mixed(text: _Text, injected: list[str]) -> list[str]:
    """The general case: arguments that were given, values and leases in any order."""
    opened: list[str] = []
    enter = "_inject_opened.append(_inject_manager)"
    for name in injected:
        value = f"{name} = {text.wait}_inject_manager.{text.enter}()"
        opened += [
            f"if {name} is _inject_absent:",
            *_indented(text.lookup(name)),
            *_indented(text.resolve(name)),
            f"    if type({name}) is _inject_Lease:",
            *_indented([*text.manager(name, f"{name}.open()"), value, enter], 2),
        ]
    return [
        "_inject_opened = []",
        "try:",
        *_indented(opened),
        f"    _inject_result = {text.call}",
        "except BaseException as _inject_failure:",
        f"    _inject_left = {text.wait}_inject_leave{text.twin}(_inject_opened, _inject_failure)",
        "    try:",
        "        if _inject_left is _inject_failure:",
        "            raise",
        "        if _inject_left is not None:",
        "            raise _inject_left",
        "    finally:",
        "        del _inject_left",  # its traceback holds this frame: they would keep each other, and a connection
        "    return None",
        f"_inject_left = {text.wait}_inject_leave{text.twin}(_inject_opened, None)",
        "try:",
        "    if _inject_left is not None:",
        "        raise _inject_left",
        "finally:",
        "    del _inject_left",
        "return _inject_result",
    ]


def _indented(lines: list[str], depth: int = 1) -> list[str]:
    return ["    " * depth + line for line in lines]


def _function(header: str, body: list[str]) -> str:
    counted = ["next(_inject_enter)", "try:", *_indented(body), "finally:", "    next(_inject_done)"]
    return "\n".join([header, *_indented(counted), ""])


# What the compiled text calls


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


_calls: dict[Any, Calls] = {}


def count_calls(record: Any) -> Calls:
    """Return the counters of the function that ``record`` is about."""
    return _calls.setdefault(record.original, Calls())


def running_calls(function: Callable[..., Any]) -> int:
    """Return how many calls of a decorated ``function`` are running."""
    calls = _calls.get(inspect.unwrap(function))
    return 0 if calls is None else calls.running


def _reading(counter: itertools.count[int]) -> int:
    # "count(7)": the one way to read a counter that takes nothing from it and is not deprecated.
    return int(repr(counter).removeprefix("count(").removesuffix(")"))


def late_provider(record: Any, parameter: str) -> Any:
    """Return the provider of a function whose module was imported after its container was wired.

    Raises:
        NotWiredError: no running container serves it.
    """
    from app.containers import wiring  # it imports this module

    if wiring.bind_late(record.patched) and parameter in record.injections:
        return record.injections[parameter]
    raise NotWiredError(f"{record.original.__module__}.{record.original.__qualname__}", parameter) from None


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


# The kinds of manager that a function, and a coroutine function, were found to be able to enter.
_ENTERABLE: dict[bool, set[type]] = {False: set(), True: set()}


def _managed(function: str, is_async: bool, parameter: str, manager: Any) -> Any:
    """Return ``manager`` as something that this kind of function can enter."""
    kind = type(manager)
    if hasattr(kind, "__aenter__" if is_async else "__enter__"):
        _ENTERABLE[is_async].add(kind)
        return manager
    if is_async:
        return _AsAsync(manager)
    raise LeaseKindError(function, parameter)


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
