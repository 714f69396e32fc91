"""The formats by name."""

from __future__ import annotations

from collections.abc import Callable

from app.migration.config import UsageError
from app.migration.reports.machines import github, json, sarif
from app.migration.reports.page import html
from app.migration.reports.prose import markdown, text
from app.migration.sites import Report

FORMATS: dict[str, Callable[[Report], str]] = {
    "text": text,
    "json": json,
    "sarif": sarif,
    "markdown": markdown,
    "github": github,
    "html": html,
}
"""What renders each format."""


def render(report: Report, format: str) -> str:
    """Return ``report`` in one of ``FORMATS``.

    Raises:
        UsageError: there is no such format.
    """
    try:
        renderer = FORMATS[format]
    except KeyError:
        raise UsageError(f"--format {format}: there are {', '.join(FORMATS)}") from None
    return renderer(report)
