"""One call: a request with its attempts. Every decision is made here and no byte is moved, so that threads and
tasks follow the same rules."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from app.pools.core.allowed import require_seconds
from app.pools.errors import DeadlineExceeded, HTTPUnavailable, PoolTimeout, ResponseTooLarge, TooManyRedirects
from app.pools.http_pool.bodies import Data, encode_body, replayable
from app.pools.http_pool.config import HTTPConfig, authorization, beyond_default, require_method, require_sendable
from app.pools.http_pool.redirects import REDIRECTS, follow, harmless, stranger, without_body
from app.pools.http_pool.response import HeaderPairs, HTTPResponse, header
from app.pools.http_pool.retries import (
    IDEMPOTENT_METHODS,
    RETRIED_STATUSES,
    parse_retry_after,
    pause_before_retry,
    repeatable_status,
)
from app.pools.http_pool.urls import Params, join

if TYPE_CHECKING:
    from app.pools.core.bucket import Bucket, Entry
    from app.pools.http_pool.account import Account

UNAUTHORIZED = 401
_BROKEN = frozenset({500, 502, 503, 504})


class Answer(Protocol):
    """What came back from one attempt, its body read or still to be read."""

    @property
    def status(self) -> int:
        """The status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers as the library gives them."""


@dataclass(slots=True)
class Reply:
    """An answer whose body was read."""

    status: int
    headers: Mapping[str, str]
    pairs: HeaderPairs
    content: bytes

    def close(self) -> None:
        """Do nothing: nothing is held any more."""


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
    ours: bool = False
    """Whether it says nothing of the origin, but of this process."""
    late: bool = False
    """Whether it was our deadline that ended it."""
    cause: BaseException | None = None
    """The operating system's error, which holds no secret."""
    kind: type[HTTPUnavailable] = HTTPUnavailable


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The call goes on at another origin."""

    config: HTTPConfig


# What follows an attempt: nothing, another one after so many seconds, or one at another origin.
Step: TypeAlias = "float | Elsewhere | None"


class Call:
    """The state of one call.

    Attributes:
        account: what its present configuration uses; set by the pool before the first attempt, and again where
            a redirect leads to another origin.
        place: the place that it holds among ``max_concurrency``, while it does.
        queue: in which a task's call waits for a place or a connection, while it does.
    """

    __slots__ = (
        "_authorizes",
        "_repeated_for_token",
        "_token",
        "account",
        "attempts",
        "body",
        "config",
        "deadline",
        "headers",
        "idempotent",
        "method",
        "path",
        "place",
        "queue",
        "redirects",
        "retries",
        "size_limit",
        "started",
        "timeout",
    )

    account: Account

    def __init__(
        self,
        config: HTTPConfig,
        method: str,
        path: str,
        *,
        params: Params | None,
        headers: Mapping[str, str] | None,
        data: Data,
        json: Any,
        timeout: float | None,
    ) -> None:
        if not isinstance(config, HTTPConfig):
            raise TypeError(
                f"the first argument is an HTTPConfig, as in HTTPConfig('https://h/v1'), not {type(config)}"
            )
        self.started = time.monotonic()
        if timeout is None:
            timeout = config.timeout
        else:
            require_seconds(timeout)
        self.timeout = timeout
        self.deadline = self.started + self.timeout
        self.config = config
        self.size_limit = config.max_response_size
        self.method = method.upper()
        if not (self.method.isalpha() and self.method.isascii()):
            require_method(self.method)
        self.path = join(config.target, path, params)
        self.body, content_type = encode_body(data, json)
        self.headers = merged_headers(config, headers, content_type)
        self.idempotent = self.method in IDEMPOTENT_METHODS or header(self.headers, "Idempotency-Key") is not None
        self.attempts = self.retries = self.redirects = 0
        self.place: Entry[object] | None = None
        self.queue: Bucket[Any] | None = None
        self._authorizes = callable(config.auth) and header(self.headers, "Authorization") is None
        self._token: str | None = None
        self._repeated_for_token = False

    @property
    def url(self) -> str:
        """Where the request goes, in full."""
        return self.config.origin + self.path

    @property
    def own_headers(self) -> dict[str, str] | None:
        """The headers that not every request has."""
        headers = self.headers
        return self.config.own_headers if headers is self.config.base_headers else beyond_default(headers)

    # Time

    def restart(self) -> None:
        """Count the time from now: a stream is made before it is entered."""
        self.started = time.monotonic()
        self.deadline = self.started + self.timeout

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
        self.account.origin.deadline_hit()
        return DeadlineExceeded(
            f"{self.method} {self.account.origin.label} did not end within {self.timeout:g} s "
            f"({self.attempts} attempt(s)); raise timeout= if the server needs longer"
        )

    def cut_short(self) -> DeadlineExceeded | PoolTimeout:
        """Return the error for a task's call that its ``TaskLimit`` has ended, wherever it was, and count it."""
        if self.queue is None:
            return self.too_late()
        return self.queue.timed_out(time.monotonic() - self.started)

    def turn(self) -> float:
        """Return the seconds until the rate limit lets this call send.

        Raises:
            DeadlineExceeded: that would be after the deadline; nothing was waited for.
        """
        pacer = self.account.pacer
        pause = 0.0 if pacer is None else pacer.reserve(self.deadline)
        if pause is None:
            self.account.origin.deadline_hit()
            raise DeadlineExceeded(
                f"{self.method} {self.account.origin.label} would have to wait for its turn until after its "
                f"deadline of {self.timeout:g} s: rate_limit={self.config.rate_limit:g} per second is in use"
            )
        return pause

    # Credentials

    @property
    def wants_token(self) -> bool:
        """Whether a token must be fetched for the next attempt."""
        return self._authorizes

    def authorize(self, token: str | None) -> None:
        """Use ``token`` from now on; ``None`` means that it did not come in time."""
        if token is None:
            raise self.too_late()
        if token != self._token:
            self._token = token
            header = {"Authorization": authorization(token)}
            require_sendable(header)
            self.headers = {**self.headers, **header}

    # What follows

    def healthy(self, outcome: Answer | Failure) -> bool | None:
        """Say whether an outcome speaks for the origin, against it, or neither."""
        if isinstance(outcome, Failure):
            return None if outcome.permanent or outcome.ours else False
        return outcome.status not in _BROKEN

    def trouble(self, outcome: Answer | Failure) -> str:
        """Return what speaks against the origin, without secrets."""
        if not isinstance(outcome, Failure):
            return f"status {outcome.status}"
        return "no answer until the deadline" if self._ran_out(outcome) else outcome.reason

    def _ran_out(self, failure: Failure) -> bool:
        return failure.late or time.monotonic() >= self.deadline

    def after_answer(self, answer: Answer) -> Step:
        """Return what follows an answer; ``None`` if it stands.

        Raises:
            TooManyRedirects: it is one redirect too many.
            InvalidURL: it redirects to what is no http(s) URL.
        """
        status = answer.status
        if status not in RETRIED_STATUSES:
            self.account.origin.budget.refund()
        if status < 300:
            return None
        if status in REDIRECTS:
            location = answer.headers.get("Location")
            return None if location is None or not self.config.max_redirects else self._redirected(status, location)
        if status == UNAUTHORIZED and self._renews_token():
            return 0.0
        return self._pause_for_status(status, answer.headers.get("Retry-After"))

    def after_failure(self, failure: Failure) -> float:
        """Return the seconds to pause before the next attempt.

        Raises:
            HTTPUnavailable: there is none.
            DeadlineExceeded: the time is up.
        """
        if self._ran_out(failure):
            raise self.too_late()
        if not failure.permanent and (self.idempotent or not failure.sent):
            pause = self._pause(None)
            if pause is not None:
                return pause
        raise failure.kind(
            f"{self.method} {self.account.origin.label} brought no response after {self.attempts} attempt(s): "
            f"{failure.reason}"
        ) from failure.cause

    def _pause_for_status(self, status: int, said: str | None) -> float | None:
        retry_after = parse_retry_after(said)
        if not repeatable_status(status, idempotent=self.idempotent, retry_after=retry_after):
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
        origin = self.account.origin
        if not origin.budget.spend():
            origin.retry_refused()
            return None
        self.retries += 1
        return pause

    def _renews_token(self) -> bool:
        tokens = self.account.tokens
        if tokens is None or self._token is None or self._repeated_for_token or not replayable(self.body):
            return False
        tokens.expire(self._token)
        self._repeated_for_token = True
        return True

    def _redirected(self, status: int, location: str) -> Step:
        if self.redirects >= self.config.max_redirects:
            raise TooManyRedirects(
                f"{self.method} {self.account.origin.label} was redirected more than {self.config.max_redirects} "
                "times; raise HTTPConfig(max_redirects=...) if that is right"
            )
        hop = follow(self.url, self.method, status, location)
        if hop.keeps_body and not replayable(self.body):
            return None
        self.redirects += 1
        self.method, self.path = hop.method, hop.target.path
        if not hop.keeps_body:
            self.body = None
            self.headers = without_body(self.headers)
        if hop.target.origin == self.config.origin:
            return 0.0
        self.config = stranger(self.config, hop.target)
        self.headers = harmless(self.headers)
        self._authorizes = False
        return Elsewhere(self.config)

    # The result

    def response(self, reply: Reply) -> HTTPResponse:
        """Return what the caller gets."""
        return HTTPResponse(
            reply.status, reply.pairs, reply.content, self.url, time.monotonic() - self.started, self.retries
        )

    def too_large(self) -> ResponseTooLarge:
        """Return the error for a body above the limit."""
        return ResponseTooLarge(
            f"{self.method} {self.account.origin.label} answered with more than {self.size_limit} bytes; "
            "raise HTTPConfig(max_response_size=...), or max_size= of a stream"
        )


def merged_headers(config: HTTPConfig, given: Mapping[str, str] | None, content_type: str | None) -> dict[str, str]:
    """Return the headers of a request: the given ones first, then the configuration's, then the body's."""
    if not given and content_type is None:
        return config.base_headers
    headers = dict(config.base_headers)
    if content_type is not None and header(headers, "Content-Type") is None:
        headers["Content-Type"] = content_type
    if given:
        replaced = {name.lower() for name in given}
        headers = {name: value for name, value in headers.items() if name.lower() not in replaced}
        require_sendable(given)
        headers.update(given)
    return headers
