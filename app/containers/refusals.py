"""Refusing calls while a container stops, but not those that let a running call come to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from app.containers import compiled, scopes, stacked
from app.containers.errors import StoppingError


class Refusal:
    """Stands for a provider of a function while its container stops.

    Args:
        place: the function's module and name.
        provider: what gives the value to a call that is not refused.
    """

    def __init__(self, place: str, provider: Callable[[], Any]) -> None:
        self._place = place
        self._provider = provider

    def __call__(self) -> Any:
        """Give the value, or refuse.

        Raises:
            StoppingError: the call is a new one.
        """
        if not (scopes.in_message() or _within_a_running_call()):
            raise StoppingError(self._place)
        return self._provider()


def _within_a_running_call() -> bool:
    """Whether a decorated function called, or awaits, the one that is called now."""
    wrappers = 0
    frame = sys._getframe(1)
    while frame is not None and wrappers < 2:
        wrappers += _is_wrapper(frame.f_code)
        frame = frame.f_back  # type: ignore[assignment]
    return wrappers == 2


def _is_wrapper(code: CodeType) -> bool:
    return code.co_name == "wrapper" and (
        code.co_filename.startswith(compiled.FILE) or code.co_filename == stacked.__file__
    )
