"""Guessing languages: the programming language by name and first line, the natural one by its commonest words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

UNKNOWN = "unknown"


class Kind(StrEnum):
    """How a text is built, and so where it may be cut."""

    MARKUP = "markup"
    SOURCE = "source"
    TEXT = "text"


_BY_SUFFIX = {
    suffix: language
    for language, suffixes in {
        "markdown": ".md .markdown .mdx",
        "restructuredtext": ".rst .rest",
        "python": ".py .pyi .pyw .pyx",
        "javascript": ".js .jsx .mjs .cjs",
        "typescript": ".ts .tsx",
        "c": ".c .h",
        "c++": ".cc .cpp .cxx .hpp .hh .hxx",
        "c#": ".cs",
        "java": ".java",
        "kotlin": ".kt .kts",
        "go": ".go",
        "rust": ".rs",
        "ruby": ".rb",
        "php": ".php",
        "swift": ".swift",
        "scala": ".scala",
        "lua": ".lua",
        "perl": ".pl .pm",
        "r": ".r",
        "shell": ".sh .bash .zsh .fish",
        "powershell": ".ps1 .psm1",
        "batch": ".bat .cmd",
        "sql": ".sql",
        "html": ".html .htm .xhtml",
        "xml": ".xml .svg .xsd",
        "css": ".css .scss .less",
        "json": ".json",
        "yaml": ".yaml .yml",
        "toml": ".toml",
        "ini": ".ini .cfg .conf",
        "makefile": ".mk",
    }.items()
    for suffix in suffixes.split()
}
_BY_NAME = {
    "makefile": "makefile",
    "gnumakefile": "makefile",
    "dockerfile": "dockerfile",
    "cmakelists.txt": "cmake",
    "rakefile": "ruby",
    "gemfile": "ruby",
    "readme": "text",
    "license": "text",
    "copying": "text",
}
_MARKUP = frozenset({"markdown", "restructuredtext"})
_NOT_SOURCE = frozenset({"text", "html", "xml", "json", "yaml", "toml", "ini", UNKNOWN})
_SHEBANG = re.compile(r"#!.*?\b(python|bash|zsh|sh|fish|perl|ruby|node|php|lua)")
_SHEBANG_LANGUAGES = {"bash": "shell", "zsh": "shell", "sh": "shell", "fish": "shell", "node": "javascript"}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# The commonest function words of each language, less those that another one of these has too.
COMMON_WORDS: dict[str, frozenset[str]] = {
    "en": _set(
        "the of and to is that for it with as are this be not by from or have an which you will has can if at "
        "was but when all there their been would they were what your its"
    ),
    "de": _set(
        "der die das und ist nicht ein eine zu den von mit sich auf für dem auch werden wird aus sind oder wenn "
        "bei nach einer einen wie über zum zur dass kann nur noch"
    ),
    "fr": _set(
        "le les des et est une dans pour que qui sur par avec pas plus ce sont au aux cette il elle nous vous ou "
        "mais être du donc leur ces lorsque"
    ),
    "es": _set(
        "el los las una por con para del como más pero sus este esta cuando muy sin sobre también hay donde "
        "quien desde todo nos durante todos uno"
    ),
    "it": _set(
        "il di che è non per sono della dei nel alla gli anche come più ma questo questa delle degli essere "
        "viene dal nella loro stato ogni quando"
    ),
    "pt": _set(
        "o os do da em um uma para com não dos das mais como mas foi ao ele tem à seu sua ou ser quando muito "
        "nos já está também pelo pela"
    ),
    "nl": _set(
        "de het een van en dat niet zijn op te voor met aan er maar om ook als dan bij nog uit wordt door naar "
        "heeft hebben worden deze kan"
    ),
}
_ALL_COMMON_WORDS = frozenset[str]().union(*COMMON_WORDS.values())
_FEWEST_HITS = 3
_SMALLEST_SHARE = 0.04


def programming_language(path: str, text: str = "") -> str:
    """Return the programming or markup language of a file, ``"text"`` for prose, else ``"unknown"``.

    Args:
        path: with ``/``; its name decides.
        text: the file's text; a first line such as ``#!/usr/bin/env python3`` decides when the name says nothing.
    """
    name = path.lower().rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    suffix = dot + ending if stem else ""
    language = _BY_NAME.get(name) or _BY_SUFFIX.get(suffix)
    if language:
        return language
    if suffix == ".txt":
        return "text"
    shebang = _SHEBANG.match(text[:200])
    if shebang:
        return _SHEBANG_LANGUAGES.get(shebang[1], shebang[1])
    return UNKNOWN


def kind_of(language: str) -> Kind:
    """Return how a text in a programming or markup language is built."""
    if language in _MARKUP:
        return Kind.MARKUP
    return Kind.TEXT if language in _NOT_SOURCE else Kind.SOURCE


def natural_language(words: Iterable[str]) -> str:
    """Return the two-letter code of the language that ``words`` are in, or ``"unknown"``.

    The language whose common words occur most often wins, if they are frequent enough to mean something:
    a page of numbers has no language.

    Args:
        words: in lower case, in any order.
    """
    counts = words if isinstance(words, Counter) else Counter(words)
    total = counts.total()
    there = _ALL_COMMON_WORDS.intersection(counts)
    hits = {code: sum(map(counts.__getitem__, there & common)) for code, common in COMMON_WORDS.items()}
    best = max(hits, key=hits.__getitem__)
    if hits[best] < _FEWEST_HITS or hits[best] < total * _SMALLEST_SHARE:
        return UNKNOWN
    return best
