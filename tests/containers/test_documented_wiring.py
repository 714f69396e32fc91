"""The wiring examples of dependency-injector's README and wiring guide, with our ``inject`` in place of its own."""

import sys
from typing import Any
from unittest import mock

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, Provider, as_, as_float, as_int, invariant, provided, required

from app.containers import inject
from tests.support.modules import module_with


class ApiClient:
    def __init__(self, api_key: str, timeout: int) -> None:
        self.api_key = api_key
        self.timeout = timeout


class Service:
    def __init__(self, api_client: Any) -> None:
        self.api_client = api_client


class Container(containers.DeclarativeContainer):
    config = providers.Configuration()
    api_client = providers.Singleton(ApiClient, api_key=config.api_key, timeout=config.timeout)
    service = providers.Factory(Service, api_client=api_client)


def configured() -> Any:
    container = Container()
    container.config.from_dict(
        {"api_key": "<key>", "timeout": "5", "ratio": "0.5", "option": "one", "choices": {"one": "first"}}
    )
    return container


@pytest.fixture
def container() -> Any:
    return configured()


def wired(container: Any, function: Any) -> Any:
    container.wire(modules=[module_with(function)])
    return function


def test_the_readme_example(container: Any) -> None:
    """``main`` receives a service; overriding its dependency replaces it; leaving the block restores it."""

    @inject
    def main(service: Service = Provide[Container.service]) -> Service:
        return service

    wired(container, main)
    assert "<key>" == main().api_client.api_key
    with container.api_client.override(mock.Mock()):
        assert isinstance(main().api_client, mock.Mock)
    assert isinstance(main().api_client, ApiClient)
    container.unwire()


def test_a_factory_makes_a_new_object_and_a_singleton_the_same(container: Any) -> None:
    """Providers keep their own way of making objects."""

    @inject
    def main(one: Service = Provide["service"], other: Service = Provide["service"]) -> tuple[Service, Service]:
        return one, other

    one, other = wired(container, main)()
    assert one is not other
    assert one.api_client is other.api_client
    container.unwire()


def test_a_provider_can_be_injected_itself(container: Any) -> None:
    """``Provider[...]`` gives the provider, to call when one is needed."""

    @inject
    def main(service_provider: Any = Provider[Container.service], direct: Any = Provide["service.provider"]) -> Any:
        return service_provider(), direct()

    assert all(isinstance(made, Service) for made in wired(container, main)())
    container.unwire()


def test_string_identifiers_with_modifiers(container: Any) -> None:
    """Configuration is converted as ``as_int``, ``as_float``, ``as_``, ``required`` and ``invariant`` say."""

    @inject
    def main(
        timeout: int = Provide["config.timeout", as_int()],
        ratio: float = Provide["config.ratio", as_float()],
        key: bytes = Provide["config.api_key", as_(str.encode)],
        needed: int = Provide["config.timeout", required().as_int()],
        chosen: str = Provide["config.choices", invariant("config.option")],
        attribute: str = Provide["api_client", provided().api_key],
        everything: Any = Provide["<container>"],
    ) -> list[Any]:
        return [timeout, ratio, key, needed, chosen, attribute, everything]

    *values, everything = wired(container, main)()
    assert [5, 0.5, b"<key>", 5, "first", "<key>"] == values
    assert everything is container
    container.unwire()


def test_configuration_options_and_provided_attributes(container: Any) -> None:
    """Markers of options, of attributes and of method results resolve in the wired instance."""

    @inject
    def main(
        key: str = Provide[Container.config.api_key],
        timeout: int = Provide[Container.config.timeout.as_int()],
        client: str = Provide[Container.service.provided.api_client.api_key],
    ) -> list[Any]:
        return [key, timeout, client]

    assert ["<key>", 5, "<key>"] == wired(container, main)()
    container.unwire()


def test_closing_shuts_a_resource_down_after_the_call() -> None:
    """``Closing`` has a resource of one call: opened for it and shut down after it, also after an error."""
    log: list[str] = []

    def resource() -> Any:
        log.append("init")
        yield "resource"
        log.append("shutdown")

    class WithResource(containers.DeclarativeContainer):
        resource_of_call = providers.Resource(resource)

    @inject
    def main(fail: bool, value: str = Closing[Provide["resource_of_call"]]) -> str:
        if fail:
            raise ZeroDivisionError
        return value

    container = WithResource()
    wired(container, main)
    assert "resource" == main(False)
    with pytest.raises(ZeroDivisionError):
        main(True)
    assert ["init", "shutdown"] * 2 == log
    container.unwire()


async def test_asynchronous_providers_are_awaited() -> None:
    """Coroutine functions receive what asynchronous providers give."""

    async def slow() -> str:
        return "value"

    class Asynchronous(containers.DeclarativeContainer):
        slow_value = providers.Coroutine(slow)

    @inject
    async def main(value: str = Provide["slow_value"]) -> str:
        return value

    container = Asynchronous()
    wired(container, main)
    assert "value" == await main()
    container.unwire()


def test_methods_class_methods_and_static_methods_are_wired(container: Any) -> None:
    """``container.wire`` finds the methods of a module's classes."""

    class Handler:
        @inject
        def __init__(self, service: Service = Provide["service"]) -> None:
            self.service = service

        @classmethod
        @inject
        def by_class(cls, service: Service = Provide["service"]) -> Service:
            return service

        @staticmethod
        @inject
        def by_itself(service: Service = Provide["service"]) -> Service:
            return service

    module = module_with(Handler)
    container.wire(modules=[module])
    assert all(isinstance(made, Service) for made in (Handler().service, Handler.by_class(), Handler.by_itself()))
    container.unwire()


def test_module_and_class_attributes_are_wired(container: Any) -> None:
    """Markers that are attributes become their values, and markers again when the container lets go."""

    class Holder:
        client: ApiClient = Provide["api_client"]

    module = module_with(Holder)
    marker = Holder.__dict__["client"]
    container.wire(modules=[module])
    assert isinstance(Holder.client, ApiClient)
    container.unwire()
    assert marker is Holder.__dict__["client"]


def test_wiring_configuration_wires_at_once() -> None:
    """A container whose class says what to wire does so when it is made."""

    @inject
    def main(value: str = Provide["value"]) -> str:
        return value

    module = module_with(main)
    sys.modules[module.__name__] = module

    class Wired(containers.DeclarativeContainer):
        wiring_config = containers.WiringConfiguration(modules=[module.__name__])
        value = providers.Object("wired")

    container = Wired()
    try:
        assert "wired" == main()
    finally:
        container.unwire()
        del sys.modules[module.__name__]
