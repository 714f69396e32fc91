"""Splitting texts into passages."""

from itertools import pairwise
from pathlib import Path

import pytest

from app.demo.languages import Kind
from app.demo.passages import LONGEST, Passage, split


def test_markdown_is_cut_at_headings() -> None:
    """Each section of Markdown is a passage, headed by the trail of titles that lead to it."""
    text = "intro\n\n# Sockets\n\nAll kinds.\n\n## REQ\nStrict.\n\n## PUB\nKept.\n\n# Other\nEnd.\n"
    assert [
        Passage(1, 1, "", "intro"),
        Passage(3, 5, "Sockets", "# Sockets\n\nAll kinds."),
        Passage(7, 8, "Sockets > REQ", "## REQ\nStrict."),
        Passage(10, 11, "Sockets > PUB", "## PUB\nKept."),
        Passage(13, 14, "Other", "# Other\nEnd."),
    ] == split(text, Kind.MARKUP)


def test_a_comment_in_a_code_block_is_no_heading() -> None:
    """A line that starts with # inside a fence does not cut, also when the fence holds a shorter one."""
    text = "# One\n\n````python\n# not a title\n```\n# nor this\n````\n\n# Two\nEnd.\n"
    assert [each.heading for each in split(text, Kind.MARKUP)] == ["One", "Two"]


def test_underlined_titles_have_levels_in_the_order_of_their_signs() -> None:
    """reStructuredText's first kind of underline is the highest level."""
    text = "Guide\n=====\n\nText.\n\nPart\n----\n\nMore.\n\nNext\n====\n\nEnd.\n"
    assert [(each.heading, each.start) for each in split(text, Kind.MARKUP)] == [
        ("Guide", 1),
        ("Guide > Part", 6),
        ("Next", 11),
    ]


def test_source_is_cut_at_definitions() -> None:
    """Long definitions are passages of their own, with decorators and comments above them, headed by their names."""
    body = "\n".join(f"        line = {number}  # padding so that the method is long" for number in range(12))
    text = (
        f'"""Module."""\n\nimport os\n\n\nclass Pool:\n    def first(self):\n{body}\n\n'
        f"    # why second\n    @property\n    def second(self):\n{body}\n\n\ndef free():\n{body}\n"
    )
    passages = split(text, Kind.SOURCE)
    assert [each.heading for each in passages] == ["Pool, Pool.first", "Pool.second", "free"]
    assert passages[1].body.startswith("    # why second\n    @property\n")


def test_small_definitions_share_a_passage() -> None:
    """Neighbours that are short are joined, so that a passage is worth reading."""
    text = "\n\n".join(f"def f{number}():\n    return {number}" for number in range(6))
    assert [each.heading for each in split(text, Kind.SOURCE)] == ["f0, f1, f2, f3"]


def test_text_is_cut_at_a_blank_line() -> None:
    """A long text is cut between paragraphs, as late as the limit allows."""
    paragraph = "word " * 150
    text = "\n\n".join([paragraph.strip()] * 6)
    passages = split(text, Kind.TEXT)
    assert [(each.start, each.end) for each in passages] == [(1, 3), (5, 7), (9, 11)]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000,
        "word " * 5_000,
        "line\n" * 3_000,
        "\n\n\n   \n\nfirst\n\n\n" * 500,
        "# title\n" * 400,
        "a\x0cb\x85c\u2028d\n" * 700,
        "def f():\n" + "    pass\n\n" * 1_000,
    ],
)
def test_every_passage_stands_where_it_says(text: str, kind: Kind) -> None:
    """Whatever the text, its passages are in order, within the limit, and equal to the lines that they name."""
    lines = text.split("\n")
    passages = split(text, kind)
    assert passages
    for passage in passages:
        assert 0 < len(passage.body) <= LONGEST
        assert passage.body in "\n".join(lines[passage.start - 1 : passage.end])
    assert all(first.end <= second.start for first, second in pairwise(passages))
    letters = sum(map(str.isalnum, text))
    assert letters == sum(sum(map(str.isalnum, passage.body)) for passage in passages)


@pytest.mark.parametrize("text", ["", "\n\n\n", "   \n\t\n", "-----\n=====\n"])
def test_nothing_to_read_gives_no_passages(text: str) -> None:
    """A text without a letter or a digit has no passages."""
    assert split(text, Kind.TEXT) == []


def test_no_line_of_a_real_source_is_lost() -> None:
    """Each line of this project's own modules that has a letter is in exactly one passage."""
    for file in (Path(__file__).parents[2] / "app").rglob("*.py"):
        lines = file.read_text(encoding="utf-8").split("\n")
        passages = split("\n".join(lines), Kind.SOURCE)
        covered = [number for each in passages for number in range(each.start, each.end + 1)]
        worth = {number for number, line in enumerate(lines, 1) if any(map(str.isalnum, line))}
        assert worth <= set(covered), file
        assert len(covered) == len(set(covered)), file
