"""Options of a scan: ``[tool.poolwire.migrate]`` in ``pyproject.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from app.migration.codes import CODES


class UsageError(Exception):
    """An option is wrong. The message names it, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Config:
    """How to scan.

    Attributes:
        exclude: patterns of files and folders that are not read.
        allow: folders whose sites are no findings (where connections belong).
        discarded: names of further folders that count a tenth, as trash/, archive/ and backup/ do.
        ignore: codes that are no findings.
        baseline: the file of known findings; ``""`` for none.
        strict_parse: whether a file that does not parse is an error.
        jobs: processes; 0 for one for each core.
        cache: whether facts are kept between scans, in the user's cache folder.
        folder: what relative paths in ``allow`` and ``baseline`` start from.
    """

    exclude: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    baseline: str = ""
    strict_parse: bool = False
    jobs: int = 0
    cache: bool = True
    folder: Path = Path()

    def __post_init__(self) -> None:
        for code in self.ignore:
            if code not in CODES:
                raise UsageError(f"ignore = {code!r} is not a code; there are {', '.join(CODES)}")
        if self.jobs < 0:
            raise UsageError(f"jobs = {self.jobs} is not a number of processes; 0 means one for each core")


def load(start: Path) -> Config:
    """Return the options of the nearest ``pyproject.toml`` at or above ``start`` that has them.

    Raises:
        UsageError: a key is not known or has the wrong type, or the file is not TOML.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            table = tomllib.loads(file.read_text("utf-8")).get("tool", {}).get("poolwire", {}).get("migrate")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: {error}") from None
        if table is not None:
            return replace(_from_table(table, file), folder=folder)
    return Config(folder=start)


def _from_table(table: dict[str, Any], file: Path) -> Config:
    known = {each.name.replace("_", "-"): each for each in fields(Config) if each.name != "folder"}
    values: dict[str, Any] = {}
    for key, value in table.items():
        option = known.get(key)
        if option is None:
            raise UsageError(f"{file}: [tool.poolwire.migrate] has no key {key!r}; there are {', '.join(known)}")
        default = getattr(Config, option.name, None)
        default = option.default if default is None or not isinstance(default, (str, bool, int, tuple)) else default
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise UsageError(f"{file}: {key} = {value!r} must be a list of texts")
            value = tuple(value)
        elif type(value) is not type(default):
            raise UsageError(f"{file}: {key} = {value!r} must be of the type {type(default).__name__}")
        values[option.name] = value
    return Config(**values)
