"""Keeping what a folder holds out of the user's version control."""

from __future__ import annotations

from pathlib import Path


def keep_out_of_git(folder: Path, pattern: str = "*") -> None:
    """Have git ignore what matches ``pattern`` in ``folder``; a ``.gitignore`` that is there is the user's and stays.

    Raises:
        OSError: the folder cannot be written.
    """
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text(f"{pattern}\n", encoding="utf-8")
