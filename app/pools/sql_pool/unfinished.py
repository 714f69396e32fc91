"""Borrowers who leave a transaction unfinished: told once, with the place in their code."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from app.pools.core.holders import CallSite, render
from app.pools.sql_pool.drivers import Driver
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.statements import Effect, effect_of

log = logging.getLogger(__name__)

_WROTE = "poolwire_wrote"
"""In how many savepoints the transaction has written what is left of its first write."""
_DEPTH = "poolwire_depth"
"""In how many savepoints it is."""
_MOST_REPORTS = 1000
_reported: set[tuple[str, str]] = set()


def report_unfinished(label: str, site: CallSite) -> None:
    """Log that a transaction was rolled back because its borrower left it open, once for each place."""
    place = render(site)
    if (label, place) in _reported or len(_reported) >= _MOST_REPORTS:
        return
    _reported.add((label, place))
    log.warning(
        "a transaction on %s was left unfinished and is rolled back; commit it, or use transaction(): %s", label, place
    )


def watch_writes(engine: Engine) -> Engine:
    """Return a variant of an engine whose connections ``left_unfinished`` can judge.

    A variant, on the same connections, so that who uses the engine itself does not pay for the watching.
    """
    watched = engine.execution_options()
    event.listen(watched, "before_cursor_execute", _note_statement)
    event.listen(watched, "savepoint", _note_savepoint)
    event.listen(watched, "release_savepoint", _note_release)
    event.listen(watched, "rollback_savepoint", _note_partial_rollback)
    event.listen(watched, "commit", _forget)
    event.listen(watched, "rollback", _forget)
    return watched


def left_unfinished(connection: Connection, driver: Driver) -> bool:
    """Say whether a connection, about to be returned, has written something that was not committed."""
    record = record_of(connection)
    if record is None or _WROTE not in connection.info:
        return False
    # Asked of the driver: SQLAlchemy is in a transaction in AUTOCOMMIT, too, and not after a BEGIN that it did not see.
    return bool(driver.in_transaction(record))


def session_left_unfinished(session: Session, connection: Connection, driver: Driver) -> bool:
    """Say whether a session, about to end, has written or is about to write something that was not committed."""
    about_to = session.new or session.deleted or any(map(session.is_modified, session.dirty))
    return bool(about_to) or left_unfinished(connection, driver)


def record_of(connection: Connection) -> Record | None:
    """Return what the pool knows of a connection, unless it is not the pool's any more."""
    if connection.closed or connection.invalidated:
        return None
    leased: Any = connection.connection
    record: Record | None = leased._connection_record
    return record


def _note_statement(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
    if effect_of(statement) is Effect.WRITE:
        info = connection.info
        info.setdefault(_WROTE, info.get(_DEPTH, 0))


def _note_savepoint(connection: Connection, name: None) -> None:
    connection.info[_DEPTH] = connection.info.get(_DEPTH, 0) + 1


def _note_release(connection: Connection, name: str, context: None) -> None:
    _leave_savepoint(connection, undone=False)


def _note_partial_rollback(connection: Connection, name: str, context: None) -> None:
    _leave_savepoint(connection, undone=True)


def _leave_savepoint(connection: Connection, *, undone: bool) -> None:
    if connection.invalidated:
        return
    info = connection.info
    depth = info.get(_DEPTH, 1)
    info[_DEPTH] = depth - 1
    if info.get(_WROTE, -1) >= depth:
        if undone:
            del info[_WROTE]
        else:
            info[_WROTE] = depth - 1


def _forget(connection: Connection) -> None:
    if not connection.invalidated:
        connection.info.pop(_WROTE, None)
        connection.info.pop(_DEPTH, None)
