"""The container of an agent service: what it owns, how a function receives it, and how it starts and stops."""

from dependency_injector.wiring import Provide

from app.containers.container import AgentContainer
from app.containers.errors import (
    ContainerError,
    CycleError,
    LeaseKindError,
    LeaseNotOpenError,
    LifecycleError,
    NotWiredError,
    StartTimeoutError,
    UnresolvedMarkersError,
)
from app.containers.injection import inject
from app.containers.lease import Lease, leased
from app.containers.lifecycle import Lifecycle
from app.containers.providers import LeaseProvider, Pooled
from app.containers.resources import Resources

__all__ = [
    "AgentContainer",
    "ContainerError",
    "CycleError",
    "Lease",
    "LeaseKindError",
    "LeaseNotOpenError",
    "LeaseProvider",
    "Lifecycle",
    "LifecycleError",
    "NotWiredError",
    "Pooled",
    "Provide",
    "Resources",
    "StartTimeoutError",
    "UnresolvedMarkersError",
    "inject",
    "leased",
]
