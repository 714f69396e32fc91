"""SQL texts: placeholders translated once for each driver, and what a text does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import count, pairwise
from typing import Any, Literal, Self, TypeAlias, get_args

from app.pools.sql_pool.findings import once_for_each
from app.pools.sql_pool.interruption import CallGivenUp
from app.pools.sql_pool.residue import residue_of
from app.pools.sql_pool.rows import Row
from app.pools.sql_pool.scripts import is_script
from app.pools.sql_pool.wording import bare_words, without_comments

Style = Literal["qmark", "format", "numeric"]
"""How a driver wants its placeholders: ``?`` (sqlite3), ``%s`` (psycopg), ``$1`` (asyncpg)."""

Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any]

# What placeholders do not count in, and the placeholders. Where a comment ends is not for a regular expression.
_TOKEN = r"""
      (?P<quoted> {quoted} | '(?:[^']|'')*' | "(?:[^"]|"")*"
                | (?<!\w)\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$ )
    | (?P<comment> --[^\n]* | /\* )
    | (?P<literal> \?\? )
    | (?P<positional> \? )
    | (?<![:\w]):(?P<name>[A-Za-z_]\w*)
"""
# A word's last letter is no prefix of a string: LIKE'\' is whole. Brackets are PostgreSQL's arrays, SQLite's quotes.
_POSTGRESQL = re.compile(_TOKEN.format(quoted=r"(?<!\w)[eE]'(?:[^'\\]|\\.|'')*'"), re.VERBOSE | re.DOTALL)
_SQLITE = re.compile(_TOKEN.format(quoted=r"`(?:[^`]|``)*` | \[[^\]]*\]"), re.VERBOSE | re.DOTALL)
_BARE = {"comment": " ", "quoted": " 0 ", "name": " 0 "}
"""By what a piece is: what stands for it where only the other words count."""
_REPEATED_END = re.compile(r";\s*;[\s;]*\Z")  # which sqlite3 takes for another statement
_COMMENT_MARK = re.compile(r"/\*|\*/")
# Not a comment in a comment, which ends sooner in SQLite than in PostgreSQL: what follows is not known then.
_LEADING = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*(?:(?!/\*).)*?\*/|[(;])*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+")
# These pragmas are in the file, and a transaction's, or cannot run in one: the others steer the connection.
_PRAGMA = r"\W*PRAGMA\s*(?:[^\s=(;]+\s*\.\s*)?'?"
_STORED_PRAGMA = re.compile(
    _PRAGMA
    + r"(?:(?:user_version|application_id|schema_version|auto_vacuum)'?\s*[=(]|(?:incremental_vacuum|optimize)\b)",
    re.IGNORECASE,
)
_FILE_PRAGMA = re.compile(
    _PRAGMA + r"(?:journal_mode'?\s*[=(]|wal_checkpoint'?\s*[=(]\s*'?(?:FULL|RESTART|TRUNCATE)\b)", re.IGNORECASE
)
_COPY = re.compile(r"(?:\A|;)[\s(]*COPY\b[^;]*?\b(?:FROM\s+STDIN|TO\s+STDOUT)\b", re.IGNORECASE)
_QUERIES = frozenset({"SELECT", "VALUES", "TABLE", "WITH"})
_CHANGES = re.compile(r"\b(?:INSERT|UPDATE|DELETE|REPLACE(?!\s*\()|MERGE)\b", re.IGNORECASE)
_INTO = re.compile(r"\bINTO\b", re.IGNORECASE)
_SEVERAL = re.compile(r";\s*[^\s;]")
_EXPLAIN = re.compile(r"\W*EXPLAIN(?P<options>\s*\([^)]*\)|(?:\s+(?:ANALY[SZ]E|VERBOSE)\b)*)", re.IGNORECASE)


class Effect(Enum):
    """What a text does to the database, judged by its words. What a function does inside is not seen."""

    READ = "reads"
    WRITE = "writes, or may write"
    LOCK = "writes, and cannot run inside a transaction that was begun for it (BEGIN IMMEDIATE, VACUUM)"
    NONE = "neither: it steers the session or the transaction (PRAGMA, COMMIT)"


_EFFECTS = {
    "SELECT": Effect.READ, "VALUES": Effect.READ, "TABLE": Effect.READ, "SHOW": Effect.READ, "EXPLAIN": Effect.READ,
    "WITH": Effect.READ, "SAVEPOINT": Effect.READ,
    "PRAGMA": Effect.NONE, "COMMIT": Effect.NONE, "END": Effect.NONE, "ROLLBACK": Effect.NONE,
    "ABORT": Effect.NONE, "RELEASE": Effect.NONE, "ATTACH": Effect.NONE, "DETACH": Effect.NONE,
    "SET": Effect.NONE, "RESET": Effect.NONE, "START": Effect.NONE, "DISCARD": Effect.NONE,
    "DEALLOCATE": Effect.NONE, "LISTEN": Effect.NONE, "UNLISTEN": Effect.NONE, "VACUUM": Effect.LOCK,
}  # fmt: skip


@dataclass(slots=True, eq=False)
class Statement:
    """A text as a driver wants it."""

    text: str
    names: tuple[str, ...]
    """The name of each placeholder in order, when the text has ``:name`` placeholders."""
    effect: Effect
    reads: bool
    """Whether it only reads: it may be executed twice, and leaves no transaction open where it is the only one."""
    residue: int
    """What it leaves in its session, see ``residue_of``."""
    plain: bool
    """Whether it has no ``:name`` placeholders and leaves nothing."""
    placeholders: int
    """How many it has."""
    is_query: bool
    """Whether a cursor can be declared for it on PostgreSQL."""
    no_values: tuple[()] | None
    """What stands for no values at all: ``None`` unless it has placeholders, which psycopg would then not look for."""
    shape: tuple[object, type[Row]] = (None, Row)
    """How a driver described the columns of its last result, and the class of those rows."""

    def bind(self, params: Parameters | None) -> Sequence[Any]:
        """Return the parameters in the order of the placeholders; ``None`` is the same as none at all.

        Raises:
            KeyError: a named placeholder has no value.
            TypeError: values by name for a text without named placeholders, or by position for one with them; or one
                value by itself.
        """
        if isinstance(params, Mapping):
            if params and not self.names:
                raise TypeError(f"the statement has no :name placeholders, but got values for {', '.join(params)}")
            missing = [name for name in self.names if name not in params]
            if missing:
                raise KeyError(f"no value for the placeholder(s) {', '.join(':' + name for name in missing)}")
            return tuple([params[name] for name in self.names])
        if self.names:
            raise TypeError(
                f"the statement has :name placeholders ({', '.join(self.names)}): pass a mapping, "
                f"not a {type(params).__name__}"
            )
        if params is None:
            return ()
        if _is_one_value(params):
            raise TypeError(f"parameters are a sequence or a mapping; for one value write ({params!r},)")
        return params


class Bound:
    """The parameter sets of one statement, or the rows of a table, as a driver wants them, counted as they are taken.

    Args:
        bind: puts the values of a set that is no tuple, or of any set where ``always``, into their order.
        rows: any iterable.
        always: whether tuples must be bound as well.
    """

    def __init__(self, bind: Callable[[Any], Sequence[Any]], rows: Iterable[Any], *, always: bool = False) -> None:
        self._bind = bind
        self._rows = rows
        self._always = always
        self._given_up = False
        self.count = 0

    @classmethod
    def of(cls, statement: Statement, rows: Iterable[Parameters]) -> Self:
        """Return the parameter sets of a statement."""
        return cls(statement.bind, rows, always=bool(statement.names))

    @classmethod
    def for_columns(cls, columns: Sequence[str], rows: Iterable[Parameters]) -> Self:
        """Return the rows of a table.

        Raises:
            TypeError: the columns are one string.
            ValueError: there are no columns.
        """
        if isinstance(columns, str | bytes):
            raise TypeError(f"columns are a sequence of names; for one column write [{columns!r}]")
        if not columns:
            raise ValueError("copy_rows needs the names of the columns")
        return cls(partial(_in_order_of, columns), rows)

    def give_up(self) -> None:
        """Have the next row raise ``CallGivenUp``, from any thread: whoever stores them is only asked between two."""
        self._given_up = True

    def __iter__(self) -> Iterator[Sequence[Any]]:
        bind, always = self._bind, self._always
        count = 0
        try:
            for row in self._rows:
                if self._given_up:
                    raise CallGivenUp("nobody waits any more for these rows to be stored")
                count += 1
                yield bind(row) if always or row.__class__ is not tuple else row
        finally:
            self.count = count


def _in_order_of(columns: Sequence[str], row: Parameters) -> Sequence[Any]:
    """Return a row's values in the order of the columns.

    Raises:
        KeyError: a row by name has no value for a column.
        TypeError: the row is no sequence, or a string, each letter of which would be a value.
    """
    if isinstance(row, Mapping):
        missing = [name for name in columns if name not in row]
        if missing:
            raise KeyError(f"a row has no value for the column(s) {', '.join(missing)}")
        return tuple([row[name] for name in columns])
    if _is_one_value(row):
        raise TypeError(f"a row is a sequence or a mapping; for one value write ({row!r},)")
    return row


def _is_one_value(values: object) -> bool:
    return isinstance(values, (str, bytes)) or not hasattr(values, "__getitem__")


def prepare(sql: str, style: Style) -> Statement:
    """Return ``sql`` with its ``?`` or ``:name`` placeholders in the driver's style.

    Strings, quoted names, comments and dollar quotes are left alone, as the style's database delimits them; ``??``
    elsewhere is a literal question mark.

    Raises:
        TypeError: it is no text.
        ValueError: the text is one of several statements, mixes both kinds of placeholders, has SQLite's numbered ones
            for another database, or copies from or to the client.
    """
    if not isinstance(sql, str):
        raise TypeError(f"the statement is a str, not {type(sql).__name__}; connection() executes SQLAlchemy's own")
    residue = residue_of(sql) if style == "qmark" else admit(sql)
    pieces = list(_pieces(sql, style))
    if is_script("".join(_BARE.get(kind, text) for kind, text in pieces), sqlite=style == "qmark"):
        raise ValueError(
            "a call executes one statement, and this text has several; make one call for each, and have them in a "
            "`with pool.transaction(config)` if they belong together"
        )
    names = tuple(text for kind, text in pieces if kind == "name")
    placeholders = [kind for kind, _ in pieces if kind in ("name", "positional")]
    if names and len(names) != len(placeholders):
        raise ValueError("a statement has either ? or :name placeholders, not both")
    if style != "qmark" and any(
        kind == "positional" and following[:1].isdecimal() for (kind, _), (_, following) in pairwise(pieces)
    ):
        raise ValueError("numbered placeholders such as ?1 are SQLite's alone; write ? or :name")
    numbers = count(1)
    doubled = style == "format" and bool(placeholders)  # psycopg reads %% as it stands when there are no parameters

    def translate(kind: str, text: str) -> str:
        if kind == "literal":
            return "?"
        if kind in ("text", "quoted", "comment"):
            return text.replace("%", "%%") if doubled else text
        return {"qmark": "?", "format": "%s", "numeric": f"${next(numbers)}"}[style]

    text = _REPEATED_END.sub(";", "".join(translate(kind, text) for kind, text in pieces))
    effect = effect_of(sql)
    keyword, _ = _first_word(sql)
    reads = effect is Effect.READ and keyword != "SAVEPOINT"
    return Statement(
        text,
        names,
        effect,
        reads,
        residue,
        plain=not (names or residue),
        placeholders=len(placeholders),
        is_query=reads and keyword in _QUERIES,
        no_values=() if placeholders else None,
    )


_prepared: dict[Style, Callable[[str], Statement]] = {
    style: once_for_each(partial(prepare, style=style)) for style in get_args(Style)
}


def preparer(style: Style) -> Callable[[str], Statement]:
    """Return what does ``prepare`` for a style, once for each text."""
    return _prepared[style]


@once_for_each
def admit(sql: str) -> int:
    """Return what a text for PostgreSQL leaves in its session, see ``residue_of``.

    Raises:
        ValueError: it copies from or to the client. Nobody would feed or read it: asyncpg would wait for ever, and so
            would who has the connection next.
    """
    if _COPY.search(bare_words(sql)):
        raise ValueError(
            "COPY from or to the client is no statement to execute; use copy_rows() to store rows, or what the "
            "driver's connection has for it"
        )
    return residue_of(sql)


def _pieces(sql: str, style: Style) -> Iterator[tuple[str, str]]:
    """Split a text; yield what each piece is, ``text`` or what ``_TOKEN`` calls it, and what it says."""
    token = _SQLITE if style == "qmark" else _POSTGRESQL
    end = 0
    while match := token.search(sql, end):
        start, end, kind = end, match.end(), match.lastgroup or ""
        if match.group() == "/*":
            end = _end_of_comment(sql, match.start(), nests=style != "qmark")
        yield "text", sql[start : match.start()]
        yield kind, match["name"] or sql[match.start() : end]
    yield "text", sql[end:]


def _end_of_comment(sql: str, start: int, *, nests: bool) -> int:
    if not nests:
        end = sql.find("*/", start + 2)
        return len(sql) if end < 0 else end + 2
    depth = 0
    for mark in _COMMENT_MARK.finditer(sql, start):
        depth += 1 if mark.group() == "/*" else -1
        if not depth:
            return mark.end()
    return len(sql)


@once_for_each
def effect_of(sql: str) -> Effect:
    """Return what ``sql`` does. What is not known is taken to write."""
    keyword, position = _first_word(sql)
    if keyword == "BEGIN":
        second = _WORD.search(sql, position + len(keyword))
        eager = second is not None and second.group().upper() in ("IMMEDIATE", "EXCLUSIVE")
        return Effect.LOCK if eager else Effect.NONE
    if keyword == "PRAGMA":
        pragma = without_comments(sql)
        if _FILE_PRAGMA.match(pragma):
            return Effect.LOCK
        return Effect.WRITE if _STORED_PRAGMA.match(pragma) else Effect.NONE
    effect = _EFFECTS.get(keyword, Effect.WRITE)
    return Effect.WRITE if effect is Effect.READ and _writes_after_all(keyword, bare_words(sql)) else effect


def _writes_after_all(keyword: str, words: str) -> bool:
    """Say whether a text may write although its first word reads."""
    if _SEVERAL.search(words):
        return True
    if keyword != "EXPLAIN":
        return bool(_INTO.search(words) or (keyword == "WITH" and _CHANGES.search(words)))
    explain = _EXPLAIN.match(words)
    if explain is None or "ANALY" in explain["options"].upper():  # executes what it explains
        return explain is None or effect_of(words[explain.end() :]) is not Effect.READ
    return bool(_CHANGES.search(words))


def _first_word(sql: str) -> tuple[str, int]:
    """Return the first word of a text, in capitals, and where it begins; an empty one if it begins otherwise."""
    start = _LEADING.match(sql)
    position = start.end() if start else 0
    first = _WORD.match(sql, position)
    return ("" if first is None else first.group().upper()), position


def quoted(name: str) -> str:
    """Return a table's or column's name as SQL wants it; ``schema.table`` is quoted in its parts.

    Raises:
        ValueError: the name is empty, or has a character that no name has.
    """
    if not name or "\x00" in name:
        raise ValueError(f"{name!r} is no name of a table or column")
    return ".".join(map(quoted_part, name.split(".")))


def quoted_part(name: str) -> str:
    """Quote a name in which a dot is a letter as any other."""
    return '"' + name.replace('"', '""') + '"'
