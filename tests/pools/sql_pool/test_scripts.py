"""Texts of several statements are told from single ones, whatever stands in these."""

import pytest

from app.pools.sql_pool.statements import Style, prepare

ROUTINE = "CREATE OR REPLACE FUNCTION f(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC"
TRIGGER = "CREATE TEMP TRIGGER IF NOT EXISTS [a;b] AFTER INSERT ON t WHEN new.begin > 1 BEGIN"
RULE = "CREATE RULE r AS ON INSERT TO t DO ALSO (DELETE FROM u; DELETE FROM v)"


@pytest.mark.parametrize(
    ("sql", "style"),
    [
        ("SELECT 1", "format"),
        (" ;; SELECT 1 ; ;\n", "format"),
        ("SELECT 1; -- SELECT 2", "format"),
        ("SELECT 1; /* /* ; */ SELECT 2 */", "format"),
        ("SELECT 'a;b', \"c;d\", $$;e$$, $f$;$$;$f$, E'\\';g'", "format"),
        ("DO $$ BEGIN PERFORM 1; PERFORM 2; END $$;", "format"),
        (f"{ROUTINE} END", "format"),
        (f"{ROUTINE} SELECT 1; SELECT CASE WHEN a > 1 THEN t.end ELSE 3 END FROM t; END;", "numeric"),
        (f"{ROUTINE} SELECT 1; SELECT 2 AS end; END; -- done", "numeric"),
        (f"{RULE};", "numeric"),
        ("SELECT [a;b], `c;d`", "qmark"),
        ("SELECT 1; /* /* */", "qmark"),
        (f"{TRIGGER} DELETE FROM u; UPDATE t SET a = CASE new.end WHEN 1 THEN 2 END; END", "qmark"),
        (f"EXPLAIN {TRIGGER} DELETE FROM u; END;", "qmark"),
        (f"{TRIGGER} DELETE FROM u; SELECT 1", "qmark"),
        ("SELECT 'not ended; SELECT 1", "format"),
        ("SELECT $a$ not ended; SELECT 1", "format"),
        ("SELECT (1; SELECT 2", "numeric"),
        ("SELECT 1); SELECT 2", "numeric"),
    ],
)
def test_a_single_statement_is_executed(sql: str, style: Style) -> None:
    """So is what cannot be judged: the database says what is wrong with it."""
    prepare(sql, style)


@pytest.mark.parametrize(
    ("sql", "style"),
    [
        ("SELECT 1; SELECT 2", "format"),
        (";SELECT 1;;SELECT 2;", "numeric"),
        ("SELECT ?; SELECT :a", "qmark"),
        ("BEGIN; SELECT 1; COMMIT", "qmark"),
        ("SELECT 1; 'x'", "format"),
        ("SELECT 1; /* /* */ */ SELECT 2", "format"),
        ("SELECT 1; /* /* */ SELECT 2", "qmark"),
        ("SELECT 1 -- ;\n; SELECT 2", "numeric"),
        (f"{ROUTINE} SELECT 1; END; SELECT 2", "numeric"),
        (f"CREATE FUNCTION f() RETURNS int AS $$ SELECT 1 $$; {ROUTINE} SELECT 1; END", "numeric"),
        (f"{RULE}; SELECT 2", "numeric"),
        (f"{TRIGGER} DELETE FROM u; END; SELECT 1", "qmark"),
        (f"SELECT 1; {TRIGGER} DELETE FROM u; END", "qmark"),
        ("CREATE TABLE t (a int); CREATE INDEX i ON t (a)", "qmark"),
    ],
)
def test_several_statements_are_refused(sql: str, style: Style) -> None:
    """The message says what to do instead."""
    with pytest.raises(ValueError, match=r"one call for each.*pool\.transaction"):
        prepare(sql, style)
