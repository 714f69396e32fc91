"""A fake: an object whose methods give what a test says and keep a record of their calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call of a fake's method."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Fake:
    """Stands for a handle, such as a ``Peer`` or an ``HTTPClient``.

    ``Fake(ask={"answer": 42})`` has a method ``ask``, and ``ask_async``, which is awaited, that return
    ``{"answer": 42}``. A callable is called with the arguments and gives the result; an exception is raised.

    Args:
        methods: what each method gives, by the method's name without ``_async``.

    Attributes:
        calls: the calls so far, in order, under the names that were used.
    """

    def __init__(self, **methods: Any) -> None:
        self.calls: list[Call] = []
        self._methods = methods

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        known = name if name in self._methods else name.removesuffix("_async")
        if known not in self._methods:
            raise AttributeError(f"this fake has no {name!r}; make it with Fake({known}=...)")

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(Call(name, args, kwargs))
            return self._result(self._methods[known], args, kwargs)

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return call_async if name.endswith("_async") else call

    @staticmethod
    def _result(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(given, BaseException):
            raise given
        return given(*args, **kwargs) if callable(given) else given

    def __repr__(self) -> str:
        return f"<Fake with {', '.join(self._methods) or 'no methods'}>"
