"""What a type checker accepts and refuses; read by mypy, never run."""

from typing import assert_type

from dependency_injector import providers
from sqlalchemy import Connection

from app.containers import AgentContainer, Lease, LeaseProvider, inject, leased
from app.pools.http_pool import HTTPClient


class Container(AgentContainer):
    library: LeaseProvider[Connection] = LeaseProvider(AgentContainer.sql_pool, "connection", None)
    made: providers.Provider[Lease[Connection]] = library


@inject
def right(db: Connection = leased(Container.library)) -> None:
    assert_type(db, Connection)


@inject
def through_the_base(db: Connection = leased(Container.made)) -> None: ...


@inject
def wrong(db: HTTPClient = leased(Container.library)) -> None: ...  # refused: Incompatible default


@inject
def keeps_its_signature(number: int, db: Connection = leased(Container.library)) -> str:
    return str(number)


assert_type(keeps_its_signature(1), str)
keeps_its_signature("one")  # refused: incompatible type "str"
