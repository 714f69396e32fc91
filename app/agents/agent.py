"""``Agent``: the class that a team's agents derive from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from app.pools.zmq_pool import SocketConfig


class Agent:
    """One agent: hooks that the runtime calls, each of which may be ``async def`` or a plain ``def``.

    A plain ``def`` runs in a thread of the agent's own, so it may block. Decorate a hook with ``@inject`` to
    receive connections for the time of that call. An agent never constructs a connection.

    ``on_request(message)``
        answers one request: takes a JSON object, returns one. For an endpoint of type REP or ROUTER.
    ``on_message(message)``
        handles one message: takes a JSON object, returns nothing. For an endpoint of type SUB or PULL. If it
        has a parameter ``topic``, it receives the topic as a string, empty for PULL.
    ``run()``
        the agent's own work beside its messages; cancelled when the agent stops, so always ``async def``.

    An agent defines the hook for its endpoint, or ``run``, or both. An exception in ``on_start`` or ``run``
    stops the process; one in ``on_request`` is the answer to that request; one in ``on_message`` is logged.

    Args:
        name: what logs call this instance; from the class's name unless given: ``DocSearch`` is ``doc-search``.
    """

    endpoint: ClassVar[str | SocketConfig | None] = None
    """Where the agent receives: a ``SocketConfig``, or a name among the container's sockets (``"librarian"``)."""

    concurrency: ClassVar[int] = 16
    """Messages handled at the same time, at most. More wait in the socket's queue."""

    may_drop: ClassVar[bool] = False
    """Whether messages that still wait in a PULL endpoint at the stop may go with it, because somebody sends again
    what was not handled. Otherwise a warning says how many were lost."""

    topics: ClassVar[tuple[str, ...]] = ("",)
    """The prefixes of the topics that a SUB endpoint receives; the empty one means all."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()

    async def on_start(self) -> Any:
        """Prepare: called once, before the first message, when the container's pools are up."""

    async def on_stop(self) -> Any:
        """Clean up: called once, after the last message, while the container's pools are still up."""

    def context(self, message: dict[str, Any]) -> Mapping[str, Any]:
        """Return the values that belong to ``message``, such as its tenant, for ``ContextValue`` providers."""
        return {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"
