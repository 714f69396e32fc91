"""What one injected call costs, against a hand-written ``with`` and against other containers' per-call scopes."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Annotated, Any

import dishka
import svcs
import that_depends
import wireup
from dependency_injector import containers, providers, wiring
from dishka import make_async_container, make_container
from harness import Figure, Runs, arguments, interleave, median, ratio, repeat, report

from app.containers import AgentContainer, LeaseProvider, Lifecycle, Pooled, Provide, Resources, inject
from app.containers.wiring import Wiring
from app.pools.http_pool import HTTPPool
from app.pools.sql_pool import SQLPool
from app.pools.zmq_pool import ZMQPool

BATCH = 200  # coroutine calls awaited in one timing


class First:
    """What is leased. Three classes, because other containers find what to inject by type."""


class Second:
    """Another."""


class Third:
    """A third."""


class Settings:
    """What lives as long as the container."""


class _Checkout(AbstractContextManager[Any], AbstractAsyncContextManager[Any]):
    """The cheapest lease there is, so that the wrapper's own cost shows."""

    __slots__ = ("made",)

    def __init__(self, made: Any) -> None:
        self.made = made

    def __enter__(self) -> Any:
        return self.made

    def __exit__(self, *error: object) -> None: ...

    async def __aenter__(self) -> Any:
        return self.made

    async def __aexit__(self, *error: object) -> None: ...


class Shop:
    """A pool with leases of three kinds that cost nothing."""

    def lend(self, kind: type) -> _Checkout:
        return _Checkout(kind())

    def start(self) -> None: ...
    def stop(self, timeout: float = 10) -> None: ...


shop = Shop()


# A plain call, and a `with` written by hand


def plain(first: First) -> None: ...


def plain_three(first: First, second: Second, third: Third) -> None: ...


async def plain_async(first: First) -> None: ...


async def plain_three_async(first: First, second: Second, third: Third) -> None: ...


def by_hand() -> None:
    with shop.lend(First) as first:
        plain(first)


def by_hand_three() -> None:
    with shop.lend(First) as first, shop.lend(Second) as second, shop.lend(Third) as third:
        plain_three(first, second, third)


async def by_hand_async() -> None:
    async with shop.lend(First) as first:
        await plain_async(first)


async def by_hand_three_async() -> None:
    async with shop.lend(First) as first, shop.lend(Second) as second, shop.lend(Third) as third:
        await plain_three_async(first, second, third)


# poolwire


class Container(containers.DeclarativeContainer):
    """Three leases and a singleton."""

    shop = Pooled(Shop)
    first: LeaseProvider[First] = LeaseProvider(shop, "lend", First)
    second: LeaseProvider[Second] = LeaseProvider(shop, "lend", Second)
    third: LeaseProvider[Third] = LeaseProvider(shop, "lend", Third)
    settings = providers.Singleton(Settings)


@inject
def ours_one(first: First = Provide["first"]) -> None: ...


@inject
def ours_three(
    first: First = Provide["first"], second: Second = Provide["second"], third: Third = Provide["third"]
) -> None: ...


@inject
def ours_singleton(settings: Settings = Provide["settings"]) -> None: ...


@inject
async def ours_one_async(first: First = Provide["first"]) -> None: ...


@inject
async def ours_three_async(
    first: First = Provide["first"], second: Second = Provide["second"], third: Third = Provide["third"]
) -> None: ...


@inject
async def ours_singleton_async(settings: Settings = Provide["settings"]) -> None: ...


# dependency-injector: a resource of its own context, closed after the call


def _resource() -> Iterator[First]:
    yield First()


class TheirContainer(containers.DeclarativeContainer):
    """The nearest that dependency-injector has to a scope of one call."""

    first = providers.ContextLocalResource(_resource)
    settings = providers.Singleton(Settings)


@wiring.inject
def di_one(first: First = wiring.Closing[wiring.Provide["first"]]) -> None: ...


@wiring.inject
def di_singleton(settings: Settings = wiring.Provide["settings"]) -> None: ...


# dishka


