"""What is found out about SQL texts is kept, but not without bounds."""

from app.pools.sql_pool import findings
from app.pools.sql_pool.findings import once_for_each
from app.pools.sql_pool.statements import preparer


def test_a_text_is_looked_at_once() -> None:
    """Each short text is looked at when it comes first, and found again afterwards."""
    looked: list[str] = []

    @once_for_each
    def length_of(sql: str) -> int:
        looked.append(sql)
        return len(sql)

    assert [1, 2, 1, 2] == [length_of(sql) for sql in ("a", "bb", "a", "bb")]
    assert ["a", "bb"] == looked
    assert preparer("numeric")("SELECT ?") is preparer("numeric")("SELECT ?")


def test_neither_long_texts_nor_many_are_kept() -> None:
    """A text of some kilobytes is looked at each time, and of the short ones the oldest are forgotten."""
    kept = findings._Findings(len)
    long = "x" * 100_000
    assert [100_000, 100_000] == [kept[long], kept[long]]
    assert long not in kept
    for number in range(findings._MOST + 10):
        kept[str(number)]

    assert len(kept) == findings._MOST
    assert "0" not in kept
    assert str(findings._MOST) in kept
    assert preparer("format")(f"SELECT '{long}'") is not preparer("format")(f"SELECT '{long}'")
