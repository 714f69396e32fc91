"""Which errors say by themselves what happened: a traceback through the runtime and the pools would bury them."""

from __future__ import annotations

from app.agents.errors import AgentError, MessageError
from app.containers import ContainerError
from app.pools.errors import (
    CircuitOpen,
    ConnectionLost,
    DatabaseUnavailable,
    DeadlineExceeded,
    HTTPUnavailable,
    NoReply,
    NotSent,
    OutOfDescriptors,
    PoolError,
    PoolTimeout,
    QueryTimeout,
    RequestFailed,
)

# What a correct agent meets when others fail it; any other error may be a mistake of its own.
_OUTER = (
    CircuitOpen,
    ConnectionLost,
    DatabaseUnavailable,
    DeadlineExceeded,
    HTTPUnavailable,
    MessageError,
    NoReply,
    NotSent,
    OutOfDescriptors,
    PoolTimeout,
    QueryTimeout,
    RequestFailed,
)


def in_one_line(error: BaseException) -> str:
    """Return ``error`` as one line of a log; empty if it is unexpected, so that its traceback is needed."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}" if isinstance(error, _OUTER) else ""


def complaints(error: BaseException) -> list[str]:
    """Return what to tell of ``error``, one text for each failure in it; nothing if one of them is unexpected.

    Args:
        error: what ended the agents: an error of the agents, the container or a pool, or a group of them.
    """
    if isinstance(error, BaseExceptionGroup):
        told = [complaints(each) for each in error.exceptions]
        return [text for texts in told for text in texts] if all(told) else []
    if not isinstance(error, (AgentError, ContainerError, PoolError)):
        return []
    notes = "; ".join(getattr(error, "__notes__", ()))
    return [f"{error} ({notes})" if notes else str(error)]
