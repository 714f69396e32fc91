"""The HTTP pool: requests over kept connections, with deadlines that hold and retries that know their limits."""

from app.pools.core.settings import HTTPPoolSettings
from app.pools.http_pool.client import HTTPClient
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.events import ServerSentEvent
from app.pools.http_pool.pool import HTTPHealth, HTTPPool, get_http_pool
from app.pools.http_pool.response import HTTPResponse, HTTPStatusError
from app.pools.http_pool.streams import AsyncStreamedResponse, EventStream, Stream, StreamedResponse

__all__ = [
    "AsyncStreamedResponse",
    "EventStream",
    "HTTPClient",
    "HTTPConfig",
    "HTTPHealth",
    "HTTPPool",
    "HTTPPoolSettings",
    "HTTPResponse",
    "HTTPStatusError",
    "ServerSentEvent",
    "Stream",
    "StreamedResponse",
    "get_http_pool",
]
