"""A client: the pool's requests bound to one API."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import requests

from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.pool import HTTPPool
from app.pools.http_pool.response import HTTPResponse
from app.pools.http_pool.streams import EventStream, Stream


class HTTPClient:
    """One API, ready to be called. Holds no connection and may be shared by threads and tasks.

    Every method takes the keywords of ``HTTPPool.request``: ``params``, ``headers``, ``data``, ``json``,
    ``timeout``; it returns and raises what that does.
    """

    def __init__(self, pool: HTTPPool, config: HTTPConfig) -> None:
        self.pool = pool
        self.config = config

    def __repr__(self) -> str:
        return f"HTTPClient({self.config.base_url!r})"

    def request(self, method: str, path: str = "", **options: Any) -> HTTPResponse:
        """Send a request; see ``HTTPPool.request``."""
        return self.pool.request(self.config, method, path, **options)

    async def request_async(self, method: str, path: str = "", **options: Any) -> HTTPResponse:
        """Do what ``request`` does without blocking the event loop."""
        return await self.pool.request_async(self.config, method, path, **options)

    def stream(self, method: str, path: str = "", **options: Any) -> Stream:
        """Stream a response; see ``HTTPPool.stream``."""
        return self.pool.stream(self.config, method, path, **options)

    def sse(self, method: str, path: str = "", **options: Any) -> EventStream:
        """Receive server-sent events; see ``HTTPPool.sse``."""
        return self.pool.sse(self.config, method, path, **options)

    def session(self, timeout: float | None = None) -> AbstractContextManager[requests.Session]:
        """Lease a ``requests.Session``; see ``HTTPPool.session``."""
        return self.pool.session(self.config, timeout)

    def get(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a GET."""
        return self.pool.request(self.config, "GET", path, **options)

    async def get_async(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a GET without blocking the event loop."""
        return await self.pool.request_async(self.config, "GET", path, **options)

    def head(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a HEAD."""
        return self.pool.request(self.config, "HEAD", path, **options)

    async def head_async(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a HEAD without blocking the event loop."""
        return await self.pool.request_async(self.config, "HEAD", path, **options)

    def post(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a POST."""
        return self.pool.request(self.config, "POST", path, **options)

    async def post_async(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a POST without blocking the event loop."""
        return await self.pool.request_async(self.config, "POST", path, **options)

    def put(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a PUT."""
        return self.pool.request(self.config, "PUT", path, **options)

    async def put_async(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a PUT without blocking the event loop."""
        return await self.pool.request_async(self.config, "PUT", path, **options)

    def patch(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a PATCH."""
        return self.pool.request(self.config, "PATCH", path, **options)

    async def patch_async(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a PATCH without blocking the event loop."""
        return await self.pool.request_async(self.config, "PATCH", path, **options)

    def delete(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a DELETE."""
        return self.pool.request(self.config, "DELETE", path, **options)

    async def delete_async(self, path: str = "", **options: Any) -> HTTPResponse:
        """Send a DELETE without blocking the event loop."""
        return await self.pool.request_async(self.config, "DELETE", path, **options)
