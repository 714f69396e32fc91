"""The source of a wrapper, written for one function, as ``dataclasses`` writes ``__init__``.

For ``async def handle(self, message, db=Provide["databases.main"])`` it is, with shorter names::

    async def wrapper(self, message, db=ABSENT):
        next(entered)
        try:
            if db is not ABSENT:
                return await function(self, message, db)
            latest, direct, gives, open_db, config_db = record.plan
            if latest is not changes.latest:
                latest, direct, gives, open_db, config_db = make_plan()
            if direct:
                manager = open_db(config_db)
                if type(manager) is not kind_db:
                    manager = managed('db', manager)
                async with manager as db:
                    return await function(self, message, db)
            ...  # a value, or a lease of another provider
        finally:
            next(left)

With several parameters there are nested ``with`` statements where all of them are leases. Where some are values or
given by the caller, the managers are entered one by one and left by ``leave``, which does what ``with`` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from inspect import Parameter


def write(parameters: Mapping[str, Parameter], injected: list[str], *, is_async: bool) -> str | None:
    """Return the source of a function ``wrapper``.

    Args:
        parameters: of the function, as ``inspect.signature`` gives them.
        injected: the names of those that are injected.
        is_async: whether it is a coroutine function.

    Returns:
        the source; ``None`` if a parameter without a default follows one that is injected, which Python forbids.
    """
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    optional = [p.name in injected or p.default is not p.empty for p in positional]
    if optional != sorted(optional):
        return None
    text = _Text(list(parameters.values()), injected, is_async)
    body = text.one(injected[0]) if len(injected) == 1 else text.several()
    counted = ["next(_inject_entered)", "try:", *_indented(body), "finally:", "    next(_inject_left)"]
    return "\n".join([text.header(), *_indented(counted), ""])


class _Text:
    """The lines of one wrapper."""

    def __init__(self, parameters: list[Parameter], injected: list[str], is_async: bool) -> None:
        self._parameters = parameters
        self._injected = injected
        self._async = "async " if is_async else ""
        self._await = "await " if is_async else ""
        self._enter = "__aenter__" if is_async else "__enter__"

    def header(self) -> str:
        # The signature's own text has every star and slash at its place; only the defaults are named.
        declared = [p.replace(annotation=p.empty, default=self._default(p)) for p in self._parameters]
        return f"{self._async}def wrapper{inspect.Signature(declared)}:"

    def _default(self, parameter: Parameter) -> object:
        if parameter.name in self._injected:
            return _Name("_inject_absent")
        return parameter.default if parameter.default is parameter.empty else _Name(default_name(parameter.name))

    @property
    def _call(self) -> str:
        written: dict[object, str] = {
            Parameter.VAR_POSITIONAL: "*{0}",
            Parameter.VAR_KEYWORD: "**{0}",
            Parameter.KEYWORD_ONLY: "{0}={0}",
        }
        arguments = ", ".join(written.get(p.kind, "{0}").format(p.name) for p in self._parameters)
        return f"{self._await}_inject_function({arguments})"

    def one(self, name: str) -> list[str]:
        """The body for one injected parameter."""
        return [
            f"if {name} is not _inject_absent:",
            f"    return {self._call}",
            *self._plan(),
            "if _inject_direct:",
            *_indented(self._open_directly(name)),
            f"    {self._async}with _inject_manager as {name}:",
            f"        return {self._call}",
            f"{name} = _inject_gives[0]()",
            f"if type({name}) not in _inject_plain:",
            f"    if type({name}) is _inject_Lease:",
            *_indented(self._open_lease(name), 2),
            f"        {self._async}with _inject_manager as {name}:",
            f"            return {self._call}",
            f"    {self._settle(name)}",
            f"return {self._call}",
        ]

    def several(self) -> list[str]:
        """The body for two injected parameters or more."""
        return [*self._plan(), *self._all_leases(), *self._mixed()]

    def _plan(self) -> list[str]:
        steps = [f"_inject_{part}_{name}" for name in self._injected for part in ("open", "config")]
        plan = ", ".join(["_inject_latest", "_inject_direct", "_inject_gives", *steps])
        return [
            f"{plan} = _inject_record.plan",
            "if _inject_latest is not _inject_changes.latest:",
            f"    {plan} = _inject_make_plan()",
        ]

    def _all_leases(self) -> list[str]:
        """The common case as nested ``with`` statements: the caller gave none, and each is a lease of our provider."""
        absent = " is ".join([*self._injected, "_inject_absent"])
        lines = [f"if _inject_direct and {absent}:"]
        for depth, name in enumerate(self._injected, 1):
            opened = [*self._open_directly(name), f"{self._async}with _inject_manager as {name}:"]
            lines += _indented(opened, depth)
        return [*lines, *_indented([f"return {self._call}"], len(self._injected) + 1)]

    def _mixed(self) -> list[str]:
        """The general case: arguments that were given, values and leases in any order."""
        opened: list[str] = []
        for number, name in enumerate(self._injected):
            enter = [
                f"{name} = {self._await}_inject_manager.{self._enter}()",
                "_inject_opened.append(_inject_manager)",
            ]
            opened += [
                f"if {name} is _inject_absent:",
                f"    if _inject_open_{name} is not None:",
                *_indented([*self._open_directly(name), *enter], 2),
                "    else:",
                f"        {name} = _inject_gives[{number}]()",
                f"        if type({name}) not in _inject_plain:",
                f"            if type({name}) is _inject_Lease:",
                *_indented([*self._open_lease(name), *enter], 4),
                "            else:",
                f"                {self._settle(name)}",
            ]
        return [
            "_inject_opened = []",
            "try:",
            *_indented(opened),
            f"    _inject_result = {self._call}",
            "except BaseException as _inject_failure:",
            f"    _inject_error = {self._await}_inject_leave(_inject_opened, _inject_failure)",
            "    try:",
            "        if _inject_error is _inject_failure:",
            "            raise",
            "        if _inject_error is not None:",
            "            raise _inject_error",
            "    finally:",
            "        del _inject_error",  # its traceback holds this frame: they would keep each other, and a connection
            "    return None",
            f"_inject_error = {self._await}_inject_leave(_inject_opened, None)",
            "try:",
            "    if _inject_error is not None:",
            "        raise _inject_error",
            "finally:",
            "    del _inject_error",
            "return _inject_result",
        ]

    def _open_directly(self, name: str) -> list[str]:
        return self._managed(name, f"_inject_open_{name}(_inject_config_{name})")

    def _open_lease(self, name: str) -> list[str]:
        return self._managed(name, f"{name}.open()")

    @staticmethod
    def _managed(name: str, opened: str) -> list[str]:
        """Open a lease, as something that this kind of function can enter."""
        return [
            f"_inject_manager = {opened}",
            f"if type(_inject_manager) is not {kind_name(name)}:",
            f"    _inject_manager = _inject_managed({name!r}, _inject_manager)",
        ]

    def _settle(self, name: str) -> str:
        """Look closer at a value of a type that this function has not received before."""
        return f"{name} = {self._await}_inject_settled({name})"


class _Name:
    """Appears in a signature as the name of a global."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


def default_name(parameter: str) -> str:
    """Return the name under which the wrapper finds the default of a parameter that is not injected."""
    return f"_inject_default_{parameter}"


def kind_name(parameter: str) -> str:
    """Return the name under which the wrapper finds the type of the manager that ``parameter`` had last."""
    return f"_inject_kind_{parameter}"


def _indented(lines: list[str], depth: int = 1) -> list[str]:
    return ["    " * depth + line for line in lines]
