"""ZMQ contexts: one of an object's own becomes the injected pool's."""

from __future__ import annotations

import libcst as cst

from app.migration.rewriting import regions
from app.migration.rewriting.injection import require_pool, self_name
from app.migration.rewriting.tree import (
    Edits,
    Refused,
    Source,
    assigned,
    code,
    dotted,
    method_call,
    nodes_in,
    statement,
)
from app.migration.sites import Site

ENDS_CONTEXT = frozenset({"term", "destroy"})
"""The methods that end a context."""


def own_context(source: Source, site: Site) -> cst.Module:
    """``self.context = zmq.Context()``: the injected pool's context instead, which nobody here terminates."""
    call = source.call(site)
    function = source.function(call)
    owner = source.owner(function)
    check_synchronous(source, call)
    if owner is None:
        raise Refused("a context of a function: a person decides who may share it")
    line, _ = source.statement(call)
    target = assigned(line)
    if target is None or target[1] is not call:
        raise Refused("the context is not simply assigned")
    itself = self_name(function)
    name = target[0]
    if not name.startswith(f"{itself}.") or name.count(".") != 1:
        raise Refused("the context is not kept in an attribute of the object")
    edits = Edits()
    _drop_termination(source, edits, owner, name.rpartition(".")[2], site)
    pool = require_pool(source, edits, function, "zmq_pool")
    edits.replace(call, cst.parse_expression(f"{pool}.context"))
    return source.module.visit(edits)


def check_synchronous(source: Source, call: cst.Call) -> None:
    """Raise ``Refused`` for an asyncio or gevent context."""
    origin = source.origin(call.func)
    if ".asyncio" in origin or origin.startswith("zmq.green"):
        raise Refused("an asyncio or gevent context: its sockets cannot be built from the pool's plain context")


def _drop_termination(source: Source, edits: Edits, owner: cst.ClassDef, attribute: str, site: Site) -> None:
    """Remove what terminates the context; where ``destroy()`` also closed its sockets, close them one by one."""
    found = False
    removed: set[int] = set()
    for method in owner.body.body:
        if not isinstance(method, cst.FunctionDef):
            continue
        for node in nodes_in(method.body, cst.Attribute):
            if node.attr.value not in ENDS_CONTEXT or not dotted(node.value).endswith(f".{attribute}"):
                continue
            call = source.parent(node)
            line = source.around(node, cst.SimpleStatementLine)
            if not isinstance(call, cst.Call) or line is None or method_call(line) is None:
                raise Refused(f"{code(node)} is not a plain call")
            found = True
            sockets = _sockets_of(owner, attribute, method) if node.attr.value == "destroy" else []
            if sockets:
                edits.replace(line, cst.FlattenSentinel([statement(f"{each}.close()") for each in sockets]))
            else:
                edits.remove(line)
                removed.add(id(line))
        regions.drop_empty_branches(edits, method, removed)
        regions.drop_empty_finallies(edits, method, removed)
    if not found and site.closed:
        raise Refused("another class, or a with block, terminates the context")
    if _used_as_manager(owner, attribute):
        raise Refused("a with block terminates the context")


def _used_as_manager(owner: cst.ClassDef, attribute: str) -> bool:
    """Whether ``with self.attribute:`` is in the class."""
    return any(
        dotted(item.item).endswith(f".{attribute}")
        for each in nodes_in(owner, cst.With)
        for item in each.items
        if isinstance(item.item, cst.Attribute)
    )


def _sockets_of(owner: cst.ClassDef, attribute: str, method: cst.FunctionDef) -> list[str]:
    """Return the socket attributes made from the context that ``method`` does not close itself."""
    itself = self_name(method)
    closed = {
        call[0]
        for line in nodes_in(method.body, cst.SimpleStatementLine)
        if (call := method_call(line)) is not None and call[1] == "close"
    }
    sockets = []
    for made in nodes_in(owner, cst.Call):
        if not isinstance(made.func, cst.Attribute) or made.func.attr.value != "socket":
            continue
        if not dotted(made.func.value).endswith(f".{attribute}"):
            continue
        targets = [dotted(assign.targets[0].target) for assign in nodes_in(owner, cst.Assign) if assign.value is made]
        if not targets or targets[0].count(".") != 1:
            raise Refused("destroy() also closes sockets that are not plain attributes")
        name = f"{itself}.{targets[0].rpartition('.')[2]}"
        if name not in closed and name not in sockets:
            sockets.append(name)
    return sockets
