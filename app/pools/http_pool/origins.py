"""What is known about one origin: its figures and its retry budget, shared by all who call it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from app.pools.core.statistics import Histogram
from app.pools.http_pool.retries import RetryBudget

if TYPE_CHECKING:
    from app.pools.http_pool.calls import Call
    from app.pools.http_pool.response import HTTPResponse


class Origin:
    """The shared state of a scheme, host and port.

    Args:
        label: the origin as it is shown.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.budget = RetryBudget()
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._requests = 0
        self._attempts = 0
        self._retries = 0
        self._refused_retries = 0
        self._failures = 0
        self._deadline_hits = 0
        self._new_connections = 0
        self._bytes_received = 0
        self._statuses = [0] * 10
        self._latency = Histogram()

    def call_started(self) -> None:
        """Count a request as in flight."""
        with self._lock:
            self._in_flight += 1

    def call_ended(self, call: Call, response: HTTPResponse | None) -> None:
        """Count a request that is over; ``response`` is ``None`` if it brought none."""
        with self._lock:
            self._in_flight -= 1
            self._requests += 1
            self._attempts += call.attempts
            self._retries += call.retries
            if response is None:
                self._failures += 1
                return
            self._bytes_received += len(response.content)
            self._statuses[min(response.status_code // 100, 9)] += 1
            self._latency.record(response.request_time)

    def retry_refused(self) -> None:
        """Count a retry that the budget did not allow."""
        with self._lock:
            self._refused_retries += 1

    def deadline_hit(self) -> None:
        """Count a request that ran out of time."""
        with self._lock:
            self._deadline_hits += 1

    def connected(self) -> None:
        """Count a new connection."""
        with self._lock:
            self._new_connections += 1

    def forget_after_fork(self) -> None:
        """Start counting anew in a child process."""
        self.budget = RetryBudget()
        self._reset()

    def figures(self) -> dict[str, Any]:
        """Return the counts; times are seconds."""
        with self._lock:
            attempts, opened = self._attempts, self._new_connections
            return {
                "requests": self._requests,
                "in_flight": self._in_flight,
                "attempts": attempts,
                "retries": self._retries,
                "refused_retries": self._refused_retries,
                "failures": self._failures,
                "deadline_hits": self._deadline_hits,
                "statuses": {f"{i}xx": count for i, count in enumerate(self._statuses) if count},
                "latency": self._latency.summary(),
                "bytes_received": self._bytes_received,
                "new_connections": opened,
                "hits": max(0, attempts - opened),
                "misses": opened,
                "reuse_ratio": max(0.0, 1 - opened / attempts) if attempts else 0.0,
            }
