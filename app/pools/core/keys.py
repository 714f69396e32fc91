"""Configurations as keys: frozen dataclasses that compute their hash once, because each call looks them up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any


def pickled_by_fields(key: Any) -> tuple[Any, ...]:
    """Return what ``__reduce__`` of such a class returns: its fields without the hash, which differs between processes.

    Args:
        key: an instance of a dataclass whose ``__init__`` takes what its fields hold.
    """
    made: Callable[..., Any] = type(key)
    return partial(made, **{each.name: getattr(key, each.name) for each in fields(key) if each.init}), ()
