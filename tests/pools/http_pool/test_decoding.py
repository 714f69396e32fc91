"""Compressed bodies: what is decoded, what is refused by name, alike for threads and tasks."""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from app.pools.errors import HTTPUnavailable, ResponseTooLarge
from app.pools.http_pool import HTTPConfig, HTTPPool
from app.pools.http_pool.decoding import Decoder, Undecodable
from tests.pools.http_pool.conftest import Ask
from tests.support.misbehaving import MisbehavingServer

BODY = bytes(range(256)) * 4000


def twice(data: bytes) -> bytes:
    return gzip.compress(gzip.compress(data))


def raw(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


DECODED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress), ("GZip", gzip.compress), ("x-gzip", gzip.compress), ("identity, gzip", gzip.compress),
    ("gzip, gzip", twice), ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    ("deflate", zlib.compress), ("deflate", raw), ("identity", bytes), ("", bytes),
    ("gzip", lambda data: gzip.compress(data[:100_000]) + gzip.compress(data[100_000:])),
    ("gzip", lambda data: gzip.compress(data) + bytes(64)),
]  # fmt: skip


@pytest.mark.parametrize(("coding", "pack"), DECODED)
async def test_what_can_be_decoded(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    """gzip and deflate, in each of their spellings and two over each other, come decoded, whole and as a stream."""
    options = {"params": {"encoding": coding}, "data": pack(BODY)}
    assert (await ask(config, "PUT", "/body", **options)).content == BODY
    with pool.stream(config, "PUT", "/body", **options) as stream:
        assert stream.read() == BODY
    async with pool.stream(config, "PUT", "/body", **options) as streamed:
        assert await streamed.read() == BODY


REFUSED = [
    ("br", b"\x8b\x00\x80abc\x03"), ("zstd", b"\x28\xb5\x2f\xfdabc"), ("compress", b"abc"), ("gzip, br", b"abc"),
    ("gzip, gzip, gzip", gzip.compress(twice(b"abc"))), ("gzip", b"not gzip at all"),
    ("gzip, gzip", gzip.compress(b"abc")),
    ("gzip", gzip.compress(BODY)[:-20]), ("deflate", zlib.compress(BODY)[:-20]), ("deflate", b"\xff\xff\xff"),
    ("deflate", b"x"), ("gzip", gzip.compress(BODY) + gzip.compress(BODY)[:-1]),
]  # fmt: skip


# Numbered: gzip writes the time into its header, and the workers of a run must agree on the names of the tests.
@pytest.mark.parametrize(("coding", "body"), REFUSED, ids=[f"{n}-{coding}" for n, (coding, _) in enumerate(REFUSED)])
async def test_what_cannot_be_decoded_is_an_error_that_names_the_coding(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, server: MisbehavingServer, coding: str, body: bytes
) -> None:
    """Another coding, or a body that is not of its coding, raises HTTPUnavailable with its name after one attempt."""
    options = {"params": {"encoding": coding}, "data": body}
    with pytest.raises(HTTPUnavailable, match=f"its Content-Encoding is '{coding}'"):
        await ask(config, "PUT", "/body", **options)
    assert len(server.seen) == 1
    with pytest.raises(HTTPUnavailable, match=coding), pool.stream(config, "PUT", "/body", **options) as stream:
        stream.read()
    async with pool.stream(config, "PUT", "/body", **options) as streamed:
        with pytest.raises(HTTPUnavailable, match=coding):
            await streamed.read()
    assert pool.get_stats()["pools"][server.url]["active"] == 0
    assert (await ask(config, "GET", "/echo")).ok


async def test_a_coding_without_a_body_is_none_of_our_business(ask: Ask, config: HTTPConfig) -> None:
    """A response that has no body is not refused for the coding that it names."""
    for coding in ("br", "gzip", "deflate"):
        assert (await ask(config, "PUT", "/body", params={"encoding": coding}, data=b"")).content == b""
        assert (await ask(config, "HEAD", "/body", params={"encoding": coding})).ok


@pytest.mark.parametrize(
    "pack", [twice, lambda data: gzip.compress(zlib.compress(data, 9), 9)], ids=["gzip", "deflate"]
)
async def test_a_bomb_in_a_bomb_is_refused(
    ask: Ask, pool: HTTPPool, config: HTTPConfig, pack: Callable[[bytes], bytes]
) -> None:
    """A bomb that is compressed twice ends at the limit as well, in whole bodies and in streams."""
    coding = "gzip, gzip" if pack is twice else "deflate, gzip"
    limited = replace(config, max_response_size=1 << 20)
    options = {"params": {"encoding": coding}, "data": pack(bytes(64 << 20))}
    with pytest.raises(ResponseTooLarge):
        await ask(limited, "PUT", "/body", **options)
    with pytest.raises(ResponseTooLarge), pool.stream(limited, "PUT", "/body", **options) as stream:
        stream.read()


@pytest.mark.parametrize(("coding", "pack"), DECODED)
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_pieces_of_any_size_decode_alike(coding: str, pack: Callable[[bytes], bytes], size: int) -> None:
    """However a body is cut on its way, it decodes to the same; no decoded piece is larger than 256 KiB."""
    packed = pack(BODY[:150_000] + bytes(1 << 20))
    decoder = Decoder({"Content-Encoding": coding})
    pieces = []
    for at in range(0, len(packed), size):
        decoder.feed(packed[at : at + size])
        while piece := decoder.take():
            pieces.append(piece)
    decoder.end()
    assert b"".join(pieces) == BODY[:150_000] + bytes(1 << 20)
    assert max(map(len, pieces)) <= 256 * 1024


def test_what_the_server_says_is_shown_in_part() -> None:
    """A Content-Encoding of any length and content makes a message of one short line."""
    with pytest.raises(Undecodable) as caught:
        Decoder({"Content-Encoding": "x\n" * 5000}).feed(b"a")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
