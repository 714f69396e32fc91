"""What a value must be: the words in which one that is not so is refused."""

from __future__ import annotations

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


def refusal(name: str, value: object, allowed: str) -> ConfigError:
    """Return what ``require`` raises, for checks so frequent that a further call would tell."""
    return ConfigError(f"{name}={value!r} is not allowed; it must be {allowed}")
