"""ZMQ sockets: a REQ for each call, and a PUB for each message or kept for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import libcst as cst

from app.migration.rewriting import regions
from app.migration.rewriting.injection import require_import, require_pool, self_name
from app.migration.rewriting.regions import Region
from app.migration.rewriting.tree import (
    Edits,
    Refused,
    Source,
    assigned,
    code,
    dotted,
    free_name,
    method_call,
    names_in,
    nodes_in,
    position_of,
    statement,
)
from app.migration.rewriting.zmq_contexts import ENDS_CONTEXT, check_synchronous
from app.migration.sites import Site

_MODULE = "app.pools.zmq_pool"
_OPTIONS = frozenset({
    "LINGER", "RCVTIMEO", "SNDTIMEO", "RCVHWM", "SNDHWM", "RCVBUF", "SNDBUF", "CONNECT_TIMEOUT", "MAXMSGSIZE",
    "RECONNECT_IVL", "RECONNECT_IVL_MAX", "HEARTBEAT_IVL", "HEARTBEAT_TIMEOUT", "HEARTBEAT_TTL", "IMMEDIATE",
    "TCP_KEEPALIVE", "TCP_KEEPALIVE_IDLE", "TCP_KEEPALIVE_INTVL", "TCP_KEEPALIVE_CNT",
})  # fmt: skip
_LOCAL = re.compile(r"""^[fF]?["'](?:tcp://(?:localhost|127\.\d+\.\d+\.\d+|\[::1\]):|ipc://|inproc://)""")
_LONGEST_CONFIG = 70
_WITHOUT_WAITING = re.compile(r"^(?:flags\s*=\s*)?\w+\.(?:NOBLOCK|DONTWAIT)\s*$")  # a publisher never waits


@dataclass(slots=True)
class _Opening:
    """How a local socket is set up: its endpoint, options, and the statements that do it."""

    endpoint: cst.BaseExpression
    binds: bool
    connected: cst.SimpleStatementLine
    options: list[tuple[str, str]] = field(default_factory=list)
    statements: list[cst.SimpleStatementLine] = field(default_factory=list)


def request_socket(source: Source, site: Site) -> cst.Module:
    """A context and a REQ socket for each call: a leased socket, whose options are part of its configuration."""
    edits, region, opening, context = _local_socket(source, site)
    if opening.binds:
        raise Refused("a REQ socket that binds")
    regions.check_uses(region, _request_use, source)
    set_up = [call for line in opening.statements for call in nodes_in(line, cst.Call)]
    for call in (call for line in region.body for call in nodes_in(line, cst.Call)):
        moves = isinstance(call.func, cst.Attribute) and call.func.attr.value in ("connect", "disconnect")
        if moves and dotted(call.func).startswith(f"{region.name}.") and call not in set_up:
            raise Refused("the socket connects more than once")
    pool = require_pool(source, edits, region.function, "zmq_pool")
    for name in ("SocketConfig", "SocketType"):
        require_import(source, edits, _MODULE, name)
    config = _config("REQ", opening)
    _forget_context(source, edits, region, context)
    regions.drop_closings(edits, region)
    _lease(edits, region, opening, pool, config)
    return source.module.visit(edits)


_REQUEST_METHODS = frozenset({
    "send", "recv", "send_string", "recv_string", "send_json", "recv_json", "send_multipart", "recv_multipart",
    "send_pyobj", "recv_pyobj", "poll", "close", "connect", "setsockopt", "send_unicode", "recv_unicode",
}) | {option.lower() for option in _OPTIONS} | _OPTIONS  # fmt: skip


def _request_use(name: str, node: cst.CSTNode) -> str | None:
    if not name:
        # `poller.register(socket, zmq.POLLIN)` is the one place where a socket is an argument.
        return None if isinstance(node, (cst.Arg, cst.AssignTarget)) else "the socket is handed on"
    return None if name in _REQUEST_METHODS else f"the socket's {name} is used"


