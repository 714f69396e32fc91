"""The statements during which a local connection is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import libcst as cst

from app.migration.rewriting.tree import Edits, Refused, Source, mentions, method_call, names_in, nodes_in, position_of


@dataclass(slots=True)
class Region:
    """A local name, the block in which it is opened, and the statements from there to where it is closed.

    ``start`` is the index of the statement that opens it, -1 if the block's header does; ``end`` the index behind the
    last one that needs it.
    """

    name: str
    function: cst.FunctionDef
    block: cst.IndentedBlock
    start: int
    end: int

    @property
    def body(self) -> Sequence[cst.BaseStatement]:
        """The statements between."""
        return self.block.body[self.start + 1 : self.end]


def find(source: Source, line: cst.SimpleStatementLine, name: str) -> Region:
    """Return the region of ``name``, opened by ``line``. Raises ``Refused`` if it is not known where it ends."""
    block = source.block(line)
    function = source.function(line)
    start = block.body.index(line)
    end = start + 1
    for position in range(start + 1, len(block.body)):
        if mentions(block.body[position], name):
            end = position + 1
    _check_bindings(function, name)
    region = Region(name, function, block, start, end)
    _grow_to_dependents(region)
    inside = sum(1 for each in region.body for found in names_in(each) if found.value == name)
    everywhere = [found for found in names_in(function.body) if found.value == name]
    outside = len(everywhere) - inside - 1
    if outside != len(_harmless(source, function, region)):
        raise Refused(f"`{name}` is also used outside the block that opens it")
    return region


def of_block(source: Source, function: cst.FunctionDef, with_: cst.With, name: str) -> Region:
    """Return the body of a ``with`` block as the region of the name it binds. Raises ``Refused`` like ``find``."""
    assert isinstance(with_.body, cst.IndentedBlock)
    _check_bindings(function, name)
    region = Region(name, function, with_.body, -1, len(with_.body.body))
    inside = sum(1 for each in region.body for found in names_in(each) if found.value == name)
    everywhere = sum(1 for found in names_in(function.body) if found.value == name)
    if everywhere - inside - 1 != len(_harmless(source, function, region)):
        raise Refused(f"`{name}` is also used outside the block that opens it")
    return region


def _check_bindings(function: cst.FunctionDef, name: str) -> None:
    targets = [target for target in nodes_in(function.body, cst.AssignTarget) if name in _bound_by(target.target)]
    real = [target for target in targets if not _is_none(function, target)]
    if len(real) > 1:
        raise Refused(f"`{name}` is assigned more than once")
    for nested in (*nodes_in(function.body, cst.FunctionDef), *nodes_in(function.body, cst.Lambda)):
        if mentions(nested, name):
            raise Refused(f"`{name}` is used by a function within the function")
    scopes: list[cst.Global | cst.Nonlocal] = [
        *nodes_in(function.body, cst.Global),
        *nodes_in(function.body, cst.Nonlocal),
    ]
    if any(item.name.value == name for scope in scopes for item in scope.names):
        raise Refused(f"`{name}` is not local")


def _bound_by(target: cst.BaseExpression) -> set[str]:
    if isinstance(target, cst.Name):
        return {target.value}
    if isinstance(target, (cst.Tuple, cst.List)):
        return {name for element in target.elements for name in _bound_by(element.value)}
    return set()


def _is_none(function: cst.FunctionDef, target: cst.AssignTarget) -> bool:
    for assign in nodes_in(function.body, cst.Assign):
        if any(each is target for each in assign.targets):
            return isinstance(assign.value, cst.Name) and assign.value.value == "None"
    return False


def _grow_to_dependents(region: Region) -> None:
    """Names bound to something of the connection (cursors, rows being read) need it open as long as they are used."""
    dependents: set[str] = set()
    for statement in region.body:
        for assign in nodes_in(statement, cst.Assign):
            if mentions(assign.value, region.name):
                dependents.update(found.value for target in assign.targets for found in names_in(target))
    for position in range(region.end, len(region.block.body)):
        if _reads_from_cursor(region.block.body[position], dependents):
            region.end = position + 1


def _reads_from_cursor(statement: cst.CSTNode, names: set[str]) -> bool:
    for attribute in nodes_in(statement, cst.Attribute):
        of_cursor = isinstance(attribute.value, cst.Name) and attribute.value.value in names
        if of_cursor and attribute.attr.value.startswith(("fetch", "execute")):
            return True
    return any(
        isinstance(loop.iter, cst.Name) and loop.iter.value in names and loop.iter.value.startswith("cur")
        for loop in nodes_in(statement, cst.For)
    )


def closings(node: cst.CSTNode, name: str, methods: frozenset[str]) -> list[cst.SimpleStatementLine]:
    """Return the statements in ``node`` that only close ``name``."""
    found = []
    for line in nodes_in(node, cst.SimpleStatementLine):
        call = method_call(line)
        if call is not None and call[0] == name and call[1] in methods:
            found.append(line)
    return found


_CLOSES = frozenset({"close", "term", "destroy"})


def _harmless(source: Source, function: cst.FunctionDef, region: Region) -> list[cst.Name]:
    """Return the mentions outside the region that go away with it: ``x = None``, ``x.close()``, ``if x:`` around it."""
    names: list[cst.Name] = []
    inside = {id(found) for each in region.body for found in names_in(each)}
    for line in nodes_in(function.body, cst.SimpleStatementLine):
        if region.start >= 0 and line is region.block.body[region.start]:
            continue
        call = method_call(line)
        closes = call is not None and call[0] == region.name and call[1] in _CLOSES
        if closes or _assigns_none(line, region.name):
            names.extend(found for found in names_in(line) if found.value == region.name)
    for branch in nodes_in(function.body, cst.If):
        if guards_only_closing(branch, region.name):
            names.extend(found for found in names_in(branch.test) if found.value == region.name)
    return [found for found in names if id(found) not in inside]


def _assigns_none(line: cst.SimpleStatementLine, name: str) -> bool:
    small = line.body[0] if len(line.body) == 1 else None
    return (
        isinstance(small, cst.Assign)
        and isinstance(small.value, cst.Name)
        and small.value.value == "None"
        and all(isinstance(target.target, cst.Name) and target.target.value == name for target in small.targets)
    )


def guards_only_closing(branch: cst.If, name: str) -> bool:
    """Whether an ``if`` about ``name`` holds nothing but its closing."""
    if branch.orelse is not None or not mentions(branch.test, name) or not isinstance(branch.body, cst.IndentedBlock):
        return False
    calls = [method_call(each) for each in branch.body.body]
    return all(call is not None and call[0] == name and call[1] in _CLOSES for call in calls)


def drop_closings(edits: Edits, region: Region) -> None:
    """Remove every closing of the region's name in its function, with the ``if`` and ``finally`` left empty by it."""
    removed: set[int] = set()
    for branch in nodes_in(region.function.body, cst.If):
        if guards_only_closing(branch, region.name):
            edits.remove(branch)
            removed.add(id(branch))
    for line in closings(region.function.body, region.name, _CLOSES):
        edits.remove(line)
        removed.add(id(line))
    for line in nodes_in(region.function.body, cst.SimpleStatementLine):
        if _assigns_none(line, region.name):
            edits.remove(line)
            removed.add(id(line))
    drop_empty_finallies(edits, region.function, removed)


