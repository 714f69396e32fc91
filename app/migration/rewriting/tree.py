"""A source file as a concrete syntax tree, in which everything that is not touched keeps its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from app.migration.sites import Site

N = TypeVar("N", bound=cst.CSTNode)
Change: TypeAlias = Callable[[Any], Any]


class Refused(Exception):
    """A site cannot be rewritten safely. The message says why, to the person who will do it by hand."""


class Box:
    """Where a node of the tree is after the change, which ``Edits.follow`` fills in."""

    node: cst.CSTNode | None = None


class Edits(cst.CSTTransformer):
    """Changes to nodes of a tree, applied from the leaves up; a change gets its node with its children changed."""

    def __init__(self) -> None:
        super().__init__()
        self._changes: dict[int, list[Change]] = {}
        self._nodes: list[cst.CSTNode] = []  # kept alive, because a dead node's id may be given again

    def on(self, node: cst.CSTNode, change: Change) -> None:
        """Apply ``change`` to ``node``: it returns the new node, several, or the word to remove it."""
        self._nodes.append(node)
        self._changes.setdefault(id(node), []).append(change)

    def replace(self, node: cst.CSTNode, new: cst.CSTNode | cst.FlattenSentinel[Any]) -> None:
        """Put ``new`` in the place of ``node``."""
        self.on(node, lambda _: new)

    def remove(self, node: cst.CSTNode) -> None:
        """Take ``node``, a statement, away; a block left empty holds ``pass``."""
        self.on(node, lambda _: cst.RemoveFromParent())

    def follow(self, node: cst.CSTNode) -> Box:
        """Return a box that holds ``node`` as it is when its block is changed."""
        box = Box()

        def note(updated: Any) -> Any:
            box.node = updated if isinstance(updated, cst.CSTNode) else next(iter(updated), None)
            return updated

        self.on(node, note)
        return box

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        """Apply the changes of a node."""
        result = updated_node
        for change in self._changes.get(id(original_node), ()):
            if isinstance(result, cst.RemovalSentinel):
                break
            result = change(result)
        return result


class Source:
    """One file's tree, with positions and parents.

    Args:
        text: the source.
        others: returns the sources of the other files of the code base.

    Raises:
        libcst.ParserSyntaxError: it does not parse.
    """

    def __init__(self, text: str, others: Callable[[], Sequence[str]] = tuple) -> None:
        self.text = text
        self.others = others
        wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
        self.module = wrapper.module
        self._lines = text.split("\n")
        self._parents: dict[int, cst.CSTNode] = {}
        self._calls: dict[tuple[int, int], list[cst.Call]] = {}
        positions = wrapper.resolve(PositionProvider)
        for node in self._walk(self.module):
            if isinstance(node, cst.Call):
                start = positions[node].start
                self._calls.setdefault((start.line, start.column), []).append(node)
        self.imports = _imports(self.module)

    def _walk(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        yield node
        for child in node.children:
            self._parents[id(child)] = node
            yield from self._walk(child)

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """Return the node around ``node``."""
        return self._parents.get(id(node))

    def around(self, node: cst.CSTNode, kind: type[N]) -> N | None:
        """Return the nearest node of ``kind`` around ``node``."""
        parent = self.parent(node)
        while parent is not None and not isinstance(parent, kind):
            parent = self.parent(parent)
        return parent

    def call(self, site: Site) -> cst.Call:
        """Return the call of a site; of several chained into one expression, the one that is meant."""
        line = self._lines[site.line - 1]
        column = len(line.encode()[: site.column - 1].decode("utf-8", "ignore"))
        calls = self._calls.get((site.line, column), [])
        terminal = site.library.rpartition(".")[2]
        matching = [call for call in calls if dotted(call.func).rpartition(".")[2] == terminal] or calls[-1:]
        if not matching:
            raise Refused("the call was not found in the tree")
        return matching[-1]

    def function(self, node: cst.CSTNode) -> cst.FunctionDef:
        """Return the function around ``node``. Raises ``Refused`` at module level and in a lambda."""
        if self.around(node, cst.Lambda) is not None:
            raise Refused("inside a lambda")
        function = self.around(node, cst.FunctionDef)
        if function is None:
            raise Refused("at module level: build it where it is used, or name it in poolwire.toml")
        return function

    def owner(self, function: cst.FunctionDef) -> cst.ClassDef | None:
        """Return the class whose method ``function`` is. Raises ``Refused`` for a function in a function."""
        block = self.parent(function)
        around = self.parent(block) if block is not None else None
        if isinstance(around, cst.ClassDef):
            if self.around(around, cst.FunctionDef) is not None:
                raise Refused("in a class that is made by a function")
            return around
        if self.around(function, cst.FunctionDef) is not None:
            raise Refused("in a function within a function, which cannot be injected")
        return None

    def origin(self, node: cst.BaseExpression) -> str:
        """Return the module path that a dotted name means through the file's imports."""
        head, _, rest = dotted(node).partition(".")
        path = self.imports.get(head, head)
        return f"{path}.{rest}" if rest else path

    def statement(self, node: cst.CSTNode) -> tuple[cst.SimpleStatementLine, cst.BaseSmallStatement]:
        """Return the line and the small statement around ``node``. Raises ``Refused`` if a line has several."""
        line = self.around(node, cst.SimpleStatementLine)
        if line is None or len(line.body) != 1:
            raise Refused("in a statement that shares its line, or heads a block")
        return line, line.body[0]

    def block(self, line: cst.CSTNode) -> cst.IndentedBlock:
        """Return the block that a statement is directly in."""
        block = self.parent(line)
        if not isinstance(block, cst.IndentedBlock):
            raise Refused("not in an indented block")
        return block


