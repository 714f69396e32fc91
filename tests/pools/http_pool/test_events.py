"""Parsing server-sent events."""

import pytest

from app.pools.http_pool.events import EventParser, ServerSentEvent

STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b"data: one\n\n"
    b"event: add\r\ndata: two\r\ndata:  lines\r\nid: 7\r\n\r\n"
    b"data\rretry: 1500\r\r"
    b"id: bad\0id\nretry: soon\nunknown: x\ndata: \xc3\xbc\n\n"
    b"event: no data, no event\n\n"
    b"data: cut short by the end"
)
EVENTS = [
    ServerSentEvent(data="one"),
    ServerSentEvent(event="add", data="two\n lines", id="7"),
    ServerSentEvent(data="", id="7", retry=1500),
    ServerSentEvent(data="ü", id="7"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_stream_is_cut(size: int) -> None:
    """The parser follows the standard, wherever the pieces end: within a line end, a character or a field."""
    parser = EventParser()
    pieces = [STREAM[i : i + size] for i in range(0, len(STREAM), size)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_an_events_data_can_be_parsed() -> None:
    """json returns the data parsed."""
    assert ServerSentEvent(data='{"token": 1}').json() == {"token": 1}
