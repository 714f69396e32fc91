"""What a call takes besides its statement: checked before anything is taken for the call."""

from __future__ import annotations

from typing import Literal, get_args

from app.pools.core.allowed import refusal

Retry = Literal["read"]

_RETRIES = (None, *get_args(Retry))


def require_known(retry: object) -> None:
    """Raise ``ConfigError`` for a ``retry`` that there is not."""
    if retry not in _RETRIES:
        raise refusal("retry", retry, f"{' or '.join(map(repr, get_args(Retry)))}, or None")


def require_count(batch: object) -> None:
    """Raise ``ConfigError`` for a ``batch`` that is no number of rows."""
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise refusal("batch", batch, "an int from 1 up")
