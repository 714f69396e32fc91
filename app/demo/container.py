"""The demo's container: everything that its agents may ask for, by name."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

from dependency_injector import providers

from app.containers import AgentContainer, Resources
from app.pools.http_pool import HTTPConfig
from app.pools.sql_pool import get_sqlite_config
from app.pools.zmq_pool import SocketConfig, SocketType

_CONNECTIONS = 16

Endpoint = Callable[[str], str]


def within_process() -> Endpoint:
    """Return what gives each name an endpoint of its own within this process, not shared with another demo."""
    run = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return lambda name: f"inproc://poolwire-demo-{run}-{name}"


def demo_container(index: Path, enricher_url: str, endpoint: Endpoint | None = None) -> AgentContainer:
    """Return a container, not started yet, with the demo's resources.

    Args:
        index: the SQLite file.
        enricher_url: where the enricher listens.
        endpoint: gives a name its ZMQ endpoint; within the process unless given.
    """
    endpoint = endpoint or within_process()
    jobs, progress = endpoint("jobs"), endpoint("progress")
    librarian, assistant = endpoint("librarian"), endpoint("assistant")
    news = SocketConfig(SocketType.SUB, progress)
    resources = Resources(
        databases={"library": get_sqlite_config(index)},
        # Short pauses, because the service is on this machine.
        apis={
            "enricher": HTTPConfig(
                enricher_url,
                max_retries=4,
                retry_delay=0.1,
                max_retry_delay=1.0,
                circuit_reset=1.0,
                max_connections=_CONNECTIONS,
            )
        },
        peers={
            "librarian": SocketConfig(SocketType.REQ, librarian),
            "assistant": SocketConfig(SocketType.REQ, assistant, receive_timeout=60.0),
        },
        publishers={
            "jobs": SocketConfig(SocketType.PUSH, jobs, bind=True),
            "progress": SocketConfig(SocketType.PUB, progress, bind=True),
        },
        sockets={
            "jobs": SocketConfig(SocketType.PULL, jobs),
            "scanner": news,
            "monitor": news,
            "librarian": SocketConfig(SocketType.REP, librarian, bind=True),
            "assistant": SocketConfig(SocketType.REP, assistant, bind=True),
        },
    )
    return AgentContainer(resources=providers.Object(resources))
