"""What the libraries' names mean: which call opens a connection, and what it hands back.

A name is written as the path by which it is reached, where ``()`` stands for the result of a call:
``zmq.Context().socket`` is the method ``socket`` of something that ``zmq.Context()`` returned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a site builds."""

    ZMQ_CONTEXT = "zmq_context"
    ZMQ_SOCKET = "zmq_socket"
    SQL_CONNECT = "sql_connect"
    HTTP_ONESHOT = "http_oneshot"
    HTTP_SESSION = "http_session"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Constructor:
    """A call that opens a connection.

    Attributes:
        kind: what it builds.
        with_closes: whether leaving a ``with`` block over the result closes it. It does not for
            ``sqlite3.connect``, ``psycopg2.connect`` and ``pymysql``, where it ends a transaction at most.
        closers: the methods that close the result; empty if the call leaves nothing open.
        raw: whether it is a bare network socket, which no pool of connections could hold.
    """

    kind: Kind
    with_closes: bool = True
    closers: frozenset[str] = frozenset({"close"})
    raw: bool = False


_CLOSE = frozenset({"close", "aclose"})
_CONTEXT = Constructor(Kind.ZMQ_CONTEXT, closers=frozenset({"term", "destroy"}))
_SOCKET = Constructor(Kind.ZMQ_SOCKET)
_SQL = Constructor(Kind.SQL_CONNECT)
_SQL_WITH_KEEPS_OPEN = Constructor(Kind.SQL_CONNECT, with_closes=False)
_SQL_POOL = Constructor(Kind.SQL_CONNECT, closers=frozenset({"close", "closeall", "terminate"}))
_ENGINE = Constructor(Kind.SQL_CONNECT, with_closes=False, closers=frozenset({"dispose"}))
_ONESHOT = Constructor(Kind.HTTP_ONESHOT, closers=frozenset())
_RESPONSE = Constructor(Kind.HTTP_ONESHOT)
_SESSION = Constructor(Kind.HTTP_SESSION, closers=frozenset({"close", "aclose", "clear"}))
_CLIENT = Constructor(
    Kind.OTHER, closers=frozenset({"close", "aclose", "disconnect", "drain", "wait_closed", "shutdown"})
)
_RAW = Constructor(Kind.OTHER, closers=frozenset({"close", "shutdown", "detach"}), raw=True)


def _table() -> dict[str, Constructor]:
    table: dict[str, Constructor] = {}

    def put(constructor: Constructor, module: str, names: str) -> None:
        table.update({f"{module}.{name}": constructor for name in names.split()})

    put(_CONTEXT, "zmq", "Context Context.instance")
    put(_SOCKET, "zmq", "Context().socket Socket")

    put(_SQL_WITH_KEEPS_OPEN, "sqlite3", "connect Connection")
    put(_SQL, "aiosqlite", "connect")
    put(_SQL_WITH_KEEPS_OPEN, "psycopg2", "connect")
    put(_SQL_POOL, "psycopg2.pool", "SimpleConnectionPool ThreadedConnectionPool PersistentConnectionPool")
    put(_SQL, "psycopg", "connect Connection.connect AsyncConnection.connect")
    put(_SQL_POOL, "psycopg_pool", "ConnectionPool AsyncConnectionPool NullConnectionPool AsyncNullConnectionPool")
    put(_SQL, "asyncpg", "connect")
    put(_SQL_POOL, "asyncpg", "create_pool")
    put(_SQL, "pymysql", "connect Connect Connection connections.Connection")
    put(_SQL, "aiomysql", "connect")
    put(_SQL_POOL, "aiomysql", "create_pool")
    put(_SQL, "mysql.connector", "connect")
    put(_SQL, "MySQLdb", "connect")
    put(_SQL_WITH_KEEPS_OPEN, "pyodbc", "connect")
    put(_ENGINE, "sqlalchemy", "create_engine engine_from_config create_mock_engine engine.create_engine")
    put(_ENGINE, "sqlalchemy.ext.asyncio", "create_async_engine async_engine_from_config")
    put(_ENGINE, "sqlmodel", "create_engine")

    verbs = "get post put patch delete head options request"
    put(_ONESHOT, "requests", verbs)
    put(_SESSION, "requests", "Session session")
    put(_ONESHOT, "httpx", f"{verbs} stream")
    put(_SESSION, "httpx", "Client AsyncClient")
    put(_ONESHOT, "aiohttp", "request")
    put(_SESSION, "aiohttp", "ClientSession")
    put(_RESPONSE, "urllib.request", "urlopen")
    put(_ONESHOT, "urllib.request", "urlretrieve")
    put(_RESPONSE, "urllib", "urlopen")  # Python 2
    put(_RESPONSE, "urllib2", "urlopen")
    put(_ONESHOT, "urllib", "urlretrieve")
    put(_ONESHOT, "urllib3", "request")
    put(_SESSION, "urllib3", "PoolManager ProxyManager HTTPConnectionPool HTTPSConnectionPool connection_from_url")
    for module in ("http.client", "httplib", "six.moves.http_client"):
        put(_SESSION, module, "HTTPConnection HTTPSConnection")

    for module in ("redis", "redis.asyncio", "redis.client", "redis.asyncio.client", "aioredis"):
        put(_CLIENT, module, "Redis StrictRedis from_url Redis.from_url StrictRedis.from_url RedisCluster Sentinel")
        put(_CLIENT, module, "ConnectionPool BlockingConnectionPool ConnectionPool.from_url create_redis")
        put(_CLIENT, module, "create_redis_pool create_connection")
    put(_CLIENT, "redis.cluster", "RedisCluster")
    put(_CLIENT, "redis.sentinel", "Sentinel")
    put(_CLIENT, "pymongo", "MongoClient AsyncMongoClient mongo_client.MongoClient")
    put(_CLIENT, "motor.motor_asyncio", "AsyncIOMotorClient")
    put(_CLIENT, "motor", "MotorClient")
    put(_CLIENT, "nats", "connect NATS aio.client.Client")
    for module in ("websockets", "websockets.client", "websockets.sync.client", "websockets.asyncio.client"):
        put(_CLIENT, module, "connect unix_connect")
    put(_CLIENT, "websockets.legacy.client", "connect")
    put(_CLIENT, "websocket", "create_connection WebSocketApp WebSocket")
    for module in ("grpc", "grpc.aio"):
        put(_CLIENT, module, "insecure_channel secure_channel")
    put(_RAW, "socket", "socket create_connection create_server")
    put(_RAW, "asyncio", "open_connection open_unix_connection")
    return table


