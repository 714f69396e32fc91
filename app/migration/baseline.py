"""Known findings, so that only new ones count. Keyed on file, function, text and ordinal: lines may move."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import orjson

from app.migration.config import UsageError
from app.migration.sites import Site

_VERSION = 1


def keys(sites: Iterable[Site], folder: Path) -> list[tuple[Site, str]]:
    """Return each site with its key, which has its file relative to ``folder``."""
    counts: Counter[tuple[str, str, str]] = Counter()
    keyed = []
    for site in sites:
        file = os.path.relpath(site.file, folder).replace(os.sep, "/")
        same = (file, site.function, site.text)
        counts[same] += 1
        keyed.append((site, f"{file}::{site.function}::{counts[same]}::{site.kind}::{site.text}"))
    return keyed


def write(file: Path, sites: Iterable[Site]) -> int:
    """Write the findings among ``sites`` as known, and return how many there are."""
    found = sorted(key for site, key in keys(sites, file.parent) if site.is_finding)
    content = {"version": _VERSION, "known": found}
    file.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    return len(found)


def read(file: Path) -> set[str]:
    """Return the keys in a baseline.

    Raises:
        UsageError: there is no such file, or it is none of ours.
    """
    try:
        content = orjson.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"the baseline {file}: {error.strerror}; make it by `poolwire migrate baseline`") from None
    except ValueError as error:
        raise UsageError(f"the baseline {file} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise UsageError(f"the baseline {file} is not of version {_VERSION}; make it again")
    return set(content["known"])


def excuse(sites: Iterable[Site], file: Path) -> int:
    """Mark the sites that the baseline knows as ignored; returns how many of its entries no site matches."""
    known = read(file)
    matched = set()
    for site, key in keys(sites, file.parent):
        if key in known:
            matched.add(key)
            site.ignored = site.ignored or "in the baseline"
    return len(known - matched)
