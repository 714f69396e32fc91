"""Who may connect: the ZAP handler of the process's context, and the allow-lists that it asks.

ZAP is specified at https://rfc.zeromq.org/spec/27.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from app.pools.errors import ConfigError
from app.pools.zmq_pool.curve import CurveServer, check_key, load_public_key

log = logging.getLogger(__name__)

_ENDPOINT = "inproc://zeromq.zap.01"


class AllowList:
    """The public keys of those to admit, read again whenever the file or folder changes.

    Args:
        path: a folder with ``.key`` files, or a file with one key a line; ``#`` begins a comment.

    Raises:
        ConfigError: it cannot be read. Later, what cannot be read admits nobody.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = self._current_version()
        self._keys = self._read()

    def __contains__(self, key: str) -> bool:
        try:
            version = self._current_version()
            if version != self._version:
                self._keys = self._read()
                self._version = version
        except ConfigError as error:
            log.warning("nobody is admitted: %s", error)
            return False
        return key in self._keys

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("*.key")) if self.path.is_dir() else [self.path]

    def _current_version(self) -> object:
        try:
            return [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in self._files()]
        except OSError as error:
            raise ConfigError(f"the allow-list {self.path} cannot be read: {error.strerror}") from None

    def _read(self) -> frozenset[str]:
        if self.path.is_dir():
            return frozenset(load_public_key(file) for file in self._files())
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the allow-list {self.path} cannot be read: {error}") from None
        keys = set()
        for number, line in enumerate(text.splitlines(), 1):
            key = line.partition(" #")[0].strip()
            if key and not key.startswith("# ") and key != "#":
                check_key(f"key in line {number} of {self.path}", key)
                keys.add(key)
        return frozenset(keys)


class _Door:
    """The entrance to the binds of one ZAP domain: who may come in, and who came.

    Args:
        allowed: the list to ask; without one whoever proves a key may come in.
    """

    def __init__(self, allowed: AllowList | None) -> None:
        self._allowed = allowed
        self._admitted = 0
        self._denied = 0
        self._last_denied = ""

    def admits(self, key: str, claim: str) -> bool:
        """Decide about a client that has proven ``key``, and count it; ``claim`` names it in the statistics."""
        admitted = bool(key) and (self._allowed is None or key in self._allowed)
        if admitted:
            self._admitted += 1
        else:
            self._denied += 1
            self._last_denied = claim
        return admitted

    def figures(self) -> dict[str, Any]:
        """Return how many connections were admitted and denied, and the last that was denied."""
        return {"admitted": self._admitted, "denied": self._denied, "last_denied": self._last_denied}


class Authenticator:
    """Answers libzmq's question, for each new CURVE connection, whether to admit it. The attendant serves it.

    Args:
        context: the context whose binds ask.
    """

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ENDPOINT)
        self._doors: dict[str, _Door] = {}

    def serve(self, server: CurveServer) -> None:
        """Answer for the binds of ``server`` from now on. Raises ``ConfigError`` if its list cannot be read."""
        if server.domain not in self._doors:
            self._doors[server.domain] = _Door(None if server.allowed is None else AllowList(Path(server.allowed)))

    def figures(self, server: CurveServer) -> dict[str, Any]:
        """Return whom the binds of ``server``, and of others with the same list, let in."""
        door = self._doors.get(server.domain)
        return {} if door is None else door.figures()

    def descriptor(self) -> int | None:
        """Return what to wait for."""
        return int(self._socket.get(zmq.FD))

    def attend(self) -> bool:
        """Answer the questions that are there."""
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            version, question, *asked = self._socket.recv_multipart()
            try:
                status = self._judge(*asked)
            except Exception:  # whatever it is: unanswered, this question would be every bind's last
                log.exception("a client was refused, because whether to admit it could not be found out")
                status = [b"500", b"the server could not find out", b"", b""]
            self._socket.send_multipart([version, question, *status])
        return True

    def _judge(self, domain: bytes, address: bytes, _: bytes, mechanism: bytes, *credentials: bytes) -> list[bytes]:
        """Return the rest of the answer: the status code and text, who the client is, and its metadata."""
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
        claim = f"{key or mechanism.decode()} from {address.decode()}"
        door = self._doors.get(domain.decode())
        if door is not None and door.admits(key, claim):
            return [b"200", b"OK", key.encode(), b""]
        log.warning("%s was refused: it is not on the allow-list of %s", claim, domain.decode())
        return [b"400", b"not on the allow-list", b"", b""]

    def close(self) -> None:
        """Close the socket. Called by the attendant, whose socket it is."""
        self._socket.close()
