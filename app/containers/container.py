"""``AgentContainer``: the three pools, and what a deployment names on them."""

from __future__ import annotations

from typing import Any

from dependency_injector import containers, providers

from app.containers.providers import LeaseProvider, Named, Pooled
from app.containers.resources import Resources
from app.containers.scopes import PerContainer, PerMessage
from app.pools.http_pool import HTTPClient, HTTPPool
from app.pools.sql_pool import Database, SQLPool
from app.pools.zmq_pool import Peer, Publisher, ZMQPool


def _database(pool: providers.Provider[SQLPool], config: Any) -> providers.Provider[Any]:
    return LeaseProvider(
        pool,
        "connection",
        config,
        views={
            "handle": lambda pool, config: providers.Factory(Database, pool, config),
            "session": lambda pool, config: LeaseProvider(pool, "session", config),
            "transaction": lambda pool, config: LeaseProvider(pool, "transaction", config),
            "per_message": lambda pool, config: PerMessage(LeaseProvider(pool, "connection", config)),
        },
    )


def _api(pool: providers.Provider[HTTPPool], config: Any) -> providers.Provider[Any]:
    return providers.Factory(HTTPClient, pool, config)


def _peer(pool: providers.Provider[ZMQPool], config: Any) -> providers.Provider[Any]:
    return providers.Factory(Peer, pool, config)


def _publisher(pool: providers.Provider[ZMQPool], config: Any) -> providers.Provider[Any]:
    return providers.Factory(Publisher, pool, config)


def _socket(pool: providers.Provider[ZMQPool], config: Any) -> providers.Provider[Any]:
    return LeaseProvider(
        pool,
        "socket",
        config,
        views={"per_container": lambda pool, config: PerContainer(LeaseProvider(pool, "socket", config))},
    )


class AgentContainer(containers.DeclarativeContainer):
    """Owns the pools of a process of agents.

    What it provides, by marker:

    * ``Provide["databases.NAME"]``: a leased SQLAlchemy ``Connection``, ``AsyncConnection`` in a coroutine;
      ``.session`` and ``.transaction`` behind it likewise, ``.handle`` for a ``Database``, ``.per_message`` for
      the connection that all functions working on one message share;
    * ``Provide["apis.NAME"]``: an ``HTTPClient``;
    * ``Provide["peers.NAME"]``: a ``Peer``, to send requests to;
    * ``Provide["publishers.NAME"]``: a ``Publisher``;
    * ``Provide["sockets.NAME"]``: a leased socket; ``.per_container`` behind it for one that is kept;
    * ``Provide["zmq_pool"]``, ``Provide["sql_pool"]``, ``Provide["http_pool"]``: the pools themselves.

    Subclass it to add providers of your own; a provider ``Pooled(MyPool, ...)`` joins the lifecycle.
    Instantiate it with ``resources=providers.Object(Resources(databases=...))`` to name resources in code
    instead of in ``poolwire.toml``.
    """

    resources = providers.ThreadSafeSingleton(Resources)

    zmq_pool = Pooled(ZMQPool)
    sql_pool = Pooled(SQLPool)
    http_pool = Pooled(HTTPPool)

    databases = Named("databases", resources, sql_pool, _database)
    apis = Named("apis", resources, http_pool, _api)
    peers = Named("peers", resources, zmq_pool, _peer)
    publishers = Named("publishers", resources, zmq_pool, _publisher)
    sockets = Named("sockets", resources, zmq_pool, _socket)
