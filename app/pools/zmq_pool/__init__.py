"""Leased ZMQ sockets: one context, a pool per configuration, for threads and asyncio alike."""

from app.pools.zmq_pool.aio import AsyncSocket
from app.pools.zmq_pool.config import SocketConfig, SocketType
from app.pools.zmq_pool.curve import CurveClient, CurveServer, KeyPair, load_public_key
from app.pools.zmq_pool.endpoints import private_ipc
from app.pools.zmq_pool.peers import Peer, Publisher
from app.pools.zmq_pool.pool import ZMQPool, get_zmq_pool

__all__ = [
    "AsyncSocket",
    "CurveClient",
    "CurveServer",
    "KeyPair",
    "Peer",
    "Publisher",
    "SocketConfig",
    "SocketType",
    "ZMQPool",
    "get_zmq_pool",
    "load_public_key",
    "private_ipc",
]
