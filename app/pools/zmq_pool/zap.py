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
        lines = (line.partition(" #")[0].strip() for line in text.splitlines())
        keys = frozenset(line for line in lines if line and not line.startswith("# ") and line != "#")
        for key in keys:
            check_key(f"key in {self.path}", key)
        return keys


class Authenticator:
    """Answers libzmq's question, for each new CURVE connection, whether to admit it. The attendant serves it.

    Args:
        context: the context whose binds ask.
    """

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ENDPOINT)
        self._lists: dict[str, AllowList | None] = {}
        self.admitted = 0
        self.denied = 0
        self.last_denied = ""

    def serve(self, server: CurveServer) -> None:
        """Answer for the binds of ``server`` from now on. Raises ``ConfigError`` if its list cannot be read."""
        if server.domain not in self._lists:
            self._lists[server.domain] = None if server.allowed is None else AllowList(Path(server.allowed))

    def descriptor(self) -> int | None:
        """Return what to wait for."""
        return int(self._socket.get(zmq.FD))

    def attend(self) -> bool:
        """Answer the questions that are there."""
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            version, question, domain, address, _, mechanism, *credentials = self._socket.recv_multipart()
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
            admitted = self._admits(domain.decode(), key)
            if admitted:
                self.admitted += 1
                status = [b"200", b"OK", key.encode(), b""]
            else:
                self.denied += 1
                self.last_denied = f"{key or mechanism.decode()} from {address.decode()}"
                log.warning("%s was refused: it is not on the allow-list of %s", self.last_denied, domain.decode())
                status = [b"400", b"not on the allow-list", b"", b""]
            self._socket.send_multipart([version, question, *status])
        return True

    def _admits(self, domain: str, key: str) -> bool:
        if not key:
            return False
        allowed = self._lists.get(domain)
        return domain in self._lists if allowed is None else key in allowed

    def close(self) -> None:
        """Close the socket. Called by the attendant, whose socket it is."""
        self._socket.close()
