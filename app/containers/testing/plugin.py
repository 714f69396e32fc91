"""A pytest plugin: in ``conftest.py``, ``pytest_plugins = ["app.containers.testing.plugin"]``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from app.containers.testing.container import agent_container


@pytest.fixture
def container_for() -> Iterator[Callable[..., Any]]:
    """Give a function that makes a container as ``agent_container`` does, for the rest of the test.

    A lease that the test leaves open is an error of the test that names the line of its checkout.
    """
    with ExitStack() as stack:

        def make(*members: Any, **options: Any) -> Any:
            return stack.enter_context(agent_container(*members, **options))

        yield make
