"""A lease: a checkout that has not happened yet, so that ``inject`` can open it for exactly one call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar, cast

from dependency_injector import providers
from dependency_injector.wiring import Provide

from app.containers.errors import LeaseNotOpenError

T_co = TypeVar("T_co", covariant=True)

Manager: TypeAlias = AbstractContextManager[T_co] | AbstractAsyncContextManager[T_co]


class Lease(Generic[T_co]):
    """What a provider hands to ``inject`` in place of a connection.

    Args:
        open: returns a new context manager, synchronous, asynchronous or both, whose body is the time of the
            lease. It is entered when the decorated function is called, and left when that call ends; an
            exception or a cancellation of the call reaches its exit.
    """

    __slots__ = ("open",)

    def __init__(self, open: Callable[[], Manager[T_co]]) -> None:
        self.open = open

    def __getattr__(self, name: str) -> NoReturn:
        raise LeaseNotOpenError(name)

    # These are looked up on the class, so `__getattr__` does not hear of them.

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise ``LeaseNotOpenError``, as every other use does."""
        raise LeaseNotOpenError("call")

    def __iter__(self) -> NoReturn:
        raise LeaseNotOpenError("iteration")

    def __getitem__(self, key: Any) -> NoReturn:
        raise LeaseNotOpenError("items")

    def __enter__(self) -> NoReturn:
        raise LeaseNotOpenError("with block")

    def __exit__(self, *error: object) -> None: ...

    async def __aenter__(self) -> NoReturn:
        raise LeaseNotOpenError("async with block")

    async def __aexit__(self, *error: object) -> None: ...

    def __await__(self) -> NoReturn:
        raise LeaseNotOpenError("await")

    def __repr__(self) -> str:
        return f"<a lease that is not open: {self.open!r}>"


def leased(provider: providers.Provider[Lease[T_co]]) -> T_co:
    """Spell ``Provide[provider]`` with the type of what the lease gives, so that a type checker sees it.

    Args:
        provider: a provider of leases, such as ``Container.library``.

    Returns:
        the marker for a parameter's default, typed as the connection that will be injected.
    """
    return cast(T_co, cast(Any, Provide)[provider])
