"""Rows: tuples that know their columns."""

import pickle

import pytest

from app.pools.sql_pool.rows import row_class


def test_a_row_is_a_tuple() -> None:
    """Equality, unpacking, slices and length are a tuple's."""
    row = row_class(("id", "name"))((1, "ada"))

    assert row == (1, "ada")
    assert (*row, len(row), row[-1:]) == (1, "ada", 2, ("ada",))


def test_a_column_wins_over_a_method_of_tuple() -> None:
    """A column named count is the column."""
    row = row_class(("count", "index"))((3, 4))

    assert (row.count, row.index) == (3, 4)


def test_a_row_becomes_a_mapping() -> None:
    """From the columns' names to their values."""
    assert row_class(("id", "name"))((1, "ada"))._asdict() == {"id": 1, "name": "ada"}


def test_a_name_that_is_used_twice_means_the_first() -> None:
    """The second is reached by position."""
    row = row_class(("id", "id", "a b"))((1, 2, 3))

    assert (row.id, row["id"], row[1], row["a b"]) == (1, 1, 2, 3)
    assert row._asdict() == {"id": 1, "a b": 3}


def test_an_unknown_column_is_an_error_that_lists_the_columns() -> None:
    """KeyError and AttributeError say what there is."""
    row = row_class(("id", "name"))((1, "ada"))

    with pytest.raises(KeyError, match="the columns are id, name"):
        row["nmae"]
    with pytest.raises(AttributeError, match="the columns are id, name"):
        row.nmae  # noqa: B018


def test_a_row_survives_pickling() -> None:
    """Rows cross process borders with their names."""
    row = pickle.loads(pickle.dumps(row_class(("id", "name"))((1, "ada"))))

    assert (row.id, row.name, repr(row)) == (1, "ada", "Row(id=1, name='ada')")
