"""Scripts: texts of several statements, told from single ones, whose bodies may have semicolons as well."""

from __future__ import annotations

import re
import string

_MARK = re.compile(r"[;()]")
# Begins a statement with others inside, each of which ends with a semicolon, the last one before END.
_TRIGGER = re.compile(
    r"(?:EXPLAIN\s+(?:QUERY\s+PLAN\s+)?)?CREATE\s+(?:TEMP(?:ORARY)?\s+)?TRIGGER\b[^;]*?\bBEGIN\b", re.IGNORECASE
)
_ROUTINE = re.compile(
    r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b[^;]*?\bBEGIN\s+(?=ATOMIC\b)", re.IGNORECASE
)
# The end of such a body: in it neither database has an END statement, and a CASE does not end behind a semicolon.
_END_OF_BODY = re.compile(r"(?:;|\bATOMIC\b)\s*END\s*(?=;|\Z)", re.IGNORECASE)
# A quote that has no end, or was not taken for one: where statements end is not known then.
_UNCLEAR = re.compile(r"""['"`]|(?<!\w)\$\w*\$""")


def is_script(words: str, *, sqlite: bool) -> bool:
    """Say whether a text is surely one of several statements.

    Args:
        words: the text without its comments, and without what is in quotes, its quotes included.
        sqlite: whether it is SQLite's, not PostgreSQL's.
    """
    words = words.strip(string.whitespace + ";")
    if ";" not in words or _UNCLEAR.search(words):
        return False
    body = (_TRIGGER if sqlite else _ROUTINE).match(words)
    if body is None:
        return _has_outer_semicolon(words)
    end = _END_OF_BODY.search(words, body.end())
    return end is not None and end.end() < len(words)


def _has_outer_semicolon(words: str) -> bool:
    """Say whether there is one outside parentheses, in which PostgreSQL's rules have theirs."""
    depth = 0
    for mark in _MARK.finditer(words):
        if mark.group() != ";":
            depth += 1 if mark.group() == "(" else -1
        elif not depth:
            return True
    return False
