"""What is known about one origin: figures, the retry budget, circuits, queues, shared by all who call it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from app.pools.core.bucket import Bucket, Limits
from app.pools.core.statistics import recent_summary
from app.pools.http_pool.circuit import Circuit, Outage
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.limits import Pacer
from app.pools.http_pool.retries import RetryBudget
from app.pools.http_pool.tokens import TokenSource

_REMEMBERED = 1024
_LATEST = 4096

V = TypeVar("V")


def _remembered(values: dict[object, V], key: object, make: Callable[[], V]) -> V:
    """Return the value of ``key``, made at the first call; the oldest is forgotten for the 1,025th."""
    value = values.get(key)
    if value is None:
        if len(values) >= _REMEMBERED:
            del values[next(iter(values))]
        value = values[key] = make()
    return value


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
        self._answered = 0
        self._answer_time = 0.0
        self._latest: deque[float] = deque(maxlen=_LATEST)
        self._circuits: dict[tuple[int, float], Circuit] = {}
        self._gates: dict[int, Bucket[object]] = {}
        self._pacers: dict[object, Pacer] = {}
        self._tokens: dict[object, TokenSource] = {}

    def circuit(self, threshold: int, reset: float) -> Circuit:
        """Return the circuit that all configurations with these limits share."""
        with self._lock:
            return self._circuits.setdefault((threshold, reset), Circuit(self.label, threshold, reset))

    def gate(self, capacity: int) -> Bucket[object]:
        """Return the places that all configurations with this ``max_concurrency`` share, handed out in order."""
        with self._lock:
            if capacity not in self._gates:
                limits = Limits(capacity, setting="max_concurrency of its HTTPConfig")
                self._gates[capacity] = Bucket("http", self.label, limits, create=object, destroy=lambda place: None)
            return self._gates[capacity]

    def pacer(self, config: HTTPConfig) -> Pacer | None:
        """Return what keeps the rate of all who call with the same headers and credentials."""
        if config.rate_limit is None:
            return None
        key = (config.tenant, config.rate_limit, config.rate_burst)
        with self._lock:
            return _remembered(self._pacers, key, lambda: Pacer(config.rate_limit or 1.0, config.rate_burst))

    def tokens(self, config: HTTPConfig) -> TokenSource | None:
        """Return the tokens of a configuration whose ``auth`` is a function."""
        provide = config.auth
        if not callable(provide):
            return None
        with self._lock:
            return _remembered(self._tokens, provide, lambda: TokenSource(provide))

    def call_started(self) -> None:
        """Count a request as in flight."""
        with self._lock:
            self._in_flight += 1

    def attempt_started(self) -> None:
        """Count an attempt."""
        with self._lock:
            self._attempts += 1

    def call_ended(self, status: int | None, seconds: float, retries: int, size: int) -> None:
        """Count a request that is over; ``status`` is ``None`` if it brought no response."""
        with self._lock:
            self._in_flight -= 1
            self._requests += 1
            self._retries += retries
            self._bytes_received += size
            if status is None:
                self._failures += 1
            else:
                self._statuses[min(status // 100, 9)] += 1
                self._answered += 1
                self._answer_time += seconds
                self._latest.append(seconds)

    def received(self, size: int) -> None:
        """Count bytes of a body."""
        with self._lock:
            self._bytes_received += size

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

    def outage(self) -> Outage | None:
        """Return what an open circuit tells, of several the one that refuses requests; ``None`` if none is open."""
        with self._lock:
            circuits = list(self._circuits.values())
        outages = [outage for circuit in circuits if (outage := circuit.outage()) is not None]
        return max(outages, key=lambda outage: (outage.refuses, outage.seconds), default=None)

    def figures(self) -> dict[str, Any]:
        """Return the counts; times are seconds."""
        with self._lock:
            latest = self._latest.copy()
        latency = recent_summary(latest)  # which sorts them: not while others want to count
        with self._lock:
            attempts, opened = self._attempts, self._new_connections
            circuits = list(self._circuits.values())
            return {
                "requests": self._requests,
                "in_flight": self._in_flight,
                "attempts": attempts,
                "retries": self._retries,
                "refused_retries": self._refused_retries,
                "failures": self._failures,
                "deadline_hits": self._deadline_hits,
                "statuses": {f"{i}xx": count for i, count in enumerate(self._statuses) if count},
                "latency": {**latency, "count": self._answered, "total": self._answer_time},
                "circuit_trips": sum(circuit.trips for circuit in circuits),
                "circuit": "open" if any(circuit.open for circuit in circuits) else "closed",
                "queued": sum(gate.stats()["waiting"] for gate in self._gates.values()),
                "bytes_received": self._bytes_received,
                "new_connections": opened,
                "hits": max(0, attempts - opened),
                "misses": opened,
                "reuse_ratio": max(0.0, 1 - opened / attempts) if attempts else 0.0,
            }
