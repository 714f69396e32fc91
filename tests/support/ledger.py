"""A pool of a user's own, which joins a container as the shipped ones do and writes down what it did."""

import itertools
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any

from dependency_injector import containers, providers

from app.containers import LeaseProvider, Pooled
from app.pools import Health, PoolStats


class Connection:
    """What the pool leases."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.open = True
        self.ended_by: BaseException | None = None


class LedgerLease(AbstractContextManager[Connection], AbstractAsyncContextManager[Connection]):
    """One lease, for `with` and `async with`."""

    def __init__(self, ledger: "Ledger") -> None:
        self.ledger = ledger

    def __enter__(self) -> Connection:
        self.connection = self.ledger.open()
        return self.connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ledger.close(self.connection, error)

    async def __aenter__(self) -> Connection:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class Ledger:
    """A pool that keeps a record of its leases and of its life; it fails where it is told to."""

    def __init__(self, log: list[str] | None = None, name: str = "ledger", needs: Any = None) -> None:
        self.name = name
        self.log = [] if log is None else log
        self.numbers = itertools.count(1)
        self.leased: list[Connection] = []
        self.returned: list[Connection] = []
        self.failing: dict[str, Exception] = {}

    def _act(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if what in self.failing:
            raise self.failing[what]

    def open(self) -> Connection:
        self._act("open")
        connection = Connection(next(self.numbers))
        self.leased.append(connection)
        return connection

    def close(self, connection: Connection, error: BaseException | None) -> None:
        self._act("close")
        connection.open = False
        connection.ended_by = error
        self.leased.remove(connection)
        self.returned.append(connection)

    def lease(self, config: object) -> LedgerLease:
        return LedgerLease(self)

    def start(self) -> None:
        self._act("start")

    def stop(self, timeout: float = 10.0) -> None:
        self._act("stop")

    async def start_async(self) -> None:
        self.start()

    async def stop_async(self, timeout: float = 10.0) -> None:
        self.stop(timeout)

    def get_stats(self) -> PoolStats:
        return {
            "metrics": {
                "total_connections": len(self.leased),
                "active_connections": len(self.leased),
                "pool_hits": 0,
                "pool_misses": len(self.returned) + len(self.leased),
                "cleanup_count": 0,
            },
            "pools": {},
            "cleanup_thread_alive": False,
        }

    def health(self) -> Health:
        return {"healthy": True, "reasons": []}


class LedgerContainer(containers.DeclarativeContainer):
    """A container of the user's own: two leases on one pool, and a plain value."""

    ledger = Pooled(Ledger)
    first: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", "first")
    second: LeaseProvider[Connection] = LeaseProvider(ledger, "lease", "second")
    greeting = providers.Object("hello")
