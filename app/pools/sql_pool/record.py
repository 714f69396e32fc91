"""A database connection as the pool keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord

from app.pools.core.entries import Entry
from app.pools.sql_pool.probe import Probe


class Record(_ConnectionRecord):
    """A connection in SQLAlchemy's wrapping, which knows the bucket's entry that it is leased as."""

    __slots__ = ("fetcher", "lease", "probe", "raw", "readable", "transactional")

    lease: Callable[[], Entry[Record] | None]
    """Returns the entry as which an Engine has leased it last, unless that was lost.

    It is known weakly, for it refers to the record: an entry that an interrupt made its lessee lose would else be known
    as lost only once the garbage collector has looked, and its place be missing until then.
    """
    raw: Any
    """The driver's own connection."""
    fetcher: Any
    """What ``execute_query`` uses again and again on this connection: a cursor, or what is faster than one."""
    probe: Probe | None
    """Looks at the connection's socket, if it has one."""
    readable: Callable[[], object]
    """Says, truthy or not, whether the server has sent something unasked, which an idle connection does not expect."""

    transactional: bool
    """Whether it begins transactions, as an Engine wants it, or commits each statement by itself."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.raw = self.driver_connection
        self.lease = _nobody
        self.fetcher = None
        self.probe = None
        self.readable = _never
        self.transactional = False

    def mark_broken(self) -> None:
        """Have every look at the connection find that it does not work, for its socket may say nothing any more."""
        self.readable = _always


def _nobody() -> None:
    return None


def _never() -> bool:
    return False


def _always() -> bool:
    return True
