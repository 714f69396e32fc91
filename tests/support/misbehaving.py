"""An HTTP server of our own that misbehaves on request: the path says how, the query how much."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TLS = Path(__file__).parent / "tls"
"""Certificates of a made-up authority, for 127.0.0.1 and localhost: ``ca.pem``, ``server.pem``, ``client.pem``."""


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


@dataclass
class Exchange:
    """One request and the connection that it came on."""

    request: Seen
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    count: int
    """How many requests with this path and ``key`` came so far, this one included."""

    def number(self, name: str, default: float) -> float:
        return float(self.request.query.get(name, default))

    async def write(self, *parts: bytes, every: float = 0.0) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            # Always a pause: over TLS `drain` may return at once for ever after the client has gone (Python 3.11).
            await asyncio.sleep(every)

    async def answer(self, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        fields.update({name.replace("_", "-"): value for name, value in headers.items()})
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        empty = self.request.method == "HEAD" or status in (204, 304)
        await self.write(f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode("latin-1") + (b"" if empty else body))

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Hangup(Exception):
    """The handler wants the connection closed."""


Handler = Callable[[Exchange], Awaitable[None]]
_HANDLERS: dict[str, Handler] = {}


def _on(path: str) -> Callable[[Handler], Handler]:
    def keep(handler: Handler) -> Handler:
        _HANDLERS[path] = handler
        return handler

    return keep


@_on("/echo")
async def _echo(it: Exchange) -> None:
    seen = it.request
    said = {"method": seen.method, "target": seen.target, "headers": seen.headers, "body": seen.body.decode("latin-1")}
    await it.answer(body=json.dumps(said).encode())


@_on("/slow")
async def _slow(it: Exchange) -> None:
    await asyncio.sleep(it.number("s", 0.05))
    await _echo(it)


@_on("/hang")
async def _hang(it: Exchange) -> None:
    await it.reader.read()  # until the client gives up
    raise Hangup


@_on("/status")
async def _status(it: Exchange) -> None:
    """Answer the first ``n`` requests with ``code`` (and ``after`` as Retry-After), the next ones with 200."""
    if it.count > it.number("n", 10**9):
        await _echo(it)
    else:
        after = it.request.query.get("after")
        await it.answer(int(it.number("code", 503)), **({"Retry_After": after} if after is not None else {}))


@_on("/reset")
async def _reset(it: Exchange) -> None:
    """Reset the first ``n`` requests: ``when`` is before the headers, within them, or within the body."""
    if it.count > it.number("n", 10**9):
        return await _echo(it)
    when = it.request.query.get("when", "before")
    if when == "headers":
        await it.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
    if when == "body":
        await it.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    it.reset()
    raise Hangup


@_on("/cut")
async def _cut(it: Exchange) -> None:
    """Like ``/reset``, but ends the connection politely."""
    if it.count > it.number("n", 10**9):
        return await _echo(it)
    when = it.request.query.get("when", "before")
    if when == "headers":
        await it.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Half")
    if when == "empty":
        await it.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Half")
    if when == "lines":
        await it.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
    if when == "body":
        await it.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    if when == "chunk":
        await it.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    raise Hangup


@_on("/trickle")
async def _trickle(it: Exchange) -> None:
    """Send a byte every ``every`` seconds, of the headers or the body."""
    every = it.number("every", 0.02)
    if it.request.query.get("what") == "headers":
        await it.write(b"HTTP/1.1 200 OK\r\n")
        await it.write(*(b"X-%d: 1\r\n" % i for i in range(10_000)), every=every)
    await it.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n")
    await it.write(*([b"x"] * 100_000), every=every)


@_on("/bomb")
async def _bomb(it: Exchange) -> None:
    """Send ``mb`` megabytes of zeros, compressed about a thousand times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(int(it.number("mb", 200)))) + packer.flush()
    await it.answer(body=packed, Content_Encoding="gzip", Content_Type="application/octet-stream")


@_on("/endless")
async def _endless(it: Exchange) -> None:
    await it.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await it.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")


@_on("/large")
async def _large(it: Exchange) -> None:
    await it.answer(body=b"a" * int(it.number("size", 1000)), Content_Type="text/plain")


@_on("/redirect")
async def _redirect(it: Exchange) -> None:
    await it.answer(int(it.number("code", 302)), b"", Location=it.request.query["to"])


