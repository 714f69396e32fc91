"""SQL: a SQLite connection for each call."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
_QUOTES = re.compile(r"^\(?\s*[rRfFbBuU]{0,2}(?:\"\"\"|'''|\"|')\s*")
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
    managed = _managed(source, call)
    if managed is not None:
        return _with_block(source, function, config, *managed)
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
    lease = free_name(function, "lease", *(f"lease_{number}" for number in range(2, 30)))
    regions.drop_closings(edits, region)
    regions.wrap(
        edits,
        region,
        f"{pool}.connection(get_sqlite_config({config})) as {lease}",
        f"{region.name} = {lease}.connection.driver_connection",
    )
    return source.module.visit(edits)


def _managed(source: Source, call: cst.Call) -> tuple[cst.WithItem, bool] | None:
    """Return the ``with`` item over a connection, and whether it closes it rather than ends its transaction."""
    parent = source.parent(call)
    if isinstance(parent, cst.WithItem):
        return parent, False
    around = source.parent(parent) if isinstance(parent, cst.Arg) else None
    if isinstance(around, cst.Call) and dotted(around.func).rpartition(".")[2] == "closing":
        item = source.parent(around)
        if isinstance(item, cst.WithItem):
            return item, True
    return None


def _with_block(source: Source, function: cst.FunctionDef, config: str, item: cst.WithItem, closes: bool) -> cst.Module:
    """``with sqlite3.connect(path) as conn``: a transaction; with ``closing``: a connection."""
    with_ = source.parent(item)
    if not isinstance(with_, cst.With) or len(with_.items) != 1 or not isinstance(with_.body, cst.IndentedBlock):
        raise Refused("a with block over several things")
    if item.asname is None or not isinstance(item.asname.name, cst.Name):
        raise Refused("the connection has no name")
    region = regions.of_block(source, function, with_, item.asname.name.value)
    regions.check_uses(region, _use, source)
    _check_personal(region, transaction=not closes)
    edits = Edits()
    pool = require_pool(source, edits, function, "sql_pool")
    require_import(source, edits, "app.pools.sql_pool", "get_sqlite_config")
    lease = free_name(function, "lease", *(f"lease_{number}" for number in range(2, 30)))
    regions.drop_closings(edits, region)
    kind = "connection" if closes or _only_reads(region) else "transaction"
    header = f"{pool}.{kind}(get_sqlite_config({config}))"
    named = cst.AsName(
        cst.Name(lease),
        whitespace_before_as=cst.SimpleWhitespace(" "),
        whitespace_after_as=cst.SimpleWhitespace(" "),
    )
    edits.replace(item, cst.WithItem(item=cst.parse_expression(header), asname=named))
    first = cst.parse_statement(f"{region.name} = {lease}.connection.driver_connection")
    edits.on(with_.body, lambda block: block.with_changes(body=[first, *block.body]))
    return source.module.visit(edits)


def _only_reads(region: regions.Region) -> bool:
    texts = [text for statement in region.body for text in _statements(statement)]
    return bool(texts) and all(text.startswith("SELECT") for text in texts)


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


def _statements(node: cst.CSTNode) -> Iterator[str]:
    """Yield the beginning of each SQL statement executed in ``node``, in capitals."""
    for call in nodes_in(node, cst.Call):
        if isinstance(call.func, cst.Attribute) and call.func.attr.value in _EXECUTES and call.args:
            yield _QUOTES.sub("", code(call.args[0].value)).upper()


def _check_personal(region: regions.Region, *, transaction: bool = False) -> None:
    writes = 0
    for statement in region.block.body[max(0, region.start) :]:
        for attribute in nodes_in(statement, cst.Attribute):
            reason = _PERSONAL.get(attribute.attr.value)
            if reason is not None:
                raise Refused(reason)
    for statement in region.body:
        writes += sum(1 for text in _statements(statement) if text.startswith(_WRITES))
        for given in nodes_in(statement, cst.Return):
            _check_returned(given.value, region.name)
    if writes > 1 and not transaction:
        raise Refused("several writes form one transaction: a person decides where it begins and ends")


def _check_returned(value: cst.BaseExpression | None, name: str) -> None:
    """A cursor must not leave the block: what is returned has to be rows."""
    if not isinstance(value, cst.Call) or not isinstance(value.func, cst.Attribute):
        return
    if value.func.attr.value in (*_EXECUTES, "cursor") and mentions(value.func.value, name):
        raise Refused("a cursor is returned, which needs the connection open")