def publisher(source: Source, site: Site) -> cst.Module:
    """A PUB socket for each message: one long-lived publisher instead."""
    edits, region, opening, context = _local_socket(source, site)
    pool = require_pool(source, edits, region.function, "zmq_pool")
    for name in ("Publisher", "SocketConfig", "SocketType"):
        require_import(source, edits, _MODULE, name)
    needs_json = False
    handled: set[int] = set()
    for line in opening.statements:
        handled.update(id(found) for found in names_in(line))
    for line in regions.closings(region.function.body, region.name, frozenset({"close"})):
        handled.update(id(found) for found in names_in(line))
    for line in (line for each in region.body for line in nodes_in(each, cst.SimpleStatementLine)):
        sent = method_call(line)
        if sent is None or sent[0] != region.name or line in opening.statements or sent[1] == "close":
            continue
        frames = _frames(sent[1], sent[2])
        needs_json = needs_json or sent[1] == "send_json"
        call = sent[2]
        assert isinstance(call.func, cst.Attribute)
        publish = cst.Attribute(value=call.func.value, attr=cst.Name("publish"))
        edits.replace(call, call.with_changes(func=publish, args=frames))
        handled.update(id(found) for found in names_in(call.func))
    for each in region.body:
        for found in names_in(each):
            if found.value == region.name and id(found) not in handled and not _in_guard(source, found, region):
                raise Refused("the socket is used for more than sending")
    if needs_json:
        require_import(source, edits, "json", "")
    _forget_context(source, edits, region, context)
    regions.drop_closings(edits, region)
    for line in opening.statements:
        if line is not opening.connected:
            edits.remove(line)
    edits.remove(region.block.body[region.start])
    made = statement(_made_publisher(region.name, pool, opening))
    edits.replace(opening.connected, made.with_changes(leading_lines=opening.connected.leading_lines))
    return source.module.visit(edits)


def _made_publisher(name: str, pool: str, opening: _Opening) -> str:
    config = _config("PUB", opening)
    if len(config) > _LONGEST_CONFIG:
        return f"{name} = Publisher(\n    {pool},\n    {config},\n)"
    return f"{name} = Publisher({pool}, {config})"


def kept_publisher(source: Source, site: Site) -> cst.Module:
    """A PUB socket that an object keeps and only sends with: a publisher in the same attribute."""
    call = source.call(site)
    function = source.function(call)
    owner = source.owner(function)
    line, _ = source.statement(call)
    target = assigned(line)
    if owner is None or target is None or target[1] is not call or not isinstance(call.func, cst.Attribute):
        raise Refused("the socket is not simply assigned to an attribute")
    name = target[0]
    if name != f"{self_name(function)}.{name.rpartition('.')[2]}":
        raise Refused("the socket is not simply assigned to an attribute")
    _check_context_kind(source, function, dotted(call.func.value))
    _check_others(source, owner, name.rpartition(".")[2])
    block = source.block(line)
    opening = _opening_of(name, block.body[block.body.index(line) + 1 :])
    if opening.binds:
        raise Refused("a bound socket keeps its owner; only its context is injected")
    edits = Edits()
    needs_json = _publish_instead(source, edits, owner, name, [line, *opening.statements])
    pool = require_pool(source, edits, function, "zmq_pool")
    for imported in ("Publisher", "SocketConfig", "SocketType"):
        require_import(source, edits, _MODULE, imported)
    if needs_json:
        require_import(source, edits, "json", "")
    for each in opening.statements:
        if each is not opening.connected:
            edits.remove(each)
    edits.remove(line)
    made = statement(_made_publisher(name, pool, opening))
    edits.replace(opening.connected, made.with_changes(leading_lines=line.leading_lines))
    return source.module.visit(edits)


def _publish_instead(
    source: Source, edits: Edits, owner: cst.ClassDef, name: str, handled: Sequence[cst.CSTNode]
) -> bool:
    """Turn what a class sends on a kept socket into publishing, and drop its closing; returns whether JSON is sent."""
    needs_json = False
    removed: set[int] = set()
    for use in nodes_in(owner, cst.Attribute):
        if dotted(use) != name:
            continue
        line = source.around(use, cst.SimpleStatementLine)
        if any(line is each for each in handled):
            continue
        sent = method_call(line) if line is not None else None
        if sent is not None and line is not None and sent[0] == name:
            if sent[1] == "close":
                edits.remove(line)
                removed.add(id(line))
                continue
            frames = _frames(sent[1], sent[2])
            needs_json = needs_json or sent[1] == "send_json"
            publish = cst.Attribute(value=use, attr=cst.Name("publish"))
            edits.replace(sent[2], sent[2].with_changes(func=publish, args=frames))
        elif not isinstance(source.parent(use), (cst.If, cst.UnaryOperation, cst.BooleanOperation)):
            raise Refused("the socket is used for more than sending")
    for method in owner.body.body:
        if isinstance(method, cst.FunctionDef):
            regions.drop_empty_branches(edits, method, removed)
            regions.drop_empty_finallies(edits, method, removed)
    return needs_json


