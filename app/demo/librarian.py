"""The librarian: searches the index for other agents."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from app.agents import Agent
from app.containers import Provide, inject
from app.demo import jobs
from app.pools.sql_pool import Database

MOST_HITS = 100


class Librarian(Agent):
    """Answers ``{"match": expression, "limit": number}`` with ``{"hits": [...]}``, best first.

    The expression is FTS5's; each hit has its file, lines, heading, text and a snippet with the terms marked.
    """

    endpoint = "librarian"

    @inject
    async def on_start(self, db: Database = Provide["databases.library.handle"]) -> None:
        """Make the library's tables, before anyone writes or reads them."""
        await jobs.prepare(db)

    @inject
    async def on_request(
        self, message: dict[str, Any], db: Database = Provide["databases.library.handle"]
    ) -> dict[str, Any]:
        """Search."""
        match = str(message["match"])
        if not match:
            return {"hits": []}
        limit = min(max(1, int(message.get("limit", 20))), MOST_HITS)
        return {"hits": [asdict(hit) for hit in await jobs.search(db, match, limit)]}
