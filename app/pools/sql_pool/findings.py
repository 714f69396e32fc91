"""What is found out about SQL texts: once for each that a program has, and not kept for those that it makes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_MOST = 4096
_LONGEST = 16384
"""The most letters of a text that is kept. Longer ones hold values, as a rule, and come once."""


class _Findings(dict[str, T]):
    def __init__(self, find: Callable[[str], T]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, sql: str) -> T:
        found = self._find(sql)
        if len(sql) <= _LONGEST:
            if len(self) >= _MOST:
                with suppress(KeyError, RuntimeError):  # another thread was faster
                    del self[next(iter(self))]
            self[sql] = found
        return found


def once_for_each(find: Callable[[str], T]) -> Callable[[str], T]:
    """Have a function's findings kept, those of some thousand short texts.

    A look-up costs less than with ``lru_cache``, which would also keep texts of any length.
    """
    return _Findings(find).__getitem__
