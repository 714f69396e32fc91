"""Fork safety: a child process must not use, or close, what it inherited from its parent.

A socket or a database connection that two processes use mixes up both; closing it in the child says goodbye
to the peer in the parent's name. So after a fork each registered object forgets what it holds.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """An object that holds what a forked child must drop."""

    def forget_after_fork(self) -> None:
        """Drop, without closing, what the parent opened. Runs in the child while it has one thread."""


_registered: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_lock = threading.RLock()  # re-entrant: a signal's handler that comes while this thread holds it may register, too
_hooked = False

# References that keep inherited objects from being finalised, for a finaliser would close them.
_inherited: list[object] = []


def register(member: ForkAware) -> None:
    """Have ``member.forget_after_fork()`` called in every child that is forked from now on."""
    global _hooked
    with _lock:
        if not _hooked:
            _hooked = True
            os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)
        _registered.add(member)


def bury(*inherited: object) -> None:
    """Keep ``inherited`` alive and untouched until this process ends."""
    _inherited.extend(inherited)


def _after_fork() -> None:
    _lock.release()
    for member in list(_registered):
        member.forget_after_fork()
