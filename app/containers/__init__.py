"""The container of an agent service: what it owns, how a function receives it, and how it starts and stops."""

from dependency_injector.wiring import Provide

from app.containers.container import AgentContainer
from app.containers.errors import (
    AlreadyWiredError,
    CapturedLeaseError,
    ContainerError,
    CycleError,
    LeaseKindError,
    LeaseNotOpenError,
    LifecycleError,
    NoMessageError,
    NotWiredError,
    StartTimeoutError,
    StoppingError,
    StopTimeoutError,
    UnresolvedMarkersError,
)
from app.containers.injection import inject
from app.containers.lease import Lease, leased
from app.containers.lifecycle import Lifecycle
from app.containers.providers import LeaseProvider, Pooled
from app.containers.resources import Resources
from app.containers.scopes import ContextValue, PerContainer, PerMessage, message_scope, message_scope_async

__all__ = [
    "AgentContainer",
    "AlreadyWiredError",
    "CapturedLeaseError",
    "ContainerError",
    "ContextValue",
    "CycleError",
    "Lease",
    "LeaseKindError",
    "LeaseNotOpenError",
    "LeaseProvider",
    "Lifecycle",
    "LifecycleError",
    "NoMessageError",
    "NotWiredError",
    "PerContainer",
    "PerMessage",
    "Pooled",
    "Provide",
    "Resources",
    "StartTimeoutError",
    "StopTimeoutError",
    "StoppingError",
    "UnresolvedMarkersError",
    "inject",
    "leased",
    "message_scope",
    "message_scope_async",
]
