"""Bodies of requests: what may be given, and what is sent for it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from io import IOBase
from typing import Any, TypeAlias

import orjson

from app.pools.http_pool.urls import encode_params

Data: TypeAlias = "bytes | bytearray | str | Mapping[str, object] | Iterable[bytes] | AsyncIterable[bytes] | None"

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
    if isinstance(data, bytearray):
        return bytes(data), None
    return data, None


def replayable(body: Any) -> bool:
    """Say whether a body can be sent a second time; an iterator or a file cannot."""
    return body is None or isinstance(body, bytes)


def asynchronous(body: Any) -> Any:
    """Return a body as aiohttp takes it: a plain iterable becomes an asynchronous one."""
    if body is None or isinstance(body, bytes | IOBase) or not isinstance(body, Iterable):
        return body
    return _one_by_one(body)


async def _one_by_one(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
