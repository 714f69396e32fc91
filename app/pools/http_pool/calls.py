"""One call: a request with its attempts. Every decision is made here and no byte is moved, so that threads and
tasks follow the same rules."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.pools.errors import DeadlineExceeded, HTTPUnavailable, ResponseTooLarge
from app.pools.http_pool.bodies import Data, encode_body, replayable
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.origins import Origin
from app.pools.http_pool.response import HeaderPairs, HTTPResponse, header
from app.pools.http_pool.retries import (
    IDEMPOTENT_METHODS,
    parse_retry_after,
    pause_before_retry,
    repeatable_status,
)
from app.pools.http_pool.urls import Params, join


@dataclass(slots=True)
class Reply:
    """What came back from one attempt: ``headers`` as the library gives them, the body read."""

    status: int
    headers: Mapping[str, str]
    pairs: HeaderPairs
    content: bytes


@dataclass(slots=True)
class Failure:
    """An attempt that brought no response.

    A value, not an exception: the libraries' own errors carry the request's headers, and an error raised while
    one is handled would keep it as its context.
    """

    reason: str
    sent: bool
    """Whether the server may have seen the request."""
    permanent: bool = False
    """Whether another attempt would end alike."""
    cause: BaseException | None = None
    """The operating system's error, which holds no secret."""
    kind: type[HTTPUnavailable] = HTTPUnavailable


class Call:
    """The state of one call."""

    __slots__ = (
        "attempts",
        "body",
        "config",
        "deadline",
        "headers",
        "idempotent",
        "method",
        "origin",
        "path",
        "retries",
        "started",
        "timeout",
    )

    def __init__(
        self,
        config: HTTPConfig,
        origin: Origin,
        method: str,
        path: str,
        *,
        params: Params | None,
        headers: Mapping[str, str] | None,
        data: Data,
        json: Any,
        timeout: float | None,
    ) -> None:
        self.started = time.monotonic()
        self.timeout = config.timeout if timeout is None else timeout
        self.deadline = self.started + self.timeout
        self.config = config
        self.origin = origin
        self.method = method.upper()
        self.path = join(config.target, path, params)
        self.body, content_type = encode_body(data, json)
        self.headers = request_headers(config, headers, content_type)
        self.idempotent = self.method in IDEMPOTENT_METHODS or header(self.headers, "Idempotency-Key") is not None
        self.attempts = 0
        self.retries = 0

    @property
    def url(self) -> str:
        """Where the request goes, in full."""
        return self.config.target.origin + self.path

    def remaining(self) -> float:
        """Return the seconds until the deadline, which is still ahead.

        Raises:
            DeadlineExceeded: it is not.
        """
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise self.too_late()
        return seconds

    def too_late(self) -> DeadlineExceeded:
        """Return the error for a call that ran out of time, and count it."""
        self.origin.deadline_hit()
        return DeadlineExceeded(
            f"{self.method} {self.origin.label} did not end within {self.timeout:g} s "
            f"({self.attempts} attempt(s)); raise timeout= if the server needs longer"
        )

    def too_large(self) -> ResponseTooLarge:
        """Return the error for a body above the limit."""
        limit = self.config.max_response_size
        return ResponseTooLarge(
            f"{self.method} {self.origin.label} answered with more than {limit} bytes; "
            "raise HTTPConfig(max_response_size=...), or stream it"
        )

    def settle(self, outcome: Reply | Failure) -> HTTPResponse | float:
        """Return the response, or the seconds to pause before the next attempt.

        Raises:
            HTTPUnavailable: there was no reply, and there is no further attempt.
            DeadlineExceeded: there was no reply, and the time is up.
        """
        if isinstance(outcome, Failure):
            return self._after_failure(outcome)
        pause = self._after_reply(outcome)
        return self._response(outcome) if pause is None else pause

    def _after_failure(self, failure: Failure) -> float:
        if time.monotonic() >= self.deadline:
            raise self.too_late()
        if not failure.permanent and (self.idempotent or not failure.sent):
            pause = self._pause(None)
            if pause is not None:
                return pause
        raise failure.kind(
            f"{self.method} {self.origin.label} brought no response after {self.attempts} attempt(s): {failure.reason}"
        ) from failure.cause

    def _after_reply(self, reply: Reply) -> float | None:
        if reply.status < 400:
            self.origin.budget.refund()
            return None
        retry_after = parse_retry_after(reply.headers.get("Retry-After"))
        if not repeatable_status(reply.status, idempotent=self.idempotent, retry_after=retry_after):
            if reply.status < 500:
                self.origin.budget.refund()
            return None
        if retry_after is not None and retry_after > self.config.max_retry_after:
            return None
        return self._pause(retry_after)

    def _pause(self, retry_after: float | None) -> float | None:
        """Return the pause before a retry, if one is allowed and can still begin before the deadline."""
        if self.retries >= self.config.max_retries or not replayable(self.body):
            return None
        pause = pause_before_retry(self.config, self.retries, retry_after)
        if time.monotonic() + pause >= self.deadline:
            return None
        if not self.origin.budget.spend():
            self.origin.retry_refused()
            return None
        self.retries += 1
        return pause

    def _response(self, reply: Reply) -> HTTPResponse:
        return HTTPResponse(
            reply.status, reply.pairs, reply.content, self.url, time.monotonic() - self.started, self.retries
        )


def request_headers(config: HTTPConfig, given: Mapping[str, str] | None, content_type: str | None) -> dict[str, str]:
    """Return the headers of a request: the given ones first, then the configuration's, then the body's."""
    if not given and content_type is None:
        return config.base_headers
    headers = dict(config.base_headers)
    if content_type is not None and header(headers, "Content-Type") is None:
        headers["Content-Type"] = content_type
    if given:
        replaced = {name.lower() for name in given}
        headers = {name: value for name, value in headers.items() if name.lower() not in replaced}
        headers.update(given)
    return headers
