"""How much a site hurts, and which folders count less.

A poolable site counts 1, five times that if it is built for each call, and three times again if that is a ZMQ
context; a path on which it leaks adds 2. A bound socket or a subscription, and a client that has no pool, count
next to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from app.migration.libraries import Kind
from app.migration.sites import Site, Verdict

HOT = 5.0
PER_CALL_CONTEXT = 3.0
LEAK = 2.0
INJECT_ONLY = 0.1
DISCARDED_WEIGHT = 0.1

_DISCARDED = re.compile(
    r"[._]*(?:trash|archived?|archives|backups?|bak|old|deprecated|obsolete|legacy_backup|attic|graveyard|unused)"
    r"(?:[._-].*)?|.+[._-](?:backups?|bak|old|archived?)",
    re.IGNORECASE,
)


def site_score(site: Site) -> float:
    """Return the weight of one site, before the folder's."""
    if site.verdict is Verdict.IGNORE:
        return 0.0
    if site.verdict is Verdict.INJECT_ONLY and not site.hot:
        return INJECT_ONLY
    score = 1.0
    if site.hot:
        score *= HOT
        if site.kind is Kind.ZMQ_CONTEXT:
            score *= PER_CALL_CONTEXT
    return score + LEAK if site.closed is False else score


def folder_weight(file: str, discarded: Sequence[str] = ()) -> tuple[float, str]:
    """Return the weight of a file's sites and, if it is not 1, the folder that is the reason.

    Args:
        file: the path.
        discarded: names of folders that count less, besides the usual ones (trash, archive, backup...).
    """
    for part in PurePosixPath(file).parts[:-1]:
        if part in discarded or _DISCARDED.fullmatch(part):
            return DISCARDED_WEIGHT, f"in the folder {part}/, which looks discarded"
    return 1.0, ""
