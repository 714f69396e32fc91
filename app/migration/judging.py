"""From a call to a site: what it builds, whether it is hot, whether it is closed, and what can be done about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from app.migration.facts import Call, FileFacts
from app.migration.index import Index
from app.migration.libraries import CONSTRUCTORS, Constructor, Kind, socket_type
from app.migration.score import site_score
from app.migration.sites import Confidence, Scope, Site, Verdict

_CONTEXT_NAME = re.compile(r"(?:^|_)(?:zmq_?(?:context|ctx)|context|ctx|zctx|zcontext)$", re.IGNORECASE)
_BINDS = frozenset({"bind", "bind_to_random_port"})
_ANSWERS = frozenset({"REP", "ROUTER", "PULL", "PAIR", "STREAM"})
_SUBSCRIBES = frozenset({"SUB", "XSUB", "XPUB"})
_KEPT = frozenset({"attribute", "global", "item"})


def sites_of(file: str, facts: FileFacts, index: Index) -> list[Site]:
    """Return the sites of one file, by line."""
    seen: set[tuple[int, int, Kind]] = set()
    sites = []
    for call in facts.calls:
        for path, constructor, confidence in _openings(call, file, facts, index):
            key = (call.line, call.column, constructor.kind)
            if key not in seen:
                seen.add(key)
                sites.append(_site(call, path, constructor, confidence, file, facts, index))
            break
    _settle_contexts(sites)
    for site in sites:
        site.score = site_score(site)
    return sites


def _openings(call: Call, file: str, facts: FileFacts, index: Index) -> Iterator[tuple[str, Constructor, Confidence]]:
    surest = Confidence.LOW if facts.problem else Confidence.HIGH
    inferred = Confidence.LOW if facts.problem else Confidence.MEDIUM
    paths = index.library_paths(call.callee, file)
    for path in paths:
        constructor = CONSTRUCTORS.get(path)
        if constructor is not None:
            guessed = call.deferred or all(symbol[0] == "*" for symbol in call.callee)
            yield path, constructor, inferred if guessed else surest
    # `context.socket(zmq.REQ)` on something unknown: the argument, or the name in a file that knows zmq, tells.
    unresolved = not any(path in CONSTRUCTORS or path.startswith("socket") for path in paths)
    if unresolved and any(symbol.endswith(".socket") for symbol in call.callee) and call.has_argument:
        known_type = any(socket_type(path) for path in index.library_paths(call.argument, file))
        if known_type or (_CONTEXT_NAME.search(call.receiver) and _knows_zmq(facts)):
            path = "zmq.Context().socket"
            yield path, CONSTRUCTORS[path], inferred


def _knows_zmq(facts: FileFacts) -> bool:
    return any(symbol.partition(".")[0] == "zmq" for symbols in facts.names.values() for symbol in symbols)


def _site(
    call: Call,
    path: str,
    constructor: Constructor,
    confidence: Confidence,
    file: str,
    facts: FileFacts,
    index: Index,
) -> Site:
    kind = constructor.kind
    methods = {*call.methods, *call.guarded}
    if call.target == "attribute" and "." in call.place:
        owner, _, attribute = call.place.rpartition(".")
        methods |= index.uses(file, owner, attribute)
    role = _socket_type(call, file, index) if kind is Kind.ZMQ_SOCKET else None
    hot, reason = _heat(call, constructor, role, methods)
    closed, closed_reason = _closing(call, constructor, methods)
    verdict = _verdict(constructor, role, methods, hot=hot)
    return Site(
        file=file,
        line=call.line,
        column=call.column + 1,
        end_line=call.end_line,
        kind=kind,
        socket_type=role,
        scope=Scope(call.scope),
        hot=hot,
        reason=reason,
        closed=closed,
        closed_reason=closed_reason,
        verdict=verdict,
        confidence=confidence,
        code=_code(constructor, path, role, methods, hot=hot),
        library=path,
        function=call.function,
        target=call.target,
        text=call.text,
        rewritable=not facts.problem and not call.deferred and kind is not Kind.OTHER,
    )


def _socket_type(call: Call, file: str, index: Index) -> str:
    types = {socket_type(path) for path in index.library_paths(call.argument, file)} - {None}
    return types.pop() or "dynamic" if len(types) == 1 else "dynamic"


def _heat(call: Call, constructor: Constructor, role: str | None, methods: set[str]) -> tuple[bool, str]:
    """Say whether the call runs again and again, and why, or why not."""
    name = call.function.rpartition(".")[2] or "the module"
    if call.scope == "loop":
        if call.target in _KEPT and (call.once or call.target == "attribute"):
            return False, "built in a loop, and kept"
        kind = {"for": "a for loop", "while": "a while loop"}.get(call.repeats, "a comprehension")
        return True, f"built again on each round of {kind}"
    if call.once:
        return False, call.once
    if call.target in _KEPT:
        return False, f"kept in {call.place or 'a container'}"
    oneshot = not constructor.closers or constructor.kind is Kind.HTTP_ONESHOT
    if constructor.kind is Kind.ZMQ_SOCKET:
        if call.looped and role not in ("REQ", "dynamic"):
            return False, f"{name}() serves in a loop with it"
        if methods & _BINDS and not methods & constructor.closers:
            return False, "bound, and kept open"
        if call.target == "return":
            return False, f"handed on by {name}(), a factory"
    if call.target == "return" and not oneshot:
        return True, f"{name}() hands out a new one on each call"
    return True, f"built on each call of {name}()"


def _closing(call: Call, constructor: Constructor, methods: set[str]) -> tuple[bool | None, str]:
    """Say whether the result is closed whatever happens, and how."""
    if not constructor.closers:
        return True, "the call closes what it opens"
    names = ", ".join(f"{name}()" for name in sorted(constructor.closers & methods))
    if call.target == "closing":
        return True, "closed by closing()"
    if call.target == "with" or "with" in call.guarded:
        if constructor.with_closes:
            return True, "closed by its with block"
        if "close" in call.guarded:
            return True, "closed in a finally block"
        return False, "its with block ends a transaction and does not close it"
    if call.target == "local":
        if constructor.closers & set(call.guarded):
            return True, f"{names} runs whatever happens"
        if constructor.closers & set(call.methods):
            return False, f"an exception skips {names}"
        return False, "never closed"
    if call.target in ("attribute", "global"):
        if constructor.closers & methods:
            return True, f"closed by {names} of its owner"
        return False, "its owner never closes it"
    if call.target == "return":
        return None, "handed to the caller, who must close it"
    if call.target in ("item", "argument"):
        return None, "handed on"
    return False, "never closed: nothing keeps it"


def _verdict(constructor: Constructor, role: str | None, methods: set[str], *, hot: bool) -> Verdict:
    if constructor.kind is Kind.OTHER:
        return Verdict.IGNORE if constructor.raw else Verdict.INJECT_ONLY
    if constructor.kind is Kind.ZMQ_SOCKET:
        if methods & _BINDS or role in _ANSWERS or role in _SUBSCRIBES:
            return Verdict.INJECT_ONLY
        if role == "dynamic" and not hot:
            return Verdict.INJECT_ONLY
    return Verdict.POOLABLE


def _code(constructor: Constructor, path: str, role: str | None, methods: set[str], *, hot: bool) -> str:
    kind = constructor.kind
    if kind is Kind.ZMQ_CONTEXT:
        return "PM101"
    if kind is Kind.ZMQ_SOCKET:
        if role in _SUBSCRIBES:
            return "PM105"
        if methods & _BINDS or role in _ANSWERS:
            return "PM104"
        return "PM102" if hot else "PM103"
    if kind is Kind.SQL_CONNECT:
        if "engine" in path or "pool" in path.lower():
            return "PM203"
        return "PM201" if hot else "PM202"
    if kind is Kind.HTTP_ONESHOT:
        return "PM301"
    if kind is Kind.HTTP_SESSION:
        return "PM302" if hot else "PM303"
    return "PM402" if constructor.raw else "PM401"


def _settle_contexts(sites: Sequence[Site]) -> None:
    """A local context lives as long as the sockets of its function: where those serve, it is not hot either."""
    for context in sites:
        if context.kind is not Kind.ZMQ_CONTEXT or not context.hot or context.scope is Scope.LOOP:
            continue
        sockets = [
            site
            for site in sites
            if site.kind is Kind.ZMQ_SOCKET and site.function == context.function and site.function
        ]
        if sockets and not any(socket.hot or socket.target == "return" for socket in sockets):
            context.hot = False
            context.reason = sockets[0].reason
