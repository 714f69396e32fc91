"""What decorated functions remember between calls, and how they learn that it may no longer hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, TypeVar

from dependency_injector import providers

T = TypeVar("T")


class Changes:
    """Marks the latest change to anything that decorated functions remember: a wiring, an override, a reset.

    Whoever remembers something takes ``latest`` first and looks at the providers then; whoever changes a provider
    does that first and calls ``note`` then. So what is remembered under the present mark is never out of date.
    """

    __slots__ = ("latest",)

    def __init__(self) -> None:
        self.latest = object()

    def note(self) -> None:
        """Have everything that was remembered looked up again."""
        self.latest = object()


changes = Changes()


class Observed(providers.Provider[T]):
    """A provider whose overrides are noted."""

    def override(self, provider: Any) -> providers.OverridingContext[Any]:
        """Put ``provider`` in this one's place."""
        context: providers.OverridingContext[Any] = super().override(provider)
        changes.note()
        return context

    def reset_last_overriding(self) -> None:
        """Undo the latest override."""
        super().reset_last_overriding()
        changes.note()

    def reset_override(self) -> None:
        """Undo all overrides."""
        super().reset_override()
        changes.note()


class Copied(providers.Provider[T], ABC):
    """A provider that a container's instance has a copy of: an instance is a deep copy of its class."""

    def __deepcopy__(self, memo: dict[Any, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        copied: Self | None = memo.get(id(self))
        if copied is None:
            copied = memo[id(self)] = self._copy(memo)
            self._copy_overridings(copied, memo)
        return copied

    @abstractmethod
    def _copy(self, memo: dict[Any, Any]) -> Self:
        """Return a new one that needs the copies of what this one needs; ``memo`` is for ``providers.deepcopy``."""