class DishkaProvider(dishka.Provider):
    """The same things in dishka's words: what is opened per request, and what lives with the app."""

    @dishka.provide(scope=dishka.Scope.REQUEST)
    def first(self) -> Iterator[First]:
        yield First()

    @dishka.provide(scope=dishka.Scope.REQUEST)
    def second(self) -> Iterator[Second]:
        yield Second()

    @dishka.provide(scope=dishka.Scope.REQUEST)
    def third(self) -> Iterator[Third]:
        yield Third()

    @dishka.provide(scope=dishka.Scope.APP)
    def settings(self) -> Settings:
        return Settings()


class DishkaAsyncProvider(dishka.Provider):
    """Its asynchronous twin."""

    @dishka.provide(scope=dishka.Scope.REQUEST)
    async def first(self) -> AsyncIterator[First]:
        yield First()

    @dishka.provide(scope=dishka.Scope.REQUEST)
    async def second(self) -> AsyncIterator[Second]:
        yield Second()

    @dishka.provide(scope=dishka.Scope.REQUEST)
    async def third(self) -> AsyncIterator[Third]:
        yield Third()

    @dishka.provide(scope=dishka.Scope.APP)
    async def settings(self) -> Settings:
        return Settings()


def dishka_contenders() -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], Awaitable[object]]]]:
    box, async_box = make_container(DishkaProvider()), make_async_container(DishkaAsyncProvider())

    def one() -> None:
        with box() as request:
            plain(request.get(First))

    def three() -> None:
        with box() as request:
            plain_three(request.get(First), request.get(Second), request.get(Third))

    def singleton() -> None:
        plain(box.get(Settings))  # type: ignore[arg-type]

    async def one_async() -> None:
        async with async_box() as request:
            await plain_async(await request.get(First))

    async def three_async() -> None:
        async with async_box() as request:
            await plain_three_async(await request.get(First), await request.get(Second), await request.get(Third))

    async def singleton_async() -> None:
        await plain_async(await async_box.get(Settings))  # type: ignore[arg-type]

    return (
        {"dishka one": one, "dishka three": three, "dishka singleton": singleton},
        {"dishka one": one_async, "dishka three": three_async, "dishka singleton": singleton_async},
    )


# wireup


@wireup.injectable(lifetime="scoped")
def wireup_first() -> Iterator[First]:
    yield First()


@wireup.injectable(lifetime="scoped")
def wireup_second() -> Iterator[Second]:
    yield Second()


@wireup.injectable(lifetime="scoped")
def wireup_third() -> Iterator[Third]:
    yield Third()


@wireup.injectable
def wireup_settings() -> Settings:
    return Settings()


@wireup.injectable(lifetime="scoped")
async def wireup_first_async() -> AsyncIterator[First]:
    yield First()


@wireup.injectable(lifetime="scoped")
async def wireup_second_async() -> AsyncIterator[Second]:
    yield Second()


@wireup.injectable(lifetime="scoped")
async def wireup_third_async() -> AsyncIterator[Third]:
    yield Third()


def wireup_contenders() -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], Awaitable[object]]]]:
    box = wireup.create_sync_container(injectables=[wireup_first, wireup_second, wireup_third, wireup_settings])
    async_box = wireup.create_async_container(
        injectables=[wireup_first_async, wireup_second_async, wireup_third_async, wireup_settings]
    )

    @wireup.inject_from_container(box)
    def one(first: Annotated[First, wireup.Inject()]) -> None: ...

    @wireup.inject_from_container(box)
    def three(
        first: Annotated[First, wireup.Inject()],
        second: Annotated[Second, wireup.Inject()],
        third: Annotated[Third, wireup.Inject()],
    ) -> None: ...

    @wireup.inject_from_container(box)
    def singleton(settings: Annotated[Settings, wireup.Inject()]) -> None: ...

    @wireup.inject_from_container(async_box)
    async def one_async(first: Annotated[First, wireup.Inject()]) -> None: ...

    @wireup.inject_from_container(async_box)
    async def three_async(
        first: Annotated[First, wireup.Inject()],
        second: Annotated[Second, wireup.Inject()],
        third: Annotated[Third, wireup.Inject()],
    ) -> None: ...

    @wireup.inject_from_container(async_box)
    async def singleton_async(settings: Annotated[Settings, wireup.Inject()]) -> None: ...

    return (
        {"wireup one": one, "wireup three": three, "wireup singleton": singleton},
        {"wireup one": one_async, "wireup three": three_async, "wireup singleton": singleton_async},
    )


