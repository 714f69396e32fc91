"""A connection to SQLite: transactions that begin as they should, and one writer at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self
from weakref import ref

from app.pools.core.bucket import Entry
from app.pools.core.holders import CallSite
from app.pools.errors import PoolTimeout
from app.pools.sql_pool.handles import Handles
from app.pools.sql_pool.residue import LASTING, NOTHING, residue_of
from app.pools.sql_pool.sqlite_forks import register
from app.pools.sql_pool.statements import Effect, effect_of, quoted_part
from app.pools.sql_pool.writers import Wish, WishTakenBack, WriterLock

BEGIN_READONLY = "BEGIN DEFERRED /* readonly */"
"""Begins a transaction that sees one state of the database and refuses to write."""


class StaleSnapshot(sqlite3.OperationalError):
    """A transaction that began with a read wants to write, but another one has written since it read."""

    def __init__(self) -> None:
        super().__init__(
            "the transaction read before another one wrote, so its write would overwrite what it has not seen; "
            "roll back and do it again, or use transaction(config), which waits for the writer first"
        )


class Interrupted(sqlite3.OperationalError):
    """The call was given up, by its timeout or with its task. The text is SQLite's own."""

    def __init__(self) -> None:
        super().__init__("interrupted")


class Cursor(sqlite3.Cursor):
    """A cursor that begins a transaction and takes the writer lock when the statement calls for it."""

    connection: Connection

    def execute(self, sql: str, parameters: Any = ()) -> Self:
        """Execute one statement."""
        self.connection.note(sql)
        upgrades = self.connection.before(effect_of(sql))
        if sql == BEGIN_READONLY:
            self.connection.readonly = True
        try:
            return super().execute(sql, parameters)
        except sqlite3.OperationalError as error:
            if upgrades:
                self.connection.stay_reader(sql, error)
            self.connection.explain(error)
            raise
        finally:
            self.connection.after()

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Self:
        """Execute one statement for each set of parameters."""
        self.connection.note(sql)
        upgrades = self.connection.before(effect_of(sql))
        try:
            return super().executemany(sql, parameters)
        except sqlite3.OperationalError as error:
            if upgrades:
                self.connection.stay_reader(sql, error)
            self.connection.explain(error)
            raise
        finally:
            self.connection.after()

    def executescript(self, script: str) -> Self:
        """Commit, and execute a script of statements."""
        self.connection.commit()
        self.connection.note(script)
        self.connection.before(Effect.LOCK)
        try:
            super().executescript(script)
            return self
        except sqlite3.OperationalError as error:
            self.connection.explain(error)
            raise
        finally:
            self.connection.after()


