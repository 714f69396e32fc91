"""What to rewrite in which file, step by step; after each step the file is read again, and at the end checked."""

from __future__ import annotations

import ast
import difflib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import libcst as cst

from app.migration import sources
from app.migration.facts import FileFacts
from app.migration.index import Index
from app.migration.judging import sites_of
from app.migration.libraries import Kind
from app.migration.rewriting.http_patterns import client_session, one_shot
from app.migration.rewriting.sql_patterns import sqlite_call
from app.migration.rewriting.tree import Refused, Source
from app.migration.rewriting.zmq_contexts import own_context
from app.migration.rewriting.zmq_sockets import kept_publisher, publisher, request_socket
from app.migration.sites import FileReport, Report, Site

_MOST_STEPS = 400
_MISTAKES = (
    cst.CSTValidationError,
    cst.ParserSyntaxError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_Others: TypeAlias = Callable[[], Sequence[str]]
_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site that is left alone, and why."""

    line: int
    code: str
    reason: str


@dataclass(slots=True)
class Rewrite:
    """What would become of one file.

    Attributes:
        file: its path.
        before: its text.
        after: its text afterwards; ``None`` if nothing is rewritten.
        rewritten: the sites that are gone.
        refusals: the sites that are left, with the reasons; lines are those of ``before``.
    """

    file: str
    before: str
    after: str | None = None
    rewritten: list[Site] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    encoding: str = "utf-8"
    newline: str = "\n"

    def diff(self) -> str:
        """Return the change as a unified diff."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            (self.after or self.before).splitlines(keepends=True),
            f"a/{self.file}",
            f"b/{self.file}",
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def write(self) -> None:
        """Replace the file in one step; its mode, encoding and line ends stay.

        Raises:
            OSError: the file cannot be written, or was changed since it was read; it is as it was.
        """
        if self.after is None:
            return
        path = Path(self.file).resolve()
        data = path.read_bytes()
        if sources.decode(data)[0] != self.before:
            raise OSError(0, "it was changed since it was read")
        bom = b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b""
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(bom + self.after.replace("\n", self.newline).encode(self.encoding))
            os.chmod(temporary, path.stat().st_mode & 0o7777)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def plan(report: Report, only: Sequence[str] = ()) -> Iterator[Rewrite]:
    """Yield, for each file with findings, what can be rewritten and what is left.

    Args:
        report: a scan.
        only: the codes to rewrite; all if empty.
    """
    texts: dict[str, str] = {}

    def others(path: str) -> list[str]:
        if not texts:
            texts.update((each.file, _text(each.file)) for each in report.files)
        return [text for name, text in texts.items() if name != path]

    for file in report.files:
        sites = [site for site in file.sites if site.is_finding and (not only or site.code in only)]
        if sites:
            yield _plan_file(file, sites, only, partial(others, file.file))


def _text(path: str) -> str:
    try:
        return sources.decode(Path(path).read_bytes())[0]
    except OSError:
        return ""  # it is among the problems of the scan


def _plan_file(file: FileReport, sites: Sequence[Site], only: Sequence[str], others: _Others) -> Rewrite:
    try:
        data = Path(file.file).read_bytes()
    except OSError as error:
        reason = f"the file cannot be read: {error.strerror}"
        return Rewrite(file.file, "", refusals=[Refusal(site.line, site.code, reason) for site in sites])
    text, _ = sources.decode(data)
    rewrite = Rewrite(file.file, text, newline="\r\n" if b"\r\n" in data else "\n")
    if not file.parsed:
        rewrite.refusals = [Refusal(site.line, site.code, "the file does not parse") for site in sites]
        return rewrite
    if b"\r" in data.replace(b"\r\n", b""):
        rewrite.refusals = [Refusal(site.line, site.code, "the file mixes line ends") for site in sites]
        return rewrite
    rewrite.encoding = sources.encoding_of(data)
    try:
        after, left = _rewritten(text, file.file, sites, only, others)
        reason = _why_unsafe(text, after, file.file, sites, left, only, others)
    except _MISTAKES as error:  # ours, and no reason to stop half-way through a code base
        reason = f"the rewriter failed on this file, which is a mistake in it: {type(error).__name__}: {error}"
    if reason:
        rewrite.refusals = [Refusal(site.line, site.code, reason) for site in sites]
        return rewrite
    rewrite.refusals, rewrite.rewritten = _told_apart(sites, left)
    rewrite.after = after if after != text else None
    return rewrite


def _told_apart(sites: Sequence[Site], left: Sequence[tuple[Site, str]]) -> tuple[list[Refusal], list[Site]]:
    """Return the refusals, with the lines of the file before, and the sites that are gone."""
    reasons: dict[_Key, list[str]] = {}
    for site, reason in left:
        reasons.setdefault(_key(site), []).append(reason)
    refusals: list[Refusal] = []
    gone: list[Site] = []
    for site in reversed(sites):
        remaining = reasons.get(_key(site))
        if remaining:
            refusals.append(Refusal(site.line, site.code, remaining.pop()))
        else:
            gone.append(site)
    return refusals[::-1], gone[::-1]


def _key(site: Site) -> _Key:
    return site.function, site.kind, site.text


def _rewritten(
    text: str, file: str, sites: Sequence[Site], only: Sequence[str], others: _Others
) -> tuple[str, list[tuple[Site, str]]]:
    """Rewrite one site after the other until each that is left is refused; returns the text, and those with reasons."""
    current = list(sites)
    for _ in range(_MOST_STEPS):
        step, refused = _step(Source(text, others), current)
        if step is None:
            return text, refused
        text = step
        current = [site for site in _scan_text(text, file) if site.is_finding and (not only or site.code in only)]
    return text, [(site, "too many steps") for site in current]


def _step(source: Source, sites: Sequence[Site]) -> tuple[str | None, list[tuple[Site, str]]]:
    """Rewrite the first site that can be; returns the new text (``None`` if none can) and what was refused."""
    refused: list[tuple[Site, str]] = []
    known = dict(source.imports)
    for site in sorted(sites, key=_order):
        try:
            return _pattern(site)(source, site).code, refused
        except Refused as reason:
            refused.append((site, str(reason)))
            source.imports = dict(known)  # a pattern may have noted imports before it gave up
    return None, sorted(refused, key=lambda each: each[0].line)


def _order(site: Site) -> tuple[int, int]:
    # Sockets before the contexts they are made from: a context that only served them goes with them.
    return (0 if site.kind is Kind.ZMQ_SOCKET else 1, site.line)


def _pattern(site: Site) -> Callable[[Source, Site], cst.Module]:
    if not site.rewritable:
        raise Refused("not a plain call")
    if site.kind is Kind.ZMQ_CONTEXT:
        return own_context
    if site.kind is Kind.ZMQ_SOCKET and site.target == "local" and site.socket_type in ("REQ", "PUB"):
        return request_socket if site.socket_type == "REQ" else publisher
    if site.code == "PM103" and site.socket_type == "PUB" and site.target == "attribute":
        return kept_publisher
    if site.code == "PM201" and site.library == "sqlite3.connect":
        return sqlite_call
    if site.code == "PM301" and site.library.startswith("requests."):
        return one_shot
    if site.code == "PM302" and site.library == "aiohttp.ClientSession":
        return client_session
    raise Refused(_BY_CODE.get(site.code, "no safe pattern matches"))


_BY_CODE = {
    "PM102": "only REQ and PUB sockets of one call are rewritten",
    "PM103": "a long-lived socket: a person decides whether callers rely on it staying the same",
    "PM104": "a bound socket keeps its owner; only its context is injected",
    "PM105": "a subscription keeps its owner; only its context is injected",
    "PM201": "only sqlite3 connections are rewritten",
    "PM202": "a long-lived connection: a person decides whose transactions share it",
    "PM203": "an engine: a person decides which code shares its pool",
    "PM301": "only requests' one-shot calls are rewritten",
    "PM302": "only aiohttp sessions of one call are rewritten",
    "PM303": "a long-lived session: a person decides",
    "PM401": "poolwire has no pool for it",
}


def _scan_text(text: str, file: str) -> list[Site]:
    facts: FileFacts = sources.facts_of(text.encode("utf-8", "surrogatepass"))
    return sites_of(file, facts, Index({file: facts}))


def _why_unsafe(
    before: str,
    after: str,
    file: str,
    sites: Sequence[Site],
    left: Sequence[tuple[Site, str]],
    only: Sequence[str],
    others: _Others,
) -> str:
    """Check a result; returns why the file must stay as it is, or ``""``."""
    if after == before:
        return ""
    try:
        ast.parse(after)
    except SyntaxError as error:
        return f"the result would not parse: {error.msg} in line {error.lineno}"
    found = [site for site in _scan_text(after, file) if site.is_finding and (not only or site.code in only)]
    if len(found) >= len(sites) or len(found) > len(left):
        return "a new scan of the result still finds the sites"
    again, _ = _rewritten(after, file, found, only, others)
    return "a second rewrite would change the result again" if again != after else ""
