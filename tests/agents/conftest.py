"""What the tests of agents share."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent_process import Process


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def begin(source: str, toml: str, *arguments: str) -> Process:
        processes.append(Process(tmp_path, source, toml, *arguments))
        return processes[-1]

    yield begin
    for process in processes:
        if process.child.poll() is None:
            process.child.kill()
            process.child.communicate()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="pw") as name:
        yield Path(name)
