"""The agents of the demo together, on real folders, through one container."""

import os
import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.demo import Demo, DemoSettings
from app.demo.extractor import Extractor
from app.demo.place import index_file
from app.demo.scanner import MOST_ATTEMPTS

IMPATIENT = DemoSettings(patience=0.3, retry_delay=0.02)


def _folder(root: Path, count: int = 30) -> Path:
    root.mkdir(exist_ok=True)
    for number in range(count):
        (root / f"page{number:03}.md").write_text(
            f"# Page {number}\n\nThe socket number {number} is leased for one call.\n\n"
            "## Details\n\nAfter it, it rests.\n"
        )
    return root


def _rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(index_file(folder))) as index:
        return index.execute(sql).fetchall()


def passages(folder: Path) -> Counter[tuple[Any, ...]]:
    """Return every passage of a folder's index, and how often it is there."""
    return Counter(_rows(folder, 'SELECT path, start, "end", heading, body FROM passages'))


async def _index(folder: Path, settings: DemoSettings | None = None) -> tuple[Demo, dict[str, Any]]:
    async with Demo(folder, settings) as demo:
        await demo.indexed()
        report = await demo.report()
    return demo, report


async def test_every_file_is_indexed_once(tmp_path: Path) -> None:
    """Each file is done, and each of its passages is there exactly once with its place."""
    folder = _folder(tmp_path / "folder")
    demo, report = await _index(folder)
    assert report["jobs"] == {"queued": 0, "done": 30, "skipped": 1, "failed": 0, "passages": 60}
    assert demo.finished_jobs == 30
    found = passages(folder)
    assert set(found.values()) == {1}
    assert found[("page007.md", 5, 7, "Page 7 > Details", "## Details\n\nAfter it, it rests.")] == 1
    assert _rows(folder, "SELECT DISTINCT programming, natural FROM jobs WHERE state = 'done'") == [("markdown", "en")]


async def test_an_answer_cites_file_and_line(tmp_path: Path) -> None:
    """The assistant finds the page by way of the librarian and quotes its sentence with its line."""
    async with Demo(_folder(tmp_path / "folder")) as demo:
        await demo.indexed()
        answer = await demo.ask("What about socket number 17?")
    assert (answer["citations"][0]["path"], answer["citations"][0]["line"]) == ("page017.md", 3)
    assert answer["text"].startswith("The socket number 17 is leased for one call. [page017.md:3]")
    assert answer["notes"] == []


async def test_a_second_run_indexes_only_what_changed(tmp_path: Path) -> None:
    """New and changed files are indexed, unchanged ones are not read, removed ones leave the index."""
    folder = _folder(tmp_path / "folder")
    await _index(folder)
    before = passages(folder)
    (folder / "page001.md").write_text("Changed entirely.")
    (folder / "new.txt").write_text("New here.")
    (folder / "page002.md").unlink()
    os.utime(folder / "page003.md", ns=(1, 1))  # touched, with the same content
    demo, report = await _index(folder)
    assert demo.monitor.survey["unchanged"] == 27
    assert demo.monitor.survey["removed"] == 1
    assert demo.monitor.outcomes == {"stored": 2, "unchanged": 1}
    assert report["jobs"]["done"] == 30
    after = passages(folder)
    assert {row[0] for row in before - after} == {"page001.md", "page002.md"}
    assert sorted(row[0] for row in after - before) == ["new.txt", "page001.md"]
    demo, _ = await _index(folder)
    assert demo.finished_jobs == 0


async def test_a_file_that_can_no_longer_be_indexed_leaves_the_index(tmp_path: Path) -> None:
    """Passages of a file that became binary, or too large, are removed, and the reason is listed."""
    folder = _folder(tmp_path / "folder", 3)
    await _index(folder)
    (folder / "page000.md").write_bytes(b"\0binary")
    (folder / "page001.md").write_text("x" * 5000)
    _, report = await _index(folder, DemoSettings(size_limit=1000))
    assert {row[0] for row in passages(folder)} == {"page002.md"}
    reasons = {entry["path"]: entry["reason"] for entry in report["left_out"]}
    assert reasons == {".poolwire/": "hidden", "page000.md": "binary", "page001.md": "huge"}
    _folder(folder, 3)
    _, report = await _index(folder)
    assert report["jobs"]["done"] == 3


async def test_bad_files_are_listed_with_their_reason(tmp_path: Path) -> None:
    """What cannot be indexed is counted and listed, and everything else is indexed."""
    folder = _folder(tmp_path / "folder", 2)
    (folder / "binary.dat").write_bytes(b"\x7fELF\0")
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (folder / "broken").symlink_to(folder / "missing")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    _, report = await _index(folder)
    assert {entry["path"]: entry["reason"] for entry in report["left_out"]} == {
        ".poolwire/": "hidden",
        "binary.dat": "binary",
        "broken": "broken link",
        "latin.txt": "badly encoded",
        "loop/": "link to a folder already walked",
        "pipe": "not a regular file",
    }
    assert report["jobs"]["done"] == 2


class Vanishing(Extractor):
    """Deletes each of the files in ``doomed`` just before it reads it."""

    doomed = frozenset({"page001.md", "page002.md"})

    async def on_message(self, message: dict[str, Any]) -> None:
        if message["path"] in self.doomed:
            (self._folder / message["path"]).unlink()
        await super().on_message(message)


