"""Counting: what a pool's buckets did, and the shape in which every pool reports it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from app.pools.pool import PoolStats

# Upper bounds in seconds, as HikariCP and the OpenTelemetry conventions space them; the last is open.
_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Durations in seconds, counted in fixed ranges. The caller holds a lock while it records."""

    __slots__ = ("counts", "longest", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0
        self.longest = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def quantile(self, fraction: float) -> float:
        """Return the bound in seconds that ``fraction`` (0 to 1) of the durations do not exceed; 0.0 if none."""
        count = sum(self.counts)
        if not count:
            return 0.0
        bounds = (*_BOUNDS, self.longest)
        position = next(i for i, seen in enumerate(accumulate(self.counts)) if seen >= fraction * count)
        return min(bounds[position], self.longest)

    def summary(self) -> dict[str, float]:
        """Return the count, the sum, three quantiles and the longest, all but the first in seconds."""
        return {
            "count": sum(self.counts),
            "total": self.total,
            "p50": self.quantile(0.50),
            "p95": self.quantile(0.95),
            "p99": self.quantile(0.99),
            "max": self.longest,
        }


def recent_summary(durations: Iterable[float]) -> dict[str, float]:
    """Return the count, three quantiles and the longest of ``durations``, all but the first in seconds."""
    ordered = sorted(durations) or [0.0]

    def quantile(fraction: float) -> float:
        return ordered[round(fraction * (len(ordered) - 1))]

    return {
        "count": len(ordered) if ordered != [0.0] else 0,
        "p50": quantile(0.50),
        "p95": quantile(0.95),
        "p99": quantile(0.99),
        "max": ordered[-1],
    }


def pool_stats(buckets: Iterable[tuple[str, dict[str, Any]]], *, cleanup_thread_alive: bool) -> PoolStats:
    """Add up the statistics of a pool's buckets.

    Args:
        buckets: a label without secrets and the figures of each bucket. Two keys that differ only in a secret
            have the same label; the later ones get ``#2``, ``#3`` behind it.
        cleanup_thread_alive: whether the process's housekeeping thread runs.

    Returns:
        the shape that every pool reports.
    """
    pools: dict[str, dict[str, Any]] = {}
    for label, figures in buckets:
        unique, ordinal = label, 1
        while unique in pools:
            ordinal += 1
            unique = f"{label} #{ordinal}"
        pools[unique] = figures

    def total(figure: str) -> int:
        return sum(figures[figure] for figures in pools.values())

    return {
        "metrics": {
            "total_connections": total("total"),
            "active_connections": total("active"),
            "pool_hits": total("hits"),
            "pool_misses": total("misses"),
            "cleanup_count": total("cleaned"),
        },
        "pools": pools,
        "cleanup_thread_alive": cleanup_thread_alive,
    }