def _check_others(source: Source, owner: cst.ClassDef, attribute: str) -> None:
    """Raise ``Refused`` if other code, such as a subclass in another file, may send on the socket itself."""
    used = re.compile(rf"\.{attribute}\.(?:send|close|setsockopt|poll|connect)")
    named = re.compile(rf"\b{owner.name.value}\b")
    inside = len(used.findall(code(owner)))
    if len(used.findall(source.text)) != inside:
        raise Refused("other code of this file uses the socket")
    if any(used.search(text) and named.search(text) for text in source.others()):
        raise Refused("another file uses the socket, perhaps in a subclass")


def _in_guard(source: Source, name: cst.Name, region: Region) -> bool:
    branch = source.around(name, cst.If)
    return branch is not None and regions.guards_only_closing(branch, region.name)


def _frames(method: str, call: cst.Call) -> Sequence[cst.Arg]:
    """Return the arguments of ``publish`` that say what a method of a PUB socket sends."""
    first, *rest = call.args or [cst.Arg(cst.Name("nothing"), star="*")]
    if first.keyword is not None or first.star or any(not _WITHOUT_WAITING.search(code(each)) for each in rest):
        raise Refused(f"{method}() with flags or options")
    value = call.args[0].value
    if method == "send":
        return [cst.Arg(value)]
    if method in ("send_string", "send_unicode"):
        return [cst.Arg(cst.parse_expression(f"{_receiver(value)}.encode()"))]
    if method == "send_json":
        return [cst.Arg(cst.parse_expression(f"json.dumps({code(value)}).encode()"))]
    if method == "send_multipart":
        if isinstance(value, (cst.List, cst.Tuple)) and all(type(each) is cst.Element for each in value.elements):
            return [cst.Arg(each.value) for each in value.elements]
        return [cst.Arg(value, star="*")]
    raise Refused(f"the socket's {method} is used")


def _receiver(value: cst.BaseExpression) -> str:
    plain = isinstance(value, (cst.Name, cst.Attribute, cst.Call, cst.SimpleString, cst.FormattedString, cst.Subscript))
    return code(value) if plain else f"({code(value)})"


def _local_socket(source: Source, site: Site) -> tuple[Edits, Region, _Opening, str]:
    """Take apart a socket that is opened, set up and used in one function."""
    call = source.call(site)
    function = source.function(call)
    regions.no_generator(function)
    if function.asynchronous is not None:
        raise Refused("in a coroutine, which a synchronous socket would block: a person makes it asynchronous")
    line, _ = source.statement(call)
    target = assigned(line)
    if target is None or target[1] is not call or "." in target[0]:
        raise Refused("the socket is not simply assigned to a local name")
    if not isinstance(call.func, cst.Attribute):
        raise Refused("the socket is not made by its context")
    context = dotted(call.func.value)
    if not context:
        raise Refused("the socket's context is not a plain name")
    _check_context_kind(source, function, context)
    region = regions.find(source, line, target[0])
    return Edits(), region, _opening(region), context


def _check_context_kind(source: Source, function: cst.FunctionDef, context: str) -> None:
    scope: cst.CSTNode = source.owner(function) or function
    for assign in nodes_in(scope, cst.Assign):
        made = assign.value
        if isinstance(made, cst.Call) and any(_same(dotted(each.target), context) for each in assign.targets):
            check_synchronous(source, made)


def _same(target: str, context: str) -> bool:
    return target == context or (("." in target and "." in context) and target.split(".")[1:] == context.split(".")[1:])


def _opening(region: Region) -> _Opening:
    return _opening_of(region.name, region.body)


def _opening_of(name: str, following: Sequence[cst.BaseStatement]) -> _Opening:
    """Return how a socket is set up by the statements that follow its making."""
    opening: _Opening | None = None
    options: list[tuple[str, str]] = []
    statements: list[cst.SimpleStatementLine] = []
    for line in following:
        if not any(dotted(each) == name for each in nodes_in(line, cst.Attribute if "." in name else cst.Name)):
            continue
        option = _option(line, name)
        called = method_call(line)
        if option is not None and isinstance(line, cst.SimpleStatementLine):
            options.append(option)
            statements.append(line)
        elif called is not None and called[0] == name and called[1] in ("connect", "bind"):
            if opening is not None or len(called[2].args) != 1:
                raise Refused("the socket connects more than once")
            assert isinstance(line, cst.SimpleStatementLine)
            statements.append(line)
            opening = _Opening(called[2].args[0].value, called[1] == "bind", line)
        else:
            break
    if opening is None:
        raise Refused("the socket is not connected right after it is made")
    opening.options, opening.statements = options, statements
    return opening


