"""A circuit: stops sending to an origin that fails, and finds out with single requests when it is back."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from app.pools.errors import CircuitOpen


@dataclass(frozen=True, slots=True)
class Outage:
    """What an open circuit knows of its origin.

    Attributes:
        seconds: how long it has been open.
        refuses: whether it would refuse a request now; otherwise the next one is the probe.
        error: what the latest failure was, without secrets.
    """

    seconds: float
    refuses: bool
    error: str

    def __str__(self) -> str:
        return f"circuit open for {self.seconds:.1f} s, last failure: {self.error}"


class Circuit:
    """Opens after ``threshold`` failures in a row; after ``reset`` seconds lets one request through as a probe.

    Whatever becomes of the probe, also a cancellation, it must be ``settle``d: otherwise nothing would ever be
    sent to the origin again.

    Args:
        origin: the origin's label, for the error.
        threshold: failures in a row; 0 never opens.
        reset: seconds.
    """

    __slots__ = (
        "_error", "_failures", "_lock", "_opened_at", "_origin", "_probing", "_reset", "_since", "_threshold", "trips",
    )  # fmt: skip

    def __init__(self, origin: str, threshold: int, reset: float) -> None:
        self._origin = origin
        self._threshold = threshold
        self._reset = reset
        self._lock = threading.Lock()
        self._failures = 0
        self._since = 0.0
        self._opened_at: float | None = None
        """When it began to refuse requests: at first, or again after a probe that failed."""
        self._probing = False
        self._error = ""
        self.trips = 0

    @property
    def open(self) -> bool:
        """Whether requests are refused, but for a probe."""
        return self._opened_at is not None

    def outage(self) -> Outage | None:
        """Return what is known while the circuit is open, else ``None``."""
        with self._lock:
            if self._opened_at is None:
                return None
            now = time.monotonic()
            return Outage(now - self._since, self._probing or now < self._opened_at + self._reset, self._error)

    def admit(self) -> bool:
        """Let a request through. Returns whether it is the probe.

        Raises:
            CircuitOpen: the circuit is open and it is not time for a probe, or one is under way.
        """
        if not self.open:
            return False
        with self._lock:
            if self._opened_at is None:
                return False
            left = self._opened_at + self._reset - time.monotonic()
            if left > 0 or self._probing:
                raise CircuitOpen(self._origin, max(0.0, left))
            self._probing = True
            return True

    def settle(self, *, probe: bool, healthy: bool | None, error: str = "") -> None:
        """Take note of how an admitted request ended.

        Args:
            probe: what ``admit`` returned.
            healthy: whether the origin is; ``None`` if the request says nothing of that.
            error: what failed, without secrets.
        """
        if healthy and not self._failures and not probe:
            return
        with self._lock:
            if probe:
                self._probing = False
            if healthy:
                self._failures = 0
                if probe:
                    self._opened_at = None
            elif healthy is False:
                self._failures += 1
                self._error = error
                self._trip(probe=probe)

    def _trip(self, *, probe: bool) -> None:
        if self._opened_at is None:
            if self._threshold and self._failures >= self._threshold:
                self._opened_at = self._since = time.monotonic()
                self.trips += 1
        elif probe:
            self._opened_at = time.monotonic()
