"""SQL: a SQLite connection for each call."""

from __future__ import annotations

import libcst as cst

from app.migration.rewriting import regions
from app.migration.rewriting.injection import require_import, require_pool
from app.migration.rewriting.tree import Edits, Refused, Source, assigned, code, dotted, free_name, mentions, nodes_in
from app.migration.sites import Site

_PERSONAL = {
    "row_factory": "row_factory changes the connection, which others use next",
    "text_factory": "text_factory changes the connection, which others use next",
    "isolation_level": "isolation_level changes the connection, which others use next",
    "lastrowid": "lastrowid: return it from the statement instead (RETURNING)",
    "create_function": "it registers a function on the connection, which others use next",
    "create_aggregate": "it registers an aggregate on the connection, which others use next",
    "enable_load_extension": "it changes the connection, which others use next",
    "set_trace_callback": "it changes the connection, which others use next",
    "executescript": "executescript commits by itself",
    "backup": "backup needs the connection itself",
}
_USES = frozenset(
    {"execute", "executemany", "cursor", "commit", "rollback", "close", "total_changes", "in_transaction"}
)
_EXECUTES = ("execute", "executemany")
_WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE")


def sqlite_call(source: Source, site: Site) -> cst.Module:
    """``sqlite3.connect`` in a function: a leased connection, given back whatever happens."""
    call = source.call(site)
    function = source.function(call)
    regions.no_generator(function)
    if function.asynchronous is not None:
        raise Refused("in a coroutine, which SQLite would block: a person makes it asynchronous")
    if site.library != "sqlite3.connect":
        raise Refused(f"{site.library}: a person decides how it maps to a pool")
    config = _config(call)
    managed = source.parent(call)
    if isinstance(managed, cst.WithItem) or _is_closing(managed, source):
        raise Refused("a with block over the connection: its commit needs a person's eye")
    line, _ = source.statement(call)
    target = assigned(line)
    if target is None or target[1] is not call or "." in target[0]:
        raise Refused("the connection is not simply assigned to a local name")
    region = regions.find(source, line, target[0])
    regions.check_uses(region, _use, source)
    _check_personal(region)
    edits = Edits()
    pool = require_pool(source, edits, function, "sql_pool")
    require_import(source, edits, "app.pools.sql_pool", "get_sqlite_config")
    lease = free_name(function, "lease", "sql_lease", f"{region.name}_lease")
    regions.drop_closings(edits, region)
    regions.wrap(
        edits,
        region,
        f"{pool}.connection(get_sqlite_config({config})) as {lease}",
        f"{region.name} = {lease}.connection.driver_connection",
    )
    return source.module.visit(edits)


def _is_closing(node: cst.CSTNode | None, source: Source) -> bool:
    call = source.parent(node) if isinstance(node, cst.Arg) else None
    return isinstance(call, cst.Call) and dotted(call.func).rpartition(".")[2] == "closing"


def _config(call: cst.Call) -> str:
    """Return the arguments of ``get_sqlite_config`` for those of ``sqlite3.connect``."""
    path: str | None = None
    options: list[str] = []
    for position, argument in enumerate(call.args):
        name = argument.keyword.value if argument.keyword is not None else ("database" if position == 0 else "timeout")
        if argument.star or (position > 1 and argument.keyword is None):
            raise Refused("connect() has arguments whose meaning is not plain")
        if name == "database":
            path = code(argument.value)
        elif name == "timeout":
            options.append(f"busy_timeout={code(argument.value)}")
        elif name != "check_same_thread":
            raise Refused(f"connect({name}=...) has no counterpart in a pool")
    if path is None:
        raise Refused("connect() without a path")
    if ":memory:" in path or "file:" in path:
        raise Refused("a database in memory, or a URI: each call has its own, a pool would share it")
    return ", ".join([path, *options])


def _use(name: str, node: cst.CSTNode) -> str | None:
    if not name:
        return None if isinstance(node, cst.AssignTarget) else "the connection is handed to something else"
    if name in _PERSONAL:
        return _PERSONAL[name]
    return None if name in _USES else f"the connection's {name} is used"


def _check_personal(region: regions.Region) -> None:
    writes = 0
    for statement in region.block.body[region.start :]:
        for attribute in nodes_in(statement, cst.Attribute):
            reason = _PERSONAL.get(attribute.attr.value)
            if reason is not None:
                raise Refused(reason)
    for statement in region.body:
        for call in nodes_in(statement, cst.Call):
            if isinstance(call.func, cst.Attribute) and call.func.attr.value in _EXECUTES and call.args:
                text = code(call.args[0].value).lstrip("rRfFbBuU\"' \n\t").upper()
                writes += text.startswith(_WRITES)
        for given in nodes_in(statement, cst.Return):
            _check_returned(given.value, region.name)
    if writes > 1:
        raise Refused("several writes form one transaction: a person decides where it begins and ends")


def _check_returned(value: cst.BaseExpression | None, name: str) -> None:
    """A cursor must not leave the block: what is returned has to be rows."""
    if not isinstance(value, cst.Call) or not isinstance(value.func, cst.Attribute):
        return
    if value.func.attr.value in (*_EXECUTES, "cursor") and mentions(value.func.value, name):
        raise Refused("a cursor is returned, which needs the connection open")
