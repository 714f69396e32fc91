"""The assistant: turns a question into an answer, with the help of the librarian and the enricher."""

from __future__ import annotations

from typing import Any

from app.agents import Agent
from app.containers import Provide, inject
from app.demo.answers import Hit, compose, match_expression, terms_of
from app.pools.errors import PoolError
from app.pools.http_pool import HTTPClient
from app.pools.zmq_pool import Peer

_HITS = 40


class Assistant(Agent):
    """Answers ``{"question": text}`` with an ``Answer`` as JSON: the text, the citations, the terms, notes."""

    endpoint = "assistant"

    @inject
    async def on_request(self, message: dict[str, Any], librarian: Peer = Provide["peers.librarian"]) -> dict[str, Any]:
        """Answer a question."""
        question = str(message["question"]).strip()
        language, phrases, notes = await self._understand(question)
        terms = terms_of(question, language)
        found = await librarian.ask_async({"match": match_expression(terms, phrases), "limit": _HITS})
        hits = [Hit(**{**hit, "keywords": tuple(hit["keywords"])}) for hit in found["hits"]]
        return compose(question, terms, hits, notes).as_dict()

    @inject
    async def _understand(
        self, question: str, enricher: HTTPClient = Provide["apis.enricher"]
    ) -> tuple[str, list[str], list[str]]:
        """Return the question's language and key phrases; a note instead if the enricher does not say."""
        try:
            response = await enricher.post_async(
                "/enrich",
                json={"path": "question.txt", "text": question},
                headers={"Idempotency-Key": "question"},
            )
        except PoolError as error:
            return "en", [], [f"answered without the enricher: {error}"]
        if not response.ok:
            return "en", [], [f"answered without the enricher, which said {response.status_code}"]
        understood = response.json()
        return understood["natural"], understood["keywords"], []
