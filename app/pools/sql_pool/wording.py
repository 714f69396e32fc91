"""SQL texts without what only looks like SQL, for judgements by their words.

The dialect is not known: where PostgreSQL and SQLite read a text differently, more of it is taken for SQL, not less.
"""

from __future__ import annotations

import re

# Possessive, lest a text be tried in all its parts. Comments do not nest here, as in SQLite: what follows is kept.
_TOKEN = re.compile(
    r"""
      (?P<blank> (?: \s | --[^\n]*+ | /\*.*?(?:\*/|\Z) )+ )
    | (?P<string> (?<!\w)[eE]'(?:[^'\\]|\\.|'')*+' | '(?:[^']|'')*+'
                | (?<!\w)\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$ )
    | (?P<name> "(?:[^"]|"")*+" | `[^`]*+` | \[[\w.]+\] )
    """,
    re.VERBOSE | re.DOTALL,
)
_SIMPLE = re.compile(r"[\w.]+")


def without_comments(sql: str) -> str:
    """Return ``sql`` with one space for each comment or blank, and simple names without their quotes."""

    def reduced(match: re.Match[str]) -> str:
        if match["blank"]:
            return " "
        token = match.group()
        return f" {token[1:-1]} " if match["name"] and _SIMPLE.fullmatch(token, 1, len(token) - 1) else token

    return _TOKEN.sub(reduced, sql)


def bare_words(sql: str) -> str:
    """Return ``sql`` with one space for each comment or blank, and nothing in its quotes."""
    return _TOKEN.sub(lambda match: " " if match["blank"] else "''", sql)
