"""What a site is said to be: heat, closing, verdict, code, score, and what excuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.migration import Config, Report, Site, UsageError, baseline, load, scan

WITHOUT_CACHE = Config(cache=False, jobs=1)


def scan_text(folder: Path, text: str, name: str = "agent.py") -> Report:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return scan([folder], WITHOUT_CACHE)


def only_site(folder: Path, text: str) -> Site:
    (site,) = scan_text(folder, text).sites
    return site


@pytest.mark.parametrize(
    ("body", "closed", "reason"),
    [
        ("conn = sqlite3.connect(p)\n    conn.close()", False, "an exception skips close"),
        ("conn = sqlite3.connect(p)\n    conn.execute('x')", False, "never closed"),
        (
            "conn = sqlite3.connect(p)\n    try:\n        pass\n    finally:\n        conn.close()",
            True,
            "whatever happens",
        ),
        ("with sqlite3.connect(p) as conn:\n        pass", False, "does not close it"),
        ("with closing(sqlite3.connect(p)) as conn:\n        pass", True, ""),
        ("conn = sqlite3.connect(p)\n    with closing(conn):\n        pass", True, ""),
        ("return sqlite3.connect(p)", None, "caller"),
        ("rows = sqlite3.connect(p).execute('x').fetchall()", False, "nothing keeps it"),
    ],
)
def test_closing(tmp_path: Path, body: str, closed: bool | None, reason: str) -> None:
    """Whether a connection is closed on all paths is told from what its function does with it."""
    site = only_site(tmp_path, f"import sqlite3\nfrom contextlib import closing\n\n\ndef f(p):\n    {body}\n")
    assert site.closed is closed
    assert reason in site.closed_reason


def test_closed_by_a_base_class(tmp_path: Path) -> None:
    """An attribute that a base class in another file closes is closed."""
    (tmp_path / "base.py").write_text("class Base:\n    def stop(self):\n        self.db.close()\n")
    text = (
        "import sqlite3\nfrom base import Base\n\n\nclass A(Base):\n"
        "    def __init__(self):\n        self.db = sqlite3.connect('x')\n"
    )
    (tmp_path / "agent.py").write_text(text)
    (site,) = scan([tmp_path], WITHOUT_CACHE).sites
    assert site.closed is True


@pytest.mark.parametrize(
    ("text", "code", "verdict"),
    [
        ("import zmq\nc = zmq.Context()\n", "PM101", "poolable"),
        ("import zmq\ndef f(c: zmq.Context):\n    s = c.socket(zmq.REQ)\n    s.send(b'')\n", "PM102", "poolable"),
        (
            "import zmq\nclass A:\n    def __init__(self, c: zmq.Context):\n        self.s = c.socket(zmq.REQ)\n",
            "PM103",
            "poolable",
        ),
        ("import zmq\ndef main(c: zmq.Context):\n    s = c.socket(zmq.PUB)\n    s.bind('x')\n", "PM104", "inject-only"),
        ("import zmq\ndef main(c: zmq.Context):\n    s = c.socket(zmq.REP)\n", "PM104", "inject-only"),
        ("import zmq\ndef main(c: zmq.Context):\n    s = c.socket(zmq.SUB)\n", "PM105", "inject-only"),
        ("import sqlite3\ndef f():\n    c = sqlite3.connect('x')\n", "PM201", "poolable"),
        ("import sqlite3\nc = sqlite3.connect('x')\n", "PM202", "poolable"),
        ("import sqlalchemy\ne = sqlalchemy.create_engine('x')\n", "PM203", "poolable"),
        ("import requests\ndef f(u):\n    requests.get(u)\n", "PM301", "poolable"),
        ("import requests\ndef f(u):\n    s = requests.Session()\n", "PM302", "poolable"),
        ("import requests\ns = requests.Session()\n", "PM303", "poolable"),
        ("import redis\nr = redis.Redis()\n", "PM401", "inject-only"),
        ("import socket\ns = socket.socket()\n", "PM402", "ignore"),
    ],
)
def test_codes_and_verdicts(tmp_path: Path, text: str, code: str, verdict: str) -> None:
    """Each pattern has its code and its verdict."""
    site = only_site(tmp_path, text)
    assert (site.code, site.verdict) == (code, verdict)


def test_score(tmp_path: Path) -> None:
    """Hot counts five times, a context for each call three times more, a leak adds two, a bound socket hardly any."""
    hot_leak = scan_text(tmp_path / "a", "import sqlite3\ndef f():\n    c = sqlite3.connect('x')\n    c.close()\n")
    hot_context = scan_text(tmp_path / "b", "import zmq\ndef f():\n    with zmq.Context() as c:\n        pass\n")
    bound = scan_text(
        tmp_path / "c", "import zmq\ndef main(c: zmq.Context):\n    s = c.socket(zmq.REP)\n    s.bind('x')\n"
    )
    assert hot_leak.score == 5 + 2
    assert hot_context.score == 5 * 3
    assert bound.score < 0.5


def test_ranking_and_discarded_folders(tmp_path: Path) -> None:
    """Files are ranked by score, and those in discarded folders count a tenth and say so."""
    text = "import sqlite3\ndef f():\n    c = sqlite3.connect('x')\n"
    (tmp_path / "code").mkdir()
    for folder in ("live", "trash", "agents.bak", "backup_2024", "graveyard"):
        (tmp_path / "code" / folder).mkdir()
        (tmp_path / "code" / folder / "a.py").write_text(text)
    (tmp_path / "code" / "live" / "worse.py").write_text(text + "def g():\n    c = sqlite3.connect('y')\n")
    report = scan([tmp_path / "code"], WITHOUT_CACHE)
    assert [Path(file.file).name for file in report.files[:2]] == ["worse.py", "a.py"]
    discarded = [file for file in report.files if file.weight < 1]
    assert len(discarded) == 4
    assert all(file.score == pytest.approx(0.7) and "looks discarded" in file.weight_reason for file in discarded)


def test_ignore_comments(tmp_path: Path) -> None:
    """A comment excuses its codes on its line; one that excuses nothing is reported; text in a string is no comment."""
    report = scan_text(
        tmp_path,
        "import sqlite3\n"
        "a = sqlite3.connect('x')  # poolwire: ignore[PM202] the demo's own\n"
        "b = sqlite3.connect('x')  # poolwire: ignore[PM101]\n"
        "c = sqlite3.connect('x')  # poolwire: ignore\n"
        "d = sqlite3.connect(\n    'x',  # poolwire: ignore[PM202]\n)\n"
        "e = sqlite3.connect('# poolwire: ignore')\n",
    )
    assert [site.line for site in report.findings] == [3, 8]
    assert "the demo's own" in report.sites[0].ignored
    assert [(problem.line, problem.code) for problem in report.problems] == [(3, "PM903")]


def test_baseline_survives_moved_lines(tmp_path: Path) -> None:
    """Known findings stay known when lines move, and a further one of the same text is new."""
    text = "import sqlite3\n\n\ndef f():\n    c = sqlite3.connect('x')\n"
    report = scan_text(tmp_path / "code", text)
    file = tmp_path / "known.json"
    assert baseline.write(file, report.sites) == 1
    config = Config(cache=False, baseline="known.json", folder=tmp_path)
    (tmp_path / "code" / "agent.py").write_text(f"# moved\n\n{text}")
    assert scan([tmp_path / "code"], config).findings == []
    (tmp_path / "code" / "agent.py").write_text(f"{text}    c = sqlite3.connect('x')\n")
    assert [site.line for site in scan([tmp_path / "code"], config).findings] == [6]


@pytest.mark.parametrize("content", ["nonsense", "[]", '{"version": 99, "known": []}'])
def test_bad_baselines(tmp_path: Path, content: str) -> None:
    """A baseline that is none is an error that names it."""
    (tmp_path / "a.py").write_text("")
    (tmp_path / "known.json").write_text(content)
    with pytest.raises(UsageError, match=r"known\.json"):
        scan([tmp_path], Config(cache=False, baseline="known.json", folder=tmp_path))


def test_allowed_folders(tmp_path: Path) -> None:
    """Sites below an allowed folder are no findings; a folder that only begins alike is not allowed."""
    for folder in ("pools", "pools_old"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("import sqlite3\nc = sqlite3.connect('x')\n")
    report = scan([tmp_path], Config(cache=False, allow=("pools",), folder=tmp_path))
    assert [Path(site.file).parent.name for site in report.findings] == ["pools_old"]


def test_configuration(tmp_path: Path) -> None:
    """The nearest pyproject.toml with the table is taken."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    (tmp_path / "pyproject.toml").write_text(
        "[tool.poolwire.migrate]\nallow = ['pools']\nstrict-parse = true\nignore = ['PM402']\njobs = 1\n"
    )
    config = load(tmp_path / "inner")
    assert (config.allow, config.strict_parse, config.ignore, config.jobs) == (("pools",), True, ("PM402",), 1)
    assert config.folder == tmp_path.resolve()


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("alow = ['x']", "alow"),
        ("allow = 'x'", "allow"),
        ("strict-parse = 'yes'", "strict-parse"),
        ("ignore = ['PM000']", "PM000"),
        ("jobs = -1", "jobs"),
        ("= 1", "pyproject"),
    ],
)
def test_wrong_configuration(tmp_path: Path, table: str, named: str) -> None:
    """A wrong key or value is an error that names it."""
    (tmp_path / "pyproject.toml").write_text(f"[tool.poolwire.migrate]\n{table}\n")
    with pytest.raises(UsageError, match=named):
        load(tmp_path)
