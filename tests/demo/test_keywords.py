"""Finding keywords."""

from app.demo.keywords import Keyword, keywords, tokens


def test_recurring_phrases_come_first() -> None:
    """A phrase that recurs scores above its words alone and above what occurs once."""
    text = "The connection pool lends. A connection pool waits; the connection pool closes. One timeout."
    found = keywords(tokens(text))
    assert found[0].phrase.removesuffix(" lends").removesuffix(" waits").removesuffix(" closes") == "connection pool"
    assert "timeout" in {each.phrase for each in found}


def test_stop_words_and_signs_end_a_phrase() -> None:
    """Words without a subject, numbers and punctuation stand between phrases, never in them."""
    assert {"socket", "timeout", "server"} == {
        each.phrase for each in keywords(tokens("socket, timeout 7 and the server"))
    }


def test_identifiers_are_read_as_words() -> None:
    """The parts of a snake_case name are words of a phrase; the keywords of a language are none."""
    assert [Keyword("writer lock", 4.0)] == keywords(tokens("def writer_lock(self): return"))


def test_limit_and_order_are_stable() -> None:
    """At most the limit is returned, and equal scores are in the order of the alphabet."""
    text = "gamma. alpha. beta. delta."
    assert [each.phrase for each in keywords(tokens(text), limit=3)] == ["alpha", "beta", "delta"]


def test_a_text_without_subjects_has_no_keywords() -> None:
    """Nothing but stop words, or nothing at all, has no keywords."""
    assert keywords(tokens("and so it is, for him")) == []
    assert keywords(tokens("")) == []
