"""The pools: the only part of the project that makes connections."""

from app.pools.pool import Health, Metrics, Pool, PoolStats

__all__ = ["Health", "Metrics", "Pool", "PoolStats"]
