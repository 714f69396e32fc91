"""A scan's outcome, for people and for machines."""

from app.migration.reports.formats import FORMATS, render

__all__ = ["FORMATS", "render"]