def drop_empty_branches(edits: Edits, node: cst.CSTNode, removed: set[int]) -> None:
    """Remove each ``if`` without ``else`` all of whose statements are removed, and note it among them."""
    for branch in nodes_in(node, cst.If):
        plain = branch.orelse is None and not any(True for _ in nodes_in(branch.test, cst.Await))
        if plain and all(id(each) in removed for each in branch.body.body):
            edits.remove(branch)
            removed.add(id(branch))


def drop_empty_finallies(edits: Edits, function: cst.FunctionDef, removed: set[int]) -> None:
    """Remove the ``finally`` clauses all of whose statements are removed, and a ``try`` that only had that."""
    for attempt in nodes_in(function.body, cst.Try):
        finally_ = attempt.finalbody
        if finally_ is None or not all(id(each) in removed for each in finally_.body.body):
            continue
        if attempt.handlers:
            edits.on(attempt, lambda updated: updated.with_changes(finalbody=None))
        else:
            edits.on(attempt, _without_try)


def _without_try(attempt: cst.Try) -> cst.FlattenSentinel[cst.CSTNode]:
    first, *rest = attempt.body.body
    lines = (*attempt.leading_lines, *getattr(first, "leading_lines", ()))
    return cst.FlattenSentinel([first.with_changes(leading_lines=lines), *rest])


def check_uses(region: Region, allowed: Callable[[str, cst.CSTNode], str | None], source: Source) -> None:
    """Raise ``Refused`` if the name is used other than as the receiver of allowed methods.

    Args:
        allowed: gets a method's or attribute's name and the node around; returns why it is not allowed, or ``None``.
    """
    for statement in region.body:
        for found in names_in(statement):
            if found.value != region.name:
                continue
            parent = source.parent(found)
            if isinstance(parent, cst.Attribute) and parent.value is found:
                reason = allowed(parent.attr.value, parent)
            else:
                reason = allowed("", parent if parent is not None else found)
            if reason:
                raise Refused(reason)


def no_generator(function: cst.FunctionDef) -> None:
    """Raise ``Refused`` for a generator, which would hold the lease while it is suspended."""
    if any(True for _ in nodes_in(function.body, cst.Yield)):
        raise Refused("in a generator, which would hold the lease while it is suspended")


def wrap(edits: Edits, region: Region, header: str, first: str) -> None:
    """Put the region's statements into ``with header:``, in the place of the statement that opened it.

    Args:
        header: the text between ``with`` and the colon.
        first: a statement to begin the block with.
    """
    opening = region.block.body[region.start]
    box = edits.follow(opening)
    after = [edits.follow(each) for each in region.block.body[region.end :]]

    def change(block: cst.IndentedBlock) -> cst.IndentedBlock:
        start = position_of(block.body, box)
        end = position_of(block.body, *after)
        inner = list(block.body[start + 1 : end])
        inner.insert(0, cst.parse_statement(first))
        template = cst.parse_statement(f"with {header}:\n    pass\n")
        assert isinstance(template, cst.With)
        old = block.body[start]
        lines = old.leading_lines if isinstance(old, cst.SimpleStatementLine) else ()
        footer = template.body.footer if isinstance(template.body, cst.IndentedBlock) else ()
        with_ = template.with_changes(leading_lines=lines, body=cst.IndentedBlock(body=inner, footer=footer))
        return block.with_changes(body=[*block.body[:start], with_, *block.body[end:]])

    edits.on(region.block, change)
