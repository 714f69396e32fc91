"""What is noted about a function while it is read, and what that says of its calls at the end of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.migration.facts import Call
from app.migration.names import Scope


@dataclass(slots=True)
class Use:
    """A watched method called on a variable."""

    method: str
    line: int
    guarded: bool


@dataclass(slots=True)
class Frame:
    """A function while it is read."""

    scope: Scope
    is_init: bool = False
    loops: int = 0
    loop_text: str = ""
    finallies: int = 0
    whiles: list[int] = field(default_factory=list)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    kept: dict[str, tuple[str, str]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def complete(self) -> None:
        """Tell each call what became of its result: how it is used, closed and kept."""
        rebound = _rebindings(self.calls)
        for call in self.calls:
            call.looped = any(line >= call.line for line in self.whiles) and call.scope != "loop"
            if call.target in ("local", "with", "closing", "global") and call.place:
                end = next((line for line in rebound.get(call.place, ()) if line > call.line), None)
                for use in self.uses.get(call.place, ()):
                    if use.line >= call.line and (end is None or use.line < end):
                        (call.guarded if use.guarded else call.methods).append(use.method)
                if call.target == "local" and call.place in self.kept:
                    call.target, call.place = self.kept[call.place]


def _rebindings(calls: Sequence[Call]) -> dict[str, list[int]]:
    lines: dict[str, list[int]] = {}
    for call in calls:
        if call.place:
            lines.setdefault(call.place, []).append(call.line)
    return {place: sorted(found) for place, found in lines.items()}
