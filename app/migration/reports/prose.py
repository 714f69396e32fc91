"""Reports for people: a terminal, and Markdown."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.migration.reports.figures import described, figures, reasons, worst
from app.migration.sites import Report

_TOP = 20
_WIDTH = 140


def text(report: Report) -> str:
    """Return a table of the kinds, the worst files with the reasons, every site, and the problems."""
    counts = figures(report)
    out = Console(file=io.StringIO(), width=_WIDTH, highlight=False, soft_wrap=False)
    for site in report.sites:
        if site.is_finding:
            out.print(Text(f"{site.file}:{site.line}:{site.column}: {site.code} {described(site)}"), soft_wrap=True)
    kinds = Table(title="Construction sites", title_justify="left")
    for column in ("kind", "sites", "hot"):
        kinds.add_column(column, justify="left" if column == "kind" else "right")
    for kind, (sites, hot) in counts.by_kind.items():
        kinds.add_row(kind, str(sites), str(hot))
    kinds.add_row("all", str(counts.sites), str(counts.hot), style="bold")
    if counts.sites:
        out.print()
        out.print(kinds)
        files = Table(title=f"Worst files ({min(_TOP, counts.files_with_sites)} of {counts.files_with_sites})")
        files.title_justify = "left"
        files.add_column("score", justify="right")
        files.add_column("sites", justify="right")
        files.add_column("file", overflow="fold")
        files.add_column("why", overflow="fold")
        for file in worst(report, _TOP):
            sites_here = sum(1 for site in file.sites if not site.ignored)
            files.add_row(f"{file.score:.1f}", str(sites_here), Text(file.file), Text(reasons(file)))
        out.print(files)
    for problem in report.problems:
        out.print(Text(f"{problem.file}:{problem.line}: {problem.code} {problem.message}"), soft_wrap=True)
    out.print(Text(_summary(report)), soft_wrap=True)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def _summary(report: Report) -> str:
    counts = figures(report)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.by_verdict.items())
    parts = [
        f"{counts.files} files, {counts.lines} lines: {counts.sites} sites in {counts.files_with_sites} files "
        f"({verdicts}; {counts.poolable_share:.0%} poolable), {counts.hot} hot, "
        f"{counts.leaking} not closed on all paths; score {counts.score:.1f}"
    ]
    if counts.excused:
        parts.append(f"{counts.excused} excused by a comment, the baseline or an allowed folder")
    if counts.unparsable:
        parts.append(f"{counts.unparsable} files do not parse: their sites are of low confidence")
    if counts.unread:
        parts.append(f"{counts.unread} files could not be read")
    return ". ".join(parts) + "."


def markdown(report: Report) -> str:
    """Return a page for a pull request or a wiki."""
    counts = figures(report)
    lines = ["# Direct connections", "", _summary(report), "", "| kind | sites | hot |", "|---|---:|---:|"]
    lines += [f"| {kind} | {sites} | {hot} |" for kind, (sites, hot) in counts.by_kind.items()]
    lines += [f"| **all** | **{counts.sites}** | **{counts.hot}** |", ""]
    if counts.by_type:
        roles = ", ".join(f"{role} {count}" for role, count in counts.by_type.items())
        lines += [f"ZMQ sockets: {roles}.", ""]
    files = worst(report, _TOP)
    if files:
        lines += ["## Worst files", "", "| score | sites | file | why |", "|---:|---:|---|---|"]
        for file in files:
            sites_here = sum(1 for site in file.sites if not site.ignored)
            lines.append(f"| {file.score:.1f} | {sites_here} | {_code(file.file)} | {_cell(reasons(file))} |")
        lines.append("")
    if report.findings:
        lines += ["## Sites", "", "| site | code | what |", "|---|---|---|"]
        for site in report.findings:
            lines.append(f"| {_code(f'{site.file}:{site.line}')} | {site.code} | {_cell(described(site))} |")
        lines.append("")
    if report.problems:
        lines += ["## Problems", "", "| place | code | what |", "|---|---|---|"]
        for problem in report.problems:
            place = _code(f"{problem.file}:{problem.line}")
            lines.append(f"| {place} | {problem.code} | {_cell(problem.message)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(words: str) -> str:
    return words.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _code(words: str) -> str:
    cleaned = words.replace("`", "'").replace("|", "\\|").replace("\n", " ")
    return f"`{cleaned}`"
