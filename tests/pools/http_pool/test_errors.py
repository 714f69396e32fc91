"""Errors that reach another process: pickled, they keep their type, their facts and their message."""

import pickle

import pytest

from app.pools import errors
from app.pools.errors import CircuitOpen, PoolError, PoolTimeout
from app.pools.http_pool import HTTPConfig, HTTPPool, HTTPResponse, HTTPStatusError


@pytest.mark.parametrize(
    "error",
    [
        CircuitOpen("http://h", 1.5),
        PoolTimeout("http", "http://h", capacity=2, in_use=2, waiters=1, waited=0.5, longest_holder="x.py:3"),
        *(getattr(errors, name)("what happened") for name in (
            "InvalidURL", "HTTPUnavailable", "UntrustedServer", "DeadlineExceeded", "ResponseTooLarge",
            "TooManyRedirects", "BlockedAddress", "NotAnEventStream", "ConfigError",
        )),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_can_be_pickled(error: PoolError) -> None:
    """An error that went through pickle is the same, message and attributes included."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_status_error_is_pickled_with_its_response(pool: HTTPPool, config: HTTPConfig) -> None:
    """HTTPStatusError keeps its response through pickle; one of a stream, what was known when it was raised."""
    with pytest.raises(HTTPStatusError) as caught:
        pool.request(config, "GET", "/status?code=404").raise_for_status()
    with pool.stream(config, "GET", "/status?code=404") as response, pytest.raises(HTTPStatusError) as streamed:
        response.raise_for_status()
    for error, content in ((caught.value, b"{}"), (streamed.value, b"")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.status_code) == (HTTPStatusError, str(error), 404)
        assert (again.response.content, dict(again.response.headers)) == (content, dict(error.response.headers))


def test_a_response_can_be_pickled() -> None:
    """A response is the same after pickle, parsed or not."""
    response = HTTPResponse(200, iter([("content-type", "application/json")]), b'{"a": 1}', "http://h/", 0.5, 1)
    again = pickle.loads(pickle.dumps(response))
    assert (again.json(), again.json_data, again.retries, again.url) == ({"a": 1}, {"a": 1}, 1, "http://h/")
    assert response.json() == pickle.loads(pickle.dumps(response)).json()
