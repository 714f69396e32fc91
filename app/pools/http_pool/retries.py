"""Retries: which attempt may be repeated, and after what pause. No I/O, the same for threads and tasks."""

from __future__ import annotations

import math
import random
import threading
import time
from email.utils import parsedate_to_datetime

from app.pools.http_pool.config import HTTPConfig

# RFC 9110, section 9.2.2: doing these twice has the effect of doing them once.
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

TOO_MANY_REQUESTS = 429
SERVICE_UNAVAILABLE = 503

# In tenths of a retry, which add up exactly.
_BUDGET = 200
_COST = 10
_REFUND = 1


class RetryBudget:
    """Keeps retries from multiplying an outage: each costs a token, each success gives a tenth of one back.

    While an origin works, one request in ten may be retried on average; while it is down, 20 retries are made
    in all and then none, however many callers there are.
    """

    __slots__ = ("_lock", "_tokens")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = _BUDGET

    def refund(self) -> None:
        """Count a success."""
        if self._tokens < _BUDGET:
            with self._lock:
                self._tokens = min(_BUDGET, self._tokens + _REFUND)

    def spend(self) -> bool:
        """Take the token of one retry; ``False`` if none is left."""
        with self._lock:
            if self._tokens < _COST:
                return False
            self._tokens -= _COST
            return True


def repeatable_status(status: int, *, idempotent: bool, retry_after: float | None) -> bool:
    """Say whether a request that was answered with ``status`` may be sent again.

    A request that is not idempotent is only repeated where the server says that it did nothing: 429, and 503
    with a ``Retry-After``.
    """
    if idempotent:
        return status in RETRIED_STATUSES
    return status == TOO_MANY_REQUESTS or (status == SERVICE_UNAVAILABLE and retry_after is not None)


def pause_before_retry(config: HTTPConfig, retries: int, retry_after: float | None = None) -> float:
    """Return the seconds to wait before retry number ``retries + 1``.

    Without a ``Retry-After`` it is random between 0 and the doubling delay ("full jitter": callers that failed
    together do not come back together). With one it is that, and up to a tenth more.
    """
    if retry_after is not None:
        return retry_after + random.uniform(0.0, 0.1 * max(retry_after, 0.1))
    return random.uniform(0.0, min(config.max_retry_delay, config.retry_delay * 2.0 ** min(retries, 100)))


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header (RFC 9110, section 10.2.3), or ``None`` if it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _seconds_until(date: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
