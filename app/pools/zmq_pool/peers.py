"""Handles for agents: a peer to ask and a publisher to tell, each bound to its pool and configuration."""

from __future__ import annotations

from typing import Any

import orjson

from app.pools.errors import RequestFailed, UnexpectedReply
from app.pools.zmq_pool.config import SocketConfig, SocketType
from app.pools.zmq_pool.pool import ZMQPool
from app.pools.zmq_pool.requesting import require_config

ERROR_KEY = "poolwire.error"
"""The key of a reply that reports an error: ``{"poolwire.error": {"type": ..., "message": ...}}``."""


class Peer:
    """A service that answers requests.

    Args:
        pool: the pool to lease sockets from.
        config: a REQ configuration that connects to the service.
    """

    def __init__(self, pool: ZMQPool, config: SocketConfig) -> None:
        require_config(config)
        self.pool = pool
        self.config = config

    def __repr__(self) -> str:
        return f"<Peer {self.config.endpoint}>"

    def request(self, body: bytes, timeout: float | None = None) -> bytes:
        """Send ``body`` and return the reply; as ``ZMQPool.request``."""
        return self.pool.request(self.config, body, timeout)

    async def request_async(self, body: bytes, timeout: float | None = None) -> bytes:
        """Do what ``request`` does without blocking the event loop."""
        return await self.pool.request_async(self.config, body, timeout)

    def ask(self, message: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Send ``message`` as JSON and return the reply's JSON.

        Raises:
            RequestFailed: the peer answered with an error.
            UnexpectedReply: the reply is not a JSON object.
            NotSent, NoReply, PoolTimeout: as ``ZMQPool.request``.
        """
        return self._answer(self.request(orjson.dumps(message), timeout))

    async def ask_async(self, message: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Do what ``ask`` does without blocking the event loop."""
        return self._answer(await self.request_async(orjson.dumps(message), timeout))

    def _answer(self, reply: bytes) -> dict[str, Any]:
        try:
            answer = orjson.loads(reply)
        except orjson.JSONDecodeError:
            raise UnexpectedReply(self.config.endpoint, "is not JSON") from None
        if not isinstance(answer, dict):
            raise UnexpectedReply(self.config.endpoint, "is not a JSON object")
        failure = answer.get(ERROR_KEY)
        if isinstance(failure, dict):
            raise RequestFailed(self.config.endpoint, str(failure.get("type")), str(failure.get("message")))
        return answer


class Publisher:
    """Sends messages to whoever listens: through a PUB to every subscriber, through a PUSH to one worker.

    Args:
        pool: the pool whose socket it uses.
        config: a PUB or PUSH configuration.
    """

    def __init__(self, pool: ZMQPool, config: SocketConfig) -> None:
        require_config(config)
        if config.socket_type not in (SocketType.PUB, SocketType.PUSH):
            raise TypeError(f"a publisher needs a PUB or PUSH configuration, not {config.label}")
        self.pool = pool
        self.config = config
        publishes = config.socket_type is SocketType.PUB
        self._send = pool.publish if publishes else pool.push
        self._send_async = pool.publish_async if publishes else pool.push_async

    def __repr__(self) -> str:
        return f"<Publisher {self.config.label}>"

    def publish(self, *frames: bytes) -> None:
        """Send ``frames`` as one message; as ``ZMQPool.publish`` or ``push``."""
        self._send(self.config, *frames)

    async def publish_async(self, *frames: bytes) -> None:
        """Send ``frames`` as one message, as ``ZMQPool.publish_async``: a full queue does not block the event loop."""
        await self._send_async(self.config, *frames)

    def send(self, *message: Any, topic: str | None = None) -> None:
        """Send ``message`` as JSON, behind its topic if there is one.

        ``send(message)`` sends one frame; ``send(topic, message)`` and ``send(message, topic=topic)`` send two,
        the topic first, which is what a SUB's ``topics`` are compared with.
        """
        self._send(self.config, *_encoded(message, topic))

    async def send_async(self, *message: Any, topic: str | None = None) -> None:
        """Do what ``send`` does without blocking the event loop where the queue is full."""
        await self._send_async(self.config, *_encoded(message, topic))


def _encoded(message: tuple[Any, ...], topic: str | None) -> tuple[bytes, ...]:
    match message:
        case (body,) if not isinstance(body, str):
            pass
        case (str(topic), body):
            pass
        case _:
            raise TypeError("send takes a message, or a topic and a message")
    encoded = orjson.dumps(body)
    return (encoded,) if topic is None else (topic.encode(), encoded)
