"""Reading files as text."""

import os
from pathlib import Path

import pytest

from app.demo.documents import decode, read_document
from app.demo.folder import Reason, SkipFile


def _reason(content: bytes, **options: bool) -> Reason:
    with pytest.raises(SkipFile) as caught:
        decode(content, **options)
    return caught.value.reason


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        ("Grüße".encode(), "Grüße"),
        ("Grüße".encode("utf-8-sig"), "Grüße"),
        ("Grüße".encode("utf-16"), "Grüße"),
        ("Grüße".encode("utf-32"), "Grüße"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"a form\x0cfeed", "a form\x0cfeed"),
    ],
)
def test_text_is_decoded(content: bytes, text: str) -> None:
    """UTF-8, and UTF-16 and UTF-32 with their marks, are read; line ends become newlines."""
    assert text == decode(content)


def test_a_coding_cookie_counts_in_python_only() -> None:
    """A PEP 263 cookie gives the encoding of a Python file, and means nothing in another one."""
    content = "#!/usr/bin/env python\n# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1")
    assert decode(content, python=True).endswith("'é'\n")
    assert _reason(content) == Reason.ENCODING


@pytest.mark.parametrize("content", [b"\x7fELF\0\0\0", b"\x89PNG\r\n\x1a\n\x00", bytes(range(1, 32)) * 10])
def test_binary_content_is_skipped(content: bytes) -> None:
    """NUL bytes or many control characters mean that a file is no text."""
    assert _reason(content) == Reason.BINARY


@pytest.mark.parametrize(
    ("content", "python"),
    [(b"caf\xe9 au lait", False), (b"# coding: klingon\n", True), ("é".encode("utf-16")[:-1], False), (b"\xc3", False)],
)
def test_bad_encodings_are_skipped(content: bytes, python: bool) -> None:
    """Bytes that do not fit the encoding, or an encoding that does not exist, are reported as such."""
    assert _reason(content, python=python) == Reason.ENCODING


def test_the_detail_of_a_bad_encoding_says_where(tmp_path: Path) -> None:
    """The detail names the encoding, the byte and its place."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(SkipFile, match=r"badly encoded: not utf-8: byte 0xe9 at 3"):
        read_document(tmp_path, "a.txt")


def test_a_document_carries_what_tells_whether_it_changed(tmp_path: Path) -> None:
    """Equal bytes have equal digests, whatever the file's time."""
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    (tmp_path / "c.txt").write_text("other")
    first, second, third = (read_document(tmp_path, name) for name in ("a.txt", "b.txt", "c.txt"))
    assert first.digest == second.digest != third.digest
    assert first.size == 4
    assert (tmp_path / "a.txt").stat().st_mtime_ns == first.modified


def test_a_vanished_file_is_skipped(tmp_path: Path) -> None:
    """A file, or the folder it was in, that is gone since the walk is reported as vanished."""
    (tmp_path / "file").write_text("text")
    for path in ("gone.txt", "gone/too.txt", "file/inside.txt"):
        with pytest.raises(SkipFile) as caught:
            read_document(tmp_path, path)
        assert caught.value.reason == Reason.VANISHED


def test_a_file_that_grew_since_the_walk_is_huge(tmp_path: Path) -> None:
    """The limit holds for what is read, not for what the walk saw."""
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(SkipFile) as caught:
        read_document(tmp_path, "a.txt", size_limit=10)
    assert caught.value.reason == Reason.HUGE


def test_a_fifo_in_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    """A FIFO that took a file's place since the walk is skipped at once."""
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SkipFile) as caught:
        read_document(tmp_path, "pipe.txt")
    assert caught.value.reason == Reason.SPECIAL


def test_what_the_system_refuses_to_read_is_unreadable(tmp_path: Path) -> None:
    """A file that opens and then fails to read is skipped with the system's words."""
    unreadable = Path("/proc/self/mem")
    if not unreadable.exists():
        pytest.skip("needs /proc")
    (tmp_path / "memory.txt").symlink_to(unreadable)
    with pytest.raises(SkipFile) as caught:
        read_document(tmp_path, "memory.txt")
    assert caught.value.reason == Reason.UNREADABLE
    assert caught.value.detail


def test_a_file_without_permission_is_unreadable(users_folder: Path) -> None:
    """A file that this user may not read is skipped."""
    (users_folder / "a.txt").touch(mode=0o000)
    with pytest.raises(SkipFile) as caught:
        read_document(users_folder, "a.txt")
    assert caught.value.reason == Reason.UNREADABLE