def _option(line: cst.CSTNode, name: str) -> tuple[str, str] | None:
    """Return the option and its value that a statement sets on the socket, if it does only that."""
    called = method_call(line)
    if called is not None and called[0] == name and called[1] in ("setsockopt", "set"):
        arguments = called[2].args
        if len(arguments) != 2:
            return None
        constant, value = arguments[0].value, arguments[1].value
        option = dotted(constant).rpartition(".")[2]
        if option not in _OPTIONS:
            raise Refused(f"the option {option or code(constant)} belongs to one socket and cannot be pooled")
        return code(constant), code(value)
    target = assigned(line)
    if target is not None and target[0].startswith(f"{name}."):
        option = target[0].rpartition(".")[2].upper()
        if option not in _OPTIONS:
            raise Refused(f"the option {option} belongs to one socket and cannot be pooled")
        return f'"{option}"', code(target[1])
    return None


def _config(kind: str, opening: _Opening) -> str:
    endpoint = code(opening.endpoint)
    parts = [f"SocketType.{kind}", endpoint]
    if opening.binds:
        parts.append("bind=True")
    if opening.options:
        parts.append(f"options={{{', '.join(f'{name}: {value}' for name, value in opening.options)}}}")
    if not _LOCAL.match(endpoint):
        parts.append("allow_plaintext=True")  # as it was; the pool's default refuses it
    return f"SocketConfig({', '.join(parts)})"


def _lease(edits: Edits, region: Region, opening: _Opening, pool: str, config: str) -> None:
    """Put what follows the connection into a ``with`` block, and remove what set the socket up."""
    before: list[cst.SimpleStatementLine] = []
    if len(config) > _LONGEST_CONFIG:
        name = free_name(region.function, "config", "socket_config", f"{region.name}_config")
        before.append(statement(f"{name} = {config}"))
        config = name
    header = f"{pool}.socket({config}) as {region.name}"
    opened = region.block.body[region.start]
    connected = edits.follow(opening.connected)
    after = [edits.follow(each) for each in region.block.body[region.end :]]
    for line in opening.statements:
        if line is not opening.connected:
            edits.remove(line)
    edits.remove(opened)
    comments = opened.leading_lines if isinstance(opened, cst.SimpleStatementLine) else ()

    def change(block: cst.IndentedBlock) -> cst.IndentedBlock:
        start = position_of(block.body, connected)
        end = position_of(block.body, *after)
        template = cst.parse_statement(f"with {header}:\n    pass\n")
        assert isinstance(template, cst.With)
        lines = comments if start == 0 or len(comments) else opening.connected.leading_lines
        with_ = template.with_changes(body=cst.IndentedBlock(body=block.body[start + 1 : end]))
        first, *rest = [*before, with_]
        new = [first.with_changes(leading_lines=lines), *rest]
        return block.with_changes(body=[*block.body[:start], *new, *block.body[end:]])

    edits.on(region.block, change)


def _forget_context(source: Source, edits: Edits, region: Region, context: str) -> None:
    """Remove a local context that nothing but this socket used, and its termination."""
    if "." in context or context not in _local_names(region.function):
        return
    made = [
        line
        for line in nodes_in(region.function.body, cst.SimpleStatementLine)
        if (target := assigned(line)) is not None and target[0] == context
    ]
    endings = regions.closings(region.function.body, context, ENDS_CONTEXT)
    gone = [*made, *endings]
    removed = {id(line) for line in gone}
    guards = [
        branch for branch in nodes_in(region.function.body, cst.If) if regions.guards_only_closing(branch, context)
    ]
    known = sum(1 for line in gone for found in names_in(line) if found.value == context)
    known += sum(1 for branch in guards for found in names_in(branch.test) if found.value == context)
    everywhere = sum(1 for found in names_in(region.function.body) if found.value == context)
    if everywhere - known != 1:
        raise Refused(f"the context `{context}` is also used for something else")
    for line in gone:
        edits.remove(line)
    for branch in guards:
        edits.remove(branch)
        removed.add(id(branch))
    removed.update(id(line) for line in regions.closings(region.function.body, region.name, frozenset({"close"})))
    removed.update(
        id(branch)
        for branch in nodes_in(region.function.body, cst.If)
        if regions.guards_only_closing(branch, region.name)
    )
    regions.drop_empty_finallies(edits, region.function, removed)


def _local_names(function: cst.FunctionDef) -> set[str]:
    return {
        target.target.value
        for target in nodes_in(function.body, cst.AssignTarget)
        if isinstance(target.target, cst.Name)
    }
