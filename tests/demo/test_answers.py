"""Turning questions into searches and hits into answers."""

import sqlite3

import pytest

from app.demo.answers import Hit, compose, match_expression, rank, sentences, terms_of


def _hit(
    path: str, body: str, *, score: float = 1.0, heading: str = "", language: str = "markdown", start: int = 1
) -> Hit:
    return Hit(path, start, start + body.count("\n"), heading, body, "", language, (), score)


def test_terms_leave_out_what_says_nothing() -> None:
    """A question's terms are the words that say what it is about, each once, in order."""
    assert terms_of("What happens to a REQ socket after a timeout of the REQ socket?") == ["req", "socket", "timeout"]


def test_common_words_of_the_language_are_left_out() -> None:
    """Whoever asks in German does not search for German articles."""
    assert terms_of("Wer schließt die Verbindung?".replace("Wer ", "und "), "de") == ["schließt", "verbindung"]


def test_a_question_of_common_words_searches_for_them() -> None:
    """If nothing would be left, the words as they are become the terms."""
    assert terms_of("Who is it?") == ["who", "is", "it"]
    assert terms_of("?!") == []


@pytest.mark.parametrize("term", ['quo"te', "AND", "NEAR(a b)", "col:x", "-minus", "*", "^start"])
def test_no_term_is_syntax(term: str) -> None:
    """Whatever a term is, FTS5 takes it for words and not for an operator."""
    database = sqlite3.connect(":memory:")
    try:
        database.execute("CREATE VIRTUAL TABLE t USING fts5(body)")
        database.execute("SELECT * FROM t WHERE t MATCH ?", (match_expression([term, "word"], ["two words"]),))
    finally:
        database.close()


def test_phrases_are_searched_besides_the_terms() -> None:
    """A keyword of several words is looked for as such, one of a single word is not repeated."""
    assert match_expression(["req", "socket"], ["req socket", "req"]) == '"req socket" OR "req" OR "socket"'


def test_a_hit_with_all_terms_beats_one_that_repeats_a_term() -> None:
    """Coverage of the question counts more than BM25's liking for one frequent term."""
    hits = [_hit("one.md", "socket socket socket", score=3.0), _hit("all.md", "a socket after its timeouts", score=2.0)]
    assert rank(["socket", "timeout"], hits)[0].path == "all.md"


def test_an_answer_cites_the_line_of_its_sentence() -> None:
    """The sentence with most terms is quoted with its file and its own line."""
    body = (
        "# REQ\n\nA socket is leased. It is strict: after a\ntimeout it is dirty.\n"
        "A dirty socket is discarded\nafter the timeout."
    )
    answer = compose("?", ["socket", "timeout"], [_hit("zmq.md", body, start=10)])
    assert (answer.citations[0].path, answer.citations[0].line) == ("zmq.md", 14)
    assert answer.text == "A dirty socket is discarded after the timeout. [zmq.md:14]"


def test_terms_in_the_heading_only_quote_the_beginning() -> None:
    """A passage found by its heading is quoted by its first sentence."""
    answer = compose("?", ["heartbeat"], [_hit("a.md", "Sent every second. More.", heading="Heartbeat", start=3)])
    assert answer.text == "Sent every second. [a.md:3]"


def test_prose_is_quoted_and_not_the_example_beside_it() -> None:
    """A code block that repeats the question word for word loses to a sentence that explains."""
    example = _hit("readme.md", "Try it:\n\n```\nask 'what of a socket after its timeout'\n```\n\nDone.", score=5.0)
    page = _hit("zmq.md", "## Timeouts\nA socket is discarded after a timeout.", score=1.0)
    answer = compose("?", ["socket", "timeout"], [example, page])
    assert (answer.citations[0].path, answer.citations[0].line) == ("zmq.md", 2)
    assert "ask '" not in answer.text


def test_nothing_found_is_said() -> None:
    """Without hits the answer names what was looked for, and cites nothing."""
    answer = compose("?", ["unicorn"], [])
    assert answer.text == "Nothing in this folder mentions unicorn."
    assert answer.citations == ()


def test_the_same_sentence_is_cited_once() -> None:
    """Two files with the same sentence give one citation of it."""
    answer = compose("?", ["socket"], [_hit("a.md", "A socket."), _hit("b.md", "A socket.")])
    assert [each.path for each in answer.citations] == ["a.md"]


def test_what_repeats_the_question_is_no_answer() -> None:
    """A list of questions is not quoted; the sentence under a question is, and so is a name that is asked for."""
    question = "What happens to a dirty socket?"
    body = "What happens to a dirty socket?\n\nA dirty socket is closed."
    answer = compose(question, ["dirty", "socket"], [_hit("faq.md", body)])
    assert [each.text for each in answer.citations] == ["A dirty socket is closed."]
    named = compose("Dirty socket", ["dirty", "socket"], [_hit("a.md", "A dirty socket is closed.")])
    assert len(named.citations) == 1


def test_a_long_sentence_is_shortened() -> None:
    """A quote has at most 400 characters."""
    answer = compose("?", ["socket"], [_hit("a.md", "socket " * 200)])
    assert len(answer.citations[0].text) <= 400


def test_sentences_know_their_lines() -> None:
    """Sentences run over lines; list items and table rows are their own; headers and rules of tables are none."""
    body = "One. Two goes\non. Three.\n\n- item\n- item two\n\n| a | b |\n|---|---|\n| c | d |"
    assert sentences(body) == [
        (0, "One."), (0, "Two goes on."), (1, "Three."), (3, "- item"), (4, "- item two"), (8, "| c | d |"),
    ]  # fmt: skip


def test_source_has_a_sentence_for_each_line() -> None:
    """Lines of source are not joined."""
    assert sentences("def f():\n    return 1", prose=False) == [(0, "def f():"), (1, "return 1")]


def test_timed_out_answers_to_timeout() -> None:
    """Who asks about a timeout is told what happens to a socket that "timed out"; the search looks for it too."""
    hits = [_hit("a.md", "A socket is watched."), _hit("b.md", "A socket that timed out is closed.")]
    assert compose("?", ["socket", "timeout"], hits).citations[0].path == "b.md"
    assert '"timed out"' in match_expression(["timeout"])
