"""Handles: the cursors and blobs of a SQLite connection that keep it at work until they are closed."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from weakref import ref


class Handles(dict[int, ref[sqlite3.Cursor] | ref[sqlite3.Blob]]):
    """Those of one lease, by their addresses.

    A new one has the address of one that is gone, so there are as many as were there at a time.
    """

    @property
    def any_left(self) -> bool:
        """Whether somebody has one, so that SQLite may still be at work on it."""
        return any(each() is not None for each in self.values())

    def close(self) -> bool:
        """Close all, and say whether each could be."""
        closed = True
        while self:
            _, each = self.popitem()
            handle = each()
            if handle is not None:
                try:
                    handle.close()
                except sqlite3.Error:  # another thread uses it, or the connection is closed
                    closed = False
        return closed

    def close_blobs(self) -> bool:
        """Close the blobs among them, and say whether there was one."""
        blobs = [handle for each in self.values() if isinstance(handle := each(), sqlite3.Blob)]
        for blob in blobs:
            with suppress(sqlite3.Error):
                blob.close()
        return bool(blobs)
