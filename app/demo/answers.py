"""From a question to a search, and from what the search found to an answer that cites its lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.demo.keywords import ENGLISH_STOP_WORDS
from app.demo.languages import COMMON_WORDS, Kind, kind_of

_WORD = re.compile(r"\w+")
_ASKING = frozenset(("happen", "happens", "explain", "describe", "mean", "means", "work", "works", "tell", "please"))
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\s\d])")
_ONE_LINE = re.compile(r"[ \t]*(?:\||#{1,6}[ \t])")
_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_OWN_LINE = re.compile(r"[ \t]*(?:[|>]|[-*+][ \t]|\d+[.)][ \t]|#{1,6}[ \t])")
_TABLE_RULE = re.compile(r"[ \t|:=+-]+$")
_TIMED_OUT = re.compile(r"\btim(?:e|es|ed|ing) out\b")
_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ed", "es", "s")

# What is written as one word and as two; the index knows "timed out" only as its two words.
_SPELLINGS = {"timeout": ("timed out", "time out")}

_LONGEST_QUOTE = 400
_QUOTES = 3
_SPOKEN = 3  # common words that make a line one that was written to be read
_WORDS_OF_A_QUESTION = 4  # with fewer it may be a name, which answers repeat
_TABLE_ROW = 1.0  # what a row of a table has less than a sentence that says the same
_PROSE_ADVANTAGE = 2.5
_KEYWORD_ADVANTAGE = 1.15


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a search found.

    Attributes:
        path: the file, relative to the folder.
        start: the passage's first line.
        end: its last line.
        heading: what it is part of.
        body: its text.
        snippet: where the terms occur in it, with ``[`` and ``]`` around them.
        language: the file's programming or markup language.
        keywords: the file's keywords.
        score: the larger, the better; BM25 as the librarian returns it.
    """

    path: str
    start: int
    end: int
    heading: str
    body: str
    snippet: str
    language: str
    keywords: tuple[str, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Citation:
    """A sentence, and where it stands."""

    path: str
    line: int
    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the folder says to a question.

    Attributes:
        question: as it was asked.
        text: the sentences, each with its ``[file:line]``; says so when nothing was found.
        citations: where the sentences are from, the best first.
        terms: what was searched for.
        notes: what was unusual about finding the answer, such as a service that did not respond.
    """

    question: str
    text: str
    citations: tuple[Citation, ...]
    terms: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON has it."""
        return asdict(self)


def terms_of(question: str, language: str = "en") -> list[str]:
    """Return the words of ``question`` that say what it is about, in order, each once.

    Args:
        question: in any language.
        language: its code, whose common words are left out besides the English ones.
    """
    found = list(dict.fromkeys(_WORD.findall(question.lower().replace("_", " "))))
    common = ENGLISH_STOP_WORDS | _ASKING | COMMON_WORDS.get(language, frozenset())
    return [word for word in found if word not in common and (len(word) > 1 or word.isdigit())] or found


def match_expression(terms: Iterable[str], phrases: Iterable[str] = ()) -> str:
    """Return the FTS5 expression that finds any of ``terms``, and ranks higher where a phrase stands as such.

    Args:
        terms: single words.
        phrases: several words each, as the enricher's keywords are.
    """
    terms = list(terms)
    spelled = [words for term in terms for words in _SPELLINGS.get(_stem(term), ())]
    wanted = dict.fromkeys([*(phrase for phrase in phrases if " " in phrase), *terms, *spelled])
    return " OR ".join('"' + words.replace('"', '""') + '"' for words in wanted)


def rank(terms: Sequence[str], hits: Iterable[Hit]) -> list[Hit]:
    """Return ``hits``, the likeliest answer first.

    BM25 lets one frequent term outweigh all others; who asks means all of them. So a hit counts by the share of
    the terms that it has, where a term that few hits have weighs more. Prose answers better than source.
    """
    hits = list(hits)
    stems = [_stem(term) for term in terms]
    present = {id(hit): _stems(f"{hit.path} {hit.heading} {_text(hit)}") for hit in hits}
    rarity = {stem: 1.0 / (1 + sum(stem in words for words in present.values())) for stem in stems}
    total = sum(rarity.values()) or 1.0

    def worth(hit: Hit) -> float:
        coverage = sum(weight for stem, weight in rarity.items() if stem in present[id(hit)]) / total
        share = sum(stem in present[id(hit)] for stem in rarity) / (len(rarity) or 1)
        value = hit.score * (0.1 + coverage) * (0.1 + share)
        if kind_of(hit.language) is Kind.MARKUP:
            value *= _PROSE_ADVANTAGE
        if not _stems(" ".join(hit.keywords)).isdisjoint(stems):
            value *= _KEYWORD_ADVANTAGE
        return value

    return sorted(hits, key=lambda hit: (-worth(hit), hit.path, hit.start))


def compose(question: str, terms: Sequence[str], hits: Iterable[Hit], notes: Iterable[str] = ()) -> Answer:
    """Return the answer that the best of ``hits`` give: their sentences that have most of the terms.

    Args:
        question: as it was asked.
        terms: what ``terms_of`` returned for it.
        hits: what the search found, in any order.
        notes: what to pass on with the answer.
    """
    ranked = rank(terms, hits)
    stems = {_stem(term) for term in terms}
    asked = question.strip().rstrip("?").lower()
    citations: list[Citation] = []
    for hit in ranked[: 2 * _QUOTES]:
        quote = _best_quote(hit, stems, asked)
        if quote and quote.text not in {each.text for each in citations}:
            citations.append(quote)
        if len(citations) == _QUOTES:
            break
    if citations:
        text = "\n".join(f"{each.text} [{each.path}:{each.line}]" for each in citations)
    else:
        text = f"Nothing in this folder mentions {' or '.join(terms) or 'that'}."
    return Answer(question, text, tuple(citations), tuple(terms), tuple(notes))


def _best_quote(hit: Hit, stems: set[str], asked: str) -> Citation | None:
    question = asked if len(asked.split()) >= _WORDS_OF_A_QUESTION else None
    best: tuple[float, int, str] | None = None
    for line, sentence in sentences(_text(hit), prose=kind_of(hit.language) is not Kind.SOURCE):
        words = _stems(sentence)
        found = len(stems & words)
        if not found or (question is not None and question in sentence.lower()):
            continue  # what repeats the question does not answer it
        # Among sentences with equally many terms, one that says something beats a bare title.
        value = found + min(len(words), 12) / 24
        if sentence.startswith("|"):
            value -= _TABLE_ROW
        # In source, a comment or a docstring answers where a statement only mentions.
        value += len(ENGLISH_STOP_WORDS & words) >= _SPOKEN
        if best is None or value > best[0]:
            best = value, line, sentence
    if best is None:
        # The terms are in the heading or the path: the passage's beginning is what they announce.
        first = next(iter(sentences(hit.body, prose=True)), None)
        if first is None:
            return None
        best = 0.0, first[0], first[1]
    text = best[2] if len(best[2]) <= _LONGEST_QUOTE else best[2][: _LONGEST_QUOTE - 1].rstrip() + "…"
    return Citation(hit.path, hit.start + best[1], hit.heading, text)


def _text(hit: Hit) -> str:
    """Return what a passage says: of Markdown only the prose, because an example in a code block explains nothing."""
    if kind_of(hit.language) is not Kind.MARKUP:
        return hit.body
    prose = _FENCED.sub(lambda block: "\n" * block.group().count("\n"), hit.body)
    return prose if prose.strip() else hit.body


def sentences(body: str, *, prose: bool = True) -> list[tuple[int, str]]:
    """Return the sentences of ``body``, each with the number of the line it starts on, counted from 0.

    A sentence of prose may run over several lines; a list item or a table row starts a new one. In source,
    each line is one.
    """
    found: list[tuple[int, str]] = []
    paragraph: list[tuple[int, str]] = []
    lines = body.split("\n")
    for number, line in enumerate(lines):
        stripped = line.strip()
        if prose and stripped.startswith("|") and number + 1 < len(lines) and _TABLE_RULE.match(lines[number + 1]):
            stripped = ""  # a table's header names its columns and says nothing
        if not stripped or (prose and _OWN_LINE.match(line)) or not prose:
            found += _sentences_of(paragraph)
            paragraph = []
        if stripped and not _TABLE_RULE.match(line):
            paragraph.append((number, stripped))
        if prose and _ONE_LINE.match(line):
            found += _sentences_of(paragraph)
            paragraph = []
    found += _sentences_of(paragraph)
    return found


def _sentences_of(paragraph: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Cut the lines of one paragraph into sentences; each keeps the line of its first character."""
    if not paragraph:
        return []
    starts: list[tuple[int, int]] = []
    text = ""
    for number, line in paragraph:
        if text:
            text += " "
        starts.append((len(text), number))
        text += line
    found: list[tuple[int, str]] = []
    offset = 0
    for sentence in _SENTENCE_END.split(text):
        offset = text.index(sentence, offset)
        first_line = max(number for start, number in starts if start <= offset)
        if any(map(str.isalnum, sentence)):
            found.append((first_line, sentence))
        offset += len(sentence)
    return found


def _stems(text: str) -> set[str]:
    plain = _TIMED_OUT.sub("timeout", text.lower().replace("_", " "))
    return {_stem(word) for word in _WORD.findall(plain)}


def _stem(word: str) -> str:
    """Return ``word`` without its commonest English endings, so that "sockets" answers to "socket"."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word[:-1] if word.endswith("e") and len(word) > 4 else word
