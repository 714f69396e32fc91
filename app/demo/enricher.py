"""The enricher: a web service that says which languages a text is in and what its keywords are.

It stands for the model or the remote API that a real agent calls: another program, reached by HTTP only, slow
and failing when one asks it to be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from app.agents import Agent
from app.demo.keywords import keywords, tokens
from app.demo.languages import natural_language, programming_language

SAMPLE = 4096
"""Characters of a file that are looked at: its beginning says what it is about."""

_LANGUAGE_TOKENS = 800
_LARGEST_BODY = 4 * SAMPLE + 65_536


class Enricher(Agent):
    """Serves ``POST /enrich``: ``{"path", "text"}`` in, ``{"programming", "natural", "keywords"}`` out.

    Args:
        failure_rate: the share of requests, 0 to 1, that are answered with 503.
        delay: seconds that each request takes longer.
        seed: makes the failures the same in each run.
    """

    def __init__(self, failure_rate: float = 0.0, delay: float = 0.0, seed: int | None = None) -> None:
        super().__init__()
        if not 0 <= failure_rate <= 1:
            raise ValueError(f"failure_rate={failure_rate!r} is not a share from 0 to 1")
        if not 0 <= delay < float("inf"):
            raise ValueError(f"delay={delay!r} is not a number of seconds from 0 up")
        self.failure_rate = failure_rate
        self.delay = delay
        self.answered = 0
        self.refused = 0
        self._random = random.Random(seed)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve on a free port of the loopback interface for the time of the block; yields the base URL.

        It listens before the container exists, because the container's configuration needs the port.
        """
        service = web.Application(client_max_size=_LARGEST_BODY)
        service.router.add_post("/enrich", self._enrich)
        runner = web.AppRunner(service, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    async def run(self) -> None:
        """Stay until the agents stop; requests are served meanwhile."""
        await asyncio.Event().wait()

    async def _enrich(self, request: web.Request) -> web.Response:
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.failure_rate and self._random.random() < self.failure_rate:
            self.refused += 1
            return _json({"error": "this service fails as often as it was told to"}, status=503)
        try:
            message = orjson.loads(await request.read())
            path, text = str(message["path"]), str(message["text"])
        except (ValueError, KeyError, TypeError) as error:
            return _json({"error": f'send {{"path": ..., "text": ...}}: {type(error).__name__}: {error}'}, status=400)
        self.answered += 1
        return _json(enrichment(path, text))


def enrichment(path: str, text: str) -> dict[str, Any]:
    """Return what the service says about a text: its languages, and its keywords, best first.

    Args:
        path: the file's name, from which the programming language is guessed.
        text: of which the first ``SAMPLE`` characters count.
    """
    found = tokens(text[:SAMPLE])
    return {
        "programming": programming_language(path, text),
        "natural": natural_language(found[:_LANGUAGE_TOKENS]),
        "keywords": [keyword.phrase for keyword in keywords(found)],
    }


def _json(answer: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(answer), status=status, content_type="application/json")
