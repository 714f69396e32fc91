"""The HTTP pool: requests over kept connections, with deadlines that hold and retries that know their limits."""

from app.pools.core.settings import HTTPPoolSettings
from app.pools.http_pool.client import HTTPClient
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.pool import HTTPPool, get_http_pool
from app.pools.http_pool.response import HTTPResponse, HTTPStatusError

__all__ = [
    "HTTPClient",
    "HTTPConfig",
    "HTTPPool",
    "HTTPPoolSettings",
    "HTTPResponse",
    "HTTPStatusError",
    "get_http_pool",
]
