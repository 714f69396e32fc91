"""Reports for machines: JSON, SARIF 2.1.0 and GitHub's annotations."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

import orjson

from app.migration.codes import CODES
from app.migration.reports.figures import described
from app.migration.sites import Confidence, Report, Site

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def json(report: Report) -> str:
    """Return a list of objects, one for each site, with the fields of ``Site``; ignored ones say why."""
    return orjson.dumps(report.sites, option=orjson.OPT_INDENT_2).decode() + "\n"


def sarif(report: Report) -> str:
    """Return a SARIF 2.1.0 log; what the baseline or a comment excuses is in it as suppressed."""
    codes = list(CODES)
    rules = [
        {
            "id": code.code,
            "shortDescription": {"text": code.title},
            "fullDescription": {"text": code.why},
            "help": {"text": code.instead},
        }
        for code in CODES.values()
    ]
    problems = [
        {
            "descriptor": {"id": problem.code, "index": codes.index(problem.code)},
            "level": "error" if problem.code == "PM902" else "warning",
            "message": {"text": problem.message},
            "locations": [_location(problem.file, problem.line)],
        }
        for problem in report.problems
    ]
    run: dict[str, Any] = {
        "tool": {"driver": {"name": "poolwire migrate", "version": _version(), "rules": rules}},
        "columnKind": "utf16CodeUnits",
        "results": [_result(site, codes.index(site.code)) for site in report.sites],
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": problems}],
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return orjson.dumps(log, option=orjson.OPT_INDENT_2).decode() + "\n"


def _version() -> str:
    try:
        return version("poolwire")
    except PackageNotFoundError:
        return "0"


def _result(site: Site, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": site.code,
        "ruleIndex": index,
        "level": "error" if site.hot else "warning" if site.is_finding else "note",
        "message": {"text": f"{CODES[site.code].title}: {described(site)}"},
        "locations": [_location(site.file, site.line, site.column, site.end_line)],
        "rank": min(100.0, round(site.score * 5, 1)),
        "properties": {
            "kind": site.kind,
            "scope": site.scope,
            "hot": site.hot,
            "verdict": site.verdict,
            "confidence": site.confidence,
        },
    }
    if site.ignored:
        kind = "inSource" if "comment" in site.ignored else "external"
        result["suppressions"] = [{"kind": kind, "justification": site.ignored}]
    return result


def _location(file: str, line: int, column: int = 1, end_line: int | None = None) -> dict[str, Any]:
    region = {"startLine": max(1, line), "startColumn": max(1, column)}
    if end_line is not None and end_line > line:
        region["endLine"] = end_line
    return {"physicalLocation": {"artifactLocation": {"uri": quote(file)}, "region": region}}


def github(report: Report) -> str:
    """Return one workflow command for each finding and problem: annotations on a pull request."""
    lines = []
    for site in report.findings:
        level = "error" if site.hot and site.confidence is not Confidence.LOW else "warning"
        place = f"file={_property(site.file)},line={site.line},col={site.column},endLine={site.end_line}"
        title = _property(f"{site.code} {CODES[site.code].title}")
        lines.append(f"::{level} {place},title={title}::{_data(described(site))}")
    for problem in report.problems:
        place = f"file={_property(problem.file)},line={problem.line}"
        title = _property(f"{problem.code} {CODES[problem.code].title}")
        lines.append(f"::warning {place},title={title}::{_data(problem.message)}")
    return "".join(f"{line}\n" for line in lines)


def _data(words: str) -> str:
    return words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(words: str) -> str:
    return _data(words).replace(":", "%3A").replace(",", "%2C")
