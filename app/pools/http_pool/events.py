"""Server-sent events, parsed as the HTML standard says (section 9.2, "Server-sent events")."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a stream."""

    event: str = "message"
    """Its type."""
    data: str = ""
    """Its lines of data, joined by newlines."""
    id: str = ""
    """The last id that the stream gave."""
    retry: int | None = None
    """Milliseconds after which the server wants a lost stream to be asked for again, if this event says so."""

    def json(self) -> Any:
        """Return the data parsed as JSON. Raises ``orjson.JSONDecodeError``, a ``ValueError``, if it is none."""
        return orjson.loads(self.data)


class EventParser:
    """Turns pieces of a stream, cut anywhere, into events. An event that the stream's end cuts short is dropped."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._rest = ""
        self._id = ""
        self._start_event()

    def _start_event(self) -> None:
        self._event = ""
        self._data: list[str] = []
        self._retry: int | None = None

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that are complete with ``piece``."""
        text = self._rest + self._decoder.decode(piece)
        # A carriage return at the end may be the first half of a line end.
        held = "\r" if text.endswith("\r") else ""
        lines = _LINE_END.split(text[: len(text) - len(held)])
        self._rest = lines.pop() + held
        for line in lines:
            if line:
                self._take(line)
                continue
            if self._data:
                yield ServerSentEvent(self._event or "message", "\n".join(self._data), self._id, self._retry)
            self._start_event()

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self._retry = int(value)
