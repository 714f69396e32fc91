"""Splitting a text into passages: pieces short enough to cite, cut where a reader would cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from app.demo.languages import Kind

LONGEST = 2000
"""Characters that a passage has at most."""
SHORTEST = 400
"""Characters below which a passage is joined with its neighbour, where the kind of text allows it."""

_BLANK = re.compile(r"\n[ \t]*\n")
_ATX_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r"^([=\-~^\"'`#*+.:_])\1{2,}[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
# It starts with the line's break, which is found much faster than the beginning of a line.
_DEFINITION = re.compile(
    r"\n([ \t]*)(?=[a-z])"
    r"(?:(?:export|default|pub(?:\([^)\n]*\))?|public|private|protected|internal|static|abstract|final|sealed"
    r"|async|unsafe|extern|inline|virtual|override)[ \t]+)*"
    r"(?:def|class|func|fn|function|interface|struct|impl|trait|enum|module|namespace|record|macro_rules!)[ \t*]+"
    r"(?:\([^)\n]*\)[ \t]*)?([A-Za-z_$][\w$.:]*)"
)
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_BELONGS_TO_THE_NEXT_LINE = re.compile(r"[ \t]*(?:@|#|//|/\*|\*)")
_HEADING_NAMES = 4


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a text.

    Attributes:
        start: its first line, counted from 1.
        end: its last line.
        heading: what it is part of: the trail of titles, or the names defined in it; may be empty.
        body: its text.
    """

    start: int
    end: int
    heading: str
    body: str


class _Section(NamedTuple):
    offset: int
    heading: str


def split(text: str, kind: Kind) -> list[Passage]:
    """Return the passages of ``text`` in order; together they hold every line that has a letter or a digit.

    Args:
        text: with ``\\n`` line ends.
        kind: how to cut: Markdown and reStructuredText at titles, source at definitions, text at paragraphs.
    """
    if kind is Kind.SOURCE:
        sections = _merge_small(list(_definitions(text)), len(text))
    elif kind is Kind.MARKUP:
        sections = list(_titles(text))
    else:
        sections = [_Section(0, "")]
    passages: list[Passage] = []
    line, counted = 1, 0
    for start, end, heading in _pieces(text, sections):
        # Blank lines at the top are not part of the passage, and its first line must not count them.
        piece = text[start:end]
        start += piece.rfind("\n", 0, len(piece) - len(piece.lstrip())) + 1
        line += text.count("\n", counted, start)
        counted = start
        body = text[start:end].rstrip()
        if _LETTER_OR_DIGIT.search(body):
            passages.append(Passage(line, line + body.count("\n"), heading, body))
    return passages


def _pieces(text: str, sections: list[_Section]) -> Iterator[tuple[int, int, str]]:
    """Yield the sections, those that are too long cut at a blank line, else at a line, else anywhere."""
    for index, (start, heading) in enumerate(sections):
        end = sections[index + 1].offset if index + 1 < len(sections) else len(text)
        while end - start > LONGEST:
            cut = _cut(text, start)
            yield start, cut, heading
            start = cut
        if start < end:
            yield start, end, heading


def _cut(text: str, start: int) -> int:
    limit = start + LONGEST
    last_blank = -1
    for match in _BLANK.finditer(text, start + SHORTEST, limit):
        last_blank = match.start() + 1
    if last_blank > 0:
        return last_blank
    newline = text.rfind("\n", start + SHORTEST, limit)
    if newline > 0:
        return newline + 1
    space = text.rfind(" ", start + SHORTEST, limit)
    return space + 1 if space > 0 else limit


def _definitions(text: str) -> Iterator[_Section]:
    """Yield a section for each definition, headed by its qualified name; comments above it belong to it."""
    yield _Section(0, "")
    outer: list[tuple[int, str]] = []
    floor = 0
    # With a break before the text, where a match starts in the one is where its line starts in the other.
    for match in _DEFINITION.finditer("\n" + text):
        indent, name = len(match[1].expandtabs(4)), match[2].rstrip(".:")
        while outer and outer[-1][0] >= indent:
            outer.pop()
        outer.append((indent, name))
        start = match.start()
        while start > floor:
            previous = text.rfind("\n", 0, start - 1) + 1
            if previous < floor or not _BELONGS_TO_THE_NEXT_LINE.match(text, previous, start):
                break
            start = previous
        floor = match.end() - 1
        yield _Section(start, ".".join(name for _, name in outer))


def _merge_small(sections: list[_Section], length: int) -> list[_Section]:
    """Join neighbours while together they stay short, so that ten one-line methods are one passage."""
    merged: list[_Section] = []
    names: list[str] = []
    for index, section in enumerate(sections):
        end = sections[index + 1].offset if index + 1 < len(sections) else length
        if merged and section.offset - merged[-1].offset < SHORTEST and end - merged[-1].offset <= LONGEST:
            if section.heading and len(names) < _HEADING_NAMES:
                names.append(section.heading)
                merged[-1] = _Section(merged[-1].offset, ", ".join(names))
        else:
            names = [section.heading] if section.heading else []
            merged.append(section)
    return merged


def _titles(text: str) -> Iterator[_Section]:
    """Yield a section for each title of Markdown or reStructuredText, headed by the trail of titles above it."""
    trail: list[tuple[int, str]] = []
    underline_levels: dict[str, int] = {}
    fence = ""
    offset = 0
    previous, previous_offset = "", 0
    yield _Section(0, "")
    for line in text.split("\n"):
        title: tuple[int, str, int] | None = None
        fenced = _FENCE.match(line)
        if fenced:
            if not fence:
                fence = fenced[1]
            elif fenced[1].startswith(fence):
                fence = ""
        elif not fence:
            heading = _ATX_HEADING.match(line)
            if heading:
                title = len(heading[1]), heading[2], offset
            elif _UNDERLINE.match(line) and previous.strip() and len(previous.rstrip()) <= len(line.rstrip()) + 2:
                level = underline_levels.setdefault(line[0], len(underline_levels) + 1)
                title = level, previous.strip(), previous_offset
        if title:
            level, name, start = title
            while trail and trail[-1][0] >= level:
                trail.pop()
            trail.append((level, name))
            yield _Section(start, " > ".join(name for _, name in trail))
            previous = ""
        else:
            previous = "" if fence or _UNDERLINE.match(line) else line
        previous_offset = offset
        offset += len(line) + 1
