"""What a value must be: the words in which one that is not so is refused."""

from __future__ import annotations

import math

from app.pools.errors import ConfigError


def require(name: str, value: object, fulfilled: bool, allowed: str) -> None:
    """Refuse a value unless it is what it must be.

    Args:
        name: what the caller calls it.
        value: which is shown, so it must be no secret.
        fulfilled: whether it is allowed.
        allowed: what is.

    Raises:
        ConfigError: it is not allowed.
    """
    if not fulfilled:
        raise refusal(name, value, allowed)


def is_number(value: object) -> bool:
    """Say whether a value is a number, which neither a boolean nor NaN is."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def require_seconds(timeout: object, name: str = "timeout") -> None:
    """Raise ``ConfigError`` for a timeout, called ``name``, that is neither ``None`` nor a number of seconds.

    One below 0 is over; with NaN every deadline would be both still ahead and over.
    """
    require(name, timeout, timeout is None or is_number(timeout), "a number of seconds, or None")


def refusal(name: str, value: object, allowed: str) -> ConfigError:
    """Return what ``require`` raises, for checks so frequent that a further call would tell."""
    return ConfigError(f"{name}={value!r} is not allowed; it must be {allowed}")
