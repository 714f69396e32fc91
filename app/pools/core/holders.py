"""Who holds a connection: the call stack of a checkout, kept cheaply and rendered only when it is asked for."""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType
from typing import TypeAlias

# The code and the offset of the instruction of each frame, in turn, innermost first: flat, because a tuple for
# each frame costs more than what it holds. Frames themselves would keep every local variable of the caller alive,
# and a line number costs a look-up: both wait until rendering.
CallSite: TypeAlias = "tuple[CodeType | int, ...] | int"
"""Where a lease was checked out; or, for one that ends with a call of its thread, that thread's identifier: what the
thread is doing says it when asked, and the checkout need not look."""

_OUR_OWN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_getframe = sys._getframe
_INNER = (os.path.join(_OUR_OWN, "pools") + os.sep, os.path.join(_OUR_OWN, "containers") + os.sep)


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


class _Ours(dict[str, bool]):
    """Whether a file belongs to the pools or the containers, remembered for each file seen."""

    def __missing__(self, filename: str) -> bool:
        # `inject` compiles its wrappers from text, under a file name of this form.
        answer = self[filename] = filename.startswith((*_INNER, "<inject "))
        return answer


_ours = _Ours()


def checkout_site(skip: int) -> CallSite:
    """Return the frame outside the pools and containers that checks out, and its caller.

    No more than two: a checkout must stay within a microsecond, and each frame costs a tenth of one.

    Args:
        skip: how many of the innermost frames to leave out, this function's not counted.
    """
    frame: FrameType | None = _getframe(skip)
    while frame is not None and _ours[(code := frame.f_code).co_filename]:
        frame = frame.f_back
    if frame is None:
        return ()
    caller = frame.f_back
    if caller is None:
        return (code, frame.f_lasti)
    return (code, frame.f_lasti, caller.f_code, caller.f_lasti)


def render(site: CallSite, frames: int = 4) -> str:
    """Return ``site`` as ``file:line in function <- caller...``, from the first frame outside the pools."""
    flat = _of_thread(site, frames) if isinstance(site, int) else site
    parts = [(code, offset) for code, offset in zip(flat[::2], flat[1::2], strict=True) if isinstance(code, CodeType)]
    outside = [part for part in parts if not _ours[part[0].co_filename]] or parts
    return " <- ".join(
        f"{os.path.basename(code.co_filename)}:{_line(code, offset)} in {code.co_name}"
        for code, offset in outside[:frames]
    )


def _of_thread(identifier: int, depth: int) -> tuple[CodeType | int, ...]:
    frame = sys._current_frames().get(identifier)
    while frame is not None and _ours[frame.f_code.co_filename]:
        frame = frame.f_back
    return _frames(frame, depth)


def _line(code: CodeType, offset: object) -> int:
    for start, end, line in code.co_lines():
        if isinstance(offset, int) and start <= offset < end and line is not None:
            return line
    return code.co_firstlineno