CONSTRUCTORS = _table()
"""Every call that opens a connection, by its canonical path."""

SOCKET_TYPES = frozenset({
    "REQ", "REP", "PUB", "SUB", "PUSH", "PULL", "PAIR", "DEALER", "ROUTER", "XPUB", "XSUB", "STREAM", "XREQ", "XREP",
})  # fmt: skip

LIBRARIES = frozenset(path.partition(".")[0] for path in CONSTRUCTORS)
"""The top-level modules whose calls are looked at."""

TERMINALS = frozenset(path.rpartition(".")[2] for path in CONSTRUCTORS)
"""The last names of those calls: a call that ends otherwise can be one only through an alias."""

SOURCE_MENTIONS = re.compile(
    rb"\b(?:"
    + "|".join(sorted(LIBRARIES - {"socket"})).encode()
    + rb"|[Ss]ockets?|[Cc]ontext|ctx)\b|connect|[Ss]ession"
    rb"|\.(?:close|term|destroy|dispose|disconnect)\("
)
"""A source without any of these neither opens a connection, nor hands one on, nor closes one."""

# Submodules through which a library's own name is also reached.
_ALIASES = (
    (re.compile(r"^zmq\.(?:asyncio|green|sugar(?:\.(?:context|socket))?|_future|backend|constants)(?=\.|$)"), "zmq"),
    (re.compile(r"^zmq\.SocketType(?=\.)"), "zmq"),
    (re.compile(r"^zmq\.Context\.(?:instance|shadow|shadow_pyczmq)\(\)"), "zmq.Context()"),
    (re.compile(r"^requests\.(?:api|sessions)(?=\.)"), "requests"),
    (re.compile(r"^aiohttp\.client(?=\.)"), "aiohttp"),
    (re.compile(r"^httpx\._(?:api|client)(?=\.)"), "httpx"),
    (re.compile(r"^urllib3\.(?:poolmanager|connectionpool)(?=\.)"), "urllib3"),
    (re.compile(r"^sqlite3\.dbapi2(?=\.)"), "sqlite3"),
    (re.compile(r"^(?:pysqlite2|pysqlite3|sqlcipher3)(?=\.|$)"), "sqlite3"),
    (re.compile(r"^psycopg2\.extensions\.connection$"), "psycopg2.connect"),
    (re.compile(r"^sqlalchemy\.(?:engine\.create|engine)(?=\.create_engine)"), "sqlalchemy"),
    (re.compile(r"^(?:future\.moves|six\.moves)\.urllib(?=\.)"), "urllib"),
    (re.compile(r"^eventlet\.green\.zmq(?=\.)"), "zmq"),
    (re.compile(r"^(?:eventlet\.green|gevent)\.socket(?=\.)"), "socket"),
)


def canonical(path: str) -> str:
    """Return ``path`` as the tables spell it (``zmq.asyncio.Context`` is ``zmq.Context`` there)."""
    for pattern, replacement in _ALIASES:
        changed = pattern.sub(replacement, path)
        if changed != path:
            return canonical(changed)
    return path


def socket_type(path: str) -> str | None:
    """Return ``"REQ"`` for ``zmq.REQ`` and its like, else ``None``."""
    library, _, name = canonical(path).rpartition(".")
    if library == "zmq" and name in SOCKET_TYPES:
        return {"XREQ": "DEALER", "XREP": "ROUTER"}.get(name, name)
    return None
