"""Responses: bodies, types, charsets, headers, errors."""

import orjson
import pytest
import requests

from app.pools.errors import PoolError
from app.pools.http_pool import HTTPConfig, HTTPResponse, HTTPStatusError
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer


def response(content: bytes, content_type: str, status: int = 200) -> HTTPResponse:
    return HTTPResponse(status, [("content-type", content_type)], content, "https://h/p?key=canary")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/problem+json; charset=utf-8", "Application/JSON"]
)
def test_json_data_is_parsed_for_json_types(content_type: str) -> None:
    """json_data is the parsed body for application/json and every +json type."""
    assert response(b'{"a": [1]}', content_type).json_data == {"a": [1]}


def test_a_byte_order_mark_is_ignored() -> None:
    """JSON behind a byte order mark, as some servers send it, is parsed."""
    assert response(b'\xef\xbb\xbf{"a": 1}', "application/json").json_data == {"a": 1}


def test_json_data_is_none_for_everything_else() -> None:
    """json_data is None for other types and for a broken body; json() parses or raises a ValueError."""
    assert response(b"{}", "text/plain").json_data is None
    assert response(b"{broken", "application/json").json_data is None
    assert response(b"{}", "text/plain").json() == {}
    with pytest.raises(orjson.JSONDecodeError):
        response(b"{broken", "application/json").json()


@pytest.mark.parametrize(
    ("content", "content_type", "text"),
    [
        (b"\xc3\xbc", "text/plain", "ü"), (b"\xfc", "text/plain; charset=latin-1", "ü"),
        (b"\xfc", "text/plain", "\ufffd"),
        (b"\xc3\xbc", "text/plain; charset=bogus", "ü"), (b"a", 'text/plain; charset="utf-8"', "a"), (b"", "", ""),
    ],
)  # fmt: skip
def test_text_never_fails(content: bytes, content_type: str, text: str) -> None:
    """text follows the declared charset, replaces what it cannot express, and takes UTF-8 for unknown ones."""
    assert response(content, content_type).text == text


def test_raise_for_status_raises_an_error_that_both_worlds_catch() -> None:
    """raise_for_status raises a PoolError that is a requests.HTTPError, with the response and without the query."""
    failed = response(b"{}", "application/json", 404)
    with pytest.raises(HTTPStatusError, match="404 Not Found for https://h/p") as caught:
        failed.raise_for_status()
    assert isinstance(caught.value, PoolError)
    assert isinstance(caught.value, requests.HTTPError)
    assert caught.value.response is failed
    assert caught.value.status_code == 404
    assert "canary" not in str(caught.value)
    response(b"", "", 399).raise_for_status()


def test_headers_are_found_in_any_case_and_repeat() -> None:
    """Headers are case-insensitive, and getall returns every value of one that repeats."""
    both = HTTPResponse(200, [("Set-Cookie", "a=1"), ("set-cookie", "b=2")], b"")
    assert both.headers["SET-COOKIE"] == "a=1"
    assert both.headers.getall("Set-Cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", "é".encode("latin-1")], ids=["binary", "latin-1"])
async def test_a_charset_error_is_not_retried(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer, body: bytes
) -> None:
    """A body that is not of its charset is one request and a text with replacements."""
    answer = await ask(config, "PUT", "/body", params={"type": "text/plain; charset=utf-8"}, data=body)
    assert answer.content == body
    assert "\ufffd" in answer.text
    assert len(server.requests_to("/body")) == 1
