"""SQL texts: their placeholders, and what they do."""

from typing import Any

import pytest
from sqlalchemy import text

from app.pools.sql_pool.statements import Effect, Style, effect_of, prepare, quoted


@pytest.mark.parametrize(
    ("sql", "qmark", "psycopg", "asyncpg"),
    [
        ("SELECT ?", "SELECT ?", "SELECT %s", "SELECT $1"),
        ("SELECT ?, ?", "SELECT ?, ?", "SELECT %s, %s", "SELECT $1, $2"),
        ("SELECT '?', ?", "SELECT '?', ?", "SELECT '?', %s", "SELECT '?', $1"),
        ('SELECT "a?", ?', 'SELECT "a?", ?', 'SELECT "a?", %s', 'SELECT "a?", $1'),
        ("SELECT ? -- why?\n", "SELECT ? -- why?\n", "SELECT %s -- why?\n", "SELECT $1 -- why?\n"),
        ("SELECT /* ? */ ?", "SELECT /* ? */ ?", "SELECT /* ? */ %s", "SELECT /* ? */ $1"),
        ("SELECT $$?$$, ?", "SELECT $$?$$, ?", "SELECT $$?$$, %s", "SELECT $$?$$, $1"),
        ("SELECT $x$?$x$, ?", "SELECT $x$?$x$, ?", "SELECT $x$?$x$, %s", "SELECT $x$?$x$, $1"),
        ("SELECT 'it''s ?', ?", "SELECT 'it''s ?', ?", "SELECT 'it''s ?', %s", "SELECT 'it''s ?', $1"),
        ("SELECT d ?? 'k', ?", "SELECT d ? 'k', ?", "SELECT d ? 'k', %s", "SELECT d ? 'k', $1"),
        ("SELECT x LIKE 'a%', ?", "SELECT x LIKE 'a%', ?", "SELECT x LIKE 'a%%', %s", "SELECT x LIKE 'a%', $1"),
        ("SELECT 7 % ?", "SELECT 7 % ?", "SELECT 7 %% %s", "SELECT 7 % $1"),
        ("SELECT 7 % 2", "SELECT 7 % 2", "SELECT 7 % 2", "SELECT 7 % 2"),
        ("SELECT :a::int", "SELECT ?::int", "SELECT %s::int", "SELECT $1::int"),
        ("SELECT x[1:2], :a", "SELECT x[1:2], ?", "SELECT x[1:2], %s", "SELECT x[1:2], $1"),
        (
            "SELECT $f1$ it's ? $f1$, ?",
            "SELECT $f1$ it's ? $f1$, ?",
            "SELECT $f1$ it's ? $f1$, %s",
            "SELECT $f1$ it's ? $f1$, $1",
        ),
        ("SELECT ? /* ?", "SELECT ? /* ?", "SELECT %s /* ?", "SELECT $1 /* ?"),
        ("SELECT /*/ ? */ ?", "SELECT /*/ ? */ ?", "SELECT /*/ ? */ %s", "SELECT /*/ ? */ $1"),
        (
            "SELECT x LIKE'\\' AND a=?",
            "SELECT x LIKE'\\' AND a=?",
            "SELECT x LIKE'\\' AND a=%s",
            "SELECT x LIKE'\\' AND a=$1",
        ),
    ],
)
def test_placeholders_become_the_drivers_own(sql: str, qmark: str, psycopg: str, asyncpg: str) -> None:
    """Only what is a placeholder is translated."""
    assert prepare(sql, "qmark").text == qmark
    assert prepare(sql, "format").text == psycopg
    assert prepare(sql, "numeric").text == asyncpg


@pytest.mark.parametrize("style", ["qmark", "format", "numeric"])
@pytest.mark.parametrize(
    "sql", ["SELECT 'a??b'", 'SELECT "a??b"', "SELECT 1 -- ??", "SELECT /* ?? */ 1", "SELECT $$??$$"]
)
def test_what_is_quoted_is_never_changed(sql: str, style: Style) -> None:
    """A doubled question mark in a string, a name or a comment stays, with and without placeholders beside it."""
    assert prepare(sql, style).text == sql
    assert prepare(f"SELECT ?, ({sql}\n)", style).text.endswith(f", ({sql}\n)")


def test_postgresql_nests_comments_and_has_arrays() -> None:
    """A comment ends with the outermost mark; what stands in brackets is an index, and may be a placeholder."""
    assert prepare("/* /* */ ? */ SELECT a[?]", "numeric").text == "/* /* */ ? */ SELECT a[$1]"
    assert prepare("/* /* */ ? */ SELECT a[?]", "format").text == "/* /* */ ? */ SELECT a[%s]"
    assert prepare(r"SELECT e'\'?', ?", "numeric").text == r"SELECT e'\'?', $1"


def test_sqlite_quotes_names_in_brackets_and_backticks() -> None:
    """Its four kinds of quotes hide placeholders, its comments do not nest, and its strings know no backslash."""
    assert prepare("SELECT [a:b], `c``:d`, :x", "qmark").text == "SELECT [a:b], `c``:d`, ?"
    assert prepare("SELECT [a??b], `c??d`", "qmark").text == "SELECT [a??b], `c??d`"
    assert prepare("/* /* */ SELECT :a /* /*/, :b", "qmark").names == ("a", "b")
    assert prepare(r"SELECT e'\', :a", "qmark").names == ("a",)


def test_names_are_bound_in_the_order_of_the_text() -> None:
    """A name used twice is passed twice; values that the text does not use are ignored."""
    statement = prepare("SELECT :b, :a, :b", "qmark")

    assert statement.bind({"a": 1, "b": 2, "c": 3}) == (2, 1, 2)


