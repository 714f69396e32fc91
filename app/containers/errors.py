"""What can be wrong with a container: each error names the place and the next step."""

from __future__ import annotations

from collections.abc import Sequence


class ContainerError(Exception):
    """The base of every error that a container, its wiring or its lifecycle raises."""


class NotWiredError(ContainerError, RuntimeError):
    """A function was called before a container was wired to its module.

    Args:
        function: the function's module and qualified name.
        parameter: the parameter that has no value.
    """

    def __init__(self, function: str, parameter: str) -> None:
        self.function = function
        self.parameter = parameter
        super().__init__(
            f"{function}: nothing was injected for {parameter!r}; "
            f"call it inside Lifecycle(container, modules=[...]) with its module among them, or pass {parameter}="
        )


class StoppingError(ContainerError, RuntimeError):
    """A function was called while its container stops: what runs may end, nothing new begins.

    Args:
        function: the function's module and qualified name.
    """

    def __init__(self, function: str) -> None:
        self.function = function
        super().__init__(
            f"{function}: its container is stopping and takes no new calls; stop what calls it before you leave the "
            "Lifecycle block, or let a running call or a message_scope() make the call"
        )


class LeaseNotOpenError(ContainerError, AttributeError):
    """A lease was used as if it were the connection: the function that received it lacks ``@inject``."""

    def __init__(self, attribute: str) -> None:
        super().__init__(
            f"this is a lease, a checkout that has not happened yet, so it has no {attribute!r}; "
            "decorate the function that receives it with @inject from app.containers"
        )


class LeaseKindError(ContainerError, TypeError):
    """A lease that only asyncio can open was injected into a function that is not a coroutine."""

    def __init__(self, function: str, parameter: str) -> None:
        super().__init__(f"{function}: {parameter!r} can only be opened in an async function; make it `async def`")


class UnresolvedMarkersError(ContainerError):
    """Markers name what the container does not have.

    Args:
        complaints: one line for each marker: module, function, parameter, marker and the nearest name.
    """

    def __init__(self, complaints: Sequence[str]) -> None:
        self.complaints = tuple(complaints)
        super().__init__("\n".join(complaints))


class NoMessageError(ContainerError, LookupError):
    """Something that belongs to a message was asked for while none is being worked on, or the message lacks it."""

    def __init__(self, wanted: str) -> None:
        super().__init__(
            f"{wanted} was asked for, but no message that has it is being worked on; an agent's on_request and "
            "on_message have one, elsewhere use message_scope() from app.containers"
        )


class CapturedLeaseError(ContainerError):
    """Something that lives as long as the container would hold a lease, which lives for one call.

    Args:
        holder: the name of the provider that lives long.
        lease: the name of the lease's provider.
    """

    def __init__(self, holder: str, lease: str) -> None:
        self.holder = holder
        self.lease = lease
        super().__init__(
            f"{holder} lives as long as the container and would keep a lease on {lease}; give it the pool or a "
            "handle instead, or inject the lease into its methods"
        )


class AlreadyWiredError(ContainerError):
    """Two running containers would serve the same function; which one would be a matter of chance."""

    def __init__(self, function: str) -> None:
        self.function = function
        super().__init__(f"{function} is served by another running container; stop that one first")


class CycleError(ContainerError):
    """Providers need each other in a circle, so none can be first.

    Args:
        path: the names along the circle, the first one again at its end.
    """

    def __init__(self, path: Sequence[str]) -> None:
        self.path = tuple(path)
        super().__init__(f"these providers need each other in a circle: {' -> '.join(path)}")


class StartTimeoutError(ContainerError, TimeoutError):
    """A part of the container did not start within its time limit."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        super().__init__(f"{name} did not start within {seconds:g} s; raise start_timeout, or find what it waits for")


class StopTimeoutError(ContainerError, TimeoutError):
    """A part of the container did not stop within the stop's time limit and was left behind."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} did not stop in time and was left behind; find what its stop() waits for")


class LifecycleError(ContainerError, RuntimeError):
    """A container was started twice, or stopped in another event loop than the one that it was started in."""
