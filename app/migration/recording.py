"""What is noted of the calls in a file while it is read, and completed at its end."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from app.migration.facts import Call, FileFacts
from app.migration.frames import Frame, Use
from app.migration.lifetimes import CallGraph
from app.migration.names import Scope, symbols_of
from app.migration.relevance import leads_to_library, may_open


class Recorder:
    """Notes calls, the uses of what they return, and who calls whom.

    Args:
        facts: the file's facts, to which the calls are added.
        source: the file's text.
    """

    def __init__(self, facts: FileFacts, source: str) -> None:
        self.facts = facts
        self._lines = source.split("\n")
        self._graph = CallGraph(facts.classes)

    def call(
        self, frame: Frame, node: ast.Call, function: ast.expr, target: str, place: str, *, deferred: bool = False
    ) -> None:
        """Note a call of ``function``, unless it can open nothing; its value goes to ``target``.

        Args:
            frame: the function in which it is.
            node: the call, or the one to which ``function`` is given to be called there (``deferred``).
            function: what is called.
            target: the kind of place that its value goes to.
            place: that place's name.
            deferred: whether somebody else calls it.
        """
        terminal = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        callee = symbols_of(function, frame.scope)
        if not callee and terminal == "socket":
            callee = ["?.socket"]  # of something unknown: its argument may tell
        if not may_open(terminal, callee) or any(keyword.arg == "shadow" for keyword in node.keywords):
            return  # a shadow wraps what is open already
        arguments = node.args
        first = arguments[0] if arguments and not deferred else None
        for keyword in node.keywords:
            if keyword.arg == "socket_type":
                first = keyword.value
        if terminal == "Socket" and len(arguments) > 1:  # zmq.Socket(context, type)
            first = arguments[1]
        receiver = ""
        if isinstance(function, ast.Attribute):
            value = function.value
            receiver = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
        frame.calls.append(
            Call(
                line=node.lineno,
                column=node.col_offset,
                end_line=node.end_lineno or node.lineno,
                function=frame.scope.name,
                scope=_scope_word(frame),
                callee=callee,
                argument=symbols_of(first, frame.scope),
                has_argument=first is not None,
                receiver=receiver,
                target=target,
                place=place,
                methods=[],
                guarded=[],
                looped=False,
                once="",
                repeats=frame.loop_text,
                text="",
                deferred=deferred,
            )
        )

    def use(self, frame: Frame, node: ast.expr, method: str, line: int, *, guarded: bool) -> None:
        """Note that a watched method is called on what ``node`` holds."""
        if isinstance(node, ast.Name):
            frame.uses.setdefault(node.id, []).append(Use(method, line, guarded))
        for symbol in symbols_of(node, frame.scope):
            owner, _, attribute = symbol.rpartition(".")
            facts = self.facts.classes.get(owner[1:].removesuffix("()")) if owner.startswith(":") else None
            if facts is not None and method not in facts.uses.setdefault(attribute, []):
                facts.uses[attribute].append(method)

    def caller(self, frame: Frame, node: ast.Call, name: str) -> None:
        """Note who calls the functions of this file, and which of them begin a thread."""
        if name:
            for symbol in symbols_of(node.func, frame.scope):
                if symbol.startswith(":"):
                    self._graph.note_call(symbol, frame.scope.name, looped=bool(frame.loops))
        if name in ("Thread", "Process", "Timer"):
            for keyword in node.keywords:
                if keyword.arg == "target":
                    for symbol in symbols_of(keyword.value, frame.scope):
                        self._graph.note_thread(symbol)

    def finish(self, frames: Sequence[Frame], module: Scope) -> None:
        """Complete the facts with what only the whole file tells."""
        facts = self.facts
        facts.names = {name: symbols for name, symbols in module.bound.items() if symbols}
        for owner in facts.classes.values():
            owner.attributes = {name: symbols for name, symbols in owner.attributes.items() if symbols}
        for frame in frames:
            frame.calls = [
                call
                for call in frame.calls
                if any(leads_to_library(symbol, facts, module.bound) for symbol in call.callee)
            ]
            for call in frame.calls:
                call.text = self._text(call)
                call.once = self._graph.once(call.function)
            frame.complete()
            facts.calls.extend(frame.calls)
        facts.calls.sort(key=lambda call: (call.line, call.column))

    def _text(self, call: Call) -> str:
        text = " ".join(self._lines[call.line - 1 : min(call.end_line, call.line + 5)])
        return " ".join(text.split())[:200]


def _scope_word(frame: Frame) -> str:
    if frame.loops:
        return "loop"
    if frame.scope.kind != "function":
        return "module"
    return "init" if frame.is_init else "method"