@_on("/loop")
async def _loop(it: Exchange) -> None:
    await it.answer(302, b"", Location="/loop")


@_on("/body")
async def _body(it: Exchange) -> None:
    """Answer with the request's body, of the type in the query."""
    fields = {"Content_Type": it.request.query.get("type", "application/json")}
    if "encoding" in it.request.query:
        fields["Content_Encoding"] = it.request.query["encoding"]
    await it.answer(body=it.request.body, **fields)


@_on("/cookie")
async def _cookie(it: Exchange) -> None:
    await it.answer(Set_Cookie=f"who={it.request.query['who']}; Path=/")


@_on("/close")
async def _close(it: Exchange) -> None:
    """Answer, promise to keep the connection, and close it."""
    await _echo(it)
    raise Hangup


@_on("/token")
async def _token(it: Exchange) -> None:
    """Accept only the bearer token in the query."""
    right = it.request.headers.get("authorization") == f"Bearer {it.request.query['right']}"
    await it.answer(200 if right else 401)


@_on("/events")
async def _events(it: Exchange) -> None:
    """Stream ``n`` server-sent events, one every ``every`` seconds, then end, cut or hang as ``then`` says."""
    await it.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for i in range(int(it.number("n", 5))):
        event = b'id: %d\ndata: {"token": %d}\n\n' % (i, i)
        await it.write(b"%x\r\n" % len(event) + event + b"\r\n")
        await asyncio.sleep(it.number("every", 0.0))
    then = it.request.query.get("then", "end")
    if then == "hang":
        await _hang(it)
    if then == "cut":
        raise Hangup
    await it.write(b"0\r\n\r\n")


@dataclass
class MisbehavingServer:
    """The server, in a thread with a loop of its own. Use it with ``with``.

    Args:
        tls: whether it speaks TLS.
        client_certificate: whether it demands one.
        close_idle: seconds after which it closes an idle connection.
        host: the address that it listens on.
    """

    tls: bool = False
    client_certificate: bool = False
    close_idle: float = 300.0
    host: str = "127.0.0.1"
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    accepted: int = 0
    connected: int = 0
    """Connections that are open now."""

    def __post_init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="misbehaving-server", daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def requests_to(self, path: str) -> list[Seen]:
        return [each for each in self.seen if each.path == path]

    def __enter__(self) -> MisbehavingServer:
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server did not stop"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        # Without a limit of its own, a client that keeps its end open would hold the server's for 30 seconds.
        farewell = {"ssl_shutdown_timeout": 0.2} if self.tls else {}
        server = await asyncio.start_server(
            self._connection, self.host, self.port, ssl=self._context(), backlog=1024, limit=1 << 22, **farewell
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        # What was accepted a moment ago has to begin before it is cancelled, and before the server closes (on 3.11):
        # it would never close its connection, and the garbage collector would blame a later test.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(others, timeout=0.05)
        server.close()
        await asyncio.sleep(0)  # the loop's last word to each connection

    def _context(self) -> ssl.SSLContext | None:
        if not self.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS / "server.pem")
        if self.client_certificate:
            context.load_verify_locations(TLS / "ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self.connected += 1
        number = self.accepted
        try:
            while True:
                async with asyncio.timeout(self.close_idle):
                    request = await _read_request(reader, number)
                self.seen.append(request)
                if request.method == "CONNECT":
                    await _tunnel(request.target, reader, writer)
                    break
                key = request.path + request.query.get("key", "")
                self._counts[key] += 1
                handler = _HANDLERS.get(request.path, _echo)
                await handler(Exchange(request, reader, writer, self._counts[key]))
                if request.headers.get("connection", "").lower() == "close":
                    break
        except (Hangup, OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # how the handler, the client, or the end of the server ends a connection
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self.connected -= 1


async def _tunnel(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a proxy: join the connection to another server's until one of them ends."""
    host, _, port = target.rpartition(":")
    there, back = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
        sink.close()

    try:
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))
    finally:
        back.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await back.wait_closed()


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\n"), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return Seen(method, target, headers, body, connection)


@contextlib.contextmanager
def misbehaving_server(**options: Any) -> Iterator[MisbehavingServer]:
    """Run a server for the length of a block."""
    with MisbehavingServer(**options) as server:
        yield server
