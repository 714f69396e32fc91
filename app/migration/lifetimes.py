"""Which functions run once per process or object, as far as one file tells."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, field

_SET_UP = re.compile(
    r"_*(?:init|initiali[sz]e|set_?up|bootstrap|configure|start|startup|on_start|lifespan)(?:_[a-z0-9_]+)?"
    r"|_*(?:a?main|prepare|run|serve|listen|connect|reconnect|open|worker|loop|daemon)"
    r"(?:_(?:zmq|sockets?|contexts?|connections?|agent|server|service|broker|proxy|loop|forever|thread|in_thread))?"
    r"|_*create_(?:zmq_)?(?:sockets?|contexts?|connections?)"
    r"|[a-z0-9_]+_(?:loop|thread|worker|forever|daemon|main|listener|receiver|subscriber)",
    re.IGNORECASE,
)
INITIALISERS = frozenset({"__init__", "__new__", "__post_init__"})


@dataclass(slots=True)
class _Callers:
    """Who runs a function: the functions that call it, whether one does so in a loop, whether it is a thread's."""

    names: set[str] = field(default_factory=set)
    looped: bool = False
    thread: bool = False


class CallGraph:
    """Who calls whom in one file.

    Args:
        classes: the qualified names of the file's classes.
    """

    def __init__(self, classes: Container[str]) -> None:
        self._classes = classes
        self._callers: dict[str, _Callers] = {}

    def note_call(self, symbol: str, caller: str, *, looped: bool) -> None:
        """Note that the function ``caller`` calls what ``symbol`` stands for."""
        callers = self._callers.setdefault(symbol, _Callers())
        callers.names.add(caller)
        callers.looped = callers.looped or looped

    def note_thread(self, symbol: str) -> None:
        """Note that a thread runs what ``symbol`` stands for."""
        self._callers.setdefault(symbol, _Callers()).thread = True

    def once(self, function: str, seen: set[str] | None = None) -> str:
        """Say why a function, by its qualified name, runs once; ``""`` if it may run for each call."""
        owner, _, name = function.rpartition(".")
        if function == "" or function in self._classes:
            return "module level"
        if name in INITIALISERS:
            return f"{name}() runs once for each object"
        symbols = [f":{owner}().{name}", f":{owner}.{name}"] if owner in self._classes else [f":{function}"]
        callers = [self._callers[symbol] for symbol in symbols if symbol in self._callers]
        if any(caller.looped for caller in callers):
            return ""
        if any(caller.thread for caller in callers):
            return f"{name}() is a thread's main function"
        if _SET_UP.fullmatch(name):
            return f"{name}() sets up"
        names = {each for caller in callers for each in caller.names} - {function}
        seen = seen or set()
        if not names or function in seen:
            return ""
        seen.add(function)
        if all(self.once(each, seen) for each in names):
            return f"{name}() is called only while setting up"
        return ""