# svcs, a locator


def svcs_contenders() -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], Awaitable[object]]]]:
    registry = svcs.Registry()

    @contextmanager
    def opened() -> Iterator[First]:
        yield First()

    @asynccontextmanager
    async def opened_async() -> AsyncIterator[Second]:
        yield Second()

    registry.register_factory(First, opened)
    registry.register_factory(Second, opened_async)

    def one() -> None:
        with svcs.Container(registry) as box:
            plain(box.get(First))

    async def one_async() -> None:
        async with svcs.Container(registry) as box:
            await plain_async(await box.aget(Second))  # type: ignore[arg-type]

    return {"svcs one": one}, {"svcs one": one_async}


# that-depends


def _opened() -> Iterator[First]:
    yield First()


async def _opened_async() -> AsyncIterator[First]:
    yield First()


class ThatContainer(that_depends.BaseContainer):
    """A resource for the time of a context."""

    default_scope = None
    first = that_depends.providers.ContextResource(_opened)
    first_async = that_depends.providers.ContextResource(_opened_async)


def that_depends_contenders() -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], Awaitable[object]]]]:
    @that_depends.inject
    def injected(first: First = that_depends.Provide[ThatContainer.first]) -> None: ...

    def one() -> None:
        with that_depends.container_context(ThatContainer.first):
            injected()

    @that_depends.inject
    async def injected_async(first: First = that_depends.Provide[ThatContainer.first_async]) -> None: ...

    async def one_async() -> None:
        async with that_depends.container_context(ThatContainer.first_async):
            await injected_async()

    return {"that-depends one": one}, {"that-depends one": one_async}


# Measuring


def calls(quick: bool) -> tuple[Runs, Runs]:
    """Measure every contender's synchronous and asynchronous calls."""
    Wiring(Container(), [sys.modules[__name__]]).connect()
    theirs = wiring.ProvidersMap(TheirContainer())
    for function in (di_one, di_singleton):
        wiring._bind_injections(function, theirs)  # the last container wired to a function serves it
    synchronous: dict[str, Callable[[], object]] = {
        "plain": lambda: None,
        "with": by_hand,
        "with three": by_hand_three,
        "poolwire one": ours_one,
        "poolwire three": ours_three,
        "poolwire singleton": ours_singleton,
        "dependency-injector one": di_one,
        "dependency-injector singleton": di_singleton,
    }
    asynchronous: dict[str, Callable[[], Awaitable[object]]] = {
        "with": by_hand_async,
        "with three": by_hand_three_async,
        "poolwire one": ours_one_async,
        "poolwire three": ours_three_async,
        "poolwire singleton": ours_singleton_async,
    }
    for contenders in (dishka_contenders, wireup_contenders, svcs_contenders, that_depends_contenders):
        more, more_async = contenders()
        synchronous |= more
        asynchronous |= more_async
    rounds, count = (5, 400) if quick else (41, 4_000)
    sync_runs = interleave({name: repeat(call) for name, call in synchronous.items()}, rounds=rounds, count=count)

    loop = asyncio.new_event_loop()

    def awaited(call: Callable[[], Awaitable[object]]) -> Callable[[int], float]:
        async def many(count: int) -> float:
            began = time.perf_counter()
            for _ in range(count):
                await call()
            return time.perf_counter() - began

        return lambda count: loop.run_until_complete(many(count))

    async_runs = interleave({name: awaited(call) for name, call in asynchronous.items()}, rounds=rounds, count=count)
    loop.close()
    return sync_runs, async_runs


