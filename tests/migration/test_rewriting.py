"""What a rewrite changes, what it keeps, and what it refuses."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from textwrap import dedent

import pytest

from app.migration import Config, scan

rewriting = pytest.importorskip("app.migration.rewriting", reason="needs the extra `migrate`")

WITHOUT_CACHE = Config(cache=False, jobs=1)


def rewritten(folder: Path, source: str, *only: str) -> tuple[str, list[str]]:
    """Return what becomes of ``source``, and the reasons of the refusals."""
    file = folder / "agent.py"
    file.write_text(dedent(source))
    changes = list(rewriting.plan(scan([file], WITHOUT_CACHE), only))
    if not changes:
        return dedent(source), []
    (change,) = changes
    return change.after or change.before, [refusal.reason for refusal in change.refusals]


def test_own_context(tmp_path: Path) -> None:
    """Only the lines about the context change; parameters, comments and formatting stay."""
    after, refusals = rewritten(
        tmp_path,
        '''
        """An agent."""
        import zmq   # pyzmq


        class A( object ):
            def __init__( self,port = 5555, *names):  # positional
                """Start."""
                self.context=zmq.Context( 1 )   # the context
                self.socket = self.context.socket(zmq.REP)
                self.socket.bind( f'tcp://*:{port}' )

            def stop(self):
                if self.context:
                    self.context.term()
                self.socket.close()
        ''',
    )
    assert after == dedent(
        '''
        """An agent."""
        import zmq   # pyzmq
        from app.containers import Provide, inject
        from app.pools.zmq_pool import ZMQPool


        class A( object ):
            @inject
            def __init__( self,port = 5555, *names, zmq_pool: ZMQPool = Provide["zmq_pool"]):  # positional
                """Start."""
                self.zmq_pool = zmq_pool
                self.context=zmq_pool.context   # the context
                self.socket = self.context.socket(zmq.REP)
                self.socket.bind( f'tcp://*:{port}' )

            def stop(self):
                self.socket.close()
        '''
    )
    assert refusals == ["a bound socket keeps its owner; only its context is injected"]


def test_parameters_on_lines_of_their_own(tmp_path: Path) -> None:
    """An injected parameter follows the style of a signature that is written over several lines."""
    after, _ = rewritten(
        tmp_path,
        """
        import sqlite3


        def load(
            path: str,
            limit: int = 10,
        ) -> list:
            conn = sqlite3.connect(path)
            try:
                return conn.execute("select 1").fetchall()
            finally:
                conn.close()
        """,
    )
    assert (
        dedent(
            """
            @inject
            def load(
                path: str,
                limit: int = 10,
                *,
                sql_pool: SQLPool = Provide["sql_pool"],
            ) -> list:
                with sql_pool.connection(get_sqlite_config(path)) as lease:
                    conn = lease.connection.driver_connection
                    return conn.execute("select 1").fetchall()
            """
        )
        in after
    )


def test_class_without_init(tmp_path: Path) -> None:
    """A class without __init__ gets one that passes on what its bases take."""
    after, refusals = rewritten(
        tmp_path,
        """
        import sqlite3
        from base import Base


        class Store(Base):
            path = "x.db"

            def load(self):
                conn = sqlite3.connect(self.path)
                rows = conn.execute("select 1").fetchall()
                conn.close()
                return rows
        """,
    )
    assert refusals == []
    assert 'def __init__(self, *args, sql_pool: SQLPool = Provide["sql_pool"], **kwargs):' in after
    assert "super().__init__(*args, **kwargs)" in after


ERROR_BUS = """
    import zmq


    class A:
        def __init__(self, context):
            self.context = context
            # the error bus
            self.bus = self.context.socket(zmq.PUB)
            self.bus.connect("tcp://localhost:5600")

        def report(self, error):
            self.bus.send_json({"error": str(error)})
            self.bus.send_string("x", zmq.NOBLOCK)

        def stop(self):
            if self.bus:
                self.bus.close()
    """


def test_error_bus_that_an_object_keeps(tmp_path: Path) -> None:
    """A PUB socket in an attribute becomes a publisher in the same attribute."""
    after, refusals = rewritten(tmp_path, ERROR_BUS)
    assert refusals == []
    assert 'self.bus = Publisher(zmq_pool, SocketConfig(SocketType.PUB, "tcp://localhost:5600"))' in after
    assert 'self.bus.publish(json.dumps({"error": str(error)}).encode())' in after
    assert 'self.bus.publish("x".encode())' in after
    assert "close()" not in after


@pytest.mark.parametrize(
    "other",
    [
        "from agent import A\n\n\nclass B(A):\n    def more(self):\n        self.bus.send(b'x')\n",
        "from agent import A\n\nA(None).bus.send_string('x')\n",
    ],
)
def test_error_bus_that_another_file_sends_on(tmp_path: Path, other: str) -> None:
    """A PUB socket that a subclass or a user in another file sends on stays."""
    (tmp_path / "other.py").write_text(other)
    (tmp_path / "agent.py").write_text(dedent(ERROR_BUS))
    changes = {Path(change.file).name: change for change in rewriting.plan(scan([tmp_path], WITHOUT_CACHE))}
    assert changes["agent.py"].after is None
    assert "another file" in changes["agent.py"].refusals[0].reason


REFUSED = {
    "row_factory": ("conn = sqlite3.connect(p)\n    conn.row_factory = dict\n    conn.close()", "row_factory"),
    "lastrowid": (
        "conn = sqlite3.connect(p)\n    c = conn.execute('x')\n    conn.close()\n    return c.lastrowid",
        "lastrowid",
    ),
    "transaction": (
        "conn = sqlite3.connect(p)\n    conn.execute('INSERT 1')\n    conn.execute('UPDATE 2')\n    conn.commit()",
        "several writes",
    ),
    "handed on": ("conn = sqlite3.connect(p)\n    helper(conn)\n    conn.close()", "handed to something else"),
    "returned": ("conn = sqlite3.connect(p)\n    return conn", "handed to something else"),
    "cursor returned": ("conn = sqlite3.connect(p)\n    return conn.execute('x')", "cursor is returned"),
    "memory": ("conn = sqlite3.connect(':memory:')\n    conn.close()", "in memory"),
    "twice": (
        "conn = sqlite3.connect(p)\n    conn.close()\n    conn = sqlite3.connect(p)\n    conn.close()",
        "more than once",
    ),
    "generator": ("conn = sqlite3.connect(p)\n    yield conn.execute('x').fetchone()\n    conn.close()", "generator"),
    "closure": (
        "conn = sqlite3.connect(p)\n    run(lambda: conn.commit())\n    conn.close()",
        "function within the function",
    ),
    "option": ("conn = sqlite3.connect(p, isolation_level=None)\n    conn.close()", "no counterpart"),
    "semicolon": ("x = 1; conn = sqlite3.connect(p)\n    conn.close()", "shares its line"),
    "response returned": ("return requests.get(p)", "handed on"),
    "streamed": ("r = requests.get(p, stream=True)\n    return r.content", "stream= belongs into a configuration"),
    "elapsed": ("r = requests.get(p)\n    return r.elapsed", "no .elapsed"),
    "identity": (
        "c = zmq.Context()\n    s = c.socket(zmq.REQ)\n    s.setsockopt(zmq.IDENTITY, b'x')\n    s.connect(p)",
        "IDENTITY",
    ),
    "two endpoints": (
        "c = zmq.Context()\n    s = c.socket(zmq.REQ)\n    s.connect(p)\n    s.connect(p + '1')\n    s.send(b'')",
        "more than once",
    ),
    "shared context": (
        "c = zmq.Context()\n    s = c.socket(zmq.REQ)\n    s.connect(p)\n    t = c.socket(zmq.PUSH)\n    s.send(b'')",
        "also used for something else",
    ),
    "pub options": (
        "c = zmq.Context()\n    s = c.socket(zmq.PUB)\n    s.connect(p)\n    s.send(b'', zmq.SNDMORE)",
        "flags",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals_say_why(tmp_path: Path, name: str) -> None:
    """What is not safe is left as it is, with a reason."""
    body, reason = REFUSED[name]
    source = f"import requests\nimport sqlite3\nimport zmq\n\n\ndef f(p):\n    {body}\n"
    after, refusals = rewritten(tmp_path, source)
    assert after == source
    assert any(reason in refusal for refusal in refusals), refusals


@pytest.mark.parametrize(
    "source",
    [
        "import sqlite3\n\n\nasync def f(p):\n    conn = sqlite3.connect(p)\n    conn.close()\n",
        "import sqlite3\n\nf = lambda p: sqlite3.connect(p).execute('x').fetchall()\n",
        "import sqlite3\n\n\ndef f(p):\n    def g():\n        conn = sqlite3.connect(p)\n    g()\n",
        "import zmq.asyncio\n\n\nclass A:\n    def __init__(self):\n        self.c = zmq.asyncio.Context()\n",
        "import dataclasses, zmq\n\n@dataclasses.dataclass\nclass A:\n  def f(self):\n    self.c = zmq.Context()\n",
        "import zmq\n\n\nclass A:\n    @classmethod\n    def f(cls):\n        cls.c = zmq.Context()\n",
        "import zmq\n\nProvide = 1\n\n\nclass A:\n    def __init__(self, zmq_pool):\n        self.c = zmq.Context()\n",
    ],
    ids=["coroutine", "lambda", "nested", "asyncio context", "dataclass", "classmethod", "name taken"],
)
def test_places_that_cannot_be_injected(tmp_path: Path, source: str) -> None:
    """A site where no pool can be injected is left alone."""
    after, refusals = rewritten(tmp_path, source)
    assert after == source
    assert len(refusals) == 1


def test_files_that_do_not_parse_are_left_alone(tmp_path: Path) -> None:
    """A file that does not parse is never rewritten."""
    source = "import sqlite3\n\n\ndef f(p):\n    conn = sqlite3.connect(p)\n    conn.close()\n    print 'x'\n"
    assert rewritten(tmp_path, source) == (source, ["the file does not parse"])


def test_only(tmp_path: Path) -> None:
    """With codes given, the sites of other codes stay."""
    source = """
        import sqlite3
        import zmq


        class A:
            def __init__(self):
                self.context = zmq.Context()

            def f(self, p):
                conn = sqlite3.connect(p)
                conn.close()
        """
    after, _ = rewritten(tmp_path, source, "PM101")
    assert "zmq_pool.context" in after
    assert "sqlite3.connect(p)" in after


def test_error_handlers_catch_the_pool_too(tmp_path: Path) -> None:
    """Handlers for the library's errors catch the pool's as well, once."""
    after, _ = rewritten(
        tmp_path,
        """
        import requests
        from requests.exceptions import Timeout


        class A:
            def f(self):
                try:
                    return requests.get("https://api.example.com/v1/x?y=1", timeout=3).json()
                except (Timeout, requests.ConnectionError):
                    return None
        """,
    )
    assert "except (Timeout, requests.ConnectionError, DeadlineExceeded, HTTPUnavailable):" in after
    assert 'HTTPConfig("https://api.example.com", max_retries=0)' in after
    assert '"/v1/x?y=1"' in after


def test_bytes_around_the_change_survive(tmp_path: Path) -> None:
    """Encoding, byte order mark, line ends and permissions of a file stay."""
    file = tmp_path / "agent.py"
    text = "import sqlite3\r\n\r\n\r\ndef f(p):\r\n    # é\r\n    conn = sqlite3.connect(p)\r\n    conn.close()\r\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    file.chmod(0o750)
    (change,) = rewriting.plan(scan([file], WITHOUT_CACHE))
    change.write()
    data = file.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert data.count(b"\n") == data.count(b"\r\n")
    assert "# é" in data.decode("utf-8-sig")
    assert stat.S_IMODE(file.stat().st_mode) == 0o750
    assert os.listdir(tmp_path) == ["agent.py"]


def test_declared_encoding_survives(tmp_path: Path) -> None:
    """A file that declares latin-1 is written in latin-1."""
    file = tmp_path / "agent.py"
    text = (
        "# coding: latin-1\nimport sqlite3\n\n\ndef f(p):\n    # é\n    conn = sqlite3.connect(p)\n    conn.close()\n"
    )
    file.write_bytes(text.encode("latin-1"))
    (change,) = rewriting.plan(scan([file], WITHOUT_CACHE))
    change.write()
    assert "# é" in file.read_bytes().decode("latin-1")


def test_a_file_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """A file that changed between the plan and the writing is left as it is."""
    file = tmp_path / "agent.py"
    file.write_text("import sqlite3\n\n\ndef f(p):\n    conn = sqlite3.connect(p)\n    conn.close()\n")
    (change,) = rewriting.plan(scan([file], WITHOUT_CACHE))
    file.write_text("x = 1\n")
    with pytest.raises(OSError, match="changed since"):
        change.write()
    assert file.read_text() == "x = 1\n"


def test_a_second_rewrite_changes_nothing(tmp_path: Path) -> None:
    """Rewriting the corpus twice changes nothing the second time, and every result parses."""
    from tests.support import migration_corpus

    package = migration_corpus.lay_out(tmp_path)
    count = 0
    for change in rewriting.plan(scan([package], WITHOUT_CACHE)):
        assert not any("mistake" in refusal.reason for refusal in change.refusals), change.refusals
        if change.after is not None:
            count += len(change.rewritten)
            compile(change.after, change.file, "exec")
            change.write()
    assert count > 20
    assert [change.file for change in rewriting.plan(scan([package], WITHOUT_CACHE)) if change.after is not None] == []
