"""HTTP: one-shot requests, and aiohttp sessions that live for one call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import libcst as cst

from app.migration.rewriting import regions
from app.migration.rewriting.injection import require_import, require_pool
from app.migration.rewriting.tree import (
    Edits,
    Refused,
    Source,
    assigned,
    code,
    free_name,
    names_in,
    nodes_in,
    statement,
)
from app.migration.sites import Site

_LONGEST_ARGUMENTS = 75
_MODULE = "app.pools.http_pool"
_ERRORS = "app.pools.errors"
_VERBS = frozenset({"get", "post", "put", "patch", "delete", "head", "options"})
_ARGUMENTS = frozenset({"params", "headers", "json", "data", "timeout"})
_KEPT = frozenset({"status_code", "json", "text", "content", "raise_for_status", "ok", "headers"})
_POSITIONAL = {"get": ("params",), "post": ("data", "json"), "put": ("data",), "patch": ("data",)}
# What the pool raises where the libraries raised these.
_COUNTERPARTS = {
    "requests.RequestException": "PoolError",
    "requests.exceptions.RequestException": "PoolError",
    "requests.ConnectionError": "HTTPUnavailable",
    "requests.exceptions.ConnectionError": "HTTPUnavailable",
    "requests.Timeout": "DeadlineExceeded",
    "requests.exceptions.Timeout": "DeadlineExceeded",
    "requests.ReadTimeout": "DeadlineExceeded",
    "requests.exceptions.ReadTimeout": "DeadlineExceeded",
    "requests.ConnectTimeout": "DeadlineExceeded",
    "requests.exceptions.ConnectTimeout": "DeadlineExceeded",
    "aiohttp.ClientError": "PoolError",
    "aiohttp.ClientConnectionError": "HTTPUnavailable",
    "aiohttp.ClientConnectorError": "HTTPUnavailable",
}
_UNCHANGED = frozenset({"requests.HTTPError", "requests.exceptions.HTTPError"})
_URL = re.compile(r"^(https?://[^/?#]+)([/?#].*)?$", re.DOTALL)


def one_shot(source: Source, site: Site) -> cst.Module:
    """``requests.get(url)``: the same request through the pool, whose response has the same names."""
    call = source.call(site)
    function = source.function(call)
    if function.asynchronous is not None:
        raise Refused("in a coroutine, which requests blocks: a person makes it asynchronous")
    verb, arguments = _verb_and_arguments(site.library, call)
    _check_response(source, function, call)
    edits = Edits()
    base, path = _base_and_path(source, edits, function, call, arguments.pop("url"))
    pool = require_pool(source, edits, function, "http_pool")
    require_import(source, edits, _MODULE, "HTTPConfig")
    _extend_handlers(source, edits, call)
    new = cst.parse_expression(f"{pool}.request({_request(base, verb, path, arguments)})")
    edits.replace(call, new)
    return source.module.visit(edits)


def _request(base: str, verb: str, path: str, arguments: dict[str, cst.BaseExpression]) -> str:
    # As many attempts as before: retries are a decision of the one who knows what may be sent twice.
    parts = [f"HTTPConfig({base}, max_retries=0)", verb, path]
    parts += [f"{name}={code(value)}" for name, value in arguments.items()]
    line = ", ".join(parts)
    return line if len(line) < _LONGEST_ARGUMENTS else "".join(f"\n    {part}," for part in parts) + "\n"


def _verb_and_arguments(library: str, call: cst.Call) -> tuple[str, dict[str, cst.BaseExpression]]:
    verb = library.rpartition(".")[2]
    names: list[str] = ["url", *_POSITIONAL.get(verb, ())]
    if verb == "request":
        names = ["method", "url"]
    elif verb not in _VERBS:
        raise Refused(f"{library} is not a plain request")
    arguments: dict[str, cst.BaseExpression] = {}
    for position, argument in enumerate(call.args):
        if argument.star:
            raise Refused("the arguments are not written out")
        if argument.keyword is None and position >= len(names):
            raise Refused("the arguments' meaning is not plain")
        name = argument.keyword.value if argument.keyword is not None else names[position]
        arguments[name] = argument.value
    method = code(arguments.pop("method")) if verb == "request" and "method" in arguments else f'"{verb.upper()}"'
    _check_arguments(arguments)
    return method, arguments


def _check_arguments(arguments: dict[str, cst.BaseExpression]) -> None:
    if "url" not in arguments:
        raise Refused("the request has no url")
    for name, value in arguments.items():
        if name != "url" and name not in _ARGUMENTS:
            raise Refused(f"{name}= belongs into a configuration, which a person chooses")
        if name == "timeout" and isinstance(value, cst.Tuple):
            raise Refused("a timeout in two parts: the pool's is one for all")


def _base_and_path(
    source: Source, edits: Edits, function: cst.FunctionDef, call: cst.Call, url: cst.BaseExpression
) -> tuple[str, str]:
    """Return the source of the base URL and of the path; a URL that only run time knows is split there."""
    known = split_url(url)
    if known is not None:
        return known
    line = _statement_around(source, call)
    name = free_name(function, "parts", *(f"parts_{number}" for number in range(2, 30)))
    require_import(source, edits, "urllib.parse", "urlsplit")
    split = statement(f"{name} = urlsplit({code(url)})")
    edits.on(line, lambda updated: _preceded(updated, split))
    return f'f"{{{name}.scheme}}://{{{name}.netloc}}"', f'{name}._replace(scheme="", netloc="", fragment="").geturl()'


def _statement_around(source: Source, call: cst.Call) -> cst.SimpleStatementLine | cst.With:
    """Return the statement before which something can be said."""
    parent = source.parent(call)
    holder = source.parent(parent) if isinstance(parent, cst.WithItem) else None
    line = holder if isinstance(holder, cst.With) else source.around(call, cst.SimpleStatementLine)
    conditional = (cst.CompFor, cst.IfExp, cst.BooleanOperation, cst.Lambda, cst.GeneratorExp)
    inner: cst.CSTNode | None = call
    while inner is not None and inner is not line:
        if isinstance(inner, conditional) or isinstance(source.parent(inner), (cst.ListComp, cst.DictComp)):
            raise Refused("a URL known only at run time, in an expression that may not be evaluated")
        inner = source.parent(inner)
    if line is None or inner is not line:
        raise Refused("a URL known only at run time, in the header of a block")
    source.block(line)
    return line


def _preceded(line: Any, first: cst.SimpleStatementLine) -> Any:
    nodes = list(line) if isinstance(line, cst.FlattenSentinel) else [line]
    lines = nodes[0].leading_lines
    return cst.FlattenSentinel(
        [first.with_changes(leading_lines=lines), nodes[0].with_changes(leading_lines=[]), *nodes[1:]]
    )


def split_url(node: cst.BaseExpression) -> tuple[str, str] | None:
    """Return the source of the base URL and of the path below it, or ``None`` if only run time can tell."""
    if isinstance(node, cst.SimpleString):
        match = _URL.match(str(node.evaluated_value))
        if match is None:
            raise Refused("the URL has no scheme and host")
        return repr_like(node, match[1]), repr_like(node, match[2] or "/")
    if isinstance(node, cst.FormattedString):
        return _split_formatted(node)
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Add):
        left = node.left
        while isinstance(left, cst.BinaryOperation) and isinstance(left.operator, cst.Add):
            left = left.left
        path = code(node).removeprefix(code(left)).lstrip()[1:].lstrip()
        if isinstance(left, (cst.Name, cst.Attribute)) and path[:2] in ('"/', "'/", 'f"', "f'"):
            return code(left), path
    return None


def repr_like(node: cst.SimpleString, text: str) -> str:
    """Return ``text`` as a literal in the quotes of ``node``."""
    quote = node.quote[-1]
    return f"{quote}{text}{quote}" if quote not in text and "\\" not in text else repr(text)


def _split_formatted(node: cst.FormattedString) -> tuple[str, str] | None:
    parts = list(node.parts)
    quote = node.end
    first = parts[0]
    if isinstance(first, cst.FormattedStringExpression):  # f"{self.base}/path"
        rest = "".join(code(part) for part in parts[1:])
        if rest[:1] != "/" or first.format_spec is not None or first.conversion is not None:
            return None
        return code(first.expression), _literal(rest, quote)
    text = "".join(code(part) for part in parts)
    match = re.match(r"(https?://)", text)
    if match is None:
        return None
    depth = 0
    for position in range(match.end(), len(text)):
        character = text[position]
        depth += (character == "{") - (character == "}")
        if not depth and character in "/?":
            return _literal(text[:position], quote), _literal(text[position:], quote)
    return _literal(text, quote), '"/"'


def _literal(text: str, quote: str) -> str:
    prefix = "f" if "{" in text else ""
    return f"{prefix}{quote}{text}{quote}"


# What is done with the response


def _check_response(source: Source, function: cst.FunctionDef, call: cst.Call) -> None:
    parent = source.parent(call)
    if isinstance(parent, cst.Attribute):
        _check_kept(parent.attr.value)
        return
    if isinstance(parent, cst.Expr):
        return
    line = source.around(call, cst.SimpleStatementLine)
    target = assigned(line) if line is not None else None
    if target is None or target[1] is not call or "." in target[0]:
        raise Refused("the response is handed on, and its reader may use what the pool's lacks")
    for attribute in _uses(source, function, target[0]):
        _check_kept(attribute)


def _uses(source: Source, function: cst.FunctionDef, name: str) -> Iterator[str]:
    for found in names_in(function.body):
        if found.value != name:
            continue
        parent = source.parent(found)
        if isinstance(parent, cst.Attribute) and parent.value is found:
            yield parent.attr.value
        elif isinstance(parent, (cst.If, cst.UnaryOperation, cst.BooleanOperation, cst.Comparison)):
            raise Refused("the response itself is tested: say `.ok`")
        elif not isinstance(parent, cst.AssignTarget):
            raise Refused("the response is handed on, and its reader may use what the pool's lacks")


def _check_kept(attribute: str) -> None:
    if attribute not in _KEPT:
        raise Refused(f"the pool's response has no .{attribute}")


def _extend_handlers(source: Source, edits: Edits, node: cst.CSTNode) -> None:
    """Let the ``except`` clauses around a request also catch what the pool raises."""
    attempt = source.around(node, cst.Try)
    inner: cst.CSTNode = node
    while attempt is not None:
        if any(each is inner or _contains(each, node) for each in attempt.body.body):
            for handler in attempt.handlers:
                if handler.type is not None:
                    _extend(source, edits, handler.type)
        attempt = source.around(attempt, cst.Try)


def _contains(outer: cst.CSTNode, node: cst.CSTNode) -> bool:
    return outer is node or any(_contains(child, node) for child in outer.children)


def _extend(source: Source, edits: Edits, caught: cst.BaseExpression) -> None:
    elements = [each.value for each in caught.elements] if isinstance(caught, cst.Tuple) else [caught]
    written = [code(each) for each in elements]
    added = []
    for each in elements:
        origin = source.origin(each)
        counterpart = _COUNTERPARTS.get(origin)
        if counterpart is not None:
            if counterpart not in written and counterpart not in added:
                added.append(counterpart)
        elif origin.startswith(("requests.", "aiohttp.")) and origin not in _UNCHANGED:
            raise Refused(f"{code(each)} is caught, which the pool has no counterpart for")
    if added:
        for name in added:
            require_import(source, edits, _ERRORS, name)
        edits.replace(caught, cst.parse_expression(f"({', '.join([*written, *added])})"))


# aiohttp


def client_session(source: Source, site: Site) -> cst.Module:
    """``async with aiohttp.ClientSession()`` for one call: the same requests through the pool."""
    call = source.call(site)
    function = source.function(call)
    item = source.parent(call)
    with_ = source.parent(item) if item is not None else None
    if not isinstance(item, cst.WithItem) or not isinstance(with_, cst.With) or len(with_.items) != 1:
        raise Refused("the session is not opened by a with block of its own")
    if item.asname is None or not isinstance(item.asname.name, cst.Name):
        raise Refused("the session has no name")
    name = item.asname.name.value
    timeout = _session_timeout(call)
    edits = Edits()
    regions.no_generator(function)
    pool = require_pool(source, edits, function, "http_pool")
    require_import(source, edits, _MODULE, "HTTPConfig")
    _extend_handlers(source, edits, with_)
    handled = 0
    for request in [each for each in nodes_in(with_.body, cst.Call) if _is_request(each, name)]:
        _rewrite_request(source, edits, function, request, pool, timeout)
        _extend_handlers(source, edits, request)
        handled += 1
    if handled != sum(1 for found in names_in(with_.body) if found.value == name):
        raise Refused("the session is handed on, or used for more than requests")
    edits.on(with_, _unwrapped)
    return source.module.visit(edits)


def _session_timeout(call: cst.Call) -> cst.BaseExpression | None:
    for argument in call.args:
        if argument.keyword is None or argument.keyword.value != "timeout":
            raise Refused("the session has options, which belong into a configuration that a person chooses")
        return _total(argument.value)
    return None


def _total(value: cst.BaseExpression) -> cst.BaseExpression:
    """Return the total seconds of an ``aiohttp.ClientTimeout``."""
    if not isinstance(value, cst.Call):
        return value
    arguments = value.args
    if len(arguments) != 1 or (arguments[0].keyword is not None and arguments[0].keyword.value != "total"):
        raise Refused("a timeout in several parts: the pool's is one for all")
    return arguments[0].value


def _is_request(call: cst.Call, name: str) -> bool:
    return (
        isinstance(call.func, cst.Attribute)
        and isinstance(call.func.value, cst.Name)
        and call.func.value.value == name
        and call.func.attr.value in _VERBS | {"request"}
    )


def _rewrite_request(
    source: Source,
    edits: Edits,
    function: cst.FunctionDef,
    call: cst.Call,
    pool: str,
    timeout: cst.BaseExpression | None,
) -> None:
    assert isinstance(call.func, cst.Attribute)
    verb, arguments = _aiohttp_arguments(call.func.attr.value, call)
    base, path = _base_and_path(source, edits, function, call, arguments.pop("url"))
    if timeout is not None:
        arguments.setdefault("timeout", timeout)
    request = f"await {pool}.request_async({_request(base, verb, path, arguments)})"
    parent = source.parent(call)
    if isinstance(parent, cst.WithItem):
        block = source.parent(parent)
        if not isinstance(block, cst.With) or len(block.items) != 1 or parent.asname is None:
            raise Refused("the response has no with block of its own")
        response = parent.asname.name
        if not isinstance(response, cst.Name):
            raise Refused("the response has no plain name")
        _rewrite_response(source, edits, function, response.value)
        first = cst.parse_statement(f"{response.value} = {request}")
        edits.on(block, lambda updated: _spliced(updated, first))
    elif isinstance(parent, cst.Await):
        line = source.around(parent, cst.SimpleStatementLine)
        target = assigned(line) if line is not None else None
        if target is None or target[1] is not parent or "." in target[0]:
            raise Refused("the response is not simply assigned to a local name")
        _rewrite_response(source, edits, function, target[0])
        edits.replace(parent, cst.parse_expression(request))
    else:
        raise Refused("the request is neither awaited nor a with block")


def _aiohttp_arguments(verb: str, call: cst.Call) -> tuple[str, dict[str, cst.BaseExpression]]:
    names = ["method", "url"] if verb == "request" else ["url"]
    arguments: dict[str, cst.BaseExpression] = {}
    for position, argument in enumerate(call.args):
        if argument.star or (argument.keyword is None and position >= len(names)):
            raise Refused("the arguments' meaning is not plain")
        name = argument.keyword.value if argument.keyword is not None else names[position]
        arguments[name] = _total(argument.value) if name == "timeout" else argument.value
    method = code(arguments.pop("method")) if "method" in arguments else f'"{verb.upper()}"'
    _check_arguments(arguments)
    return method, arguments


_RENAMED = {"status": "status_code", "headers": "headers", "ok": "ok"}
_AWAITED = {"json": ".json()", "text": ".text", "read": ".content"}


def _rewrite_response(source: Source, edits: Edits, function: cst.FunctionDef, name: str) -> None:
    """Turn the uses of an aiohttp response into those of the pool's."""
    for found in names_in(function.body):
        if found.value != name:
            continue
        attribute = source.parent(found)
        if not isinstance(attribute, cst.Attribute) or attribute.value is not found:
            if isinstance(attribute, (cst.AsName, cst.AssignTarget)):
                continue
            raise Refused("the response is handed on, and its reader may use what the pool's lacks")
        used = attribute.attr.value
        call = source.parent(attribute)
        awaited = source.parent(call) if isinstance(call, cst.Call) else None
        if used in _AWAITED and isinstance(awaited, cst.Await) and isinstance(call, cst.Call) and not call.args:
            edits.replace(awaited, cst.parse_expression(f"{name}{_AWAITED[used]}"))
        elif used in _RENAMED:
            if used != _RENAMED[used]:
                edits.replace(attribute, cst.Attribute(value=found, attr=cst.Name(_RENAMED[used])))
        elif used != "raise_for_status":
            raise Refused(f"the pool's response has no .{used}")


def _spliced(block: Any, first: Any) -> cst.FlattenSentinel[Any]:
    """Return the statements of a ``with`` block behind ``first``, and behind what was put before the block."""
    *before, with_ = list(block) if isinstance(block, cst.FlattenSentinel) else [block]
    return cst.FlattenSentinel([*before, first.with_changes(leading_lines=with_.leading_lines), *with_.body.body])


def _unwrapped(block: cst.With) -> cst.FlattenSentinel[cst.CSTNode]:
    statements = list(block.body.body)
    if statements and hasattr(statements[0], "leading_lines"):
        lines = [*block.leading_lines, *statements[0].leading_lines]
        statements[0] = statements[0].with_changes(leading_lines=lines)
    return cst.FlattenSentinel(statements)
