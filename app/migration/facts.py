"""What reading one file alone tells; names that other files define are left as symbols.

A symbol is a path like those of ``libraries``, whose head says where it starts: ``zmq.Context`` at an imported
module, ``..base.Agent`` at a relative import, ``:Agent().context`` at this file's own top level, ``*Agent`` at a
name nothing in this file binds (a star import, or an import that a broken edit took away).

Facts depend on a file's content only, never on its place, so that they can be kept by content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Call:
    """A call that may open a connection.

    Attributes:
        line: the first line of the call, counted from 1.
        column: its first column, counted from 0, in bytes of UTF-8 as ``ast`` counts.
        end_line: its last line.
        function: the qualified name of the function around it; ``""`` at module level.
        scope: ``module``, ``init``, ``loop`` or ``method``.
        callee: the symbols that the called name may stand for.
        argument: the symbols of the first argument, which for a ZMQ socket is its type.
        has_argument: whether there is a first argument.
        receiver: the last name before the called one: ``context`` in ``self.context.socket(...)``.
        target: where the result goes: ``with``, ``closing``, ``local``, ``attribute``, ``global``, ``item``,
            ``return``, ``argument`` or ``inline``.
        place: the variable, or ``Class.attribute``, that holds it, if any.
        methods: watched methods called on the result in this function.
        guarded: those among them that also run when an exception passes.
        looped: whether a ``while`` loop follows in the same function, which then serves rather than returns.
        once: why the function runs once per process or object; ``""`` if it may run for each call.
        repeats: why the call runs many times, where ``scope`` is ``loop``.
        text: the called expression as written, white space collapsed.
        deferred: whether the callable is handed to something that calls it later.
    """

    line: int
    column: int
    end_line: int
    function: str
    scope: str
    callee: list[str]
    argument: list[str]
    has_argument: bool
    receiver: str
    target: str
    place: str
    methods: list[str]
    guarded: list[str]
    looped: bool
    once: str
    repeats: str
    text: str
    deferred: bool


@dataclass(slots=True)
class ClassFacts:
    """A class: its bases, what its attributes hold, what its methods return, and what is called on attributes."""

    bases: list[str] = field(default_factory=list)
    attributes: dict[str, list[str]] = field(default_factory=dict)
    methods: dict[str, list[str]] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class FileFacts:
    """Everything that the analysis keeps of a file."""

    lines: int = 0
    problem: str = ""
    """Why the file does not parse, with its line; ``""`` if it does."""
    problem_line: int = 0
    names: dict[str, list[str]] = field(default_factory=dict)
    functions: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[str, ClassFacts] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    ignores: list[Ignore] = field(default_factory=list)


@dataclass(slots=True)
class Ignore:
    """A comment ``# poolwire: ignore[PM101] reason``; no codes means every code."""

    line: int
    codes: list[str]
    reason: str


def facts_from(data: dict[str, Any]) -> FileFacts:
    """Return the facts that ``orjson`` wrote."""
    data["calls"] = [Call(**call) for call in data["calls"]]
    data["classes"] = {name: ClassFacts(**facts) for name, facts in data["classes"].items()}
    data["ignores"] = [Ignore(**ignore) for ignore in data["ignores"]]
    return FileFacts(**data)
