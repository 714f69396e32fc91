"""The response: what the server said, converted only when somebody looks."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from email.message import Message
from http.client import responses as _REASONS
from typing import Any

import orjson
import requests
from multidict import CIMultiDict, CIMultiDictProxy

from app.pools.errors import PoolError

HeaderPairs = Iterable[tuple[str, str]]

_UNREAD = object()


class HTTPStatusError(PoolError, requests.HTTPError):
    """``raise_for_status()`` on a response of 400 or above. It is also a ``requests.HTTPError``.

    Attributes:
        response: the response, body included.
        status_code: its status.
    """

    response: Any

    def __init__(self, response: ResponseHead) -> None:
        self.status_code = response.status_code
        reason = _REASONS.get(response.status_code, "")
        # The URL's path without its query, which may hold a secret.
        super().__init__(f"{response.status_code} {reason} for {response.url.partition('?')[0]}".replace("  ", " "))
        self.response = response

    def __reduce__(self) -> tuple[Any, ...]:
        return HTTPStatusError, (self.response,)


class ResponseHead:
    """What every response has, also one whose body is streamed.

    Attributes:
        status_code: the status.
        url: where the response came from, after redirects.
        request_time: seconds from the call until this response, retries included.
        retries: how many attempts failed before.
    """

    __slots__ = ("_headers", "_pairs", "request_time", "retries", "status_code", "url")

    def __init__(self, status_code: int, headers: HeaderPairs, url: str, request_time: float, retries: int) -> None:
        self.status_code = status_code
        self.url = url
        self.request_time = request_time
        self.retries = retries
        self._pairs = headers
        self._headers: CIMultiDictProxy[str] | None = None

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers by name, in any case; ``headers.getall(name)`` for one that repeats."""
        if self._headers is None:
            self._headers = CIMultiDictProxy(CIMultiDict(self._pairs))
        return self._headers

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status_code < 400

    def raise_for_status(self) -> None:
        """Raise ``HTTPStatusError`` for a status of 400 or above."""
        if self.status_code >= 400:
            raise HTTPStatusError(self)

    @property
    def media_type(self) -> str:
        """The content type in lower case without its parameters, ``""`` if the server sent none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def encoding(self) -> str:
        """The charset that the server declares, else ``utf-8``."""
        message = Message()
        message["Content-Type"] = self.headers.get("Content-Type", "")
        return message.get_content_charset() or "utf-8"

    def __reduce__(self) -> tuple[Any, ...]:
        # What a stream has not read yet cannot go to another process.
        pairs = list(self.headers.items())
        content = getattr(self, "content", b"")
        return HTTPResponse, (self.status_code, pairs, content, self.url, self.request_time, self.retries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.status_code}>"


class HTTPResponse(ResponseHead):
    """A response with its whole body.

    Attributes:
        content: the body, decompressed.
    """

    __slots__ = ("_json", "content")

    def __init__(
        self,
        status_code: int,
        headers: HeaderPairs,
        content: bytes,
        url: str = "",
        request_time: float = 0.0,
        retries: int = 0,
    ) -> None:
        super().__init__(status_code, headers, url, request_time, retries)
        self.content = content
        self._json: Any = _UNREAD

    @property
    def text(self) -> str:
        """The body as text. What its charset cannot express is replaced; an unknown charset counts as UTF-8."""
        return decode(self.content, self.encoding)

    def json(self) -> Any:
        """Return the body parsed as JSON, whatever its declared type.

        Raises:
            orjson.JSONDecodeError: it is not JSON; a ``ValueError``.
        """
        if self._json is _UNREAD:
            # RFC 8259, section 8.1: nobody should send a byte order mark, and a reader may ignore it.
            self._json = orjson.loads(self.content.removeprefix(BOM_UTF8))
        return self._json

    @property
    def json_data(self) -> Any:
        """The parsed body if it is declared as JSON (``application/json``, ``...+json``) and is; else ``None``."""
        if self._json is not _UNREAD:
            return self._json
        if not is_json(self.media_type):
            return None
        try:
            return self.json()
        except orjson.JSONDecodeError:
            return None


def is_json(media_type: str) -> bool:
    """Say whether a media type is JSON (RFC 6839 for the ``+json`` suffix)."""
    return media_type == "application/json" or media_type.endswith("+json")


def decode(content: bytes, encoding: str) -> str:
    """Return ``content`` as text; never raises."""
    try:
        return content.decode(encoding, "replace")
    except LookupError:
        return content.decode("utf-8", "replace")


def header(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header's value from a mapping whose names have any case."""
    wanted = name.lower()
    return next((value for each, value in headers.items() if each.lower() == wanted), None)
