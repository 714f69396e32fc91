"""Openers: threads, or an event loop's tasks, that connect to a database while its callers queue.

An opener holds no lock and knows no queue: it makes one connection for the place that it was given, and the bucket
decides what becomes of that, and whether it goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from typing import Protocol

from app.pools.core.entries import Entry
from app.pools.errors import ConnectionRefused
from app.pools.sql_pool.attempts import Attempts, FailedAttempt, pauses
from app.pools.sql_pool.loop_tasks import LoopTasks
from app.pools.sql_pool.record import Record
from app.pools.sql_pool.threads import start_thread


class Employer(Protocol):
    """What openers need of the bucket that has them connect. It is called from their threads, without a lock."""

    def welcome(self, place: Entry[Record], record: Record) -> None:
        """Take a new connection."""

    def still_wanted(self, place: Entry[Record]) -> bool:
        """Say whether to try again after a failure; if not, the place is not the opener's any more."""

    def turn_away(self, place: Entry[Record], refusal: ConnectionRefused) -> None:
        """Take a place back, for which no connection can be had, and fail those who wait."""

    def vacate(self, place: Entry[Record]) -> None:
        """Give up the place of an opener that was cancelled."""

    def go_without(self, place: Entry[Record], reason: RuntimeError) -> None:
        """Take back a place for which no opener could be started."""


class Openers:
    """Those who connect for one bucket.

    Args:
        bucket: whose places they fill.
        attempts: make the connections.
        tasks: the event loop's, if the connections are for tasks; else each opener is a thread.
    """

    def __init__(self, bucket: Employer, attempts: Attempts, tasks: LoopTasks | None) -> None:
        self._bucket = bucket
        self._attempts = attempts
        self._tasks = tasks

    def send(self, places: Iterable[Entry[Record]]) -> None:
        """Have one opener connect for each place; those of an event loop are sent from within it."""
        for place in places:
            if self._tasks is None:
                self._start_thread(place)
            else:
                self._tasks.start(partial(self._open_async, place))

    def _start_thread(self, place: Entry[Record]) -> None:
        # Handed over, and not simply known to both: CPython keeps a thread, and what it refers to, if its start is
        # interrupted, and nobody can tell whether it will run.
        hand = [place]
        try:
            start_thread(partial(self._open_from, hand), "poolwire-sql-connect")
        except RuntimeError as error:
            self._bucket.go_without(place, error)
        except BaseException:
            if _taken_from(hand) is not None:
                self._bucket.vacate(place)
            raise

    def _open_from(self, hand: list[Entry[Record]]) -> None:
        place = _taken_from(hand)
        if place is not None:
            self._open(place)

    def _open(self, place: Entry[Record]) -> None:
        for pause in pauses():
            try:
                self._bucket.welcome(place, self._attempts.connect())
                return
            except FailedAttempt:
                time.sleep(pause)
                if not self._bucket.still_wanted(place):
                    return
            except ConnectionRefused as refusal:
                self._bucket.turn_away(place, refusal)
                return

    async def _open_async(self, place: Entry[Record]) -> None:
        for pause in pauses():
            try:
                self._bucket.welcome(place, await self._attempts.connect_async())
                return
            except FailedAttempt:
                await asyncio.sleep(pause)
                if not self._bucket.still_wanted(place):
                    return
            except ConnectionRefused as refusal:
                self._bucket.turn_away(place, refusal)
                return
            except asyncio.CancelledError:
                self._bucket.vacate(place)
                raise


def _taken_from(hand: list[Entry[Record]]) -> Entry[Record] | None:
    """Take the place out of a hand, unless somebody was faster."""
    try:
        return hand.pop()
    except IndexError:
        return None
