"""Reading one file as text, or saying why it cannot be."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.demo.folder import DEFAULT_SIZE_LIMIT, Reason, SkipFile

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix of it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 8192
_CODING_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\r\f\x1b\x08"))


@dataclass(frozen=True, slots=True)
class Document:
    """A file as it was read.

    Attributes:
        path: relative to the folder, with ``/``.
        text: with ``\\n`` line ends, so that line numbers are those an editor shows.
        digest: of the bytes; equal digests mean equal content.
        size: in bytes.
        modified: nanoseconds since the epoch, taken from the open file.
    """

    path: str
    text: str
    digest: str
    size: int
    modified: int


def read_document(folder: Path, path: str, *, size_limit: int = DEFAULT_SIZE_LIMIT) -> Document:
    """Read ``path`` below ``folder``.

    Raises:
        SkipFile: it is gone, unreadable, special, larger than ``size_limit`` bytes, binary or badly encoded.
    """
    content, status = _read(folder / path, size_limit)
    text = decode(content, python=path.endswith((".py", ".pyw", ".pyi")))
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return Document(path, text, digest, len(content), status.st_mtime_ns)


def _read(location: Path, size_limit: int) -> tuple[bytes, os.stat_result]:
    try:
        # Without O_NONBLOCK, a FIFO that took the file's place since the walk would block for ever.
        descriptor = os.open(location, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SkipFile(Reason.SPECIAL)
            # One byte more than allowed shows that the file has grown since the walk.
            content = _read_up_to(file.read, size_limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise SkipFile(Reason.VANISHED) from None
    except OSError as error:
        raise SkipFile(Reason.UNREADABLE, error.strerror or str(error)) from None
    if len(content) > size_limit:
        raise SkipFile(Reason.HUGE, f"more than {size_limit:,} bytes")
    return content, status


def _read_up_to(read: Callable[[int], bytes | None], limit: int) -> bytes:
    parts: list[bytes] = []
    missing = limit
    while missing > 0:
        part = read(missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def decode(content: bytes, *, python: bool = False) -> str:
    """Return the text of ``content``: UTF-8, what a byte order mark says, or what a Python coding cookie says.

    Args:
        content: a whole file.
        python: whether a PEP 263 cookie in the first two lines counts.

    Raises:
        SkipFile: the bytes are not text, or not in that encoding.
    """
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), None)
    if encoding is None:
        sample = content[:_SAMPLE]
        if b"\0" in sample or len(sample) - len(sample.translate(None, _CONTROL_BYTES)) > len(sample) // 50:
            raise SkipFile(Reason.BINARY)
        encoding = (_cookie(sample) if python else None) or "utf-8"
    try:
        text = content.decode(encoding)
    except LookupError:
        raise SkipFile(Reason.ENCODING, f"the encoding {encoding!r} is unknown") from None
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start}" if error.start < len(content) else "cut short"
        raise SkipFile(Reason.ENCODING, f"not {encoding}: {found}") from None
    except UnicodeError as error:
        raise SkipFile(Reason.ENCODING, f"not {encoding}: {error}") from None
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _cookie(sample: bytes) -> str | None:
    for line in sample.splitlines()[:2]:
        match = _CODING_COOKIE.match(line)
        if match:
            return match[1].decode("ascii", "replace")
        if line.strip() and not line.lstrip().startswith(b"#"):
            return None
    return None