def _imports(module: cst.Module) -> dict[str, str]:
    found: dict[str, str] = {}

    class Imports(cst.CSTVisitor):
        def visit_Import(self, node: cst.Import) -> None:
            for alias in node.names:
                name = dotted(alias.name)
                if alias.asname is not None:
                    found[dotted(alias.asname.name)] = name
                else:
                    top = name.partition(".")[0]
                    found[top] = top

        def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
            if isinstance(node.names, cst.ImportStar):
                return
            base = "." * len(node.relative) + (dotted(node.module) if node.module is not None else "")
            for alias in node.names:
                name = dotted(alias.asname.name) if alias.asname is not None else dotted(alias.name)
                found[name] = f"{base}.{dotted(alias.name)}"

    module.visit(Imports())
    return found


def dotted(node: cst.CSTNode) -> str:
    """Return ``a.b.c`` for that chain of names, else the last name known with what is before it left out."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr.value}" if before else f".{node.attr.value}"
    return ""


def names_in(node: cst.CSTNode) -> Iterator[cst.Name]:
    """Yield the names read or bound in ``node``; attributes' and keywords' names are none."""
    if isinstance(node, cst.Name):
        yield node
        return
    skipped: cst.CSTNode | None = None
    if isinstance(node, cst.Attribute):
        skipped = node.attr
    elif isinstance(node, cst.Arg):
        skipped = node.keyword
    for child in node.children:
        if child is not skipped:
            yield from names_in(child)


def mentions(node: cst.CSTNode | Sequence[cst.CSTNode], name: str) -> bool:
    """Whether ``name`` is read or bound in a node, or in one of several."""
    nodes = [node] if isinstance(node, cst.CSTNode) else node
    return any(found.value == name for each in nodes for found in names_in(each))


def free_name(function: cst.FunctionDef, *names: str) -> str:
    """Return the first of ``names`` that the function does not use. Raises ``Refused`` if it uses them all."""
    for name in names:
        if not mentions(function, name):
            return name
    raise Refused(f"the names {', '.join(names)} are taken in the function")


def nodes_in(node: cst.CSTNode, kind: type[N]) -> Iterator[N]:
    """Yield the nodes of ``kind`` in ``node``, itself included."""
    if isinstance(node, kind):
        yield node
    for child in node.children:
        yield from nodes_in(child, kind)


def method_call(statement: cst.CSTNode) -> tuple[str, str, cst.Call] | None:
    """Return ``(receiver, method, call)`` of a statement that is only ``receiver.method(...)``."""
    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1:
        return None
    expression = statement.body[0]
    if not isinstance(expression, cst.Expr) or not isinstance(expression.value, cst.Call):
        return None
    call = expression.value
    if not isinstance(call.func, cst.Attribute):
        return None
    return dotted(call.func.value), call.func.attr.value, call


def assigned(statement: cst.CSTNode) -> tuple[str, cst.BaseExpression] | None:
    """Return ``(target, value)`` of a statement that assigns to one name or attribute."""
    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1:
        return None
    small = statement.body[0]
    if isinstance(small, cst.Assign) and len(small.targets) == 1:
        return dotted(small.targets[0].target), small.value
    if isinstance(small, cst.AnnAssign) and small.value is not None:
        return dotted(small.target), small.value
    return None


def code(node: cst.CSTNode) -> str:
    """Return the source of a node."""
    return cst.Module(body=()).code_for_node(node)


def expression(text: str) -> cst.BaseExpression:
    """Return the tree of an expression."""
    return cst.parse_expression(text)


def statement(text: str) -> cst.SimpleStatementLine:
    """Return the tree of a simple statement."""
    parsed = cst.parse_statement(text)
    assert isinstance(parsed, cst.SimpleStatementLine)
    return parsed


def position_of(body: Sequence[cst.CSTNode], *boxes: Box) -> int:
    """Return where the first followed node is that is still in a changed block; behind its end if none is."""
    for box in boxes:
        for index, each in enumerate(body):
            if each is box.node:
                return index
    return len(body)
