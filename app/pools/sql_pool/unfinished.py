"""Borrowers who leave a transaction unfinished: told once, with the place in their code."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from app.pools.core.holders import CallSite, render
from app.pools.sql_pool.statements import Effect, effect_of

log = logging.getLogger(__name__)

_WROTE = "poolwire_wrote"
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
    event.listen(watched, "commit", _forget)
    event.listen(watched, "rollback", _forget)
    return watched


def left_unfinished(connection: Connection) -> bool:
    """Say whether a connection, about to be returned, has written something that was not committed."""
    if connection.closed or connection.invalidated or not connection.in_transaction():
        return False
    return bool(connection.info.get(_WROTE))


def session_left_unfinished(session: Session, connection: Connection) -> bool:
    """Say whether a session, about to end, has written or is about to write something that was not committed."""
    about_to = session.new or session.deleted or any(map(session.is_modified, session.dirty))
    return bool(about_to) or left_unfinished(connection)


def _note_statement(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
    if effect_of(statement) is Effect.WRITE:
        connection.info[_WROTE] = True


def _forget(connection: Connection) -> None:
    if not connection.invalidated:
        connection.info.pop(_WROTE, None)
