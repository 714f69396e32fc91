"""Bodies of requests: what may be given, and what is sent for it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from io import IOBase
from typing import Any, TypeAlias, cast

import orjson

from app.pools.http_pool.urls import encode_params

Data: TypeAlias = (
    "bytes | bytearray | memoryview | str | Mapping[str, object] | Iterable[bytes] | AsyncIterable[bytes] | None"
)

_UNSET: Any = object()
NO_JSON: Any = _UNSET
"""The default of ``json=``, for ``None`` is a JSON value."""


def encode_body(data: Data, json: Any) -> tuple[Any, str | None]:
    """Return what is sent for ``data=`` and ``json=``, and its content type if the kind of body implies one.

    Raises:
        TypeError: both are given, or ``json`` holds what JSON cannot express.
    """
    if json is not NO_JSON:
        if data is not None:
            raise TypeError("give either data= or json=, not both")
        return orjson.dumps(json), "application/json"
    if data is None:
        return None, None
    if isinstance(data, str):
        return data.encode(), "text/plain; charset=utf-8"
    if isinstance(data, Mapping):
        return encode_params(data).encode(), "application/x-www-form-urlencoded"
    if isinstance(data, bytearray | memoryview):
        return bytes(data), None
    if isinstance(data, bytes | IOBase):
        return data, None
    if isinstance(data, Iterable | AsyncIterable):
        return Pieces(cast("Iterable[bytes]", data)), None
    raise TypeError(f"data= is bytes, text, a mapping, a file or an iterable of bytes, not {type(data).__name__}")


class Pieces:
    """A body that the caller produces piece by piece, sent once.

    Attributes:
        error: what went wrong in producing it: the caller's own error, which must not be taken for the network's.
    """

    __slots__ = ("_source", "error")

    def __init__(self, source: Iterable[bytes] | AsyncIterable[bytes]) -> None:
        self._source = source
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            if not isinstance(self._source, Iterable):
                raise TypeError("data= is an asynchronous iterable, which only request_async and async with can send")
            for piece in self._source:
                yield _checked(piece)
        except Exception as error:
            self.error = error
            raise

    async def one_by_one(self) -> AsyncIterator[bytes]:
        """Yield the pieces in a coroutine."""
        try:
            if isinstance(self._source, AsyncIterable):
                async for piece in self._source:
                    yield _checked(piece)
            else:
                for piece in self._source:
                    yield _checked(piece)
        except Exception as error:
            self.error = error
            raise


def _checked(piece: bytes) -> bytes:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise TypeError(f"data= yields {type(piece).__name__}; an iterable body consists of bytes")
    return piece


def own_error(body: Any) -> Exception | None:
    """Return what the caller's body failed with, if it did."""
    return body.error if isinstance(body, Pieces) else None


def replayable(body: Any) -> bool:
    """Say whether a body can be sent a second time; an iterator or a file cannot."""
    return body is None or isinstance(body, bytes)


def asynchronous(body: Any) -> Any:
    """Return a body as aiohttp takes it: pieces become an asynchronous iterator."""
    return body.one_by_one() if isinstance(body, Pieces) else body
