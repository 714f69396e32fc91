"""What a leased session sends, by the pool's rules."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from typing import Any, NoReturn

import requests
from requests.adapters import BaseAdapter
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from app.pools.errors import CircuitOpen, DeadlineExceeded, HTTPUnavailable, PoolTimeout
from app.pools.http_pool.account import Account
from app.pools.http_pool.adapters import SharedAdapter
from app.pools.http_pool.attempts import attempt_until_settled, give_up_place
from app.pools.http_pool.bodies import NO_JSON
from app.pools.http_pool.calls import Call, Failure, Step
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.origins import Origin
from app.pools.http_pool.sync_transport import SyncTransport
from app.pools.http_pool.urls import is_of

# Headers of a session's request that decide how it is treated.
_DECISIVE = ("Authorization", "Idempotency-Key")


class SessionAdapter(BaseAdapter):
    """Sends the requests of one lease by the pool's rules: circuit, rate, queue, fetched tokens, retries with their
    budget until the headers are there, and a limit to the body. Raises what requests raises.

    Args:
        account: what the session's configuration uses.
        connections: the leased connections.
    """

    def __init__(self, account: Account, connections: SharedAdapter) -> None:
        super().__init__()
        self._account = account
        self._connections = connections
        self._bodies: weakref.WeakSet[Any] = weakref.WeakSet()

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        """Return the answer that stands, its body still to be read."""
        config = self._account.config
        if is_of(config.target, request.url or ""):
            response = self._send_by_the_rules(request, options)
        else:  # a redirect led here: neither the circuit nor the credentials are this origin's
            response = self._connections.send(request, **options)
        _limit_body(response, config, self._account.origin)
        self._bodies.add(response.raw)
        return response

    def _send_by_the_rules(self, request: requests.PreparedRequest, options: dict[str, Any]) -> requests.Response:
        origin = self._account.origin
        call = _SessionCall(self._account, request)
        last: requests.RequestException | None = None

        def send(_: SyncTransport, call: Call) -> _SessionAnswer | Failure:
            nonlocal last
            if call.wants_token:
                request.headers["Authorization"] = call.headers["Authorization"]
            try:
                return _SessionAnswer(self._connections.send(request, **options))
            except requests.RequestException as error:
                last = error
                return _failure(error)

        response: requests.Response | None = None
        origin.call_started()
        try:
            response = attempt_until_settled(call, _never_elsewhere, send).response
            return response
        except (HTTPUnavailable, DeadlineExceeded) as error:
            if last is not None:
                raise last  # noqa: B904 - as if there had been one attempt, which is what requests' users expect
            raise requests.Timeout(str(error), request=request) from error
        except (CircuitOpen, PoolTimeout) as error:
            raise requests.ConnectionError(str(error), request=request) from error
        finally:
            give_up_place(call)
            status = None if response is None else response.status_code
            origin.call_ended(status, time.monotonic() - call.started, call.retries, 0)

    def close(self) -> None:
        """End what was not read; the connections of what was outlive the session."""
        for body in list(self._bodies):
            body.close()


class _SessionCall(Call):
    """A request of a session, which follows redirects by itself."""

    __slots__ = ()

    def __init__(self, account: Account, request: requests.PreparedRequest) -> None:
        given = {name: str(request.headers[name]) for name in _DECISIVE if name in request.headers}
        method = request.method or "GET"
        super().__init__(account.config, method, "", params=None, headers=given, data=None, json=NO_JSON, timeout=None)
        body = request.body
        self.body = body.encode() if isinstance(body, str) else body
        self.account = account

    def _redirected(self, status: int, location: str) -> Step:
        return None


class _SessionAnswer:
    """An answer as the retry policy sees it."""

    def __init__(self, response: requests.Response) -> None:
        self.response = response
        self.status = response.status_code
        self.headers = response.headers

    def close(self) -> None:
        self.response.close()


def _never_elsewhere(config: HTTPConfig) -> NoReturn:
    raise AssertionError("a session follows its redirects itself")


def _failure(error: requests.RequestException) -> Failure:
    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", None) or inner
    untrusted = isinstance(error, requests.exceptions.SSLError)
    blocked = "is not a public address" in str(inner)
    reached = isinstance(error, requests.ConnectionError | requests.Timeout)
    return Failure(
        reason=type(error).__name__,
        sent=not (untrusted or isinstance(inner, NewConnectionError | ConnectTimeoutError)),
        permanent=untrusted or blocked or not reached,
    )


def _limit_body(response: requests.Response, config: HTTPConfig, origin: Origin) -> None:
    """Have the body counted while it is read, decompressed, and ended above the configuration's limit."""
    raw, limit = response.raw, config.max_response_size
    stream = raw.stream

    def counted(amt: int | None = 65536, decode_content: bool | None = None) -> Iterator[bytes]:
        size = 0
        try:
            for piece in stream(amt, decode_content):
                size += len(piece)
                if size > limit:
                    raw.close()
                    raise requests.RequestException(
                        f"{origin.label} answered with more than {limit} bytes; raise HTTPConfig(max_response_size=...)"
                    )
                yield piece
        finally:
            origin.received(size)

    raw.stream = counted  # type: ignore[method-assign]
