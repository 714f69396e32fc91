"""``poolwire demo`` and ``poolwire ask`` as processes of their own."""

import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
FILES = 120


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with many small files."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"page{number:03}.md").write_text(
            f"# Page {number}\n\nThe socket number {number} is leased for one call.\n\n"
            "## Details\n\nAfter it, it rests.\n"
        )
    return folder


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "app", *map(str, arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}


def _run(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=_environment() | environment,
        cwd=cwd,
        check=False,
    )


@contextmanager
def _started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    with _spawned(_command(*arguments)) as process:
        yield process


@contextmanager
def _spawned(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _jobs(folder: Path) -> Counter[str]:
    """Return the number of jobs in each state; nothing before there is an index."""
    index = folder / ".poolwire" / "index.sqlite"
    if not index.exists():
        return Counter()
    with closing(sqlite3.connect(index)) as connection:
        try:
            return Counter(dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state")))
        except sqlite3.OperationalError:  # the table is not there yet
            return Counter()


def _attempted(folder: Path) -> int:
    """Return how many jobs were handed to the extractors."""
    index = folder / ".poolwire" / "index.sqlite"
    if not _jobs(folder):
        return 0
    with closing(sqlite3.connect(index)) as connection:
        return int(connection.execute("SELECT count(*) FROM jobs WHERE attempts > 0").fetchone()[0])


def _passages(folder: Path) -> Counter[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / ".poolwire" / "index.sqlite")) as connection:
        return Counter(connection.execute('SELECT path, start, "end", heading, body FROM passages'))


def _expected(folder: Path) -> set[tuple[str, int, int]]:
    return {(f.name, *lines) for f in folder.glob("*.md") for lines in ((1, 3), (5, 7))}


def test_demo_without_a_terminal_indexes_and_answers_two_questions(folder: Path) -> None:
    """Two example questions are answered, the agents and the pools are shown, and the exit code is 0."""
    done = _run("demo", folder)
    assert done.returncode == 0, done.stderr
    assert f"{FILES} files with {2 * FILES} passages" in done.stdout
    assert done.stdout.count("?\n") == 2
    for name in ("scanner", "extractor-1", "extractor-2", "enricher", "librarian", "assistant", "monitor"):
        assert name in done.stdout
    assert re.search(r"page\d+\.md:3", done.stdout)
    assert done.stderr == ""


def test_demo_as_json_is_one_object(folder: Path) -> None:
    """Machines get the counts, what was left out with the reason, the answers, the agents and the pools."""
    (folder / "data.bin").write_bytes(b"\0\1\2")
    report = json.loads(_run("demo", folder, "--json").stdout)
    assert report["jobs"]["done"] == FILES
    assert {"path": "data.bin", "reason": "binary", "detail": ""} in report["left_out"]
    assert len(report["answers"]) == 2
    assert set(report["pools"]) == {"zmq", "sql", "http"}
    assert report["agents"]["scanner"]["failed"] == 0


def test_ask_answers_with_citations(folder: Path) -> None:
    """One question gets its answer with file and line on standard output, and exit code 0."""
    done = _run("ask", "What about socket number 42?", folder)
    assert done.returncode == 0, done.stderr
    assert "The socket number 42 is leased for one call." in done.stdout
    assert "page042.md:3" in done.stdout


def test_ask_as_json(folder: Path) -> None:
    """Machines get the answer's text and citations."""
    answer = json.loads(_run("ask", "What about socket number 42?", folder, "--json").stdout)
    assert answer["citations"][0]["path"] == "page042.md"
    assert answer["citations"][0]["line"] == 3


def test_a_question_that_nothing_answers_says_so(folder: Path) -> None:
    """Without a hit the answer names what was looked for; that is an answer, not an error."""
    done = _run("ask", "Where are the unicorns?", folder)
    assert done.returncode == 0
    assert "Nothing in this folder mentions" in done.stdout
    assert "unicorns" in done.stdout


def test_the_project_answers_about_itself() -> None:
    """Asked about a REQ socket after a timeout, the documentation's page on ZMQ is cited first."""
    if not (ROOT / "docs" / "zmq.md").exists():
        pytest.skip("docs/zmq.md is not written yet")
    question = "what happens to a REQ socket after a timeout?"
    answer = json.loads(_run("ask", question, "docs", "--json", cwd=ROOT).stdout)
    assert answer["citations"][0]["path"] == "zmq.md"


@pytest.mark.parametrize("command", [("demo",), ("ask", "why?")])
@pytest.mark.parametrize(
    ("name", "message"), [("missing", "there is no folder"), ("file", "is not a folder"), ("empty", "it is empty")]
)
def test_a_bad_folder_is_a_clear_error(tmp_path: Path, command: tuple[str, ...], name: str, message: str) -> None:
    """A missing or empty folder, or a file, ends with exit code 2 and one line that says so."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    done = _run(*command, tmp_path / name)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_with_nothing_to_read_says_why(tmp_path: Path) -> None:
    """A folder whose every entry is left out names the reasons."""
    (tmp_path / ".hidden").write_text("text")
    done = _run("demo", tmp_path)
    assert done.returncode == 2
    assert "all 1 entries are left out (hidden)" in done.stderr


def test_an_empty_question_is_a_clear_error(folder: Path) -> None:
    """A question without words is refused."""
    done = _run("ask", "  ", folder)
    assert done.returncode == 2
    assert "the question is empty" in done.stderr


def test_a_damaged_index_is_an_error_without_a_traceback(folder: Path) -> None:
    """What ends the agents is told in one line, and the exit code is 1."""
    assert _run("demo", folder).returncode == 0
    index = folder / ".poolwire" / "index.sqlite"
    index.write_bytes(index.read_bytes()[:100] + b"\xff" * 20_000)
    done = _run("demo", folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"(the index is damaged; remove {index}, and it is made again)\n")
    assert len(done.stderr.splitlines()) == 1


def test_where_no_index_can_be_kept_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    """A folder and a cache that cannot be written are told in one line, with what to set."""
    (tmp_path / "site-packages").mkdir()  # an installed package keeps no index in itself
    (tmp_path / "site-packages" / "page.md").write_text("# Page")
    (tmp_path / "cache").write_text("no folder")
    done = _run("demo", tmp_path / "site-packages", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no place for the index: ")
    assert "XDG_CACHE_HOME" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_killed_half_way_a_second_start_finishes(folder: Path) -> None:
    """After SIGKILL the next run does exactly what was left: nothing is lost and nothing is there twice."""
    with _started("demo", folder, "--delay", "0.6") as process:
        eventually(lambda: 0 < _jobs(folder)["done"] < FILES and _jobs(folder)["queued"], seconds=30)
        process.kill()
        process.wait(timeout=30)
    done = _jobs(folder)["done"]
    assert 0 < done < FILES
    report = json.loads(_run("demo", folder, "--json").stdout)
    assert report["finished"] == FILES - done
    assert report["jobs"] == {"queued": 0, "done": FILES, "skipped": 1, "failed": 0, "passages": 2 * FILES}
    found = _passages(folder)
    assert set(found.values()) == {1}
    assert {row[:3] for row in found} == _expected(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_indexing_it_drains_and_says_so(folder: Path, number: signal.Signals, code: int) -> None:
    """A signal lets what is in flight finish, says how much is left, and the next run finishes it."""
    with _started("demo", folder, "--delay", "0.6") as process:
        eventually(lambda: 0 < _jobs(folder)["done"] < FILES, seconds=30)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    said = re.search(r"stopped: (\d+) in flight finished, (\d+) files indexed in this run, (\d+) left", output)
    assert said, output + errors
    drained, finished, left = map(int, said.groups())
    assert drained > 0
    assert finished + left == FILES
    assert f"{number.name}: stopping; once more to end at once" in output
    assert errors == ""
    assert _jobs(folder)["done"] == finished
    report = json.loads(_run("demo", folder, "--json").stdout)
    assert report["finished"] == left
    assert set(_passages(folder).values()) == {1}


def test_what_does_not_end_in_time_is_cut_off_and_has_an_exit_code(folder: Path) -> None:
    """Where the drain takes longer than its limit, the code is 3, each agent has a line, and what is left is said."""
    impatient = (
        "from functools import partial; import app.cli.demo as demo; from app.cli.main import app; "
        "demo.DemoSettings = partial(demo.DemoSettings, drain_timeout=0.3); app()"
    )
    with _spawned([sys.executable, "-c", impatient, "demo", str(folder), "--delay", "30"]) as process:
        eventually(lambda: _attempted(folder), seconds=30)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 3, errors
    assert f"0 files indexed in this run, {FILES} left for the next one" in output
    assert errors.splitlines() == [
        f"error: extractor-{number}: 16 in flight did not end within 0.3 s" for number in (2, 1)
    ]


def test_interrupted_at_once_it_still_stops_cleanly(folder: Path) -> None:
    """A signal before anything is indexed stops the demo as cleanly as one later."""
    with _started("demo", folder, "--delay", "0.6") as process:
        eventually((folder / ".poolwire" / "index.sqlite").exists, seconds=30)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert _run("demo", folder).returncode == 0


@contextmanager
def _at_a_terminal(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the command with a terminal; yields the process and the terminal's other end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        _command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=_environment(), start_new_session=True
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=30)
        os.close(ours)


def _read_until(terminal: int, text: str, seconds: float = 30.0) -> str:
    seen = ""
    deadline = time.monotonic() + seconds
    while text not in seen:
        left = deadline - time.monotonic()
        assert left > 0, f"{text!r} did not appear within {seconds} s: {seen!r}"
        if select.select([terminal], [], [], left)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


def test_the_prompt_answers_what_is_typed_and_ends_with_the_input(folder: Path) -> None:
    """At a terminal questions are answered one after the other, until Ctrl-D."""
    with _at_a_terminal("demo", folder) as (process, terminal):
        _read_until(terminal, "? ")
        os.write(terminal, b"What about socket number 42?\n")
        _read_until(terminal, "page042.md:3")
        os.write(terminal, b"What about socket number 7?\n")
        _read_until(terminal, "page007.md:3")
        os.write(terminal, b"\x04")
        assert process.wait(timeout=30) == 0


def test_an_interruption_at_the_prompt_is_a_normal_end(folder: Path) -> None:
    """Ctrl-C at the prompt ends with exit code 0."""
    with _at_a_terminal("demo", folder) as (process, terminal):
        _read_until(terminal, "Ctrl-D ends.")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
