"""Rows: tuples that also answer by the column's name."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, ClassVar, SupportsIndex


class Row(tuple[Any, ...]):
    """One row of a result: a tuple, and ``row["name"]`` and ``row.name`` besides.

    Where two columns have the same name, the name means the first. A name that is no identifier, or that
    starts with an underscore, is reached by ``row["..."]`` only.
    """

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()
    _positions: ClassVar[dict[str, int]] = {}

    def __getitem__(self, key: Any) -> Any:
        if key.__class__ is str:
            try:
                return tuple.__getitem__(self, self._positions[key])
            except KeyError:
                raise KeyError(f"{key!r}; the columns are {', '.join(self._fields)}") from None
        return tuple.__getitem__(self, key)

    def __getattr__(self, name: str) -> Any:
        # Reached only when the class has no such attribute: its columns are properties of the class.
        raise AttributeError(f"the row has no column {name!r}; the columns are {', '.join(self._fields)}")

    def _asdict(self) -> dict[str, Any]:
        """Return the row as a mapping from column name to value."""
        return {name: self[position] for name, position in self._positions.items()}

    def __repr__(self) -> str:
        return f"Row({', '.join(f'{name}={value!r}' for name, value in zip(self._fields, self, strict=True))})"

    def __reduce__(self) -> tuple[Callable[..., Row], tuple[tuple[str, ...], tuple[Any, ...]]]:
        return _rebuild, (self._fields, tuple(self))


@lru_cache(maxsize=1024)
def row_class(names: tuple[str, ...]) -> type[Row]:
    """Return the class of the rows whose columns have these names."""
    positions: dict[str, int] = {}
    for position, name in enumerate(names):
        positions.setdefault(name, position)
    columns = {
        name: property(_column(position))
        for name, position in positions.items()
        if name.isidentifier() and not name.startswith("_")
    }
    return type("Row", (Row,), {"__slots__": (), "_fields": names, "_positions": positions, **columns})


def _column(position: SupportsIndex) -> Callable[[Row], Any]:
    take = tuple.__getitem__

    def column(row: Row) -> Any:
        return take(row, position)

    return column


_classes: dict[Hashable, type[Row]] = {}
_MOST_CLASSES = 4096


def row_class_of(shape: Hashable, cursor: Any) -> type[Row]:
    """Return the class of a result's rows.

    Args:
        shape: tells the result's columns from others', and is had for less than their names.
        cursor: the DBAPI cursor with the result, which is asked for the names of a new shape.
    """
    found = _classes.get(shape)
    if found is None:
        found = row_class(tuple([column[0] for column in cursor.description]))
        if len(_classes) < _MOST_CLASSES:
            _classes[shape] = found
    return found


def _rebuild(names: tuple[str, ...], values: tuple[Any, ...]) -> Row:
    return row_class(names)(values)
