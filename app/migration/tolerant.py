"""A parser for files that Python's own refuses: Python 2 leftovers and broken edits.

It reads a file as logical lines, repairs each on its own, and puts the blocks together again by indentation. So a
mistake costs the line that holds it and no other, every line keeps its number, and the result is an ordinary tree
that the rest of the analysis reads like any other. What cannot be repaired is searched for the calls in it.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from app.migration.fragments import closed_brackets, fragments, repaired_line

_TOKEN = re.compile(
    r"""(?P<triple>[rRbBuUfF]{0,2}(?:'''|\"\"\"))
      | (?P<string>[rRbBuUfF]{0,2}(?:'(?:[^'\\\n]|\\.|\\\n)*'?|"(?:[^"\\\n]|\\.|\\\n)*"?))
      | (?P<comment>\#[^\n]*)
      | (?P<open>[(\[{])
      | (?P<close>[)\]}])
      | (?P<joined>\\\n)
      | (?P<newline>\n)
      | (?P<rest>[^'"\#()\[\]{}\n\\rRbBuUfF]+|.)
    """,
    re.VERBOSE,
)
_COMPOUND = re.compile(
    r"(?:async\s+)?(def|class|if|elif|else|for|while|with|try|except|finally|match|case)\b(?!\s*[=.,)\]])"
)
# A line that begins so, while a bracket is open, begins a statement: the bracket was never closed.
_BEGINS_STATEMENT = re.compile(
    r"(?:async\s+)?def\s+\w+\s*\(|class\s+\w+\s*[(:]|import\s+\w|from\s+\S+\s+import\b|return\b|raise\b|try\s*:"
    r"|finally\s*:|else\s*:|(?:except|elif|while|(?:async\s+)?with)\b.*:\s*(?:\#.*)?$|pass\b|break\b|continue\b"
    r"|del\s+\w|global\s+\w|nonlocal\s+\w|assert\s|(?:if|(?:async\s+)?for)\b.*:\s*(?:\#.*)?$"
    r"|\w+(?:\.\w+)+\s*(?::[^=]+)?=(?!=)|print\s+[\"'\w]"
)
_BEGINS_AT_SAME_DEPTH = re.compile(r"@\w|\w+\s+=\s|(?:await\s+)?[\w.]+\(.*\)\s*(?:\#.*)?$")
_ENDS_HEADER = re.compile(r":\s*[(\[{]?\s*$")
_CLAUSES = frozenset({"elif", "else", "except", "finally"})
_ATTEMPTS = 60


@dataclass(slots=True)
class _Line:
    """A logical line: where it stands, its text without comments, and the keyword of a compound statement."""

    first: int
    last: int
    indent: int
    text: str
    keyword: str = ""
    opens_block: bool = False
    level: int = 0


def parse(source: str) -> tuple[ast.Module, str, int]:
    """Parse ``source``, if need be after repair.

    Returns:
        the tree, why Python refuses the source (``""`` if it does not), and the line of the first mistake.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scanned code's invalid escapes are not our warnings
        try:
            return ast.parse(source), "", 0
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None) or 1
            message = getattr(error, "msg", None) or str(error) or type(error).__name__
            return _parse_repaired(source), message, line


def _parse_repaired(source: str) -> ast.Module:
    lines = _logical_lines(source)
    if _suspicious(lines):
        lines = min(_other_readings(source, lines), key=_unreadable, default=lines)
    lines = [repaired for line in lines for repaired in _repaired(line)]
    _indent(lines)
    _match_clauses(lines)
    return _assemble(lines, source.count("\n") + 1)


# Logical lines


def _logical_lines(source: str, skip_quote_at: int = -1) -> list[_Line]:
    lines: list[_Line] = []
    position, number = 0, 1
    length = len(source)
    while position < length:
        line, position, number = _next_line(source, position, number, skip_quote_at)
        if line is not None:
            lines.append(line)
    return lines


def _next_line(source: str, position: int, number: int, skip_quote_at: int) -> tuple[_Line | None, int, int]:
    """Read one logical line; returns it (``None`` if blank), the position behind it and that line's number."""
    start, first = position, number
    parts: list[str] = []
    depth = 0
    length = len(source)
    end_of_first = source.find("\n", position)
    indent = _indentation(source[start : end_of_first if end_of_first >= 0 else length])
    while position < length:
        token = _TOKEN.match(source, position)
        if token is None:
            break
        kind, text = token.lastgroup, token[0]
        following = token.end()
        if kind == "triple":
            following = _end_of_triple(source, token, skip_quote_at)
            text = source[position:following]
            if following == token.end():
                text = ""  # the stray quotes themselves
        position = following
        if kind == "newline":
            number += 1
            if depth <= 0 or _starts_anew(source, position, indent, "".join(parts)):
                break  # a bracket still open was never closed
            parts.append("\n")
            continue
        number += text.count("\n")
        if kind == "comment":
            continue
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth = max(0, depth - 1)
        parts.append(text)
    text = "".join(parts).rstrip()
    stripped = text.strip()
    if not stripped:
        return None, position, number
    line = _Line(first, number - 1 if source[position - 1 : position] == "\n" else number, indent, stripped)
    _classify(line)
    return line, position, number


def _end_of_triple(source: str, token: re.Match[str], skip_quote_at: int) -> int:
    if token.start() == skip_quote_at:
        return token.end()
    quotes = token[0][-3:]
    end = token.end()
    while True:
        end = source.find(quotes, end)
        if end < 0:
            return token.end()  # never closed: these quotes are the mistake
        backslashes = 0
        while source[end - 1 - backslashes] == "\\":
            backslashes += 1
        if backslashes % 2 == 0:
            return end + 3
        end += 1


def _starts_anew(source: str, position: int, indent: int, before: str) -> bool:
    if "\n" not in before and _ENDS_HEADER.search(before) and _COMPOUND.match(before.lstrip()):
        return True
    end = source.find("\n", position)
    text = source[position : end if end >= 0 else len(source)]
    stripped = text.strip()
    if not stripped or stripped[0] in "#)]}":
        return False
    if _BEGINS_STATEMENT.match(stripped):
        return True
    if _indentation(text) > indent or before.rstrip().endswith((",", "(", "[", "{")):
        return False
    return bool(_BEGINS_AT_SAME_DEPTH.match(stripped)) and not stripped.endswith(",")


def _indentation(text: str) -> int:
    expanded = text.expandtabs(8)
    return len(expanded) - len(expanded.lstrip())


def _classify(line: _Line) -> None:
    match = _COMPOUND.match(line.text)
    line.keyword = match[1] if match else "@" if line.text.startswith("@") else ""
    line.opens_block = match is not None and line.text.endswith(":")
    if line.keyword in ("match", "case") and not line.opens_block:
        line.keyword = ""


# A stray triple quote turns the rest of a file inside out


def _suspicious(lines: list[_Line]) -> bool:
    return _unreadable(lines) > 3


def _unreadable(lines: list[_Line]) -> int:
    return sum(1 for line in lines if not _parses(line))


def _other_readings(source: str, lines: list[_Line]) -> Iterator[list[_Line]]:
    yield lines
    if len(source) > 200_000:
        return
    bad = next((line.first for line in lines if not _parses(line)), 1)
    quotes = re.finditer(r"'''|\"\"\"", source)
    before = [token for token in quotes if source.count("\n", 0, token.start()) < bad]
    for token in before[-4:]:
        start = token.start()
        while start and source[start - 1] in "rRbBuUfF" and token.start() - start < 2:
            start -= 1
        yield _logical_lines(source, start)


# Repair


def _snippet(line: _Line) -> str:
    """Return the line in the surroundings that it needs to be parsed alone."""
    body = f"{line.text} pass" if line.opens_block else line.text
    if line.keyword in ("elif", "else"):
        return f"if 1: pass\n{body}"
    if line.keyword in ("except", "finally"):
        return f"try: pass\n{body}"
    if line.keyword == "try":
        return f"{body}\nfinally: pass"
    if line.keyword == "@":
        return f"{body}\ndef f(): pass"
    if line.keyword == "match":
        return f"{line.text}\n case _: pass"
    if line.keyword == "case":
        return f"match 1:\n {body}"
    return body


def _parses(line: _Line) -> bool:
    try:
        ast.parse(_snippet(line))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _repaired(line: _Line) -> list[_Line]:
    """Return the line so that it parses, or the calls in it, or nothing."""
    if _parses(line):
        return [line]
    original = line.text
    room = original.count("\n")
    for attempt in repaired_line(original):
        line.text = attempt if attempt.count("\n") <= room else attempt.replace("\n", " ")
        _classify(line)
        if line.text and _parses(line):
            return [line]
    by_line: dict[int, list[str]] = {}
    for offset, call in fragments(original):
        by_line.setdefault(line.first + offset, []).append(call)
    return [_Line(first, first, line.indent, "; ".join(calls)) for first, calls in by_line.items()]


def _indent(lines: list[_Line]) -> None:
    """Give each line its block level. A line that stands further out than its neighbours does not end their block."""
    stack: list[float] = [lines[0].indent if lines else 0]
    latest: dict[int, str] = {}
    header: _Line | None = None
    for position, line in enumerate(lines):
        following = lines[position + 1].indent if position + 1 < len(lines) else 0
        indent: float = line.indent
        if line.keyword and not line.opens_block and following > line.indent:
            _open_block(line)
        if header is not None:
            if indent <= stack[-1] and _begins_body(line, header, following):
                indent = following  # the first line of a body, written as far out as its header
            if indent > stack[-1]:
                stack.append(indent)
            else:
                header.text += " pass"
        if indent < stack[-1] and not _strays(line, following, stack):
            while len(stack) > 1 and stack[-1] > indent:
                if stack[-2] < indent and line.keyword not in ("def", "class", "@"):
                    break  # a slip of a column or two, within the block
                stack.pop()
        if line.keyword in _CLAUSES and latest.get(len(stack) - 1) == "def":
            stack.append(stack[-1] + 0.5)  # a clause that lost its beginning, of the function above
        line.level = len(stack) - 1
        latest = {level: keyword for level, keyword in latest.items() if level < line.level}
        latest[line.level] = line.keyword
        header = line if line.opens_block else None
        if header is not None and indent > stack[-1]:
            stack[-1] = indent
    if header is not None:
        header.text += " pass"


def _open_block(line: _Line) -> None:
    """Make a header of a compound statement on one line, whose block follows all the same."""
    for colon in re.finditer(r":", line.text):
        shortened = _Line(line.first, line.last, line.indent, line.text[: colon.end()], line.keyword, opens_block=True)
        if _parses(shortened):
            line.text, line.opens_block = shortened.text, True
            return


def _begins_body(line: _Line, header: _Line, following: int) -> bool:
    return header.keyword == "def" and not line.keyword and following > line.indent == header.indent


def _strays(line: _Line, following: int, stack: list[float]) -> bool:
    return not line.keyword and following > line.indent and following in stack


def _match_clauses(lines: list[_Line]) -> None:
    """Turn clauses without their beginning, and beginnings without their clauses, into plain blocks."""
    latest: dict[int, _Line] = {}
    for line in lines:
        if not line.text:
            continue
        for level in [level for level in latest if level > line.level]:
            _settle(latest.pop(level), None)
        previous = latest.get(line.level)
        _settle(previous, line)
        before = previous.keyword if previous is not None else ""
        allowed = {
            "except": ("try", "except"),
            "finally": ("try", "except", "else"),
            "elif": ("if", "elif"),
            "else": ("if", "elif", "for", "while", "except"),
        }.get(line.keyword)
        if allowed is not None and before not in allowed:
            _make_plain(line)
        latest[line.level] = line
    for line in latest.values():
        _settle(line, None)


def _settle(line: _Line | None, following: _Line | None) -> None:
    keyword = following.keyword if following is not None else ""
    if line is None:
        return
    if line.keyword == "try" and keyword not in ("except", "finally"):
        _make_plain(line)
    elif line.keyword == "@" and keyword not in ("@", "def", "class"):
        line.text = line.text[1:].lstrip()
        line.keyword = ""


def _make_plain(line: _Line) -> None:
    _, colon, rest = line.text.partition(":")
    line.text = f"if 1:{rest}" if colon else "pass"
    line.keyword = "if" if colon else ""


def _assemble(lines: list[_Line], count: int) -> ast.Module:
    for _ in range(_ATTEMPTS):
        text = _rendered(lines, count)
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            wrong = getattr(error, "lineno", None) or 1
            guilty = [line for line in lines if line.first <= wrong and line.text]
            if not guilty:
                break
            guilty[-1].text = "if 1:" if guilty[-1].opens_block else "pass"
    return _one_by_one(lines)


def _rendered(lines: list[_Line], count: int) -> str:
    physical = [""] * (count + 1)
    for line in lines:
        if line.text:
            parts = line.text.split("\n")
            physical[line.first - 1] = "    " * line.level + parts[0]
            for offset, part in enumerate(parts[1:], 1):
                if line.first - 1 + offset < len(physical):
                    physical[line.first - 1 + offset] = part
    return "\n".join(physical)


def _one_by_one(lines: list[_Line]) -> ast.Module:
    """The last resort: every line that parses by itself, without blocks."""
    body: list[ast.stmt] = []
    for line in lines:
        try:
            tree = ast.parse(closed_brackets(_snippet(line)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        body.extend(ast.increment_lineno(statement, line.first - 1) for statement in tree.body)
    return ast.Module(body=body, type_ignores=[])
