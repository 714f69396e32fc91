"""``poolwire graph`` as a command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

CONTAINER = """
from app.containers import AgentContainer, LeaseProvider
from dependency_injector import providers

class Office(AgentContainer):
    pen = LeaseProvider(AgentContainer.zmq_pool, "socket", "red")
    desk = providers.Factory(dict, pool=AgentContainer.sql_pool)

def furnished():
    return Office()
"""


def graph(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "office.py").write_text(CONTAINER)
    (folder / "poolwire.toml").write_text('[databases.library]\nurl = "sqlite:///library.db"\n')
    return subprocess.run(
        [sys.executable, "-m", "app", "graph", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_text_says_what_needs_what(tmp_path: Path) -> None:
    """Each provider has a line with its kind, its place in the start order, and what it needs."""
    lines = graph(tmp_path, "--container", "office:Office").stdout.splitlines()

    words = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert "pool; start 1" == words["zmq_pool"]
    assert "lease; needs zmq_pool" == words["pen"]
    assert "factory; needs sql_pool" == words["desk"]
    assert "lease; needs sql_pool" == words["databases.library"]


def test_starting_it_shows_the_times(tmp_path: Path) -> None:
    """``--start`` starts and stops the container and adds how long each part took."""
    result = graph(tmp_path, "--start")

    assert 0 == result.returncode, result.stderr
    assert " ms" in result.stdout


def test_the_demo_is_drawn_with_its_start_order_and_times(tmp_path: Path) -> None:
    """Each pool has its place and its milliseconds, and each of the demo's resources needs its pool."""
    result = graph(tmp_path, "--demo", "--start")
    words = {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines()}

    for pool in ("zmq_pool", "sql_pool", "http_pool"):
        assert re.fullmatch(r"pool; start 1, \d+\.\d ms", words[pool])
    assert "lease; needs sql_pool" == words["databases.library"]
    assert "factory; needs http_pool" == words["apis.enricher"]
    assert "factory; needs zmq_pool" == words["peers.librarian"]
    assert "factory; needs zmq_pool" == words["publishers.jobs"]
    assert "lease; needs zmq_pool" == words["sockets.assistant"]
    assert "" == result.stderr
    assert [] == [path.name for path in tmp_path.iterdir() if path.suffix == ".db"]


def test_a_function_may_make_the_container(tmp_path: Path) -> None:
    """A container that needs arguments is drawn through a function of the user's own."""
    assert "desk" in graph(tmp_path, "--container", "office:furnished").stdout


@pytest.mark.parametrize(("format", "beginning"), [("mermaid", "flowchart LR"), ("dot", "digraph container {")])
def test_it_is_drawn_for_other_tools(format: str, beginning: str, tmp_path: Path) -> None:
    """Mermaid and Graphviz text name every provider and have an arrow for every need."""
    picture = graph(tmp_path, "-c", "office:Office", "-f", format).stdout

    assert picture.startswith(beginning)
    for name in ("zmq_pool", "pen", "desk", "databases.library"):
        assert name in picture
    assert picture.count("->") + picture.count("-->") >= 3


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("office", "write it as package.module:name"),
        ("office:Offices", "Offices"),
        ("nowhere:X", "nowhere"),
        ("json:dumps", "no container"),
    ],
)
def test_a_container_that_cannot_be_found_is_an_error(where: str, complaint: str, tmp_path: Path) -> None:
    """What was asked for is named, and the exit code is 2."""
    result = graph(tmp_path, "--container", where)

    assert 2 == result.returncode
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
