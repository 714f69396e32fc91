"""Decoding of compressed bodies: one rule for threads and tasks, whatever the libraries under them can decode."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

_PIECE = 256 * 1024
# A body may be compressed twice by a server and its proxy. Each further time multiplies a bomb by a thousand before
# a byte of it can be counted.
_MOST_CODINGS = 2
_GZIP_BEGINS = 0x1F


class Undecodable(Exception):
    """A body that cannot be decoded; the message names its coding."""


class Decoder:
    """Decodes a body while it is read, in pieces of bounded size, so that whoever counts them can stop a bomb.

    Codings are those of RFC 9110, section 8.4.1: gzip (and x-gzip), deflate, with and without the zlib format's
    frame, and up to two of them one over the other. Any other is an error, at the first byte of the body.

    Args:
        headers: the response's.
    """

    __slots__ = ("_label", "_pieces", "_stages")

    def __init__(self, headers: Mapping[str, str]) -> None:
        said = headers.get("Content-Encoding", "")
        codings = [coding for each in said.split(",") if (coding := each.strip().lower()) not in ("", "identity")]
        self._label = said[:80]
        known = len(codings) <= _MOST_CODINGS and all(coding in _CODINGS for coding in codings)
        # The coding that was applied last comes off first.
        self._stages = [_CODINGS[coding]() for coding in reversed(codings)] if known else None
        self._pieces: Iterator[bytes] = iter(())

    def feed(self, data: bytes) -> None:
        """Add what was read. What was added before must have been taken.

        Raises:
            Undecodable: there is no decoder for it.
        """
        if self._stages is None:
            raise Undecodable(
                f"its Content-Encoding is {self._label!r}, and only gzip and deflate, at most {_MOST_CODINGS} of them, "
                "can be decoded; ask for one of those, or for identity, as Accept-Encoding"
            )
        pieces: Iterator[bytes] = iter((data,))
        for stage in self._stages:
            pieces = stage.decode(pieces)
        self._pieces = pieces

    def take(self) -> bytes:
        """Return the next piece of what was added; ``b""`` when nothing is left of it.

        Raises:
            Undecodable: it is not of its coding.
        """
        try:
            return next(self._pieces, b"")
        except zlib.error:
            raise self._broken("is not of it") from None

    def end(self) -> None:
        """Take note that nothing more is coming.

        Raises:
            Undecodable: something is missing.
        """
        if not all(stage.complete for stage in self._stages or ()):
            raise self._broken("ends too early")

    def _broken(self, how: str) -> Undecodable:
        return Undecodable(f"its Content-Encoding is {self._label!r}, but the body {how}")


class _Gzip:
    """The gzip format: members in a row (RFC 1952, section 2.2). What follows them and is none is left out."""

    def __init__(self) -> None:
        self._member = _gzip_member()
        self._begun = self._ended = False

    @property
    def complete(self) -> bool:
        return self._member.eof or not self._begun

    def decode(self, data: Iterable[bytes]) -> Iterator[bytes]:
        for each in data:
            rest = each
            while rest and not self._ended:
                self._begun = True
                if self._member.eof:
                    if rest[0] != _GZIP_BEGINS:
                        self._ended = True
                        break
                    self._member = _gzip_member()
                yield from _inflated(self._member, rest)
                rest = self._member.unused_data


def _gzip_member() -> zlib._Decompress:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


class _Deflate:
    """The zlib format (RFC 1950), or what is within it without its frame (RFC 1951), which some servers send."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj()
        self._head: bytes | None = b""

    @property
    def complete(self) -> bool:
        return self._head == b"" or self._stream.eof

    def decode(self, data: Iterable[bytes]) -> Iterator[bytes]:
        for each in data:
            rest = each
            if self._head is not None:
                self._head = rest = self._head + each
                if len(rest) < 2:
                    continue
                if not _has_frame(rest):
                    self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
                self._head = None
            if not self._stream.eof:
                yield from _inflated(self._stream, rest)


def _has_frame(data: bytes) -> bool:
    # RFC 1950, section 2.2: the method is 8, and the first two bytes are a multiple of 31.
    return data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0


def _inflated(stream: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    while True:
        piece = stream.decompress(data, _PIECE)
        if piece:
            yield piece
        data = stream.unconsumed_tail
        # Without input left, a full piece may mean that more is waiting inside.
        if stream.eof or (not data and len(piece) < _PIECE):
            return


_CODINGS: dict[str, Callable[[], _Gzip | _Deflate]] = {"gzip": _Gzip, "x-gzip": _Gzip, "deflate": _Deflate}
