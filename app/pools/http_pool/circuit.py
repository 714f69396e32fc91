"""A circuit: stops sending to an origin that fails, and finds out with single requests when it is back."""

from __future__ import annotations

import threading
import time

from app.pools.errors import CircuitOpen


class Circuit:
    """Opens after ``threshold`` failures in a row; after ``reset`` seconds lets one request through as a probe.

    Whatever becomes of the probe, also a cancellation, it must be ``settle``d: otherwise nothing would ever be
    sent to the origin again.

    Args:
        origin: the origin's label, for the error.
        threshold: failures in a row; 0 never opens.
        reset: seconds.
    """

    __slots__ = ("_failures", "_lock", "_opened_at", "_origin", "_probing", "_reset", "_threshold", "trips")

    def __init__(self, origin: str, threshold: int, reset: float) -> None:
        self._origin = origin
        self._threshold = threshold
        self._reset = reset
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False
        self.trips = 0

    @property
    def open(self) -> bool:
        """Whether requests are refused, but for a probe."""
        return self._opened_at is not None

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

    def settle(self, *, probe: bool, healthy: bool | None) -> None:
        """Take note of how an admitted request ended; ``healthy`` is ``None`` if that says nothing of the origin."""
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
                self._trip(probe=probe)

    def _trip(self, *, probe: bool) -> None:
        if self._opened_at is None:
            if self._threshold and self._failures >= self._threshold:
                self._opened_at = time.monotonic()
                self.trips += 1
        elif probe:
            self._opened_at = time.monotonic()
