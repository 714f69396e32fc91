"""A route: everything that requests must have in common to share connections."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from app.pools.http_pool.tls import TLSKey
from app.pools.http_pool.urls import Target


@dataclass(frozen=True, slots=True)
class Route:
    """An origin, how it is reached and trusted, and how many connections it may have. Times are seconds."""

    target: Target
    """Only scheme, host and port count."""
    tls: TLSKey
    context: ssl.SSLContext | None
    """``None`` for http."""
    proxy: str | None
    max_connections: int
    connect_timeout: float
    keepalive: float
    max_lifetime: float
    block_private: bool
    setting: str | None = field(default=None, compare=False)
    """Where ``max_connections`` is set, for errors: the pool's setting unless given. Of routes that are the same
    otherwise, the first one's counts."""

    @property
    def label(self) -> str:
        """The origin; shown in errors and statistics."""
        return self.target.origin

    def __repr__(self) -> str:
        return f"Route({self.label})"
