"""What a statement leaves in its session once it is over, for whoever has the connection next, unless it is removed.

Judged by the text that the caller gives, once for each text. What a function or procedure does inside is not seen.
"""

from __future__ import annotations

import re
from typing import Final

from app.pools.sql_pool.findings import once_for_each
from app.pools.sql_pool.wording import without_comments

NOTHING: Final = 0
SETTINGS: Final = 1
"""Settings and advisory locks, which the server can reset."""
LASTING: Final = 2
"""What only the end of the connection removes without spoiling the statements that its driver has prepared on it:
temporary tables, another meaning of names, prepared statements, notifications, attached files, pragmas."""

RESET: Final = "RESET ALL; SELECT pg_advisory_unlock_all()"
"""Removes ``SETTINGS`` from a session of PostgreSQL."""

# A statement's beginning, also of those that follow in the same text. Judged are texts without comments, but what
# PostgreSQL takes for the end of a comment in a comment may be left.
_START = r"""(?:\A|;)(?:[\s(]|\*/)*+
    (?: EXPLAIN\s*(?:\([^)]*ANALY[^)]*\) | (?:VERBOSE\s+)?ANALY[SZ]E\b(?:\s+VERBOSE\b)?) [\s(]*+ )?+"""
_TEMPORARY = r"(?:(?:LOCAL|GLOBAL)\s+)?TEMP(?:ORARY)?\s"
# What the server does not reset, and what it calls a setting besides `name = value`.
_KEPT_SETTINGS = r"(?:search_path|role|session_authorization|seed)"
_PLAIN_SETTING = rf"""(?:SESSION\s+)?(?:
    (?:TIME\s+ZONE | NAMES | XML\s+OPTION)\b | (?!{_KEPT_SETTINGS}\b)\w+(?:\s*\.\s*\w+)*\s*(?:=|TO\b)
)"""
_OF_THE_TRANSACTION = r"(?:LOCAL|TRANSACTION|CONSTRAINTS)\b"
# These pragmas read, although they take an argument, or change the file and not the session. The last one means nothing
# without a shared cache, and SQLAlchemy sets it whenever it sets the isolation level back.
_HARMLESS_PRAGMAS = "|".join((
    "table_info", "table_xinfo", "table_list", "index_info", "index_xinfo", "index_list", "foreign_key_list",
    "foreign_key_check", "integrity_check", "quick_check", "wal_checkpoint", "optimize", "incremental_vacuum",
    "user_version", "application_id", "schema_version", "read_uncommitted",
))  # fmt: skip
_FLAGS = re.IGNORECASE | re.DOTALL
_LASTING = re.compile(
    rf"""{_START}(?:
            (?:LISTEN | LOAD | DISCARD | DEALLOCATE | DO | ATTACH | DETACH)\b
          | PREPARE\s+(?!TRANSACTION\b)
          | DECLARE\b[^;]*\bHOLD\b
          | CREATE\s+(?:OR\s+REPLACE\s+)?{_TEMPORARY}(?![^;]*\bON\s+COMMIT\s+DROP\b)
          | CREATE\s[^;(]*?\b(?:pg_)?temp'?\s*\.
          | SET\s+(?!{_OF_THE_TRANSACTION}|{_PLAIN_SETTING})
          | PRAGMA\s*(?:[^\s=(;]+\s*\.\s*)?(?!'?(?:{_HARMLESS_PRAGMAS})\b)'?\w+'?\s*[=(]
        )
      | \bUPDATE\s+(?:ONLY\s+)?(?:pg_catalog\s*\.\s*)?pg_settings\b
      | \bsetseed\s*\(
      | (?<!INSERT)\sINTO\s+(?:{_TEMPORARY}|(?:TABLE\s+)?pg_temp\s*\.)
    """,
    _FLAGS | re.VERBOSE,
)
_SETTINGS = re.compile(
    rf"{_START}SET\s+(?!{_OF_THE_TRANSACTION}) | \bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(",
    _FLAGS | re.VERBOSE,
)
_CONFIGURED = re.compile(r"\bset_config\s*\((?P<arguments>[^()]*)", _FLAGS)
_UNTIL_THE_END = re.compile(r",\s*(?:true|'t(?:rue)?'(?:\s*::\s*bool(?:ean)?)?)\s*\Z", re.IGNORECASE)
_OF_NO_NAMES = re.compile(rf"\s*'(?!{_KEPT_SETTINGS})[^']*'\s*,", re.IGNORECASE)


@once_for_each
def residue_of(sql: str) -> int:
    """Return what ``sql`` leaves in its session: ``NOTHING``, ``SETTINGS`` or ``LASTING``."""
    sql = without_comments(sql)
    if _LASTING.search(sql):
        return LASTING
    residue = SETTINGS if _SETTINGS.search(sql) else NOTHING
    for configured in _CONFIGURED.finditer(sql):
        arguments = configured["arguments"]
        if _UNTIL_THE_END.search(arguments):  # of the transaction
            continue
        if not _OF_NO_NAMES.match(arguments):
            return LASTING
        residue = SETTINGS
    return residue
