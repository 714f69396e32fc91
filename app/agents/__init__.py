"""Agents: the class to derive from, and how a process runs them."""

from app.agents.agent import Agent
from app.agents.errors import AgentDefinitionError, AgentError, AgentStopping, DrainExceeded, MessageError
from app.agents.runtime import Summary, main, run
from app.agents.server import AgentServer, State

__all__ = [
    "Agent",
    "AgentDefinitionError",
    "AgentError",
    "AgentServer",
    "AgentStopping",
    "DrainExceeded",
    "MessageError",
    "State",
    "Summary",
    "main",
    "run",
]
