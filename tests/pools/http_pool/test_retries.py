"""What is retried, when, and how often: the table of docs/http.md."""

import email.utils
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from app.pools.errors import CircuitOpen, HTTPUnavailable
from app.pools.http_pool import HTTPConfig, HTTPPool
from app.pools.http_pool.retries import RetryBudget, parse_retry_after, pause_before_retry
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer

KEY = {"Idempotency-Key": "7"}


@pytest.mark.parametrize(
    ("method", "code", "after", "headers", "attempts"),
    [
        ("GET", 503, None, None, 3), ("PUT", 500, None, None, 3), ("DELETE", 502, None, None, 3),
        ("HEAD", 504, None, None, 3), ("OPTIONS", 429, None, None, 3), ("GET", 408, None, None, 3),
        ("GET", 404, None, None, 1), ("GET", 401, None, None, 1), ("GET", 501, None, None, 1),
        ("POST", 500, None, None, 1), ("POST", 502, None, None, 1), ("POST", 503, None, None, 1),
        ("POST", 503, "0", None, 3), ("POST", 429, None, None, 3), ("POST", 500, None, KEY, 3),
        ("PATCH", 504, None, None, 1), ("PATCH", 504, None, KEY, 3), ("GET", 503, "3600", None, 1),
    ],
)  # fmt: skip
async def test_a_status_is_retried_where_that_is_safe(
    ask: Ask,
    config: HTTPConfig,
    server: MisbehavingServer,
    method: str,
    code: int,
    after: str | None,
    headers: dict[str, str] | None,
    attempts: int,
) -> None:
    """A failing status is retried for idempotent requests, and for others where the server did nothing."""
    answer = await ask(config, method, "/status", params={"code": code, "after": after, "n": 2}, headers=headers)
    assert len(server.seen) == attempts
    assert answer.retries == attempts - 1
    assert answer.status_code == (200 if attempts == 3 else code)


async def test_the_last_answer_stands_when_retries_are_used_up(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """After max_retries the failing response is returned, not raised."""
    answer = await ask(replace(config, max_retries=2), "GET", "/status?code=503")
    assert (answer.status_code, answer.retries, len(server.seen)) == (503, 2, 3)


async def test_retry_after_is_honoured(ask: Ask, config: HTTPConfig) -> None:
    """The pause before a retry is not shorter than the server's Retry-After."""
    began = time.monotonic()
    answer = await ask(config, "GET", "/status", params={"code": 429, "after": "1", "n": 1})
    assert answer.ok
    assert time.monotonic() - began >= 1.0


async def test_a_retry_that_would_come_too_late_is_not_waited_for(ask: Ask, config: HTTPConfig) -> None:
    """A Retry-After beyond the deadline returns the response at once."""
    began = time.monotonic()
    answer = await ask(replace(config, timeout=20.0), "GET", "/status?code=503&after=30")
    assert answer.status_code == 503
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("path", "when"),
    [("/reset", "before"), ("/reset", "headers"), ("/reset", "body"), ("/cut", "before"), ("/cut", "headers"),
     ("/cut", "lines"), ("/cut", "empty"), ("/cut", "body"), ("/cut", "chunk")],
)  # fmt: skip
async def test_a_lost_connection_is_retried_for_idempotent_requests_only(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer, path: str, when: str
) -> None:
    """A connection lost before, within or after the headers: GET is sent again, POST raises, neither is a 200."""
    answer = await ask(config, "GET", path, params={"when": when, "n": 1})
    assert (answer.status_code, answer.retries, answer.json()["method"]) == (200, 1, "GET")
    with pytest.raises(HTTPUnavailable, match="after 1 attempt"):
        await ask(config, "POST", path, params={"when": when, "key": "post"}, json={})
    assert len([each for each in server.seen if each.method == "POST"]) == 1


async def test_a_refused_connection_is_retried_for_every_method(ask: Ask, free_port: int) -> None:
    """A request that was never sent may be sent again, POST included."""
    config = HTTPConfig(f"http://127.0.0.1:{free_port}", max_retries=2, retry_delay=0.01)
    with pytest.raises(HTTPUnavailable, match=r"after 3 attempt.*ConnectionRefusedError") as caught:
        await ask(config, "POST", "/pay", json={"amount": 1})
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_a_body_that_can_be_read_once_is_sent_once(
    ask: Ask, config: HTTPConfig, server: MisbehavingServer
) -> None:
    """A request whose body is an iterator is not retried."""
    answer = await ask(config, "PUT", "/status?code=503", data=iter([b"a", b"b"]))
    assert (answer.status_code, len(server.seen), server.seen[0].body) == (503, 1, b"ab")


def test_a_dead_origin_is_not_hammered(free_port: int) -> None:
    """A thousand calls to a server that is down make at most 1.1 attempts each."""
    config = HTTPConfig(f"http://127.0.0.1:{free_port}", retry_delay=0.001, circuit_threshold=0)
    with HTTPPool() as pool:

        def call(_: int) -> None:
            with suppress(HTTPUnavailable, CircuitOpen):
                pool.request(config, "GET", "/")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(call, range(1000)))
        figures = pool.get_stats()["pools"][config.base_url]
    assert figures["requests"] == figures["failures"] == 1000
    assert 1000 < figures["attempts"] <= 1100
    assert figures["refused_retries"] > 0


def test_the_budget_is_spent_and_refunded() -> None:
    """Twenty retries empty the budget; ten successes earn one more."""
    budget = RetryBudget()
    assert [budget.spend() for _ in range(21)] == [True] * 20 + [False]
    for _ in range(10):
        budget.refund()
    assert [budget.spend(), budget.spend()] == [True, False]


def test_pauses_double_up_to_the_limit_with_full_jitter() -> None:
    """A pause is random between 0 and the doubling delay; with Retry-After it is that and up to a tenth more."""
    config = HTTPConfig("http://h", retry_delay=1.0, max_retry_delay=4.0)
    for retries, limit in ((0, 1.0), (1, 2.0), (2, 4.0), (9, 4.0), (5000, 4.0)):
        pauses = [pause_before_retry(config, retries) for _ in range(500)]
        assert min(pauses) < 0.2 * limit < 0.8 * limit < max(pauses) <= limit
    assert all(2.0 <= pause_before_retry(config, 0, 2.0) <= 2.2 for _ in range(100))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("3", 3.0), ("0.5", 0.5), ("-1", None), ("nan", None), ("inf", None), ("soon", None)],
)
def test_retry_after_is_read_in_seconds(value: str | None, seconds: float | None) -> None:
    """parse_retry_after returns seconds, and None for what says nothing."""
    assert parse_retry_after(value) == seconds


def test_retry_after_is_read_as_a_date() -> None:
    """parse_retry_after understands an HTTP date; one in the past means now."""
    soon = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < (parse_retry_after(soon) or 0) <= 60
    assert parse_retry_after(email.utils.formatdate(0, usegmt=True)) == 0.0
