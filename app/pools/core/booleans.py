"""Booleans of configurations: ``"false"`` is no boolean, and would count as true; the environment says it so."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter

from app.pools.core.allowed import require

_ADAPTER = TypeAdapter(bool)


def boolean(value: str | int) -> bool:
    """Return what a text or a number says, read as pydantic reads it: ``no``, ``off``, ``false``, ``0``.

    Raises:
        ValueError: it says neither yes nor no.
    """
    return _ADAPTER.validate_python(value)


def read_booleans(configuration: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return values for the fields of a dataclass, with the texts and numbers for its booleans read as such.

    What says neither yes nor no stays as it is, to be refused by the class.
    """
    read = dict(values)
    for name in _names(configuration):
        if isinstance(read.get(name), str | int):
            with suppress(ValueError):
                read[name] = boolean(read[name])
    return read


def require_booleans(configuration: Any) -> None:
    """Check the fields of a dataclass that are annotated as ``bool``.

    Raises:
        ConfigError: one is neither ``True`` nor ``False``.
    """
    for name in _names(type(configuration)):
        value = getattr(configuration, name)
        require(name, value, isinstance(value, bool), "True or False")


def _names(configuration: type[Any]) -> list[str]:
    return [each.name for each in fields(configuration) if each.type in (bool, "bool")]