def wiring_runs(quick: bool) -> Runs:
    """Measure binding 1,000 methods, ours and dependency-injector's, with and without large star imports."""
    stars = "from zmq import *\nfrom sqlalchemy import *\nfrom aiohttp import *\nfrom requests import *\n"
    few, many, starred = (method_module(*args) for args in (("", 100), ("", 1000), (stars, 100)))
    container = Container()

    def ours(module: types.ModuleType) -> Callable[[], None]:
        def bind() -> None:
            binding = Wiring(container, [module])
            binding.connect()
            binding.disconnect()

        return bind

    def theirs() -> None:
        container.wire(modules=[many])
        container.unwire()

    contenders = {"ours": ours(many), "theirs": theirs, "100": ours(few), "100 starred": ours(starred)}
    return interleave({name: repeat(call) for name, call in contenders.items()}, rounds=3 if quick else 9, count=1)


def method_module(imports: str, methods: int) -> types.ModuleType:
    """Return a module with a class of so many injected methods."""
    name = f"benchmarked_{methods}_{len(imports)}"
    body = "".join(f"    @inject\n    def m{i}(self, first=Provide['first']): ...\n" for i in range(methods))
    module = types.ModuleType(name)
    sys.modules[name] = module
    source = f"{imports}from app.containers import Provide, inject\nclass Agent:\n{body}"
    exec(compile(source, name, "exec"), vars(module))
    return module


def lifecycle_runs(quick: bool) -> Runs:
    """Measure starting and stopping a container of three pools, and the three by hand."""

    def by_container() -> None:
        with Lifecycle(AgentContainer(resources=providers.Object(Resources()))):
            pass

    def three_by_hand() -> None:
        with ZMQPool(), SQLPool(), HTTPPool():
            pass

    contenders = {"container": repeat(by_container), "by hand": repeat(three_by_hand)}
    return interleave(contenders, rounds=5 if quick else 15, count=5)


def overhead(runs: Runs, name: str, base: str) -> float:
    """Return the microseconds that ``name`` costs above ``base``, as the median over the rounds of the difference."""
    return statistics.median(mine - other for mine, other in zip(runs[name], runs[base], strict=True)) * 1e6


def main() -> None:
    quick = arguments(__doc__ or "").quick
    figures = []
    for kind, runs in zip(("sync", "async"), calls(quick), strict=True):
        for others in ("dishka", "wireup"):
            limit = overhead(runs, f"{others} one", "with")
            mine = overhead(runs, "poolwire one", "with")
            figures.append(
                Figure(f"{kind}, one lease above a `with`; {others}", mine, limit, at_least=False, unit="µs")
            )
        limit = 1.5 * median(runs, "wireup singleton") * 1e6
        figures.append(
            Figure(f"{kind}, one singleton; wireup x 1.5", median(runs, "poolwire singleton") * 1e6, limit, False, "µs")
        )
        three, one = overhead(runs, "poolwire three", "with three"), overhead(runs, "poolwire one", "with")
        figures.append(Figure(f"{kind}, three leases above three `with`; twice one lease", three, 2 * one, False, "µs"))
        for others in ("dishka", "wireup"):
            limit = overhead(runs, f"{others} three", "with three")
            figures.append(Figure(f"{kind}, three leases; {others}", three, limit, False, "µs"))
        for name in runs:
            figures.append(Figure(f"{kind}, whole call: {name}", median(runs, name) * 1e6, unit="µs"))
    bound = wiring_runs(quick)
    figures.append(Figure("wiring 1,000 methods vs dependency-injector", ratio(bound, "ours", "theirs"), 1.2, False))
    figures.append(Figure("wiring a module with star imports vs without", ratio(bound, "100 starred", "100"), 2, False))
    figures.append(
        Figure(
            "start and stop of three pools vs by hand", ratio(lifecycle_runs(quick), "container", "by hand"), 2, False
        )
    )
    packages = ("dependency-injector", "dishka", "wireup", "svcs", "that-depends")
    report("Injection", figures, packages)


if __name__ == "__main__":
    main()
