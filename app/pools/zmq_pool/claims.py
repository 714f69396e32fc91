"""Claims on ``ipc://`` paths: libzmq takes a path away from whoever has bound it, without a word to either side.

A lock on a file beside the socket prevents that, among the pools of all processes. The system gives it up when its
process dies, so nothing has to be cleaned up after a crash.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from app.pools.errors import EndpointBusy


class Claim:
    """The sole right to bind a path, until ``release``.

    Raises:
        EndpointBusy: another socket, of this process or another, has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise EndpointBusy(
                f"ipc://{path} is bound already, here or in another process. End it, or bind another endpoint"
            ) from None

    def release(self) -> None:
        """Let others bind the path."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child may have a copy of the descriptor
        os.close(self._lock)
