"""Keeping secrets out of everything that is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "**********"

_SECRET_NAME = re.compile(r"auth|cookie|credential|key|passw|secret|session|signature|token", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*:[^/\s]*@")


def redact_text(text: str) -> str:
    """Return ``text`` with the user and password of every URL in it hidden."""
    return _URL_CREDENTIALS.sub(f"{HIDDEN}@", text)


def redact_url(url: str) -> str:
    """Return ``url`` without its user, password and query, each of which may carry a secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, HIDDEN if parts.query else "", ""))


def redact_mapping(values: Mapping[str, object]) -> dict[str, object]:
    """Return ``values`` with everything hidden whose name sounds like a secret (``X-Api-Key``, ``password``)."""
    return {name: HIDDEN if _SECRET_NAME.search(name) else value for name, value in values.items()}
