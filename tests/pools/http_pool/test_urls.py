"""Joining paths to a base URL."""

import pytest

from app.pools.errors import InvalidURL
from app.pools.http_pool.urls import join, parse_base


@pytest.mark.parametrize(
    ("base", "path", "joined"),
    [
        ("https://h", "", "/"), ("https://h", "/a", "/a"), ("https://h", "a", "/a"), ("https://h/", "/a", "/a"),
        ("https://h/v1", "", "/v1"), ("https://h/v1/", "a/b", "/v1/a/b"), ("https://h/v1", "/a?x=1", "/v1/a?x=1"),
        ("https://h/v1", "?x=1", "/v1?x=1"), ("https://h", "?x=1", "/?x=1"), ("https://h", "/a b/ü", "/a%20b/%C3%BC"),
        ("https://h", "/a%20b", "/a%20b"), ("https://h", "/a..b/...", "/a..b/..."),
        ("https://h", "/x\r\nA: b", "/x%0D%0AA:%20b"),
        ("https://h", "/items/a:b", "/items/a:b"), ("https://h", "/a//b", "/a//b"),
    ],
)  # fmt: skip
def test_a_path_is_joined_below_the_base(base: str, path: str, joined: str) -> None:
    """join puts the path below the base's and encodes what cannot be sent as it is."""
    assert join(parse_base(base), path) == joined


@pytest.mark.parametrize(
    "path",
    [
        "http://evil/", "https://evil/", "HTTP:evil", "//evil/x", "\\\\evil", "javascript:x", "..", "/../x",
        "a/../../x",
        "/%2e%2e/x", "/.%2E/x", "/a%2f..%2fb", "/a\\..\\b", "/a%5c..%5cb", "http://user:canary@evil/", "/a#b",
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_base_is_refused(path: str) -> None:
    """join refuses URLs of their own, '..' in any spelling, and fragments; its message shows no credentials."""
    with pytest.raises(InvalidURL) as caught:
        join(parse_base("https://h/v1"), path)
    assert "canary" not in str(caught.value)


def test_parameters_are_encoded_and_none_left_out() -> None:
    """Parameters are appended to the query; None is left out and lists repeat their name."""
    base = parse_base("https://h")
    assert join(base, "/a", {"q": "x&y", "n": None, "l": [1, 2]}) == "/a?q=x%26y&l=1&l=2"
    assert join(base, "/a?b=1", [("c", "ü")]) == "/a?b=1&c=%C3%BC"


@pytest.mark.parametrize(
    ("base_url", "origin"),
    [
        ("https://Host.Example/v1", "https://host.example"), ("http://h:80", "http://h"), ("http://h:8080", "http://h:8080"),
        ("https://[::1]:8443/x", "https://[::1]:8443"), ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)  # fmt: skip
def test_an_origin_has_one_spelling(base_url: str, origin: str) -> None:
    """Hosts are lower case and encoded, and a scheme's own port is left out."""
    assert parse_base(base_url).origin == origin
