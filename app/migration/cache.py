"""Facts kept by content, in the user's cache folder, so that a second scan reads only what changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from app.migration.facts import FileFacts, facts_from

# Part of the file's name: facts written by another version of the analysis, or of Python's parser, are not read.
_FORMAT = 4


def digest(data: bytes) -> str:
    """Return the name under which the facts of a content are kept."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def default_folder() -> Path:
    """Return the user's cache folder for scans (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poolwire" / "migrate"


class Cache:
    """The facts of the files under some paths.

    Args:
        folder: where to keep them; ``None`` keeps nothing.
        paths: what is scanned; each set of paths has a file of its own.
    """

    def __init__(self, folder: Path | None, paths: Sequence[str]) -> None:
        self._file: Path | None = None
        self._known: dict[str, bytes] = {}
        if folder is not None:
            names = "\0".join(sorted(os.path.abspath(path) for path in paths))
            python = f"{sys.version_info[0]}{sys.version_info[1]}"
            self._file = folder / f"{digest(names.encode())}-{_FORMAT}-{python}.json"
            self._known = self._load(self._file)

    @staticmethod
    def _load(file: Path) -> dict[str, bytes]:
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError:
            return {}
        return {line[:32].decode("ascii", "replace"): line[33:] for line in lines if len(line) > 33}

    def get(self, name: str) -> FileFacts | None:
        """Return the facts of a content, or ``None``; a damaged entry is no entry."""
        line = self._known.get(name)
        if line is None:
            return None
        try:
            return facts_from(orjson.loads(line))
        except (ValueError, TypeError, KeyError):
            return None

    def save(self, facts: Mapping[str, FileFacts]) -> None:
        """Keep ``facts``, and nothing else; a folder that cannot be written to keeps nothing."""
        if self._file is None or (facts.keys() == self._known.keys()):
            return
        content = b"\n".join(
            b"%s %s" % (name.encode(), self._known.get(name) or orjson.dumps(value)) for name, value in facts.items()
        )
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._file.parent)
            with os.fdopen(handle, "wb") as out:
                out.write(content)
            os.replace(temporary, self._file)
