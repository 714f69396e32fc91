"""Finding and reading files: nothing is skipped in silence, nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.migration import Config, Report, UsageError, scan

WITHOUT_CACHE = Config(cache=False, jobs=1)
SITE = "import sqlite3\n\n\ndef f():\n    return sqlite3.connect('x')\n"


def lines(report: Report) -> list[tuple[str, int]]:
    return [(Path(site.file).name, site.line) for site in report.sites]


@pytest.mark.parametrize(
    ("prefix", "encoding"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("# -*- coding: latin-1 -*-\n# é\n", "latin-1"),
        ("# coding: cp1252\n# €\n", "cp1252"),
    ],
)
def test_declared_encodings(tmp_path: Path, prefix: str, encoding: str) -> None:
    """A file in an encoding that it declares is read as Python reads it."""
    (tmp_path / "a.py").write_bytes((prefix + SITE).encode(encoding))
    report = scan([tmp_path], WITHOUT_CACHE)
    assert lines(report) == [("a.py", 5 + prefix.count("\n"))]
    assert report.problems == []


@pytest.mark.parametrize(
    "data",
    [
        b"# caf\xe9\n" + SITE.encode(),
        SITE.encode("utf-16"),
        SITE.encode("utf-16-le"),
        b"# coding: no-such-encoding\n" + SITE.encode(),
        SITE.replace("def f", "x = '\0'\n\n\ndef f").encode(),
    ],
    ids=["undeclared latin-1", "utf-16", "utf-16 without mark", "unknown encoding", "null byte"],
)
def test_wrong_encodings_and_null_bytes(tmp_path: Path, data: bytes) -> None:
    """A file that Python refuses for its bytes is listed, and its sites are found with low confidence."""
    (tmp_path / "a.py").write_bytes(data)
    report = scan([tmp_path], WITHOUT_CACHE)
    (site,) = report.sites
    assert (site.confidence, site.rewritable) == ("low", False)
    assert [problem.code for problem in report.problems] == ["PM901"]


def test_line_ends(tmp_path: Path) -> None:
    """Files with Windows and old Mac line ends have the same line numbers."""
    (tmp_path / "crlf.py").write_bytes(SITE.replace("\n", "\r\n").encode())
    (tmp_path / "cr.py").write_bytes(SITE.replace("\n", "\r").encode())
    assert lines(scan([tmp_path], WITHOUT_CACHE)) == [("cr.py", 5), ("crlf.py", 5)]


def test_links(tmp_path: Path) -> None:
    """Each file is read once, however many links lead to it, and a loop of links ends."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text(SITE)
    (tmp_path / "package" / "loop").symlink_to(tmp_path / "package", target_is_directory=True)
    (tmp_path / "twin.py").symlink_to(tmp_path / "package" / "a.py")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "self.py").symlink_to(tmp_path / "self.py")
    report = scan([tmp_path], WITHOUT_CACHE)
    assert lines(report) == [("a.py", 5)]
    assert {(Path(problem.file).name, problem.code) for problem in report.problems} == {
        ("gone.py", "PM902"),
        ("self.py", "PM902"),
    }


def test_unreadable_file_as_a_user(users_folder: Path) -> None:
    """A file without permission to read is listed."""
    (users_folder / "a.py").write_text(SITE)
    (users_folder / "a.py").chmod(0)
    assert [problem.code for problem in scan([users_folder], WITHOUT_CACHE).problems] == ["PM902"]


def test_unreadable_entry(tmp_path: Path) -> None:
    """Something that looks like a file and cannot be read as one is listed, and the rest is scanned."""
    (tmp_path / "b.py").write_text(SITE)
    (tmp_path / "a.py").symlink_to("/proc/self/mem")  # opens, and fails at the first byte
    report = scan([tmp_path], WITHOUT_CACHE)
    assert lines(report) == [("b.py", 5)]
    assert [(Path(problem.file).name, problem.code) for problem in report.problems] == [("a.py", "PM902")]


def test_large_file(tmp_path: Path) -> None:
    """A file of 50,000 lines is read, also when it does not parse."""
    body = "".join(
        f"def f{number}():\n    conn = sqlite3.connect('x')\n    conn.close()\n    return 1\n\n"
        for number in range(10_000)
    )
    (tmp_path / "good.py").write_text(f"import sqlite3\n{body}")
    (tmp_path / "bad.py").write_text(f"import sqlite3\n{body}print 'end')\n")
    report = scan([tmp_path], WITHOUT_CACHE)
    assert len(report.sites) == 20_000
    assert [Path(problem.file).name for problem in report.problems] == ["bad.py"]


def test_deep_nesting(tmp_path: Path) -> None:
    """Expressions nested by the thousand are read, or listed if Python itself cannot."""
    terms = " + ".join(["'x'"] * 3_000)
    (tmp_path / "sum.py").write_text(f"{SITE}\n\ny = {terms}\n")
    (tmp_path / "brackets.py").write_text(f"{SITE}\n\ny = {'(' * 500}1{')' * 500}\n")
    report = scan([tmp_path], WITHOUT_CACHE)
    assert lines(report) == [("brackets.py", 5), ("sum.py", 5)]


def test_empty_and_odd_files(tmp_path: Path) -> None:
    """Empty files, binary files and files of other kinds are harmless."""
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "notes.txt").write_text(SITE)
    report = scan([tmp_path], WITHOUT_CACHE)
    assert report.sites == []
    assert {Path(file.file).name for file in report.files} == {"empty.py", "binary.py"}


def test_exclude_and_environments(tmp_path: Path) -> None:
    """Excluded patterns and virtual environments are left out."""
    for folder in ("agents", "generated", "env/lib"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text(SITE)
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    report = scan([tmp_path], Config(cache=False, exclude=("generated",)))
    assert [Path(site.file).parent.name for site in report.sites] == ["agents"]


def test_missing_path(tmp_path: Path) -> None:
    """A path that does not exist is an error that names it."""
    with pytest.raises(UsageError, match="nowhere"):
        scan([tmp_path / "nowhere"])


def test_scan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan leaves the scanned folder as it was, and keeps its facts in the user's cache folder."""
    code, cache = tmp_path / "code", tmp_path / "cache"
    code.mkdir()
    (code / "a.py").write_text(SITE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    before = sorted(code.rglob("*"))
    scan([code], Config())
    assert sorted(code.rglob("*")) == before
    assert list(cache.rglob("*.json"))


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second scan says the same, sees what changed, and survives a damaged cache."""
    code, cache = tmp_path / "code", tmp_path / "cache"
    code.mkdir()
    (code / "a.py").write_text(SITE)
    (code / "b.py").write_text(SITE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    first = scan([code], Config())
    assert scan([code], Config()) == first
    (code / "b.py").write_text(f"\n{SITE}")
    assert lines(scan([code], Config())) == [("a.py", 5), ("b.py", 6)]
    (file,) = cache.rglob("*.json")
    file.write_bytes(b"x" * 33 + b"{}\n" + file.read_bytes()[:100])
    assert lines(scan([code], Config())) == [("a.py", 5), ("b.py", 6)]


def test_several_processes_say_the_same(tmp_path: Path) -> None:
    """Several processes find what one finds."""
    filler = "".join(f"def filler_{number}(x):\n    return x + {number}\n\n\n" for number in range(800))
    for number in range(40):
        (tmp_path / f"m{number}.py").write_text(f"{SITE}\n\n{filler}")
    assert scan([tmp_path], Config(cache=False, jobs=2)) == scan([tmp_path], WITHOUT_CACHE)
