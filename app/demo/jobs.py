"""The index: a table of jobs, which is the truth about every file, and the passages of those that are done.

A message between agents may get lost with the worker that held it; a row here does not. A job is ``queued``
until one transaction stores its passages and marks it ``done``, so a process that is killed at any moment
leaves either the whole file or nothing of it, and the job stays queued for the next start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any

import orjson
from sqlalchemy import Connection

from app.demo.answers import Hit
from app.demo.folder import Found, Skipped
from app.demo.passages import Passage
from app.pools.sql_pool import Database

SCHEMA_VERSION = 1

# A passage's row number is its file's job number and its place in the file, so that the passages of a file are
# one range of rows, which FTS5 can delete without an index of its own.
_PLACE_BITS = 20
_ROWS_AT_ONCE = 500

_SCHEMA = (
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        path TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('queued', 'done', 'skipped', 'failed')),
        reason TEXT NOT NULL DEFAULT '',
        detail TEXT NOT NULL DEFAULT '',
        attempts INTEGER NOT NULL DEFAULT 0,
        size INTEGER NOT NULL DEFAULT 0,
        modified INTEGER NOT NULL DEFAULT 0,
        digest TEXT,
        passage_count INTEGER NOT NULL DEFAULT 0,
        programming TEXT NOT NULL DEFAULT '',
        natural TEXT NOT NULL DEFAULT '',
        keywords TEXT NOT NULL DEFAULT '[]'
    )
    """,
    "CREATE INDEX jobs_by_state ON jobs (state)",
    """
    CREATE VIRTUAL TABLE passages USING fts5(
        path, heading, body, start UNINDEXED, "end" UNINDEXED, tokenize = 'porter unicode61'
    )
    """,
    "INSERT INTO passages (passages, rank) VALUES ('rank', 'bm25(3.0, 4.0, 1.0)')",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class State(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the table, as the scanner needs it.

    Attributes:
        digest: of the content whose passages are stored; ``None`` before the first time.
        attempts: how often the job was sent to an extractor since the file changed.
    """

    id: int
    path: str
    state: State
    reason: str
    attempts: int
    size: int
    modified: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that was read and split: what an extractor has to say about a job.

    Attributes:
        passages: ``None`` if the content is the one that is stored already.
    """

    id: int
    path: str
    size: int
    modified: int
    digest: str
    passages: Sequence[Passage] | None
    programming: str = ""
    natural: str = ""
    keywords: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that turned out not to be indexable."""

    id: int
    reason: str
    detail: str = ""


async def prepare(db: Database) -> None:
    """Make the tables, or make them anew if they are of another version: an index can always be rebuilt."""
    rows = await db.execute_query_async("PRAGMA user_version")
    if rows[0][0] == SCHEMA_VERSION:
        return
    async with db.transaction() as connection:
        # Decided again inside: two processes may start on the same folder at once.
        version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar()
        if version == SCHEMA_VERSION:
            return
        await connection.exec_driver_sql("DROP TABLE IF EXISTS passages")
        await connection.exec_driver_sql("DROP TABLE IF EXISTS jobs")
        for statement in _SCHEMA:
            await connection.exec_driver_sql(statement)


async def known(db: Database) -> dict[str, Job]:
    """Return every job by its path."""
    rows = await db.execute_query_async("SELECT id, path, state, reason, attempts, size, modified, digest FROM jobs")
    return {row[1]: Job(row[0], row[1], State(row[2]), *row[3:]) for row in rows}


async def queued(db: Database) -> list[Job]:
    """Return the jobs that wait, in the order in which they were found."""
    rows = await db.execute_query_async(
        "SELECT id, path, state, reason, attempts, size, modified, digest FROM jobs WHERE state = 'queued' ORDER BY id"
    )
    return [Job(row[0], row[1], State(row[2]), *row[3:]) for row in rows]


async def record_scan(
    db: Database,
    *,
    changed: Iterable[Found] = (),
    skipped: Iterable[Skipped] = (),
    outdated: Iterable[Job] = (),
    removed: Iterable[Job] = (),
) -> None:
    """Write in one transaction what a walk found: jobs to do, files to leave out, files that are gone.

    Args:
        db: the index.
        changed: new and changed files; their jobs are queued with no attempts.
        skipped: files that the walk rejected.
        outdated: jobs of such files; their passages leave the index.
        removed: jobs whose files are gone; they leave the index with their passages.
    """
    skips = [(each.path, str(each.reason), each.detail) for each in skipped]
    async with db.transaction() as connection:
        cleared = [_rows_of(job.id) for job in outdated]
        if cleared:
            await connection.exec_driver_sql(_DELETE_PASSAGES, cleared)
        gone = [(job.id,) for job in removed]
        if gone:
            await connection.exec_driver_sql(_DELETE_PASSAGES, [_rows_of(id) for (id,) in gone])
            await connection.exec_driver_sql("DELETE FROM jobs WHERE id = ?", gone)
        if skips:
            await connection.exec_driver_sql(
                "INSERT INTO jobs (path, state, reason, detail) VALUES (?, 'skipped', ?, ?)"
                " ON CONFLICT (path) DO UPDATE SET state = 'skipped', reason = excluded.reason,"
                " detail = excluded.detail, attempts = 0, size = 0, modified = 0, digest = NULL, passage_count = 0",
                skips,
            )
        queue = [(found.path, found.size, found.modified) for found in changed]
        if queue:
            await connection.exec_driver_sql(
                "INSERT INTO jobs (path, state, size, modified) VALUES (?, 'queued', ?, ?)"
                " ON CONFLICT (path) DO UPDATE SET state = 'queued', reason = '', detail = '', attempts = 0,"
                " size = excluded.size, modified = excluded.modified",
                queue,
            )


async def count_attempts(db: Database, ids: Iterable[int]) -> None:
    """Note that the jobs are about to be sent, before they are: a file that kills its worker must count."""
    await db.execute_many_async("UPDATE jobs SET attempts = attempts + 1 WHERE id = ?", [(id,) for id in ids])


async def still_queued(db: Database, ids: Iterable[int]) -> set[int]:
    """Return those of ``ids`` whose jobs are not finished."""
    wanted = orjson.dumps(list(ids)).decode()
    rows = await db.execute_query_async(
        "SELECT id FROM jobs WHERE state = 'queued' AND id IN (SELECT value FROM json_each(?))", (wanted,)
    )
    return {row[0] for row in rows}


async def give_up(db: Database, id: int, reason: str) -> None:
    """Mark a queued job as failed; the next scan queues it again."""
    await db.execute_query_async(
        "UPDATE jobs SET state = 'failed', reason = 'failed', detail = ? WHERE id = ? AND state = 'queued'",
        (reason, id),
    )


def store(connection: Connection, outcomes: Iterable[Stored | Rejected]) -> set[int]:
    """Store what became of several jobs; return the numbers of those that were still waiting for it.

    Storing the same outcome twice changes nothing the second time.

    Args:
        connection: in a transaction, which the caller commits.
        outcomes: at most one for each job.
    """
    by_id = {outcome.id: outcome for outcome in outcomes}
    waiting = connection.exec_driver_sql(
        "SELECT id, passage_count FROM jobs WHERE state = 'queued' AND id IN (SELECT value FROM json_each(?))",
        (orjson.dumps(list(by_id)).decode(),),
    ).fetchall()
    replaced = [_rows_of(id) for id, count in waiting if count and getattr(by_id[id], "passages", ()) is not None]
    if replaced:
        connection.exec_driver_sql(_DELETE_PASSAGES, replaced)
    stored = [outcome for id, _ in waiting if isinstance(outcome := by_id[id], Stored)]
    fresh = [(outcome, outcome.passages) for outcome in stored if outcome.passages is not None]
    rows = [
        ((outcome.id << _PLACE_BITS) + place, outcome.path, each.heading, each.body, each.start, each.end)
        for outcome, passages in fresh
        for place, each in enumerate(passages)
    ]
    # Many rows in one statement, because SQLite then works on all of them without the interpreter's lock; with
    # executemany it would have to win the lock back from the busy event loop for each row.
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[first : first + _ROWS_AT_ONCE]
        connection.exec_driver_sql(
            'INSERT INTO passages (rowid, path, heading, body, start, "end") VALUES '
            + ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(some)),
            tuple(chain.from_iterable(some)),
        )
    if fresh:
        connection.exec_driver_sql(
            "UPDATE jobs SET state = 'done', reason = '', detail = '', size = ?, modified = ?, digest = ?,"
            " passage_count = ?, programming = ?, natural = ?, keywords = ? WHERE id = ?",
            [
                (
                    outcome.size, outcome.modified, outcome.digest, len(passages), outcome.programming,
                    outcome.natural, orjson.dumps(list(outcome.keywords)).decode(), outcome.id,
                )
                for outcome, passages in fresh
            ],
        )  # fmt: skip
    unchanged = [(each.size, each.modified, each.id) for each in stored if each.passages is None]
    if unchanged:
        connection.exec_driver_sql(
            "UPDATE jobs SET state = 'done', reason = '', detail = '', size = ?, modified = ? WHERE id = ?", unchanged
        )
    rejected = [(outcome.reason, outcome.detail, id) for id, _ in waiting if isinstance(outcome := by_id[id], Rejected)]
    if rejected:
        connection.exec_driver_sql(
            "UPDATE jobs SET state = 'skipped', reason = ?, detail = ?, digest = NULL, passage_count = 0 WHERE id = ?",
            rejected,
        )
    return {id for id, _ in waiting}


async def search(db: Database, expression: str, limit: int) -> list[Hit]:
    """Return the ``limit`` passages that BM25 ranks highest for an FTS5 expression."""
    rows = await db.execute_query_async(
        'SELECT passages.path, start, "end", heading, body,'
        " snippet(passages, 2, '[', ']', '…', 24) AS snippet, programming AS language, keywords, -rank AS score"
        f" FROM passages JOIN jobs ON jobs.id = passages.rowid >> {_PLACE_BITS}"
        " WHERE passages MATCH ? ORDER BY rank LIMIT ?",
        (expression, limit),
    )
    return [Hit(**(row._asdict() | {"keywords": tuple(orjson.loads(row.keywords))})) for row in rows]


async def counts(db: Database) -> dict[str, Any]:
    """Return how many jobs are in each state and how many passages there are."""
    rows = await db.execute_query_async("SELECT state, count(*), sum(passage_count) FROM jobs GROUP BY state")
    found = {str(state): 0 for state in State}
    found.update({row[0]: row[1] for row in rows})
    return {**found, "passages": sum(row[2] for row in rows)}


async def left_out(db: Database) -> list[dict[str, str]]:
    """Return every file that is skipped or has failed, with the reason."""
    rows = await db.execute_query_async(
        "SELECT path, reason, detail FROM jobs WHERE state IN ('skipped', 'failed') ORDER BY reason, path"
    )
    return [{"path": row[0], "reason": row[1], "detail": row[2]} for row in rows]


_DELETE_PASSAGES = "DELETE FROM passages WHERE rowid BETWEEN ? AND ?"


def _rows_of(id: int) -> tuple[int, int]:
    return id << _PLACE_BITS, ((id + 1) << _PLACE_BITS) - 1
