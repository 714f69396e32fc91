"""The extractors: read a file, split it, have it enriched, and store its passages."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from app.agents import Agent
from app.containers import Provide, inject
from app.demo import jobs
from app.demo.documents import Document, read_document
from app.demo.enricher import SAMPLE
from app.demo.folder import DEFAULT_SIZE_LIMIT, SkipFile
from app.demo.jobs import Rejected, Stored
from app.demo.languages import kind_of, programming_language
from app.demo.passages import Passage, split
from app.pools.errors import CircuitOpen, PoolError
from app.pools.http_pool import HTTPClient
from app.pools.zmq_pool import Publisher

# Below this many bytes, handing a file to a thread costs more than reading and splitting it here.
_SMALL = 128 * 1024


class EnrichmentFailed(Exception):
    """The enricher answered with an error that repeating the request did not cure."""


class Extractor(Agent):
    """Handles jobs, several at a time.

    What several jobs have to store at the same time goes into one transaction: while one is being written,
    the next ones gather. A job whose enrichment fails stays queued; the scanner sends it again.

    Args:
        folder: what is indexed.
        number: tells this extractor from its siblings.
        size_limit: bytes above which a file is left out.
    """

    endpoint = "jobs"
    concurrency = 16
    may_drop = True  # they are still queued in the jobs table, for the next run

    def __init__(self, folder: Path, number: int = 1, *, size_limit: int = DEFAULT_SIZE_LIMIT) -> None:
        super().__init__(f"extractor-{number}")
        self.finished = 0
        """Jobs of this run that it finished."""
        self._folder = folder
        self._size_limit = size_limit
        self._at_work: set[int] = set()
        self._gathered: list[tuple[Stored | Rejected, asyncio.Future[bool]]] = []
        self._writing: asyncio.Task[None] | None = None

    @inject
    async def on_message(self, message: dict[str, Any], progress: Publisher = Provide["publishers.progress"]) -> None:
        """Do one job: ``{"id", "path", "digest"}``, where the digest is that of the content stored so far."""
        id, path = message["id"], message["path"]
        if id in self._at_work:
            return  # sent again because it takes long; it is not lost
        self._at_work.add(id)
        try:
            outcome = await self._extract(id, path, message["digest"])
            if await self._store(outcome):
                self.finished += 1
                await progress.send_async(_report(path, outcome), topic="job.done")
            else:
                await progress.send_async({"id": id, "path": path, "outcome": "already done"}, topic="job.repeated")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            rest = error.retry_in if isinstance(error, CircuitOpen) else 0.0
            await progress.send_async({"id": id, "path": path, "reason": reason, "rest": rest}, topic="job.failed")
            if not isinstance(error, (EnrichmentFailed, PoolError)):
                raise
        finally:
            self._at_work.discard(id)

    async def _extract(self, id: int, path: str, stored_digest: str | None) -> Stored | Rejected:
        try:
            document, passages = await self._read(path, stored_digest)
        except SkipFile as skip:
            return Rejected(id, str(skip.reason), skip.detail)
        if passages is None:
            return Stored(id, path, document.size, document.modified, document.digest, None)
        enrichment = await self._enrich(path, document.text[:SAMPLE])
        return Stored(
            id,
            path,
            document.size,
            document.modified,
            document.digest,
            passages,
            enrichment["programming"],
            enrichment["natural"],
            enrichment["keywords"],
        )

    async def _read(self, path: str, stored_digest: str | None) -> tuple[Document, list[Passage] | None]:
        try:
            large = (self._folder / path).stat().st_size > _SMALL
        except OSError:
            large = False  # reading it will say what is wrong
        if large:
            return await asyncio.to_thread(read_and_split, self._folder, path, stored_digest, self._size_limit)
        return read_and_split(self._folder, path, stored_digest, self._size_limit)

    @inject
    async def _enrich(self, path: str, sample: str, enricher: HTTPClient = Provide["apis.enricher"]) -> dict[str, Any]:
        # The service computes and changes nothing, so the pool may repeat the request: that is what the key says.
        response = await enricher.post_async(
            "/enrich", json={"path": path, "text": sample}, headers={"Idempotency-Key": path.encode().hex()[-64:]}
        )
        if not response.ok:
            raise EnrichmentFailed(f"the enricher answered {response.status_code} after {response.retries} retries")
        enrichment: dict[str, Any] = response.json()
        return enrichment

    async def _store(self, outcome: Stored | Rejected) -> bool:
        """Store an outcome together with others; return whether its job was still waiting for it."""
        stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._gathered.append((outcome, stored))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await stored

    async def _write(self) -> None:
        """Write until nothing is left: what gathers during one transaction is the next one."""
        while self._gathered:
            batch, self._gathered = self._gathered, []
            try:
                waiting = await asyncio.to_thread(self._commit, [outcome for outcome, _ in batch])
            except BaseException as error:
                for _, stored in batch:
                    if not stored.done():
                        stored.set_exception(error)
                if not isinstance(error, Exception):
                    self._writing = None
                    raise
                continue
            for outcome, stored in batch:
                if not stored.done():
                    stored.set_result(outcome.id in waiting)
        self._writing = None

    @inject
    def _commit(
        self, outcomes: list[Stored | Rejected], db: Connection = Provide["databases.library.transaction"]
    ) -> set[int]:
        return jobs.store(db, outcomes)


def read_and_split(
    folder: Path, path: str, stored_digest: str | None, size_limit: int
) -> tuple[Document, list[Passage] | None]:
    """Return a file and its passages; no passages if its content is what ``stored_digest`` is the digest of.

    Raises:
        SkipFile: the file cannot be indexed.
    """
    document = read_document(folder, path, size_limit=size_limit)
    if document.digest == stored_digest:
        return document, None
    return document, split(document.text, kind_of(programming_language(path, document.text)))


def _report(path: str, outcome: Stored | Rejected) -> dict[str, Any]:
    if isinstance(outcome, Rejected):
        return {"id": outcome.id, "path": path, "outcome": "skipped", "reason": outcome.reason}
    if outcome.passages is None:
        return {"id": outcome.id, "path": path, "outcome": "unchanged"}
    return {"id": outcome.id, "path": path, "outcome": "stored", "passages": len(outcome.passages)}
