"""The HTTP pool."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests
from pydantic import SecretStr
from requests.utils import get_environ_proxies, select_proxy

from app.pools.core import forks
from app.pools.core.allowed import require_seconds
from app.pools.core.bucket import NEVER, Bucket
from app.pools.core.defaults import DefaultPool
from app.pools.core.managed import ManagedPool
from app.pools.core.settings import HTTPPoolSettings
from app.pools.errors import PoolClosed
from app.pools.http_pool.account import Account, open_account
from app.pools.http_pool.async_transport import AsyncTransport
from app.pools.http_pool.attempts import attempt_until_settled, attempt_until_settled_async, leave
from app.pools.http_pool.bodies import NO_JSON, Data
from app.pools.http_pool.calls import Call
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.exits import close_at_exit
from app.pools.http_pool.origins import Origin
from app.pools.http_pool.response import HTTPResponse
from app.pools.http_pool.route import Route
from app.pools.http_pool.sessions import LeasedSession
from app.pools.http_pool.streams import EventStream, Stream
from app.pools.http_pool.sync_transport import SyncTransport
from app.pools.http_pool.task_limits import TaskLimit
from app.pools.http_pool.tls import Contexts, tls_key
from app.pools.http_pool.transport import Transport
from app.pools.http_pool.urls import Params
from app.pools.pool import Health

_ACCOUNTS_REMEMBERED = 1024
# Redirects and URLs that others choose may lead anywhere; more than this, plus the transports, are not counted.
_ORIGINS_REMEMBERED = 1024


class HTTPHealth(Health):
    """What the HTTP pool's ``health()`` returns: ``open_circuits`` says of each origin that keeps failing since when
    and why."""

    open_circuits: dict[str, str]


class HTTPPool(ManagedPool):
    """Requests over connections that stay open, with a total deadline, retries, and nothing shared between tenants.

    Args:
        settings: the pool's settings; from the environment, ``.env`` and ``poolwire.toml`` unless given.
    """

    name = "http"

    def __init__(self, settings: HTTPPoolSettings | None = None) -> None:
        self.settings = HTTPPoolSettings() if settings is None else settings
        super().__init__(sweep_interval=min(self.settings.health_check_interval, self.settings.session_timeout))
        self._contexts = Contexts()
        self._origins: dict[str, Origin] = {}
        self._transports: dict[Route, Transport] = {}
        self._accounts: dict[HTTPConfig, Account] = {}
        self._evicted = 0
        close_at_exit(self)

    # Requests

    def request(
        self,
        config: HTTPConfig,
        method: str,
        path: str = "",
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        data: Data = None,
        json: Any = NO_JSON,
        timeout: float | None = None,
    ) -> HTTPResponse:
        """Send a request and return its response, whatever its status.

        Args:
            config: the API.
            method: the method, in any case.
            path: joined below the base URL.
            params: added to the query; ``None`` values are left out.
            headers: take precedence over the configuration's.
            data: the body: bytes, text, a mapping (sent as a form), or an iterable of bytes (sent once, never
                again).
            json: the body, as JSON.
            timeout: the total time in seconds, the configuration's unless given.

        Raises:
            DeadlineExceeded: the total time is up.
            HTTPUnavailable: no response came, and no retry is left or allowed.
            ResponseTooLarge: the body is larger than the configuration allows.
            InvalidURL: the path leaves the base URL.
            PoolTimeout: every connection was in use until the deadline.
            PoolClosed: the pool is stopped.
        """
        call = Call(config, method, path, params=params, headers=headers, data=data, json=json, timeout=timeout)
        origin = self.begin(call)
        response: HTTPResponse | None = None
        try:
            response = call.response(attempt_until_settled(call, self.enter, SyncTransport.send))
            return response
        finally:
            self._end(call, origin, response)

    async def request_async(
        self,
        config: HTTPConfig,
        method: str,
        path: str = "",
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        data: Data = None,
        json: Any = NO_JSON,
        timeout: float | None = None,
    ) -> HTTPResponse:
        """Do what ``request`` does without blocking the event loop."""
        call = Call(config, method, path, params=params, headers=headers, data=data, json=json, timeout=timeout)
        if config not in self._accounts:
            await self.prepare(config)
        origin = self.begin(call)
        response: HTTPResponse | None = None
        try:
            with TaskLimit(call.deadline):
                reply = await attempt_until_settled_async(call, self.enter, AsyncTransport.send)
                response = call.response(reply)
                return response
            raise call.cut_short()
        finally:
            self._end(call, origin, response)

    def begin(self, call: Call) -> Origin:
        """Count a call in; returns the origin at which it must be counted out. For the package's own use."""
        call.account = self.enter(call.config)
        origin = call.account.origin
        origin.call_started()
        return origin

    def end(self, call: Call, origin: Origin, status: int | None, seconds: float, size: int) -> None:
        """Count a call out; ``status`` is ``None`` if it brought no response. For the package's own use."""
        leave(call)
        origin.call_ended(status, seconds, call.retries, size)

    def _end(self, call: Call, origin: Origin, response: HTTPResponse | None) -> None:
        if response is None:
            self.end(call, origin, None, 0.0, 0)
        else:
            self.end(call, origin, response.status_code, response.request_time, len(response.content))

    def stream(
        self,
        config: HTTPConfig,
        method: str,
        path: str = "",
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        data: Data = None,
        json: Any = NO_JSON,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        total_timeout: float | None = None,
        max_size: int | None = None,
    ) -> Stream:
        """Return a stream: ``with`` or ``async with`` sends the request and gives the response as it arrives.

        Args:
            config, method, path, params, headers, data, json: as in ``request``.
            timeout: seconds until the response's headers, retries included; the configuration's unless given.
            idle_timeout: seconds between two pieces of the body; the configuration's unless given.
            total_timeout: seconds for everything; no limit unless given.
            max_size: bytes of the body, decompressed, at most; ``max_response_size`` unless given.

        Raises on entering:
            what ``request`` raises.
        """
        call = Call(config, method, path, params=params, headers=headers, data=data, json=json, timeout=timeout)
        if max_size is not None:
            call.size_limit = max_size
        require_seconds(idle_timeout, "idle_timeout")
        require_seconds(total_timeout, "total_timeout")
        return Stream(self, call, config.idle_timeout if idle_timeout is None else idle_timeout, total_timeout)

    def sse(
        self,
        config: HTTPConfig,
        method: str,
        path: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> EventStream:
        """Return a stream of server-sent events: ``with`` gives an iterator, ``async with`` an asynchronous one.

        Args:
            config, method, path, headers: as in ``request``.
            options: the other keywords of ``stream``.

        Raises on entering:
            HTTPStatusError: the status is 400 or above.
            NotAnEventStream: the response has another content type.
            Exception: what ``request`` raises.
        """
        accept = {"Accept": "text/event-stream", "Cache-Control": "no-store", **(headers or {})}
        return EventStream(self.stream(config, method, path, headers=accept, **options))

    @contextmanager
    def session(self, config: HTTPConfig, timeout: float | None = None) -> Iterator[requests.Session]:
        """Lease a real ``requests.Session``, for code that wants one.

        It is new for each lease and its connections are not: paths are joined below the base URL, headers,
        credentials and timeouts are the configuration's, and so are the retries, the circuit, the limits and the
        size of a body; it raises what requests raises.

        Args:
            config: the API.
            timeout: seconds to wait for a free place, 5 unless given.

        Raises:
            PoolTimeout: none became free in time.
            PoolClosed: the pool is stopped.
        """
        require_seconds(timeout)
        account = self.enter(config)
        transport = account.transport
        try:
            entry = transport.adapters.checkout(timeout)
            try:
                with LeasedSession(account, entry.resource) as session:
                    yield session
            finally:
                transport.adapters.give_back(entry)
        finally:
            transport.leave()

    # Transports

    def enter(self, config: HTTPConfig) -> Account:
        """Return the account of ``config``, with a call counted in at its transport. For the package's own use."""
        self._ensure_running()
        while True:
            account = self._accounts.get(config)
            if account is not None and account.transport.enter():
                return account
            self._find(config)

    async def prepare(self, config: HTTPConfig) -> None:
        """Load what ``config`` trusts without blocking the event loop. For the package's own use."""
        if config.target.scheme == "https":
            await self._contexts.prepare(tls_key(config))

    def _find(self, config: HTTPConfig) -> None:
        """Make an account for ``config``, and a transport unless there is one for its route."""
        route = self._route(config)
        retired: list[Transport] = []
        with self._lock:
            if self._closed:
                raise PoolClosed(self.name)
            transport = self._transports.get(route)
            if transport is None:
                origin = self._origin(route.label)
                transport = Transport(route, origin, self._contexts, self.settings.leak_threshold)
                while len(self._transports) >= self.settings.max_sessions:
                    # Least recently used; one that is in use only if all are.
                    oldest = min(self._transports.values(), key=lambda each: (each.busy, each.last_used))
                    retired.append(self._forget(oldest))
                self._transports[route] = transport
                for bucket in transport.buckets():
                    self._hold_back(bucket)
            if len(self._accounts) >= _ACCOUNTS_REMEMBERED:
                self._accounts.clear()
            self._accounts[config] = open_account(config, transport)
        for each in retired:
            each.retire()

    def _origin(self, label: str) -> Origin:
        origin = self._origins.get(label)
        if origin is None:
            if len(self._origins) >= _ORIGINS_REMEMBERED + self.settings.max_sessions:
                used = {each.origin for each in self._transports.values()}
                del self._origins[next(name for name, each in self._origins.items() if each not in used)]
            origin = self._origins[label] = Origin(label)
        return origin

    def _forget(self, transport: Transport) -> Transport:
        del self._transports[transport.route]
        for config in [config for config, each in self._accounts.items() if each.transport is transport]:
            del self._accounts[config]
        self._evicted += 1
        return transport

    def _route(self, config: HTTPConfig) -> Route:
        target = config.target
        proxy = config.proxy.get_secret_value() if isinstance(config.proxy, SecretStr) else None
        if proxy is None and config.trust_env:
            proxy = select_proxy(target.origin, get_environ_proxies(target.origin))
        tls = tls_key(config)
        return Route(
            target=target.at_root(),
            tls=tls,
            context=self._contexts.get(tls) if target.scheme == "https" else None,
            proxy=proxy,
            max_connections=config.max_connections or self.settings.max_connections,
            connect_timeout=config.connect_timeout,
            keepalive=config.keepalive,
            max_lifetime=self.settings.max_lifetime or NEVER,
            block_private=config.block_private,
            setting="max_connections of its HTTPConfig" if config.max_connections else None,
        )

    # Life

    def _buckets(self) -> Iterable[Bucket[Any]]:
        return [bucket for transport in self._all() for bucket in transport.buckets()]

    def _refuse(self) -> None:
        for transport in self._all():
            transport.refuse()

    def _drain(self, deadline: float) -> list[str]:
        holders = [holder for transport in self._all() for holder in transport.drain(deadline)]
        with self._lock:
            self._transports.clear()
            self._accounts.clear()
        return holders

    def close_idle(self) -> None:
        """Close the idle connections of threads; those of tasks are their event loops'."""
        for transport in self._all():
            transport.sync.bucket.clear()
            transport.adapters.clear()

    def sweep(self) -> None:
        """Close transports and connections that are idle too long."""
        horizon = time.monotonic() - self.settings.session_timeout
        with self._lock:
            idle = [each for each in self._transports.values() if not each.busy and each.last_used <= horizon]
            for each in idle:
                self._forget(each)
        for each in idle:
            each.retire()
        for transport in self._all():
            transport.sweep()

    def forget_after_fork(self) -> None:
        """Start with no connection in a child process."""
        super().forget_after_fork()
        self._contexts.forget_after_fork()
        for transport in self._transports.values():
            transport.forget_after_fork()
        for origin in self._origins.values():
            origin.forget_after_fork()
        forks.bury(self._transports)
        self._transports = {}
        self._accounts = {}

    def _all(self) -> list[Transport]:
        with self._lock:
            return list(self._transports.values())

    def health(self) -> HTTPHealth:
        """Say which origins keep failing, as far as requests have shown it; none is sent to find out."""
        health = super().health()
        with self._lock:
            origins = list(self._origins.values())
        outages = {origin.label: outage for origin in origins if (outage := origin.outage()) is not None}
        # A circuit that would let a request through is no reason: who waited for health would never send the request
        # that closes it.
        reasons = health["reasons"] + [f"{label}: {outage}" for label, outage in outages.items() if outage.refuses]
        return {
            "healthy": not reasons,
            "reasons": reasons,
            "open_circuits": {label: str(outage) for label, outage in outages.items()},
        }

    def _figures(self) -> Iterable[tuple[str, dict[str, Any]]]:
        with self._lock:
            origins = list(self._origins.values())
            transports = list(self._transports.values())
        for origin in origins:
            figures = {"total": 0, "active": 0, "queued": 0, "cleaned": 0, **origin.figures()}
            for transport in transports:
                if transport.origin is origin:
                    for name, count in transport.connections().items():
                        figures[name] += count
            yield origin.label, figures


_default = DefaultPool(HTTPPool)


def get_http_pool() -> HTTPPool:
    """Return the process's default pool: made at the first call, and anew after it was stopped."""
    return _default.get()
