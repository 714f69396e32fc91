"""A construction site, and the report of a scan."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from app.migration.facts import Ignore
from app.migration.libraries import Kind

__all__ = ["Confidence", "FileReport", "Kind", "Problem", "Report", "Scope", "Site", "Verdict"]


class Scope(StrEnum):
    """Where a site stands: at import, in ``__init__``, inside a loop, or in any other function."""

    MODULE = "module"
    INIT = "init"
    LOOP = "loop"
    METHOD = "method"


class Verdict(StrEnum):
    """What poolwire can do about a site: pool it, inject only the context it needs, or leave it alone."""

    POOLABLE = "poolable"
    INJECT_ONLY = "inject-only"
    IGNORE = "ignore"


class Confidence(StrEnum):
    """How sure a site is: every name resolved, something inferred, or read from a file that does not parse."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(slots=True)
class Site:
    """One place that builds a connection.

    Attributes:
        file: the path as it was reached from the scanned path, with forward slashes.
        line: its first line, from 1.
        column: its first column, from 1.
        end_line: its last line.
        kind: what it builds.
        socket_type: ``REQ``, ``PUB``... of a ZMQ socket, ``dynamic`` if it is not a constant, else ``None``.
        scope: where it stands.
        hot: whether it is built again for each call.
        reason: why it is hot, or why it is not.
        closed: whether the result is closed on all paths; ``None`` if it is handed to a caller.
        closed_reason: how it is closed, or what skips it.
        verdict: what can be done.
        confidence: how sure it is.
        code: the stable code, see ``explain``.
        library: the library's call, such as ``sqlite3.connect``.
        function: the qualified name of the function around it; ``""`` at module level.
        target: where the result goes.
        text: the source, white space collapsed.
        rewritable: whether ``rewrite`` may look at it; never in a file that does not parse.
        score: how much it hurts.
        ignored: why it does not count as a finding: a comment, the baseline or an allowed folder; else ``""``.
    """

    file: str
    line: int
    column: int
    end_line: int
    kind: Kind
    socket_type: str | None
    scope: Scope
    hot: bool
    reason: str
    closed: bool | None
    closed_reason: str
    verdict: Verdict
    confidence: Confidence
    code: str
    library: str
    function: str
    target: str
    text: str
    rewritable: bool
    score: float = 0.0
    ignored: str = ""

    @property
    def is_finding(self) -> bool:
        """Whether the site is something to act on that nothing excuses."""
        return not self.ignored and self.verdict is not Verdict.IGNORE


@dataclass(slots=True)
class Problem:
    """Something about a file that is not a site: its code (PM9xx), where, and what."""

    file: str
    line: int
    code: str
    message: str


@dataclass(slots=True)
class FileReport:
    """What was found in one file.

    Attributes:
        score: the sum of its sites' scores, times ``weight``.
        weight: below 1 for a folder of things thrown away, and ``weight_reason`` says which.
    """

    file: str
    lines: int
    parsed: bool
    sites: list[Site] = field(default_factory=list)
    score: float = 0.0
    weight: float = 1.0
    weight_reason: str = ""
    ignores: list[Ignore] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The outcome of a scan: the files, worst first, and everything that kept one from being read properly."""

    files: list[FileReport] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def sites(self) -> list[Site]:
        """All sites, by file and line."""
        found = [site for file in self.files for site in file.sites]
        return sorted(found, key=lambda site: (site.file, site.line, site.column))

    @property
    def findings(self) -> list[Site]:
        """The sites that nothing excuses."""
        return [site for site in self.sites if site.is_finding]

    @property
    def score(self) -> float:
        """The sum over all files."""
        return sum(file.score for file in self.files)

    @property
    def unparsable(self) -> list[Problem]:
        """The files that do not parse."""
        return [problem for problem in self.problems if problem.code == "PM901"]
