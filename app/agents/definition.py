"""What an agent class must have, checked before anything is served."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from dependency_injector.errors import NoSuchProviderError

from app.agents.agent import Agent
from app.agents.errors import AgentDefinitionError
from app.pools.zmq_pool import SocketConfig, SocketType

ANSWERING = (SocketType.REP, SocketType.ROUTER)
"""The types of endpoint whose messages are answered."""

_LISTENING = (SocketType.SUB, SocketType.PULL)


def made(agents: Iterable[Agent | type[Agent]]) -> list[Agent]:
    """Return the agents, classes among them instantiated.

    Raises:
        AgentDefinitionError: there is none, one is no agent, one lacks what every agent needs, or two have one name.
    """
    members = [_one(agent) for agent in agents]
    if not members:
        raise AgentDefinitionError("no agents to run; give at least one Agent class")
    for member in members:
        _check(member)
    name, count = Counter(member.name for member in members).most_common(1)[0]
    if count > 1:
        raise AgentDefinitionError(
            f"{count} agents are called {name!r}; give each instance a name of its own, such as "
            f'run([A("{name}-1"), A("{name}-2")])'
        )
    return members


def _one(agent: Any) -> Agent:
    if isinstance(agent, type) and issubclass(agent, Agent):
        try:
            inspect.signature(agent).bind()
        except TypeError as error:
            raise AgentDefinitionError(f"{agent.__name__} needs arguments ({error}); give an instance") from None
        return agent()
    if not isinstance(agent, Agent):
        raise AgentDefinitionError(f"{agent!r} is not an agent; give a class derived from Agent, or an instance of it")
    return agent


def _check(agent: Agent) -> None:
    kind = type(agent).__name__
    if not isinstance(getattr(agent, "name", None), str):
        raise AgentDefinitionError(f"{kind} has no name; call super().__init__() in its __init__")
    if type(agent.concurrency) is not int or agent.concurrency < 1:
        raise AgentDefinitionError(f"{kind}.concurrency is {agent.concurrency!r}; it must be a whole number from 1 up")
    if hasattr(agent, "run") and not inspect.iscoroutinefunction(agent.run):
        raise AgentDefinitionError(
            f"{kind}.run must be `async def`: it is cancelled at the stop, and a thread cannot be"
        )


def check_modules(modules: Iterable[Any]) -> list[ModuleType]:
    """Return ``modules``.

    Raises:
        AgentDefinitionError: one is something else, such as a name.
    """
    found: list[Any] = [modules] if isinstance(modules, str) else list(modules)
    for module in found:
        if not isinstance(module, ModuleType):
            raise AgentDefinitionError(f"modules has {module!r}, which is no module; import it and give the module")
    return found


def endpoint_of(agent: Agent, container: Any) -> SocketConfig | None:
    """Return where ``agent`` receives.

    Raises:
        AgentDefinitionError: the container has no socket of that name.
    """
    endpoint: Any = agent.endpoint
    kind = type(agent).__name__
    if isinstance(endpoint, str):
        try:
            config: SocketConfig = getattr(container.sockets, endpoint).config
        except (NoSuchProviderError, AttributeError) as error:
            raise AgentDefinitionError(f"{kind}.endpoint is {endpoint!r}: {error}") from None
        return config
    if endpoint is not None and not isinstance(endpoint, SocketConfig):
        raise AgentDefinitionError(f"{kind}.endpoint is {endpoint!r}; it must be a SocketConfig or the name of one")
    return endpoint


def check_endpoint(agent: Agent, config: SocketConfig | None) -> None:
    """See that the hooks of ``agent`` fit its endpoint.

    Raises:
        AgentDefinitionError: they do not.
    """
    kind = type(agent).__name__
    if config is None:
        if not hasattr(agent, "run"):
            raise AgentDefinitionError(f"{kind} has neither an endpoint nor run(); give it one of them")
        return
    if config.socket_type not in (*ANSWERING, *_LISTENING):
        allowed = ", ".join(member.name for member in (*ANSWERING, *_LISTENING))
        raise AgentDefinitionError(
            f"{kind} receives on a socket of type {config.socket_type.name}; an agent's endpoint is one of {allowed}"
        )
    hook = "on_request" if config.socket_type in ANSWERING else "on_message"
    if not hasattr(agent, hook):
        raise AgentDefinitionError(f"{kind} receives on {config.socket_type.name}, so it needs {hook}(self, message)")
