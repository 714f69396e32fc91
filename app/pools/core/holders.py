"""Who holds a connection: the call stack of a checkout, kept cheaply and rendered only when it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
from threading import get_ident
from types import CodeType, FrameType
from typing import TypeAlias

# The code and the offset of the instruction of each frame, in turn, innermost first: flat, because a tuple for
# each frame costs more than what it holds. Frames themselves would keep every local variable of the caller alive,
# and a line number costs a look-up: both wait until rendering.
CallSite: TypeAlias = "tuple[CodeType | int, ...] | int | str"
"""Where a lease was checked out, with the thread behind it if that is to tell who called the last frame; or, for a
lease that ends with a call of its thread, that thread's identifier: what the thread is doing says it, and the checkout
need not look; or the name of a task that runs nothing but the pool's own coroutine, for no frame of its maker's is left
by then."""

_OUR_OWN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_ASYNCIO = os.path.dirname(asyncio.__file__) + os.sep
_getframe = sys._getframe
GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
"""The flags of code that leases for whoever runs it, and then is on no stack: what a context manager is made of."""
_SUSPENDED = GENERATOR | inspect.CO_COROUTINE
# What hands leases on: the pools and containers, `ExitStack`, and the wrappers that `inject` compiles from text.
_inner: tuple[str, ...] = (
    os.path.join(_OUR_OWN, "pools") + os.sep,
    os.path.join(_OUR_OWN, "containers") + os.sep,
    "<inject ",
    contextlib.__file__,
)


def call_site(depth: int, skip: int = 2) -> CallSite:
    """Return up to ``depth`` frames of the current call stack, leaving out the innermost ``skip``."""
    return _frames(_getframe(skip), depth)


def _frames(innermost: FrameType | None, depth: int) -> tuple[CodeType | int, ...]:
    site: list[CodeType | int] = []
    frame = innermost
    while frame is not None and depth > 0:
        site += (frame.f_code, frame.f_lasti)
        frame = frame.f_back
        depth -= 1
    return tuple(site)


class _Ours(dict[str, bool | None]):
    """Whether a file is one that hands leases on, for each file seen; ``None`` for asyncio's, which runs tasks."""

    def __missing__(self, filename: str) -> bool | None:
        answer = self[filename] = None if filename.startswith(_ASYNCIO) else filename.startswith(_inner)
        return answer


is_ours = _Ours()
"""By a file's name: whether it is one of those."""


def look_past(*filenames: str) -> None:
    """Name as a lease's holder who called the code in files that begin so, which checks out on its callers' behalf."""
    global _inner
    _inner = (*_inner, *filenames)
    is_ours.clear()


def checkout_site(skip: int) -> CallSite:
    """Return the frame outside the pools and containers that checks out, and its thread; with who runs it if it is a
    generator's.

    One frame, because a checkout must stay within a microsecond, and each costs a tenth of one. While that frame
    runs, which it does until the end of a ``with`` block, the thread knows the frames that called it.

    Args:
        skip: how many of the innermost frames to leave out, this function's not counted.
    """
    return site_above(_getframe(skip))


class Surface:
    """Finds the frame outside for checkouts that come from deep below it, mostly from the same depth.

    Each frame that is looked at must be made an object first, so the last depth is tried before the way is walked.
    """

    def __init__(self) -> None:
        self._depth = 1

    def site(self) -> CallSite:
        """Return what ``checkout_site`` returns."""
        try:
            frame: FrameType | None = _getframe(self._depth)
        except ValueError:  # the stack is not that deep
            frame = None
        if frame is not None and is_ours[frame.f_code.co_filename]:
            outer = frame.f_back
            if outer is not None and not is_ours[outer.f_code.co_filename]:
                return site_above(outer)
        frame, depth = _getframe(1), 1
        while frame is not None and is_ours[frame.f_code.co_filename]:
            frame = frame.f_back
            depth += 1
        self._depth = depth - 1
        return site_above(frame)


def site_above(frame: FrameType | None) -> CallSite:
    """Return the first frame outside the pools and containers among ``frame`` and its callers, and this thread.

    A generator's frame comes with those that run it, up to the first that is none.
    """
    while frame is not None and (ours := is_ours[(code := frame.f_code).co_filename]):
        frame = frame.f_back
    if frame is None:
        return ()
    if ours is None and (task := _task()):
        return task
    return _with_runners(frame) if code.co_flags & GENERATOR else (code, frame.f_lasti, get_ident())


def _task() -> str | None:
    """Return the running task's name, and its coroutine's, if there is a task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # asyncio runs something else here
        return None
    if task is None:
        return None
    coroutine = getattr(task.get_coro(), "__qualname__", "its coroutine")
    return f"{coroutine} in the task {task.get_name()!r}"


def _with_runners(frame: FrameType | None) -> CallSite:
    """Return a generator's frame and those that run it."""
    site: list[CodeType | int] = []
    while frame is not None:
        code = frame.f_code
        if not is_ours[code.co_filename]:
            site += (code, frame.f_lasti)
            if not code.co_flags & GENERATOR:
                site.append(get_ident())
                break
        frame = frame.f_back
    return tuple(site)


def render(site: CallSite, frames: int = 8) -> str:
    """Return ``site`` as ``file:line in function <- caller...``, from the first frame outside the pools."""
    if isinstance(site, str):
        return site
    flat = _resolved(site, frames)
    parts = [(code, offset) for code, offset in zip(flat[::2], flat[1::2], strict=True) if isinstance(code, CodeType)]
    outside = [part for part in parts if not is_ours[part[0].co_filename]] or parts
    return " <- ".join(
        f"{os.path.basename(code.co_filename)}:{_line(code, offset)} in {code.co_name}"
        for code, offset in outside[:frames]
    )


def _resolved(site: tuple[CodeType | int, ...] | int, depth: int) -> tuple[CodeType | int, ...]:
    """Return the frames of ``site``, asking its thread if it names one."""
    if isinstance(site, int):
        frame = sys._current_frames().get(site)
        while frame is not None and is_ours[frame.f_code.co_filename]:
            frame = frame.f_back
        return _frames(frame, depth)
    if len(site) % 2 == 0:
        return site
    *known, thread = site
    return (*known, *_callers(known[-2], known[-1], thread, depth))


def _callers(
    code: CodeType | int, offset: CodeType | int, thread: CodeType | int, depth: int
) -> tuple[CodeType | int, ...]:
    """Return who called the frame of ``thread`` that executed the instruction at ``offset`` of ``code`` and went on.

    Nobody if it may be another call's: one of several, one that has not come so far, or a coroutine's.
    """
    assert isinstance(code, CodeType)
    assert isinstance(offset, int)
    frame = sys._current_frames().get(thread) if isinstance(thread, int) else None
    found: list[FrameType] = []
    while frame is not None:
        if frame.f_code is code:
            found.append(frame)
        frame = frame.f_back
    if len(found) != 1 or found[0].f_lasti <= offset or code.co_flags & _SUSPENDED:
        return ()
    return _frames(found[0].f_back, depth)


def _line(code: CodeType, offset: object) -> int:
    for start, end, line in code.co_lines():
        if isinstance(offset, int) and start <= offset < end and line is not None:
            return line
    return code.co_firstlineno