@pytest.mark.parametrize(
    ("sql", "params", "complaint"),
    [
        ("SELECT :a", {}, "no value for the placeholder.*:a"),
        ("SELECT :a", (1,), "pass a mapping"),
        ("SELECT ?", {"a": 1}, "no :name placeholders"),
        ("SELECT ?", "text", r"for one value write \('text',\)"),
        ("SELECT ?", 5, r"for one value write \(5,\)"),
    ],
)
def test_parameters_that_do_not_fit_are_an_error(sql: str, params: object, complaint: str) -> None:
    """The message says what the statement wants."""
    with pytest.raises((KeyError, TypeError), match=complaint):
        prepare(sql, "qmark").bind(params)  # type: ignore[arg-type]


@pytest.mark.parametrize("sql", [text("SELECT 1"), b"SELECT 1", 1])
def test_what_is_no_text_is_refused(sql: Any) -> None:
    """SQLAlchemy's statements are for its connections, and the error says so."""
    with pytest.raises(TypeError, match=f"not {type(sql).__name__}; connection\\(\\)"):
        prepare(sql, "format")


def test_a_text_has_one_kind_of_placeholder() -> None:
    """Mixing ? and :name is refused."""
    with pytest.raises(ValueError, match="not both"):
        prepare("SELECT ?, :a", "qmark")


@pytest.mark.parametrize("style", ["format", "numeric"])
def test_numbered_placeholders_are_sqlites_alone(style: Style) -> None:
    """They are passed on to SQLite and refused elsewhere, where they would become another number."""
    assert prepare("SELECT ?2, ?1", "qmark").text == "SELECT ?2, ?1"
    with pytest.raises(ValueError, match=r"\?1 are SQLite's alone; write \? or :name"):
        prepare("SELECT ?1, ?2", style)


@pytest.mark.parametrize(
    ("sql", "effect"),
    [
        ("SELECT 1", Effect.READ),
        ("  -- why\n /* what */ (select 1)", Effect.READ),
        ("WITH x AS (SELECT 1) SELECT * FROM x", Effect.READ),
        ("WITH x AS (DELETE FROM t RETURNING id) SELECT * FROM x", Effect.WRITE),
        ("INSERT INTO t VALUES (1)", Effect.WRITE),
        ("CREATE TABLE t (id int)", Effect.WRITE),
        ("EXPLAIN SELECT 1", Effect.READ),
        ("SAVEPOINT x", Effect.READ),
        ("SELECT 1;", Effect.READ),
        ("SELECT '; DELETE', x -- ; DELETE\n FROM y; /* done */", Effect.READ),
        ('SELECT "into" FROM t', Effect.READ),
        ("WITH x AS (SELECT replace(a, 'delete', '') FROM t) SELECT * FROM x", Effect.READ),
        ("EXPLAIN ANALYZE SELECT 1", Effect.READ),
        ("EXPLAIN (ANALYZE, BUFFERS) (SELECT 1)", Effect.READ),
        ("EXPLAIN QUERY PLAN SELECT 1", Effect.READ),
        ("EXPLAIN EXECUTE stored(1)", Effect.READ),
        ("EXPLAIN ANALYZE EXECUTE stored(1)", Effect.WRITE),
        ("EXPLAIN (VERBOSE, ANALYZE) CREATE TABLE t AS SELECT 1", Effect.WRITE),
        ("EXPLAIN ANALYZE SELECT * INTO t FROM u", Effect.WRITE),
        ("SELECT 1; DELETE FROM t", Effect.WRITE),
        ("TABLE t; DROP TABLE t", Effect.WRITE),
        ("SELECT * INTO t FROM u", Effect.WRITE),
        ("WITH x AS (SELECT 1) SELECT * INTO t FROM x", Effect.WRITE),
        ("PRAGMA optimize", Effect.WRITE),
        ("PRAGMA main.incremental_vacuum(7)", Effect.WRITE),
        ("PRAGMA/**/[user_version] = 3", Effect.WRITE),
        ("PRAGMA wal_checkpoint(TRUNCATE)", Effect.LOCK),
        ("PRAGMA wal_checkpoint", Effect.NONE),
        ("PRAGMA journal_mode = DELETE", Effect.LOCK),
        ("PRAGMA journal_mode", Effect.NONE),
        ("PRAGMA user_version", Effect.NONE),
        ("PRAGMA user_version = 3", Effect.WRITE),
        ("pragma main.application_id(7)", Effect.WRITE),
        ("PRAGMA foreign_keys = ON", Effect.NONE),
        ("BEGIN", Effect.NONE),
        ("begin immediate", Effect.LOCK),
        ("/* /* */ SELECT */ DELETE FROM t", Effect.WRITE),
        ("VACUUM", Effect.LOCK),
        ("COMMIT", Effect.NONE),
        ("", Effect.WRITE),
    ],
)
def test_the_effect_is_judged_by_the_words(sql: str, effect: Effect) -> None:
    """What is not known is taken to write."""
    assert effect_of(sql) is effect


def test_names_are_quoted_in_their_parts() -> None:
    """A schema and a table are quoted apart, and quotes inside doubled."""
    assert quoted('audit.ev"ents') == '"audit"."ev""ents"'
    with pytest.raises(ValueError, match="no name"):
        quoted("")


@pytest.mark.parametrize(
    "sql", ["COPY t FROM '/tmp/from stdin'", "COPY (SELECT 'to stdout') TO PROGRAM 'cat'", "SELECT 'COPY t FROM STDIN'"]
)
def test_a_copy_on_the_server_is_left_alone(sql: str) -> None:
    """What only has the words of a COPY from or to the client in its quotes is a statement as any other."""
    assert prepare(sql, "numeric").text == sql
