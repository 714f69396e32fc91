"""libzmq's socket options: which names exist, what type each takes, and which are set by other means."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import zmq

from app.pools.core.redaction import redact_mapping
from app.pools.errors import ConfigError

OptionValue: TypeAlias = "int | bytes"

_READ_ONLY = frozenset(
    {"EVENTS", "FD", "LAST_ENDPOINT", "MECHANISM", "METADATA", "RCVMORE", "THREAD_SAFE", "TYPE"}
)  # fmt: skip

_ELSEWHERE = {
    "SUBSCRIBE": "topics=",
    "UNSUBSCRIBE": "topics=",
    "CURVE_SERVER": "curve=CurveServer(...)",
    "CURVE_PUBLICKEY": "curve=CurveClient(...)",
    "CURVE_SECRETKEY": "curve=CurveClient(...)",
    "CURVE_SERVERKEY": "curve=CurveClient(...)",
}

# pyzmq also knows options of other libzmq builds and old spellings; an option counts if this build takes it.
_TYPES: dict[str, str] = {option.name: option._opt_type.name for option in zmq.SocketOption}


class Options(Mapping[str, OptionValue]):
    """Validated socket options: immutable, hashable, and in one order, so that they can be part of a key."""

    __slots__ = ("_items",)

    def __init__(self, options: Mapping[str | int, int | bool | bytes | str] | None = None) -> None:
        if not isinstance(options or {}, Mapping):
            raise ConfigError(f"options takes a mapping of names to values, not {type(options).__name__}: {options!r}")
        checked = dict(_checked(name, value) for name, value in (options or {}).items())
        self._items = tuple(sorted(checked.items()))

    def __getitem__(self, name: str) -> OptionValue:
        return dict(self._items)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._items)

    def __eq__(self, other: object) -> bool:
        return self._items == other._items if isinstance(other, Options) else NotImplemented

    def __repr__(self) -> str:
        return repr(redact_mapping(dict(self._items)))


def _checked(name: str | int, value: int | bool | bytes | str) -> tuple[str, OptionValue]:
    known = _name(name)
    if known in _ELSEWHERE:
        raise ConfigError(f"the ZMQ option {known} is given as SocketConfig(..., {_ELSEWHERE[known]})")
    if known in _READ_ONLY:
        raise ConfigError(f"the ZMQ option {known} can be read but not set")
    if _TYPES[known] == "bytes":
        if isinstance(value, str):
            return known, value.encode()
        if isinstance(value, bytes):
            return known, value
        raise ConfigError(f"the ZMQ option {known} takes bytes or str, not {type(value).__name__}")
    if not isinstance(value, int):
        raise ConfigError(f"the ZMQ option {known} takes an int, not {type(value).__name__}: {value!r}")
    most = 2**63 - 1 if _TYPES[known] == "int64" else 2**31 - 1
    if not -most <= value <= most:
        raise ConfigError(f"the ZMQ option {known} takes an int up to {most}, not {value}")
    return known, int(value)


def _name(name: str | int) -> str:
    """Return the option's name as libzmq spells it. Raises ``ConfigError`` that says the nearest one."""
    if isinstance(name, int):
        try:
            return zmq.SocketOption(name).name
        except ValueError:
            raise ConfigError(f"{name} is not the number of a ZMQ socket option") from None
    if not isinstance(name, str):
        raise ConfigError(f"{name!r} is not the name of a ZMQ socket option")
    upper = name.upper().removeprefix("ZMQ_")
    if upper in _TYPES:
        return upper
    nearest = difflib.get_close_matches(upper, _TYPES, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(f"there is no ZMQ socket option {name!r}{hint}")
