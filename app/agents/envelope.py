"""What travels between agents: one JSON object in the last frame, with routing frames before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from app.agents.errors import MessageError
from app.pools.zmq_pool.peers import ERROR_KEY


def decode(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Raises:
        MessageError: it is not JSON, or not an object.
    """
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MessageError(f"a message must be a JSON object; these {len(body)} bytes are not JSON: {error}") from None
    if not isinstance(message, dict):
        raise MessageError(f"a message must be a JSON object, not {type(message).__name__}")
    return message


def encode(message: object) -> bytes:
    """Return ``message`` as the bytes of a JSON object.

    Raises:
        MessageError: it is not a dictionary, cannot be written as JSON, or uses the key kept for errors.
    """
    if not isinstance(message, dict):
        raise MessageError(f"an agent answers with a dict, not with {type(message).__name__}")
    if ERROR_KEY in message:
        raise MessageError(f"the key {ERROR_KEY!r} is kept for errors; raise one instead of answering with it")
    try:
        return orjson.dumps(message)
    except TypeError as error:
        raise MessageError(f"the answer cannot be written as JSON: {error}") from None


def encode_error(error: BaseException) -> bytes:
    """Return the answer that tells a peer of ``error``: its class name and its text."""
    # A file's name that is not UTF-8 brings lone surrogates into an error's text, which JSON cannot hold.
    text = str(error).encode(errors="replace").decode()
    return orjson.dumps({ERROR_KEY: {"type": type(error).__name__, "message": text}})


def split(frames: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """Return the routing envelope of a ROUTER's message, its empty delimiter included, and the body.

    Raises:
        MessageError: there is no delimiter with one frame behind it.
    """
    try:
        end = frames.index(b"", 1) + 1
    except ValueError:
        end = 0
    if not end or len(frames) != end + 1:
        raise MessageError(
            f"a request is one frame behind an empty delimiter, as REQ sends it; got {len(frames)} frames"
        )
    return list(frames[:end]), frames[end]
