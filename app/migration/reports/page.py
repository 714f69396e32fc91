"""A page in one file: charts as inline SVG, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from app.migration.codes import CODES
from app.migration.reports.figures import described, figures, reasons, worst
from app.migration.sites import Report

_STYLE = """
:root { color-scheme: light dark; --bar: #2f6fb3; --hot: #c8442f; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 2rem; }
th, td { text-align: left; padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.6rem 1rem; min-width: 8rem; }
.tile b { display: block; font-size: 1.6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem 2rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.bar { fill: var(--bar); } .hot { fill: var(--hot); } .is-hot { color: var(--hot); font-weight: 600; }
details summary { cursor: pointer; }
"""
_TOP = 25
_ROW = 24
_LABEL = 150
_CHART = 480


def html(report: Report) -> str:
    """Return the page."""
    counts = figures(report)
    tiles = {
        "sites": str(counts.sites),
        "hot": str(counts.hot),
        "not closed on all paths": str(counts.leaking),
        "poolable": f"{counts.poolable_share:.0%}",
        "score": f"{counts.score:.0f}",
        "files": f"{counts.files_with_sites} of {counts.files}",
        "do not parse": str(counts.unparsable),
        "excused": str(counts.excused),
    }
    charts = [
        _chart("Sites by kind (hot in red)", counts.by_kind),
        _chart("ZMQ sockets by type", {role: (count, 0) for role, count in counts.by_type.items()}),
        _chart("Verdicts", {verdict: (count, 0) for verdict, count in counts.by_verdict.items()}),
        _chart("Where they stand", {scope: (count, 0) for scope, count in counts.by_scope.items()}),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Direct connections</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body>",
            "<h1>Direct connections</h1>",
            '<div class="tiles">',
            *(f'<div class="tile"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in tiles.items()),
            "</div>",
            '<div class="charts">',
            *charts,
            "</div>",
            *_files(report),
            *_sites(report),
            *_problems(report),
            "</body></html>",
            "",
        ]
    )


def _chart(title: str, values: Mapping[str, tuple[int, int]]) -> str:
    """Draw horizontal bars; of each pair, the second number is the red part of the first."""
    most = max((total for total, _ in values.values()), default=0) or 1
    room = _CHART - _LABEL - 50
    rows = []
    for position, (name, (total, hot)) in enumerate(values.items()):
        top = position * _ROW
        width, hot_width = room * total / most, room * hot / most
        rows.append(
            f'<text x="{_LABEL - 8}" y="{top + 16}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="bar" x="{_LABEL}" y="{top + 4}" width="{width:.1f}" height="{_ROW - 8}"/>'
            f'<rect class="hot" x="{_LABEL}" y="{top + 4}" width="{hot_width:.1f}" height="{_ROW - 8}"/>'
            f'<text x="{_LABEL + width + 6:.1f}" y="{top + 16}">{total}</text>'
        )
    height = max(1, len(values)) * _ROW
    return (
        f'<figure><figcaption><b>{escape(title)}</b></figcaption><svg viewBox="0 0 {_CHART} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(rows)}</svg></figure>'
    )


def _files(report: Report) -> list[str]:
    files = worst(report, _TOP)
    if not files:
        return []
    rows = [
        f'<tr><td class="number">{file.score:.1f}</td><td class="number">{len(file.sites)}</td>'
        f"<td><code>{escape(file.file)}</code></td><td>{escape(reasons(file))}</td></tr>"
        for file in files
    ]
    head = '<tr><th class="number">score</th><th class="number">sites</th><th>file</th><th>why</th></tr>'
    return ["<h2>Worst files</h2>", f"<table>{head}{''.join(rows)}</table>"]


def _sites(report: Report) -> list[str]:
    sections = []
    by_code: dict[str, list[str]] = {}
    for site in report.sites:
        heat = ' class="is-hot"' if site.hot else ""
        note = f" — {escape(site.ignored)}" if site.ignored else ""
        by_code.setdefault(site.code, []).append(
            f"<tr><td><code>{escape(site.file)}:{site.line}</code></td><td><code>{escape(site.text)}</code></td>"
            f"<td{heat}>{escape(described(site))}{note}</td><td>{site.verdict}</td><td>{site.confidence}</td></tr>"
        )
    for code, rows in sorted(by_code.items()):
        head = "<tr><th>site</th><th>source</th><th>what</th><th>verdict</th><th>confidence</th></tr>"
        explained = CODES[code]
        sections.append(
            f"<details><summary><b>{code}</b> {escape(explained.title)}: {len(rows)}</summary>"
            f"<p>{escape(explained.why)} <i>{escape(explained.instead)}</i></p>"
            f"<table>{head}{''.join(rows)}</table></details>"
        )
    return ["<h2>Sites</h2>", *sections] if sections else ["<p>No direct connection.</p>"]


def _problems(report: Report) -> list[str]:
    if not report.problems:
        return []
    rows = [
        f"<tr><td><code>{escape(problem.file)}:{problem.line}</code></td><td>{problem.code}</td>"
        f"<td>{escape(problem.message)}</td></tr>"
        for problem in report.problems
    ]
    head = "<tr><th>place</th><th>code</th><th>what</th></tr>"
    return ["<h2>Problems</h2>", f"<table>{head}{''.join(rows)}</table>"]
