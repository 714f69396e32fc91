"""An account: what one configuration uses, found once."""

from __future__ import annotations

from dataclasses import dataclass

from app.pools.core.bucket import Bucket
from app.pools.http_pool.circuit import Circuit
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.limits import Pacer
from app.pools.http_pool.origins import Origin
from app.pools.http_pool.tokens import TokenSource
from app.pools.http_pool.transport import Transport


@dataclass(frozen=True, slots=True, eq=False)
class Account:
    """A configuration with its transport and everything that limits its requests."""

    config: HTTPConfig
    origin: Origin
    transport: Transport
    circuit: Circuit
    pacer: Pacer | None
    tokens: TokenSource | None
    gate: Bucket[object] | None


def open_account(config: HTTPConfig, transport: Transport) -> Account:
    """Return the account of ``config`` at the origin of ``transport``."""
    origin = transport.origin
    return Account(
        config,
        origin,
        transport,
        origin.circuit(config.circuit_threshold, config.circuit_reset),
        origin.pacer(config),
        origin.tokens(config),
        None if config.max_concurrency is None else origin.gate(config.max_concurrency),
    )
