"""The stable codes of what a scan finds, and what each means for the person who reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """A code with its one-line title, why it matters, and what to do."""

    code: str
    title: str
    why: str
    instead: str


_ALL = (
    Code(
        "PM101",
        "a ZMQ context of its own",
        "Each context starts I/O threads and must be terminated; terminating one with an open socket blocks the "
        "process. A program needs one.",
        "Take `zmq_pool` by injection and use `zmq_pool.context`; do not terminate it, the pool's owner does. "
        "`poolwire migrate rewrite --only PM101` does this for a context that an object makes in `__init__`.",
    ),
    Code(
        "PM102",
        "a ZMQ socket built for each call",
        "Each call pays a TCP and ZMTP handshake and leaks the socket when an exception passes before close().",
        "`with self.zmq_pool.socket(SocketConfig(SocketType.REQ, endpoint)) as socket:`; the options that were set "
        "on the socket move into the config.",
    ),
    Code(
        "PM103",
        "a long-lived ZMQ socket that connects",
        "One REQ socket shared by calls blocks for ever after one lost reply, and two threads corrupt it. Whether it "
        "may be pooled depends on who relies on the order of its messages: a person decides.",
        "Lease it per call (`zmq_pool.socket(config)`), or keep it and build it from the injected pool's context.",
    ),
    Code(
        "PM104",
        "a bound ZMQ socket",
        "An address has one owner, so a bound socket is not pooled; only its context should be shared.",
        "Keep the socket; build it from the injected `zmq_pool.context`. An Agent's `on_request` replaces a REP loop.",
    ),
    Code(
        "PM105",
        "a ZMQ subscription",
        "A subscription belongs to the one who reads it, so it is not pooled; only its context should be shared.",
        "Keep the socket; build it from the injected `zmq_pool.context`. An Agent's `on_message` replaces the loop.",
    ),
    Code(
        "PM201",
        "a database connection built for each call",
        "Each call opens a connection, and most leak it when a statement raises: close() is then skipped.",
        "`with self.sql_pool.connection(config) as db:`; the pool gives it back, rolled back if the call failed.",
    ),
    Code(
        "PM202",
        "a long-lived database connection",
        "One connection kept by an object is shared by its callers' transactions, and is not replaced when it breaks.",
        "Take `sql_pool` by injection and lease a connection for each call.",
    ),
    Code(
        "PM203",
        "an engine or driver pool of its own",
        "Each engine has its own pool, so a process has as many connections as engines times their size.",
        "Take `sql_pool` by injection; `sql_pool.session(config)` gives an ORM session on the shared pool.",
    ),
    Code(
        "PM301",
        "a one-shot HTTP request",
        "Each request resolves, connects and makes a TLS handshake again, without retries or a total deadline.",
        "`self.http_pool.request(HTTPConfig(base_url), method, path)`; the response keeps `.status_code`, `.json()`, "
        "`.text`, `.content` and `.raise_for_status()`.",
    ),
    Code(
        "PM302",
        "an HTTP session built for each call",
        "A session that lives for one call keeps no connection alive: it costs what one-shot requests cost.",
        "`await self.http_pool.request_async(HTTPConfig(base_url), method, path)`.",
    ),
    Code(
        "PM303",
        "a long-lived HTTP session",
        "A session kept by an object is closed by nobody when the object is dropped, and limits nothing.",
        "Take `http_pool` by injection; `http_pool.session(config)` leases a session.",
    ),
    Code(
        "PM401",
        "a client of another server",
        "Redis, MongoDB, NATS, gRPC and WebSocket clients have no pool of poolwire's.",
        "Write a pool that fulfils `app.pools.pool.Pool` around the client, and take it by injection.",
    ),
    Code(
        "PM402",
        "a raw network socket",
        "A bare socket has a protocol of its own; it is counted and left alone.",
        "Nothing, unless it speaks HTTP or ZMQ by hand.",
    ),
    Code(
        "PM901",
        "a file that does not parse",
        "Its sites are found by a tolerant parser, with low confidence, and it is never rewritten.",
        "Repair the syntax; the message has the line. `--strict-parse` makes such files an error (exit code 3).",
    ),
    Code(
        "PM902",
        "a file that could not be read",
        "It may hold sites that nobody sees.",
        "Repair the permissions or the encoding, or exclude the file in the configuration.",
    ),
    Code(
        "PM903",
        "an ignore comment that ignores nothing",
        "It would hide the next site on that line.",
        "Delete the comment, or correct the code in its brackets.",
    ),
)

CODES: dict[str, Code] = {code.code: code for code in _ALL}
"""Every code, in order."""


def explain(code: str) -> str:
    """Return what ``code`` means, why it matters and what to do instead.

    Raises:
        KeyError: there is no such code; the message lists those there are.
    """
    try:
        found = CODES[code.upper()]
    except KeyError:
        raise KeyError(f"{code!r} is not a code; there are {', '.join(CODES)}") from None
    return f"{found.code}: {found.title}\n\nWhy it matters\n  {found.why}\n\nInstead\n  {found.instead}\n"
