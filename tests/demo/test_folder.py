"""Walking a folder."""

import os
from pathlib import Path

import pytest

from app.demo.folder import Found, Reason, Skipped, walk


def _reasons(folder: Path, **options: int) -> dict[str, Reason]:
    return {each.path: each.reason for each in walk(folder, **options) if isinstance(each, Skipped)}


def _found(folder: Path) -> list[str]:
    return [each.path for each in walk(folder) if isinstance(each, Found)]


def test_files_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Every regular file below the folder is found with its path relative to it, in the order of the names."""
    (tmp_path / "b").mkdir()
    for name in ("c.txt", "a.txt", "b/inner.md"):
        (tmp_path / name).write_text("text")
    assert _found(tmp_path) == ["a.txt", "c.txt", "b/inner.md"]


def test_size_and_time_are_those_of_the_file(tmp_path: Path) -> None:
    """A found file carries its size and its time of change, which tell a later run whether it changed."""
    file = tmp_path / "a.txt"
    file.write_text("four")
    os.utime(file, ns=(1, 123456789))
    assert [Found("a.txt", 4, 123456789)] == list(walk(tmp_path))


def test_a_huge_file_is_skipped_with_its_size(tmp_path: Path) -> None:
    """A file above the limit is skipped, and the detail has its size and the limit."""
    (tmp_path / "big.txt").write_bytes(b"x" * 1001)
    (tmp_path / "fits.txt").write_bytes(b"x" * 1000)
    skipped = [each for each in walk(tmp_path, size_limit=1000) if isinstance(each, Skipped)]
    assert [Skipped("big.txt", Reason.HUGE, "1,001 bytes, the limit is 1,000")] == skipped


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    """A link to a folder above is walked no second time, and is listed."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("text")
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    assert _found(tmp_path) == ["inner/a.txt"]
    assert _reasons(tmp_path) == {"inner/up/": Reason.LINK_LOOP}


def test_two_links_to_one_folder_give_its_files_once(tmp_path: Path) -> None:
    """A folder outside that two links lead to is indexed once."""
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (outside / "a.txt").write_text("text")
    (folder / "first").symlink_to(outside)
    (folder / "second").symlink_to(outside)
    assert _found(folder) == ["first/a.txt"]
    assert _reasons(folder) == {"second/": Reason.LINK_LOOP}


def test_links_to_files(tmp_path: Path) -> None:
    """A link to a file of the same folder is a duplicate, one that leads nowhere is broken, another is followed."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (tmp_path / "elsewhere.txt").write_text("text")
    (folder / "again.txt").symlink_to(folder / "a.txt")
    (folder / "gone.txt").symlink_to(folder / "missing")
    (folder / "itself.txt").symlink_to(folder / "itself.txt")
    (folder / "out.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert _found(folder) == ["a.txt", "out.txt"]
    assert _reasons(folder) == {
        "again.txt": Reason.DUPLICATE_LINK,
        "gone.txt": Reason.BROKEN_LINK,
        "itself.txt": Reason.UNREADABLE,
    }


def test_hidden_files_and_tool_folders_stay_out(tmp_path: Path) -> None:
    """Hidden entries, virtual environments and the folders of tools are listed and not entered."""
    for folder in (".git", "node_modules", "my-venv", ".poolwire"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "inside.txt").write_text("text")
    (tmp_path / "my-venv" / "pyvenv.cfg").write_text("home = /usr")
    (tmp_path / ".env").write_text("PASSWORD=secret")
    assert _found(tmp_path) == []
    assert _reasons(tmp_path) == {
        ".git/": Reason.HIDDEN,
        ".poolwire/": Reason.HIDDEN,
        ".env": Reason.HIDDEN,
        "node_modules/": Reason.TOOL_FOLDER,
        "my-venv/": Reason.TOOL_FOLDER,
    }


def test_a_fifo_is_not_a_regular_file(tmp_path: Path) -> None:
    """A FIFO is skipped without being opened, which would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    assert _reasons(tmp_path) == {"pipe": Reason.SPECIAL}


def test_a_name_that_is_not_utf8_can_be_shown(tmp_path: Path) -> None:
    """A file whose name is not UTF-8 is skipped under a name that can be stored and printed."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    assert _reasons(tmp_path) == {"caf\\xe9.txt": Reason.NAME}


def test_an_unreadable_folder_is_listed(users_folder: Path) -> None:
    """A folder without permission is skipped with the system's reason, and the walk goes on."""
    locked = users_folder / "locked"
    locked.mkdir(mode=0o000)
    (users_folder / "z.txt").write_text("text")
    try:
        assert _reasons(users_folder) == {"locked/": Reason.UNREADABLE}
        assert _found(users_folder) == ["z.txt"]
    finally:
        locked.chmod(0o700)


def test_a_folder_that_vanishes_during_the_walk_is_listed(tmp_path: Path) -> None:
    """A folder that is deleted between being seen and being entered is reported, and the walk goes on."""
    (tmp_path / "z.txt").write_text("text")
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.txt").write_text("text")
    seen = []
    for each in walk(tmp_path):
        seen.append(each)
        if each.path == "z.txt":
            (tmp_path / "b").rmdir()
    assert Skipped("b/", Reason.VANISHED) in seen
    assert seen[-1].path == "c/d.txt"


def test_a_missing_folder_raises(tmp_path: Path) -> None:
    """The folder itself must exist; only what is below it may be missing."""
    with pytest.raises(FileNotFoundError):
        list(walk(tmp_path / "missing"))


def test_only_the_named_entries_are_walked(tmp_path: Path) -> None:
    """With names given, what is beside them is neither found nor listed as left out."""
    for name in ("docs", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "docs").write_text("text")
    (tmp_path / "README.md").write_text("text")
    assert ["README.md", "docs/docs"] == [each.path for each in walk(tmp_path, only=("README.md", "docs"))]
