"""What can be wrong with an agent or with a message to it."""

from __future__ import annotations


class AgentError(Exception):
    """The base of every error of the agents' runtime."""


class AgentDefinitionError(AgentError, TypeError):
    """An agent class lacks what its endpoint needs, or has what does not fit it. The message names both."""


class MessageError(AgentError, ValueError):
    """A message is not what agents exchange: one JSON object. The message says what was found instead."""


class AgentStopping(AgentError):
    """The answer to a request that reached an agent after it had begun to stop; it was not executed."""


class DrainExceeded(AgentError, TimeoutError):
    """Work in flight did not end within the drain's time limit and was cancelled."""
