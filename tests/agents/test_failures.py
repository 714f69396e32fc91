"""What an agent's log has of requests and messages that fail."""

import logging
from typing import Any

import pytest

from app.agents import Agent
from app.agents.failures import complaints
from app.pools.errors import ConfigError, DatabaseUnavailable, NoReply, NotSent, PoolTimeout, RequestFailed
from app.pools.zmq_pool import SocketConfig, SocketType
from tests.support.agents import ask, container, rep, running
from tests.support.waiting import eventually_async

DOWN = [
    DatabaseUnavailable("the connection failed:\n  connection refused"),
    NotSent("no"),
    NoReply("no"),
    PoolTimeout("sql", "db", capacity=1, in_use=1, waiters=0, waited=1.0),
]


class Failing(Agent):
    endpoint = "failing"

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def on_request(self, message: dict[str, Any]) -> dict[str, Any]:
        raise self._error


class Receiving(Agent):
    endpoint = "receiving"

    async def on_message(self, message: dict[str, Any]) -> None:
        raise NotSent("no")


async def _log_of_a_request(error: Exception, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    wired = container(failing=rep())
    async with running([Failing(error)], wired):
        with pytest.raises(RequestFailed):
            await ask(wired, "failing", {})
    return _logged(caplog)


def _logged(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = [record for record in caplog.records if record.name == "app.agents.server"]
    return record


@pytest.mark.parametrize("error", DOWN, ids=lambda error: type(error).__name__)
async def test_a_request_that_fails_because_others_do_is_one_line(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """While a database or a peer is down, each request costs a line of the log, with the error's kind and text."""
    record = await _log_of_a_request(error, caplog)
    text = logging.Formatter().format(record)
    assert text == f"failing could not answer a request: {type(error).__name__}: {' '.join(str(error).split())}"


@pytest.mark.parametrize("error", [ValueError("a mistake"), ConfigError("a mistake")], ids=["own", "misuse"])
async def test_an_unexpected_error_has_its_traceback(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """What may be a mistake of the agent's is logged with the place that raised it."""
    record = await _log_of_a_request(error, caplog)
    assert record.exc_info
    assert record.exc_info[1] is error


async def test_a_message_that_fails_because_others_do_is_one_line(
    caplog: pytest.LogCaptureFixture, free_endpoint: str
) -> None:
    """A pushed message that cannot be handled costs a line, too, and is counted."""
    wired = container(receiving=SocketConfig(SocketType.PULL, free_endpoint))
    async with running([Receiving()], wired) as (servers, _, _):
        wired.publishers.receiving().send({})
        await eventually_async(lambda: servers[0].failed == 1)
    record = _logged(caplog)
    assert record.getMessage() == "receiving could not handle a message: NotSent: no"
    assert not record.exc_info


async def test_a_request_that_is_not_json_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A client that sends anything else fills nobody's log with tracebacks."""
    served = rep()
    wired = container(failing=served)
    async with running([Failing(ValueError())], wired) as (servers, _, _):
        await wired.zmq_pool().request_async(SocketConfig(SocketType.REQ, served.endpoint), b"no JSON", timeout=20)
        assert servers[0].failed == 1
    record = _logged(caplog)
    assert "MessageError: a message must be a JSON object" in record.getMessage()
    assert not record.exc_info


def test_a_group_is_told_whole_or_not_at_all() -> None:
    """Groups within groups give a line for each failure, and nothing if one of them needs its traceback."""
    known = ExceptionGroup("", [NotSent("one"), ExceptionGroup("", [NoReply("two")])])
    assert complaints(known) == ["one", "two"]
    assert complaints(ExceptionGroup("", [known, ValueError("three")])) == []
