"""The origin's example works as it was written, with ``app.pools`` for ``common.pools``."""

from pathlib import Path

import pytest

from app.pools.sql_pool import get_sql_pool, get_sqlite_config

EXAMPLE = """
from app.pools.sql_pool import get_sql_pool, get_sqlite_config
pool = get_sql_pool()
config = get_sqlite_config("database.db")
results = pool.execute_query(config, "SELECT * FROM users WHERE active = ?", (True,))
pool.execute_many(config, "INSERT INTO logs (message) VALUES (?)", log_data)
"""


def test_the_example_of_the_origin_works_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example reads the active users and stores the log lines."""
    monkeypatch.chdir(tmp_path)
    config = get_sqlite_config("database.db")
    pool = get_sql_pool()
    pool.execute_query(config, "CREATE TABLE users (name TEXT, active BOOLEAN)")
    pool.execute_query(config, "CREATE TABLE logs (message TEXT)")
    pool.execute_many(config, "INSERT INTO users VALUES (?, ?)", [("ada", True), ("bob", False)])
    namespace = {"log_data": [("started",), ("stopped",)]}
    try:
        exec(EXAMPLE, namespace)

        assert namespace["results"] == [("ada", 1)]
        assert pool.execute_query(config, "SELECT message FROM logs") == [("started",), ("stopped",)]
    finally:
        pool.stop()
