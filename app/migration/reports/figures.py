"""The figures that several reports show."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from app.migration.sites import FileReport, Kind, Report, Scope, Site, Verdict


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts over a report's findings.

    Attributes:
        poolable_share: the poolable sites' share of all sites that are not ignored, from 0 to 1.
    """

    files: int
    files_with_sites: int
    lines: int
    sites: int
    hot: int
    leaking: int
    excused: int
    unparsable: int
    unread: int
    score: float
    poolable_share: float
    by_kind: dict[str, tuple[int, int]]
    by_type: dict[str, int]
    by_verdict: dict[str, int]
    by_scope: dict[str, int]
    by_code: dict[str, int]


def figures(report: Report) -> Figures:
    """Count what ``report`` holds."""
    sites = [site for site in report.sites if not site.ignored]
    verdicts = Counter(site.verdict for site in sites)
    kinds = Counter(site.kind for site in sites)
    hot = Counter(site.kind for site in sites if site.hot)
    scopes = Counter(site.scope for site in sites)
    types = Counter(site.socket_type for site in sites if site.socket_type)
    return Figures(
        files=len(report.files),
        files_with_sites=len({site.file for site in sites}),
        lines=sum(file.lines for file in report.files),
        sites=len(sites),
        hot=hot.total(),
        leaking=sum(1 for site in sites if site.closed is False),
        excused=sum(1 for site in report.sites if site.ignored),
        unparsable=len(report.unparsable),
        unread=sum(1 for problem in report.problems if problem.code == "PM902"),
        score=report.score,
        poolable_share=verdicts[Verdict.POOLABLE] / len(sites) if sites else 0.0,
        by_kind={kind.value: (kinds[kind], hot[kind]) for kind in Kind},
        by_type=dict(types.most_common()),
        by_verdict={verdict.value: verdicts[verdict] for verdict in Verdict},
        by_scope={scope.value: scopes[scope] for scope in Scope},
        by_code=dict(sorted(Counter(site.code for site in sites).items())),
    )


def reasons(file: FileReport) -> str:
    """Say in a few words why a file has its score."""
    sites = [site for site in file.sites if not site.ignored]
    parts = []
    hot = Counter(site.kind for site in sites if site.hot)
    for kind, count in hot.most_common(3):
        parts.append(f"{count} hot {_plural(kind, count)}")
    leaking = sum(1 for site in sites if site.closed is False)
    if leaking:
        parts.append(f"{leaking} not closed on all paths")
    quiet = sum(1 for site in sites if not site.hot)
    if quiet:
        parts.append(f"{quiet} long-lived")
    if not file.parsed:
        parts.append("does not parse")
    if file.weight_reason:
        parts.append(f"counts x{file.weight:g}: {file.weight_reason}")
    return "; ".join(parts)


def _plural(kind: Kind, count: int) -> str:
    name = {
        Kind.ZMQ_CONTEXT: "ZMQ context",
        Kind.ZMQ_SOCKET: "ZMQ socket",
        Kind.SQL_CONNECT: "SQL connection",
        Kind.HTTP_ONESHOT: "HTTP request",
        Kind.HTTP_SESSION: "HTTP session",
        Kind.OTHER: "other connection",
    }[kind]
    return name if count == 1 else f"{name}s"


def described(site: Site) -> str:
    """Say what a site is, in one sentence without its place."""
    role = f" {site.socket_type}" if site.socket_type else ""
    heat = "hot: " if site.hot else ""
    closing = "" if site.closed is not False else f"; {site.closed_reason}"
    return f"{site.library}{role} ({heat}{site.reason}{closing})"


def worst(report: Report, most: int) -> list[FileReport]:
    """Return the files with the highest scores."""
    return [file for file in report.files if file.score > 0][:most]