class Connection(sqlite3.Connection):
    """A connection that holds the writer lock while it may write.

    ``isolation_level`` is ``None`` for autocommit, and ``""`` for transactions that begin with the first
    statement: with ``BEGIN`` when it reads, so that readers hinder nobody, and with ``BEGIN IMMEDIATE`` when it
    writes. DDL is part of the transaction. sqlite3's own implicit transactions, which do neither, stay off.
    """

    writer: WriterLock
    busy_timeout: float
    """Seconds that it waits for the writer lock."""
    wish: Wish
    """What the connection waits for the writer lock with."""
    name_obstacle: Callable[[sqlite3.OperationalError], None]
    """Raises an error that names what keeps SQLite from the file, if that is the matter."""
    readonly = False
    """Whether the transaction that is open may only read."""
    residue = NOTHING
    """What statements have left in the session."""
    lessee: Callable[[], CallSite] | None = None
    """Says who has the connection, where the thread that uses it works for a task."""
    _begins = False
    _turn: Entry[Any] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._handles = Handles()

    @property  # type: ignore[override]
    def isolation_level(self) -> str | None:
        """``None`` for autocommit, else ``""``."""
        return "" if self._begins else None

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        self._begins = value is not None

    def cursor(self, factory: Callable[..., Any] | None = None) -> Any:
        """Return a cursor that takes part in the locking, and is closed with the lease, see ``end_lease``.

        But not one of sqlite3's own class, which is the pool's.
        """
        cursor = super().cursor(factory or Cursor)
        if factory is not sqlite3.Cursor:
            self._handles[id(cursor)] = ref(cursor)
        return cursor

    # sqlite3's own shortcuts make a cursor without asking `cursor`, and so would pass the locking by.

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        """Execute one statement with a cursor of its own."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Any:
        """Execute one statement for each set of parameters, with a cursor of its own."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str) -> Any:
        """Commit, and execute a script of statements with a cursor of its own."""
        return self.cursor().executescript(script)

    def blobopen(
        self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main"
    ) -> sqlite3.Blob:
        """Open a blob, as whoever reads or writes, depending on which it is for. It is closed with the lease."""
        if readonly:
            self.before(Effect.READ)
        else:  # by a statement that changes nothing: SQLite does not say of a blob why it cannot be written
            target = quoted_part(column)
            self.execute(f"UPDATE {quoted_part(name)}.{quoted_part(table)} SET {target} = {target} WHERE 0")
        blob = super().blobopen(table, column, row, readonly=readonly, name=name)
        self._handles[id(blob)] = ref(blob)
        return blob

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Literal[False]:
        """Commit, or roll back if the block raised, and let the next one write: sqlite3's own asks no method here."""
        try:
            return super().__exit__(kind, error, trace)
        finally:
            self.after()

    def commit(self) -> None:
        """Commit, and let the next one write."""
        try:
            super().commit()
        except sqlite3.OperationalError:
            if not self._handles.close_blobs():
                raise
            super().commit()  # which SQLite refused as long as one was open that may be written
        finally:
            self.after()

    def rollback(self) -> None:
        """Roll back, and let the next one write."""
        try:
            super().rollback()
        finally:
            self.after()

    def close(self) -> None:
        """Roll back, close, and let the next one write."""
        try:
            # As long as anybody has a cursor SQLite's own connection lives on, with the locks of its transaction.
            self.end_lease()
            with suppress(sqlite3.Error):
                super().rollback()
            super().close()
        finally:
            register.closed(self)
            self._unlock()

    @property
    def has_handles(self) -> bool:
        """Whether somebody has a cursor or blob of a lease, on which SQLite may still be at work."""
        return self._handles.any_left

    def end_lease(self) -> None:
        """Close the cursors and blobs of a lease: a result that is not read to its end keeps the state it was found in.

        The next borrower would read that state, too, and could not write; with a blob, who had the lease could.
        """
        if not self._handles.close():
            self.residue |= LASTING

    def note(self, sql: str) -> None:
        """Take note of a statement that is about to be executed."""
        residue = residue_of(sql)
        if residue:
            self.residue |= residue

    def before(self, effect: Effect) -> bool:
        """Begin a transaction and take the writer lock as a statement with this effect needs it.

        ``after`` is its counterpart, which need not be called if this raises.

        Returns:
            Whether the lock was taken for a transaction that had only read; if the statement fails, ``stay_reader``.

        Raises:
            sqlite3.OperationalError: others wrote until the timeout, and the cause is the ``PoolTimeout`` if they
                did so by the writer lock; or the call was given up while it waited.
        """
        if effect is Effect.NONE:
            return False
        upgrades = False
        try:
            if effect is not Effect.READ:
                upgrades = self._turn is None and self.in_transaction
                self._lock()
            if self._begins and effect is not Effect.LOCK and not self.in_transaction:
                super().cursor(sqlite3.Cursor).execute("BEGIN" if effect is Effect.READ else "BEGIN IMMEDIATE")
        except BaseException as error:
            self.after()  # a program without the writer lock may hold the file, so that BEGIN fails with the lock had
            if isinstance(error, sqlite3.OperationalError):
                self.explain(error)
            raise
        return upgrades

    def explain(self, error: sqlite3.OperationalError) -> None:
        """Raise an error that says what happened, where SQLite's says only that it cannot do something."""
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
            raise StaleSnapshot from error
        self.name_obstacle(error)

    def stay_reader(self, sql: str, error: sqlite3.OperationalError) -> None:
        """Give the writer lock back if the first write of a transaction failed before it could make it the writer."""
        outdated = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT
        if outdated or not self._compiles(sql):
            self._unlock()

    def _compiles(self, sql: str) -> bool:
        try:
            super().cursor(sqlite3.Cursor).execute(f"EXPLAIN {sql}")
        except sqlite3.Error as error:
            return isinstance(error, sqlite3.ProgrammingError)  # it has placeholders
        return True

    def after(self) -> None:
        """Give the writer lock back unless a transaction is open."""
        if not self.in_transaction:
            self.readonly = False
            if self._turn is not None:
                self._unlock()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Cursor]:
        """Lend a cursor for one transaction, which is committed when the block ends and rolled back when it raises.

        The writer lock is given back in either case, also if the transaction cannot begin, or SQLite has ended it
        by itself (``INSERT OR ROLLBACK``, a full disk).

        Raises:
            sqlite3.OperationalError: as ``before``.
        """
        self.before(Effect.LOCK)
        try:
            cursor = super().cursor(sqlite3.Cursor)
            cursor.execute("BEGIN IMMEDIATE")
            yield cursor
            self.check()
            self.commit()
        except BaseException as error:
            with suppress(sqlite3.Error):  # the pool sees the transaction, and closes what cannot roll it back
                self.rollback()
            if isinstance(error, sqlite3.OperationalError):
                self.explain(error)
            raise

    def _lock(self) -> None:
        """Take the writer lock, if this connection does not have it."""
        if self.readonly:
            raise sqlite3.OperationalError("attempt to write in a readonly transaction")
        if self._turn is None:
            super().cursor(sqlite3.Cursor)  # raises on a closed connection, which nobody would take the turn from
            # DBAPI errors, for the layers above (SQLAlchemy) let no other pass the driver's border.
            try:
                self._turn = self.writer.acquire(self.wish, self.busy_timeout)
            except PoolTimeout as timeout:
                raise sqlite3.OperationalError(f"database is locked: {timeout}") from timeout
            except WishTakenBack as given_up:
                raise Interrupted from given_up
            except OSError as error:
                raise sqlite3.OperationalError(f"the writer lock cannot be had: {error}") from error
            if self.lessee is not None:
                self._turn.site = self.lessee()

    def give_up(self) -> None:
        """End the statement that is being executed or waits to write; those to come fail too, until ``go_on``."""
        self.writer.take_back(self.wish)
        self.interrupt()

    def go_on(self) -> None:
        """Execute statements again."""
        self.wish.taken_back = False

    def check(self) -> None:
        """Raise if ``give_up`` came between two statements, where SQLite itself takes no notice."""
        if self.wish.taken_back:
            raise Interrupted

    def _unlock(self) -> None:
        """Give the writer lock back, if this connection has it."""
        turn, self._turn = self._turn, None
        if turn is not None:
            self.writer.release(turn)


def is_busy(error: BaseException) -> bool:
    """Say whether an error means that somebody else has the database at the moment."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
