"""Testing agents: a fresh container for one test, overrides that end with their block, fakes that keep a record."""

from app.containers.testing.container import agent_container, override
from app.containers.testing.fakes import Call, Fake
from app.containers.testing.stub_server import ReceivedRequest, StubServer

__all__ = ["Call", "Fake", "ReceivedRequest", "StubServer", "agent_container", "override"]
