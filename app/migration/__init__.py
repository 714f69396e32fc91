"""Find every direct connection in a code base, rank them, report them, and rewrite what is safe to rewrite."""

from app.migration import baseline
from app.migration.codes import CODES, explain
from app.migration.config import Config, UsageError, load
from app.migration.libraries import Kind
from app.migration.scanning import scan
from app.migration.sites import Confidence, FileReport, Problem, Report, Scope, Site, Verdict

__all__ = [
    "CODES",
    "Confidence",
    "Config",
    "FileReport",
    "Kind",
    "Problem",
    "Report",
    "Scope",
    "Site",
    "UsageError",
    "Verdict",
    "baseline",
    "explain",
    "load",
    "scan",
]
