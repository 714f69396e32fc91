"""Repairs of a single logical line, from the least intrusive to keeping only the calls in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

_STRING = re.compile(
    r"[rRbBuUfF]{0,2}(?:'''.*?'''|\"\"\".*?\"\"\"|'(?:[^'\\\n]|\\.)*'?|\"(?:[^\"\\\n]|\\.)*\"?)", re.DOTALL
)
_PAIRS = {")": "(", "]": "[", "}": "{"}
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_CALL = re.compile(r"(?:\bawait\s+)?\b[A-Za-z_]\w*(?:\s*\.\s*[A-Za-z_]\w*)*\s*\(")
_CHAINED = re.compile(r"\s*\.\s*\w+\s*(\()|\s*\.\s*\w+")
_ASSIGNED = re.compile(r"((?:\w+\s*\.\s*)*\w+)\s*=\s*$")
_DANGLING = re.compile(r"(?:[-+*/%=,.&|@]|\b(?:and|or|not|in|is|if|else))\s*$")
_KEYWORDS = frozenset({"if", "elif", "while", "for", "in", "not", "and", "or", "return", "with", "except", "print",
                       "lambda", "assert", "del", "yield", "else", "is", "import", "from", "class", "def"})  # fmt: skip

_PYTHON_2 = (
    (re.compile(r"^print\s*>>\s*(\S+?)\s*,\s*(.+)$", re.DOTALL), r"print(\2, file=\1)"),
    (re.compile(r"^print\s+(.+?),?\s*$", re.DOTALL), r"print(\1)"),
    (re.compile(r"^((?:if|else|elif|for|while|except|try)\b[^:]*:)\s*print\s+(.+?),?\s*$", re.DOTALL), r"\1 print(\2)"),
    (re.compile(r"^except\s+(.+?)\s*,\s*(\w+)\s*:"), r"except \1 as \2:"),
    (re.compile(r"^raise\s+([\w.]+)\s*,\s*(.+)$", re.DOTALL), r"raise \1(\2)"),
    (re.compile(r"^exec\s+(.+)$", re.DOTALL), r"exec(\1)"),
    (re.compile(r"<>"), "!="),
    (re.compile(r"`([^`]*)`"), r"repr(\1)"),
    (re.compile(r"\b[uU][rR](?=['\"])"), "r"),
    (re.compile(r"(?<![\w.])0+([0-7]+)(?![\w.])"), r"0o\1"),
    (re.compile(r"\b(\d+)[lL]\b"), r"\1"),
    (re.compile(r"\blambda\s*\(([\w\s,]+)\)\s*:"), r"lambda \1:"),
)
_HEADERS = (
    (re.compile(r"^((?:async\s+)?def\s+\w+)"), r"\1(self, *args, **kwargs):"),
    (re.compile(r"^(class\s+\w+)"), r"\1:"),
)


def repaired_line(text: str) -> Iterator[str]:
    """Yield ever rougher repairs of a logical line that does not parse."""
    modern = text
    for pattern, replacement in _PYTHON_2:
        modern = pattern.sub(replacement, modern)
        if modern != text:
            yield modern
    for base in dict.fromkeys((text, modern)):
        balanced = closed_brackets(base)
        yield balanced
        trimmed = _DANGLING.sub("", balanced.rstrip())
        yield trimmed
        if trimmed != balanced:
            yield f"{trimmed} = None"
        yield f"{balanced.rstrip(':')}:"
        yield f"{_DANGLING.sub('', balanced.rstrip(': '))}:"
        yield from _without_stray_ends(base)
    imported = _imports(text)
    if imported:
        yield imported
    yield from _keeping_header(text)


def _without_stray_ends(text: str) -> Iterator[str]:
    stripped = text.strip().lstrip(",)]}").rstrip()
    if stripped != text.strip():
        yield closed_brackets(stripped)


def _imports(text: str) -> str:
    """Return what can be saved of a broken import."""
    match = re.match(r"from\s+([\w.]+)\s+import\b(.*)", text, re.DOTALL)
    if match:
        names = re.findall(r"[A-Za-z_]\w*(?:\s+as\s+[A-Za-z_]\w*)?", match[2])
        return f"from {match[1]} import {', '.join(names)}" if names else ""
    match = re.match(r"import\s+([A-Za-z_][\w.]*)(\s+as\s+[A-Za-z_]\w*)?", text)
    return f"import {match[1]}{match[2] or ''}" if match else ""


def _keeping_header(text: str) -> Iterator[str]:
    for pattern, replacement in _HEADERS:
        match = pattern.match(text)
        if match:
            yield match.expand(replacement)
            return
    match = re.match(r"(?:async\s+)?(with|for|while|if|elif|except)\b", text)
    if not match or not text.rstrip().endswith(":"):
        return
    found = [call for _, call in fragments(text)]
    keyword = match[1]
    if keyword == "except":
        yield "except Exception:"
    elif keyword == "with" and found:
        name = re.search(r"\bas\s+(\w+)\s*:?$", text)
        yield f"{match[0]} {', '.join(found)}{f' as {name[1]}' if name else ''}:".replace(" = ", " := ")
    elif keyword == "for":
        yield f"for _ in ({', '.join([*found, ''])}):" if found else "for _ in ():"
    else:
        yield f"{keyword} ({', '.join(found)}):" if found else f"{keyword} 1:"


def closed_brackets(text: str) -> str:
    """Return ``text`` without closing brackets that nothing opened, and with those that are missing."""
    result: list[str] = []
    stack: list[str] = []
    position = 0
    while position < len(text):
        string = _STRING.match(text, position) if text[position] in "'\"rRbBuUfF" else None
        if string and (string[0][-1:] in "'\"" or string[0][:1] in "'\""):
            literal = string[0]
            quote = literal.lstrip("rRbBuUfF")[:1]
            if not literal.endswith(quote) or len(literal.lstrip("rRbBuUfF")) == 1:
                literal += quote  # an unterminated string ends with its line
            result.append(literal)
            position = string.end()
            continue
        character = text[position]
        if character in _CLOSERS:
            stack.append(character)
        elif character in _PAIRS:
            if not stack:
                position += 1
                continue
            opened = stack.pop()
            character = _CLOSERS[opened]
        result.append(character)
        position += 1
    missing = "".join(_CLOSERS[opened] for opened in reversed(stack))
    closed = "".join(result).rstrip()
    if missing and closed.endswith(":"):
        return f"{closed[:-1].rstrip().rstrip(',')}{missing}:"
    return f"{closed}{missing}"


def fragments(text: str) -> list[tuple[int, str]]:
    """Return the calls in ``text`` that parse, each with its line, from 0, and the name it is assigned to."""
    found: list[tuple[int, str]] = []
    position = 0
    strings = [match.span() for match in _STRING.finditer(text) if match[0].strip("rRbBuUfF")]
    while True:
        match = _CALL.search(text, position)
        if match is None:
            return found
        inside = next((end for start, end in strings if start < match.start() < end), None)
        if inside is not None:
            position = inside
            continue
        position = match.end()
        if match[0].split("(")[0].strip() in _KEYWORDS:
            continue
        for end in reversed(list(_chain_ends(text, match.end() - 1))):
            call = closed_brackets(text[match.start() : end]).replace("\n", " ")
            if not _is_expression(call):
                continue
            assigned = _ASSIGNED.search(text[: match.start()])
            line = text.count("\n", 0, match.start())
            found.append((line, f"{assigned[1]} = {call}" if assigned else call))
            position = end
            break


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _chain_ends(text: str, opening: int) -> Iterator[int]:
    """Yield the positions behind the bracket opened at ``opening`` and behind each call chained to it."""
    end = _behind_bracket(text, opening)
    yield end
    while match := _CHAINED.match(text, end):
        end = _behind_bracket(text, match.start(1)) if match[1] else match.end()
        yield end


def _behind_bracket(text: str, opening: int) -> int:
    depth = 0
    position = opening
    while position < len(text):
        string = _STRING.match(text, position) if text[position] in "'\"" else None
        if string:
            position = string.end()
            continue
        if text[position] in _CLOSERS:
            depth += 1
        elif text[position] in _PAIRS:
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    return len(text)
