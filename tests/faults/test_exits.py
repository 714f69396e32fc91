"""Programs that end while they hold a lease."""

import subprocess
import sys

import pytest

from app.pools.sql_pool.embedded import EmbeddedPostgres
from tests.support.postgres import postgres_server

__all__ = ["postgres_server"]

PROGRAM = """
import sys
from sqlalchemy import text
from app.pools.sql_pool import DatabaseConfig, SQLPool

pool, config = SQLPool(), DatabaseConfig.from_url(sys.argv[1])

def dependency():
    with getattr(pool, sys.argv[2])(config) as lease:
        lease.execute(text("SELECT 1"))
        yield lease

held = dependency()
next(held)
"""


@pytest.mark.parametrize("lease", ["connection", "transaction", "session"])
def test_a_program_ends_with_a_lease_open(postgres_server: EmbeddedPostgres, lease: str) -> None:
    """What nobody has closed is closed by the interpreter's end, which waits for no thread and complains of nothing."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, postgres_server.url(), lease], capture_output=True, text=True, timeout=60
    )

    assert (0, "") == (ended.returncode, ended.stderr)
