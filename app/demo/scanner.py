"""The scanner: finds what has changed in the folder, hands it to the extractors and sees that it gets done."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.agents import Agent
from app.containers import Provide, inject
from app.demo import jobs
from app.demo.folder import DEFAULT_SIZE_LIMIT, Found, Reason, Skipped, walk
from app.demo.jobs import Job, State
from app.pools.sql_pool import Database
from app.pools.zmq_pool import Publisher

MOST_ATTEMPTS = 5
WINDOW = 128
"""Jobs that are with the extractors at the same time, at most."""

# What may be different the next time although the file's size and time are the same.
_WORTH_ANOTHER_LOOK = frozenset({Reason.UNREADABLE, Reason.VANISHED})


@dataclass(frozen=True)
class Survey:
    """What a walk found, compared with what the index knows.

    Attributes:
        changed: new and changed files.
        skipped: entries that the walk rejected and the index does not list as such.
        outdated: jobs with passages whose files were rejected now.
        removed: jobs whose files are gone.
        unfinished: how many jobs an earlier run left queued.
        unchanged: how many files need no work.
        total: how many entries there are, those left out included.
    """

    changed: list[Found] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    outdated: list[Job] = field(default_factory=list)
    removed: list[Job] = field(default_factory=list)
    unfinished: int = 0
    unchanged: int = 0
    total: int = 0


def survey(
    folder: Path, known: dict[str, Job], *, size_limit: int = DEFAULT_SIZE_LIMIT, only: Collection[str] = ()
) -> Survey:
    """Walk ``folder`` and say what is new, changed, left out, gone and unfinished, compared with ``known``."""
    changed, skipped, outdated = [], [], []
    unfinished = unchanged = total = 0
    missing = dict(known)
    for entry in walk(folder, size_limit=size_limit, only=only):
        total += 1
        job = missing.pop(entry.path, None)
        if isinstance(entry, Skipped):
            if job is None or (job.state, job.reason) != (State.SKIPPED, entry.reason):
                skipped.append(entry)
                if job is not None:
                    outdated.append(job)
        elif job is None or (job.size, job.modified) != (entry.size, entry.modified):
            changed.append(entry)
        elif job.state is State.QUEUED and job.attempts < MOST_ATTEMPTS:
            unfinished += 1
        elif job.state in (State.FAILED, State.QUEUED) or job.reason in _WORTH_ANOTHER_LOOK:
            changed.append(entry)
        else:
            unchanged += 1
    return Survey(changed, skipped, outdated, list(missing.values()), unfinished, unchanged, total)


class Scanner(Agent):
    """Walks the folder once, then sends the queued jobs until every one is finished.

    It hears from the extractors what is done, so that it sends no more than they can hold. Neither its
    messages nor theirs are sure to arrive: what stays quiet for ``patience`` seconds is looked up in the jobs
    table and sent again if it is still queued.

    Args:
        folder: what to index.
        size_limit: bytes above which a file is left out.
        only: names of entries of the folder outside of which nothing is indexed; all of them if empty.
        patience: seconds after which a job that was sent counts as lost.
        retry_delay: seconds before the second attempt at a job that failed; it doubles with each.
    """

    endpoint = "scanner"
    topics = ("job.",)

    def __init__(
        self,
        folder: Path,
        *,
        size_limit: int = DEFAULT_SIZE_LIMIT,
        only: Collection[str] = (),
        patience: float = 10.0,
        retry_delay: float = 0.25,
    ) -> None:
        super().__init__()
        self.finished = asyncio.Event()
        """Set when no job is left to do."""
        self.sent_again = 0
        """How many jobs were sent more than once."""
        self.jobs_at_start = 0
        """How many jobs there were to do when the scan was over."""
        self._folder = folder
        self._size_limit = size_limit
        self._only = only
        self._patience = patience
        self._retry_delay = retry_delay
        self._waiting: deque[Job] = deque()
        self._resting: dict[int, float] = {}
        self._sent: dict[int, float] = {}
        self._jobs: dict[int, Job] = {}
        self._attempts: dict[int, int] = {}
        self._failures: dict[int, str] = {}
        self._rest: dict[int, float] = {}
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Scan, and dispatch until nothing is left."""
        await self._scan()
        await self._load()
        while self._jobs:
            await self._dispatch()
            try:
                async with asyncio.timeout(self._pause()):
                    await self._news.wait()
            except TimeoutError:
                await self._look_for_lost()
            self._news.clear()
        await self._announce("scan.finished", {})
        self.finished.set()

    async def on_message(self, message: dict[str, Any], topic: str) -> None:
        """Note what an extractor says about a job."""
        id = message["id"]
        if id not in self._sent:
            return
        if topic == "job.failed":
            self._failures[id] = message["reason"]
            self._rest[id] = message["rest"]
            self._sent[id] = 0.0  # due now: looked up, and sent again after a rest
        else:
            self._forget(id)
        # Woken for each message, the loop below would do nothing most of the time.
        if len(self._sent) <= WINDOW // 2 or topic == "job.failed":
            self._news.set()

    @inject
    async def _scan(self, db: Database = Provide["databases.library.handle"]) -> None:
        known = await jobs.known(db)
        found = await asyncio.to_thread(survey, self._folder, known, size_limit=self._size_limit, only=self._only)
        await jobs.record_scan(
            db, changed=found.changed, skipped=found.skipped, outdated=found.outdated, removed=found.removed
        )
        await self._announce(
            "scan.surveyed",
            {
                "total": found.total,
                "queued": len(found.changed) + found.unfinished,
                "resumed": found.unfinished,
                "unchanged": found.unchanged,
                "removed": len(found.removed),
            },
        )

    @inject
    async def _load(self, db: Database = Provide["databases.library.handle"]) -> None:
        self._waiting.extend(await jobs.queued(db))
        self._jobs = {job.id: job for job in self._waiting}
        self.jobs_at_start = len(self._jobs)
        self._attempts = {job.id: job.attempts for job in self._waiting}

    @inject
    async def _dispatch(
        self,
        db: Database = Provide["databases.library.handle"],
        work: Publisher = Provide["publishers.jobs"],
    ) -> None:
        """Fill the window. Half-full windows wait, so that the attempts are counted in few transactions."""
        now = time.monotonic()
        for id in [id for id, until in self._resting.items() if until <= now]:
            del self._resting[id]
            self._waiting.append(self._jobs[id])
        if not self._waiting or len(self._sent) > WINDOW // 2:
            return
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), WINDOW - len(self._sent)))]
        await jobs.count_attempts(db, [job.id for job in batch])
        due = time.monotonic() + self._patience
        for job in batch:
            self._attempts[job.id] += 1
            self._sent[job.id] = due
            await work.send_async({"id": job.id, "path": job.path, "digest": job.digest})

    def _pause(self) -> float:
        """Return the seconds until something is due: a job that may be lost, or one that has rested."""
        due = [*self._sent.values(), *self._resting.values()]
        return max(0.0, min(due, default=0.0) - time.monotonic())

    @inject
    async def _look_for_lost(self, db: Database = Provide["databases.library.handle"]) -> None:
        """Look up the jobs that are overdue; queue those again that are not finished, or give them up."""
        now = time.monotonic()
        overdue = [id for id, due in self._sent.items() if due <= now]
        if not overdue:
            return
        unfinished = await jobs.still_queued(db, overdue)
        for id in overdue:
            if id not in unfinished:
                self._forget(id)
            elif self._attempts[id] >= MOST_ATTEMPTS:
                reason = self._failures.get(id, "no extractor finished it")
                await jobs.give_up(db, id, f"{reason} ({self._attempts[id]} attempts)")
                await self._announce("job.given_up", {"id": id, "path": self._jobs[id].path, "reason": reason})
                self._forget(id)
            else:
                self.sent_again += 1
                del self._sent[id]
                pause = self._retry_delay * 2 ** (self._attempts[id] - 1)
                self._resting[id] = now + max(pause, self._rest.pop(id, 0.0))

    def _forget(self, id: int) -> None:
        self._sent.pop(id, None)
        self._jobs.pop(id, None)

    @inject
    async def _announce(
        self, topic: str, message: dict[str, Any], progress: Publisher = Provide["publishers.progress"]
    ) -> None:
        await progress.send_async(message, topic=topic)
