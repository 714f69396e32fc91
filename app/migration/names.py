"""Names and scopes of one file: which symbols an expression may stand for."""

from __future__ import annotations

import ast
from collections.abc import Iterable

_LONGEST_SYMBOL = 160
_MOST_SYMBOLS = 6

# Calls that hand back what they were given.
_TRANSPARENT = frozenset({
    "contextlib.closing", "contextlib.aclosing", "functools.partial", "asyncio.wait_for", "asyncio.shield",
    "copy.copy", "weakref.proxy", "cast",
})  # fmt: skip
_TRANSPARENT_METHODS = frozenset({"enter_context", "enter_async_context", "push_async_exit"})
_OPTIONAL = frozenset({"Optional", "Annotated", "Final", "ClassVar", "Union"})


class Scope:
    """A module, a class body or a function, and what its names stand for.

    Attributes:
        kind: ``module``, ``class`` or ``function``.
        name: the qualified name; ``""`` for a module.
        owner: the qualified name of the class whose method this is, or ``""``.
        bound: the symbols of each name; a name that is present without symbols hides the outer ones.
    """

    __slots__ = ("bound", "kind", "name", "owner", "parent", "shared")

    def __init__(self, kind: str, name: str, parent: Scope | None, owner: str = "") -> None:
        self.kind = kind
        self.name = name
        self.parent = parent
        self.owner = owner
        self.bound: dict[str, list[str]] = {}
        self.shared: set[str] = set()

    def bind(self, name: str, symbols: Iterable[str]) -> None:
        """Let ``name`` also stand for ``symbols``."""
        if name in self.shared:
            self.module.bind(name, symbols)
            return
        known = self.bound.setdefault(name, [])
        for symbol in symbols:
            if symbol not in known and len(known) < _MOST_SYMBOLS:
                known.append(symbol)

    @property
    def module(self) -> Scope:
        """The outermost scope."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def look_up(self, name: str) -> list[str]:
        """Return what ``name`` may stand for here; ``*name`` if nothing in the file binds it."""
        scope: Scope | None = self
        while scope is not None:
            if (scope is self or scope.kind != "class") and name in scope.bound and name not in scope.shared:
                if scope.kind == "module":
                    return self._global(name, scope.bound[name])
                return scope.bound[name]
            scope = scope.parent
        return [f"*{name}"]

    @staticmethod
    def _global(name: str, symbols: list[str]) -> list[str]:
        # What a module imports is settled when functions run; what it assigns may still change.
        if symbols and all(symbol[0] not in ":*" and not symbol.endswith("()") for symbol in symbols):
            return symbols
        return [f":{name}"]

    def holder(self, name: str) -> Scope | None:
        """Return the function or module whose variable ``name`` is, as seen from here."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.shared:
                return self.module
            if name in scope.bound and (scope is self or scope.kind != "class"):
                return scope
            scope = scope.parent
        return None


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` for that chain of names, else ``""``."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts.append(node.id)
    return ".".join(reversed(parts))


def symbols_of(node: ast.expr | None, scope: Scope) -> list[str]:
    """Return the symbols that the value of ``node`` may have; none if that cannot be told."""
    kind = node.__class__
    if kind is ast.Name:
        return scope.look_up(node.id)  # type: ignore[union-attr]
    if kind is ast.Attribute:
        assert isinstance(node, ast.Attribute)
        suffix = f".{node.attr}"
        return [symbol + suffix for symbol in symbols_of(node.value, scope) if len(symbol) < _LONGEST_SYMBOL]
    if kind is ast.Call:
        assert isinstance(node, ast.Call)
        return _call_symbols(node, scope)
    if isinstance(node, ast.Await):
        return symbols_of(node.value, scope)
    if isinstance(node, ast.BoolOp):
        return _union(node.values, scope)
    if isinstance(node, ast.IfExp):
        return _union((node.body, node.orelse), scope)
    if isinstance(node, ast.NamedExpr):
        return symbols_of(node.value, scope)
    return []


def _union(nodes: Iterable[ast.expr], scope: Scope) -> list[str]:
    found: list[str] = []
    for node in nodes:
        found.extend(symbol for symbol in symbols_of(node, scope) if symbol not in found)
    return found[:_MOST_SYMBOLS]


def _call_symbols(node: ast.Call, scope: Scope) -> list[str]:
    function = node.func
    arguments = node.args
    if isinstance(function, ast.Name):
        name = function.id
        if name == "super":
            return [f":{scope.owner}()"] if scope.owner else []
        if name == "getattr" and len(arguments) >= 2:
            return _attribute_by_text(arguments[0], arguments[1], scope)
        if name in ("__import__", "import_module") and arguments:
            return _module_by_text(arguments[0])
    elif isinstance(function, ast.Attribute):
        if function.attr == "import_module" and arguments:
            return _module_by_text(arguments[0])
        if function.attr in _TRANSPARENT_METHODS and arguments:
            return symbols_of(arguments[0], scope)
        if function.attr == "__enter__":
            return symbols_of(function.value, scope)
    called = symbols_of(function, scope)
    if arguments and any(symbol in _TRANSPARENT or symbol.lstrip("*") in _TRANSPARENT for symbol in called):
        position = 1 if any(symbol.endswith("cast") for symbol in called) and len(arguments) > 1 else 0
        return symbols_of(arguments[position], scope)
    return [f"{symbol}()" for symbol in called if len(symbol) < _LONGEST_SYMBOL]


def _attribute_by_text(value: ast.expr, name: ast.expr, scope: Scope) -> list[str]:
    if isinstance(name, ast.Constant) and isinstance(name.value, str) and name.value.isidentifier():
        return [f"{symbol}.{name.value}" for symbol in symbols_of(value, scope)]
    return []


def _module_by_text(name: ast.expr) -> list[str]:
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return [name.value]
    return []


def instances_of(annotation: ast.expr | None, scope: Scope) -> list[str]:
    """Return the symbols of a value so annotated: ``zmq.Context()`` for ``Optional["zmq.Context"]``."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        if not all(part.isidentifier() for part in annotation.value.split(".")):
            return []
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.Subscript):
        if dotted(annotation.value).rpartition(".")[2] not in _OPTIONAL:
            return []
        inner = annotation.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        return [symbol for part in parts for symbol in instances_of(part, scope)]
    if isinstance(annotation, ast.BinOp):
        return instances_of(annotation.left, scope) + instances_of(annotation.right, scope)
    if isinstance(annotation, (ast.Name, ast.Attribute)):
        return [f"{symbol}()" for symbol in symbols_of(annotation, scope)]
    return []
