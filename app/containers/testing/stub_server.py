"""A real HTTP server on loopback that stands for the APIs of a test and keeps a record of what it received."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import orjson

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReceivedRequest:
    """One request as the server received it."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body read as JSON."""
        return orjson.loads(self.body)


@dataclass(frozen=True)
class _Reply:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class StubServer:
    """Answers what a test told it to, and 501 with an explanation to everything else.

    Attributes:
        base_url: where it listens, from ``start`` on.
        requests: what it received, in order.
    """

    def __init__(self) -> None:
        self.base_url = ""
        self.requests: list[ReceivedRequest] = []
        self._replies: dict[tuple[str, str], _Reply] = {}
        self._server: ThreadingHTTPServer | None = None

    def reply(
        self,
        method: str,
        path: str,
        *,
        status: int = 200,
        json: Any = None,
        text: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer ``method`` on ``path`` in this way from now on.

        Args:
            method: such as ``"GET"``.
            path: the path, without a query; for ``[apis.NAME]`` of ``agent_container`` it begins with ``/NAME``.
            status: the status code.
            json: the body, written as JSON.
            text: the body as plain text, in place of ``json``.
            headers: further headers.
        """
        kind, body = ("application/json", orjson.dumps(json)) if text is None else ("text/plain", text.encode())
        self._replies[method.upper(), path] = _Reply(status, body, {"Content-Type": kind, **(headers or {})})

    def start(self) -> None:
        """Listen on a free port of the loopback address."""
        if self._server is None:
            self._server = _Server(self)
            self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}"
            threading.Thread(target=self._server.serve_forever, args=(0.02,), name="stub-http", daemon=True).start()

    def stop(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def answer(self, request: ReceivedRequest) -> _Reply:
        """Record ``request`` and return what to answer."""
        self.requests.append(request)
        reply = self._replies.get((request.method, request.path))
        if reply is None:
            explanation = f"the test gave no reply for {request.method} {request.path}; call reply() of the stub server"
            _log.warning("%s", explanation)  # pytest shows it with the failure, whatever became of the response
            return _Reply(501, explanation.encode(), {"Content-Type": "text/plain"})
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client's kept-alive connection would hold the end of the test

    def __init__(self, stub: StubServer) -> None:
        self.stub = stub
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        received = ReceivedRequest(
            self.command, parts.path, parse_qs(parts.query), dict(self.headers.items()), self.rfile.read(length)
        )
        reply = self.server.stub.answer(received)
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the record is what a test looks at."""
