"""Finding the keywords of a text by RAKE: phrases between stop words, scored by how their words keep company.

Rose, Engel, Cramer and Cowley, "Automatic keyword extraction from individual documents", 2010. A word that
occurs mostly inside longer phrases (its degree is high for its frequency) makes a better keyword.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from app.demo.languages import COMMON_WORDS

LONGEST_PHRASE = 3

# The second alternative makes every sign that ends a phrase a token of its own; blanks and "_" end none.
_TOKEN = re.compile(r"[^\W\d_]++(?:['’-][^\W\d_]++)*+|[^\s\w]|\d")
_ASCII_TOKEN = re.compile(r"[a-z]++(?:['-][a-z]++)*+|[^\s\w]|\d")  # the same in lower case ASCII, and faster
_BREAK = "|"


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ENGLISH_STOP_WORDS = _set(
    "a about above after again against all also am an and any are as at be because been before being below between "
    "both but by can cannot could did do does doing down during each either else ever every few for from further get "
    "gets give given goes had has have having he her here hers him his how however i if in into is it its itself just "
    "least less let like made make makes many may me might more most must my need needs neither never no nor not now "
    "of off often on once one only onto or other our out over own per put same say see set shall she should since so "
    "some still such take takes than that the their them then there these they this those through thus to too two "
    "under until up upon us use used uses using very via was we well were what when where whether which while who "
    "whom whose why will with within without would yes yet you your"
)
_CODE = _set(
    "args arg assert async await bool break case catch char class cls const continue def default del elif else enum "
    "except export extends extern false final finally float for fn from func function global if impl implements "
    "import in int interface is isinstance kwargs lambda len let list long match namespace new nil none null object "
    "package param pass print private protected pub public raise return returns self static str string struct super "
    "switch this throw throws true try tuple type typedef union unsigned use var void while yield dict"
)
STOP_WORDS = (ENGLISH_STOP_WORDS | _CODE).union(*COMMON_WORDS.values())
"""Words that carry no subject: the commonest of seven languages, and the keywords of programming languages."""


class Keyword(NamedTuple):
    """A phrase of one to three words, and its score."""

    phrase: str
    score: float


def tokens(text: str) -> list[str]:
    """Return the words of ``text`` in lower case, and between them, as tokens of their own, the signs."""
    text = text.lower()
    return (_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text)


def keywords(tokens: Iterable[str], limit: int = 8) -> list[Keyword]:
    """Return the best ``limit`` keywords of a text, best first; ties in the order of the alphabet.

    Args:
        tokens: what ``tokens`` returned for it.
        limit: how many at most.
    """
    phrases = _phrases(tokens)
    words = {phrase: phrase.split(" ") for phrase in phrases}
    frequency: dict[str, int] = defaultdict(int)
    degree: dict[str, int] = defaultdict(int)
    for phrase, count in phrases.items():
        length = len(words[phrase])
        for word in words[phrase]:
            frequency[word] += count
            degree[word] += count * length
    company = {word: degree[word] / times for word, times in frequency.items()}
    # RAKE alone prefers what is long and occurs once; the count lets a recurring term win over a chance phrase.
    scores = {phrase: count * sum(map(company.__getitem__, words[phrase])) for phrase, count in phrases.items()}
    # Most phrases score below the best few, so only those few are put in order.
    least = min(sorted(scores.values(), reverse=True)[:limit], default=0.0)
    best = sorted((-score, phrase) for phrase, score in scores.items() if score >= least)[:limit]
    return [Keyword(phrase, round(-score, 2)) for score, phrase in best]


def _phrases(tokens: Iterable[str]) -> Counter[str]:
    """Return what stands between stop words, short words and signs, and how often it does."""
    marked = [token if len(token) > 2 and token not in STOP_WORDS else _BREAK for token in tokens]
    runs = map(str.strip, " ".join(marked).split(_BREAK))
    return Counter(run for run in runs if run and run.count(" ") < LONGEST_PHRASE)