async def test_a_file_that_vanishes_before_it_is_read_is_listed(tmp_path: Path) -> None:
    """A file deleted between the scan and its turn is skipped as vanished, and is forgotten at the next scan."""
    folder = _folder(tmp_path / "folder", 5)
    demo = Demo(folder)
    demo.extractors = [Vanishing(folder)]
    async with demo:
        await demo.indexed()
        report = await demo.report()
    vanished = [entry["path"] for entry in report["left_out"] if entry["reason"] == "vanished"]
    assert vanished == ["page001.md", "page002.md"]
    _, report = await _index(folder)
    assert [entry["path"] for entry in report["left_out"]] == [".poolwire/"]
    assert report["jobs"]["done"] == 3


class Dying(Extractor):
    """Loses every job at its first delivery, as a worker does that dies with the jobs that it holds."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self.lost: set[int] = set()

    async def on_message(self, message: dict[str, Any]) -> None:
        if message["id"] in self.lost:
            await super().on_message(message)
        self.lost.add(message["id"])


async def test_jobs_lost_with_a_dying_worker_are_sent_again(tmp_path: Path) -> None:
    """What was sent and lost is found in the jobs table and done in the end, each file once."""
    folder = _folder(tmp_path / "folder", 40)
    demo = Demo(folder, IMPATIENT)
    demo.extractors = [Dying(folder, 1), Extractor(folder, 2)]
    async with demo:
        await demo.indexed()
        report = await demo.report()
    assert report["jobs"]["done"] == 40
    assert demo.scanner.sent_again >= len(demo.extractors[0].lost) > 0  # type: ignore[attr-defined]
    assert set(passages(folder).values()) == {1}


class Repeating(Extractor):
    """Does every job twice, as when a message was thought to be lost and was not."""

    async def on_message(self, message: dict[str, Any]) -> None:
        await super().on_message(message)
        await super().on_message(message)


async def test_a_job_done_twice_is_stored_once(tmp_path: Path) -> None:
    """A second delivery of a finished job changes nothing and is not counted."""
    folder = _folder(tmp_path / "folder", 20)
    demo = Demo(folder)
    demo.extractors = [Repeating(folder, 1), Repeating(folder, 2)]
    async with demo:
        await demo.indexed()
    assert demo.finished_jobs == 20
    assert set(passages(folder).values()) == {1}


async def test_a_failing_enricher_is_asked_again(tmp_path: Path) -> None:
    """With every third request refused, every file is indexed all the same."""
    folder = _folder(tmp_path / "folder", 30)
    demo, report = await _index(folder, DemoSettings(failure_rate=0.33, retry_delay=0.02))
    assert report["jobs"]["done"] == 30
    assert demo.enricher.refused > 0
    assert set(passages(folder).values()) == {1}


async def test_an_enricher_that_always_fails_is_given_up_and_tried_at_the_next_run(tmp_path: Path) -> None:
    """After several attempts a job is listed as failed with the reason; the next run does it."""
    folder = _folder(tmp_path / "folder", 1)
    demo, report = await _index(folder, DemoSettings(failure_rate=1.0, retry_delay=0.02))
    assert report["jobs"]["failed"] == 1
    failed = [entry for entry in report["left_out"] if entry["reason"] == "failed"]
    assert re.match(r"EnrichmentFailed|CircuitOpen", failed[0]["detail"])
    assert f"{MOST_ATTEMPTS} attempts" in failed[0]["detail"]
    assert demo.monitor.failures == MOST_ATTEMPTS
    _, report = await _index(folder)
    assert report["jobs"]["done"] == 1


async def test_a_question_is_answered_without_the_enricher(tmp_path: Path) -> None:
    """If the enricher fails, the assistant answers from the words alone and says so."""
    folder = _folder(tmp_path / "folder", 5)
    await _index(folder)
    async with Demo(folder, DemoSettings(failure_rate=1.0)) as demo:
        await demo.indexed()
        answer = await demo.ask("socket number 3")
    assert answer["citations"][0]["path"] == "page003.md"
    assert "without the enricher" in answer["notes"][0]


async def test_an_index_that_is_no_database_is_rebuilt(tmp_path: Path) -> None:
    """A damaged index file does not keep the folder from being indexed."""
    folder = _folder(tmp_path / "folder", 2)
    (folder / ".poolwire").mkdir()
    (folder / ".poolwire" / "index.sqlite").write_text("this is no database")
    _, report = await _index(folder)
    assert report["jobs"]["done"] == 2


async def test_an_index_of_another_version_is_rebuilt(tmp_path: Path) -> None:
    """Tables that an older version made are replaced."""
    folder = _folder(tmp_path / "folder", 2)
    with closing(sqlite3.connect(index_file(folder))) as index:
        index.execute("CREATE TABLE jobs (something TEXT)")
        index.execute("PRAGMA user_version = 99")
        index.commit()
    _, report = await _index(folder)
    assert report["jobs"]["done"] == 2


async def test_everything_is_given_back(tmp_path: Path) -> None:
    """After a run nothing is checked out of any pool but the agents' own sockets."""
    async with Demo(_folder(tmp_path / "folder")) as demo:
        await demo.indexed()
        await demo.ask("socket")
        pools = demo.pools()
    assert pools["sql"]["active_connections"] == 0
    assert pools["http"]["active_connections"] == 0
    assert pools["zmq"]["active_connections"] == 6  # librarian, assistant, monitor, two extractors, scanner


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(
    users_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index of a read-only folder is in the user's cache, the same file each time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(users_folder / "cache"))
    folder = _folder(users_folder / "folder", 1)
    folder.chmod(0o500)
    try:
        assert index_file(folder) == index_file(folder)
        assert index_file(folder).is_relative_to(users_folder / "cache" / "poolwire")
    finally:
        folder.chmod(0o700)


def test_an_installed_package_is_indexed_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written among installed packages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "site-packages" / "app"
    folder.mkdir(parents=True)
    assert index_file(folder).is_relative_to(tmp_path / "cache" / "poolwire")
    assert not (folder / ".poolwire").exists()
