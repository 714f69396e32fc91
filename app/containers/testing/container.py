"""A fresh container for one test, and overrides that end with their block.

A test that uses these reaches no real peer: a database that a marker names is an empty SQLite database in memory,
an API is a stub server on loopback, and so on, unless the test says what it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from types import FunctionType, ModuleType, TracebackType
from typing import Any

from dependency_injector import providers

from app.containers.container import AgentContainer
from app.containers.errors import ContainerError
from app.containers.graph import AnyContainer, AnyProvider
from app.containers.lifecycle import Lifecycle, modules_of
from app.containers.providers import Named, Pooled
from app.containers.resources import Resources
from app.containers.testing.stub_server import StubServer
from app.containers.wiring import marker_names
from app.pools.sql_pool import get_sqlite_config
from app.pools.zmq_pool import SocketConfig, SocketType


@contextmanager
def override(
    container: AnyContainer, replacements: Mapping[str, object] | None = None, /, **named: object
) -> Iterator[None]:
    """Replace what ``container`` provides, for the time of a ``with`` block.

    Args:
        container: an instance of a container, started or not.
        replacements: by marker name, such as ``"apis.llm"``: a value, which is injected as it is, or a provider
            of dependency-injector, which is asked for one at each call. The name need not be configured.
            Singletons that need what is replaced are made anew inside the block, and after it; pools that run are
            not.
        named: the same for names without a dot.

    Raises:
        ContainerError: the container has no such provider; names the nearest.
    """
    with ExitStack() as undo:
        for name, replacement in {**(replacements or {}), **named}.items():
            provider = replacement if isinstance(replacement, providers.Provider) else providers.Object(replacement)
            _replace(container, name, provider, undo)
        yield


def _replace(container: AnyContainer, name: str, provider: providers.Provider[Any], undo: ExitStack) -> None:
    head, *rest = name.split(".")
    target = container.providers.get(head)
    if target is None:
        raise ContainerError(f"cannot override {name!r}: the container has {', '.join(sorted(container.providers))}")
    if isinstance(target, Named):
        if not rest:
            raise ContainerError(f"cannot override all {name!r}; name one, such as {name + '.main'!r}")
        if len(rest) == 1 and rest[0] not in target.names:
            undo.callback(target.place, rest[0], target.place(rest[0], provider))
            return
        for segment in rest:
            target = getattr(target, segment)
    elif rest:
        raise ContainerError(f"cannot override {name!r}: only named resources have dots; override {head!r} itself")
    dependents = _dependents(container, target)
    undo.callback(_make_anew, dependents)
    target.override(provider)
    undo.callback(target.reset_last_overriding)
    _make_anew(dependents)


def _dependents(container: AnyContainer, target: AnyProvider) -> list[providers.BaseSingleton[Any]]:
    """Return the singletons that have kept, or would keep, what ``target`` gives."""
    return [
        provider
        for provider in providers.traverse(*container.providers.values())
        if isinstance(provider, providers.BaseSingleton)
        and not isinstance(provider, Pooled)
        and target in set[AnyProvider](provider.traverse())
    ]


def _make_anew(singletons: list[providers.BaseSingleton[Any]]) -> None:
    for singleton in singletons:
        singleton.reset()


class agent_container:
    """A fresh container, wired and started, for one ``with`` or ``async with`` block.

    What markers name, and what is not given here, is in this process: a database is a SQLite database in memory, an
    API is the path ``/NAME`` of a ``StubServer``, which is ``container.stub_server``, a peer or a publisher is
    an ``inproc`` endpoint, and so is the endpoint of an agent with ``on_request``; a peer and an agent's endpoint
    of one name meet. No named resource is read from ``poolwire.toml`` or the environment.

    At the end everything is undone, overrides of the container's class too.

    Args:
        members: the agent classes or functions under test; the modules in which they are written are wired.
        modules: further modules with ``@inject`` functions.
        container_class: the container, if it is a subclass with providers of your own.
        overrides: replacements as for ``override``, put in place before the container starts.
        databases, apis, peers, publishers, sockets: named resources as for ``Resources``.
        stop_timeout: seconds that a lease left open has before the stop fails.

    Returns:
        at entry, the container.

    Raises:
        ExceptionGroup: at exit, if a lease was left open; it names the line of its checkout.
    """

    def __init__(
        self,
        *members: Callable[..., Any] | type,
        modules: Iterable[ModuleType] = (),
        container_class: type[AgentContainer] = AgentContainer,
        overrides: Mapping[str, object] | None = None,
        stop_timeout: float = 2.0,
        **resources: Mapping[str, Any],
    ) -> None:
        own = modules_of(*members)
        modules = [*own, *modules]
        given = {kind: dict(resources.pop(kind, {})) for kind in Resources.kinds}
        if resources:
            raise TypeError(
                f"agent_container() has no parameter {', '.join(sorted(resources))}; named resources are given as "
                f"{', '.join(Resources.kinds)}"
            )
        wanted = [*_named(modules), *_endpoints(members)]
        _refuse_unasked(overrides or {}, [*wanted, *((kind, name) for kind in given for name in given[kind])])
        unique = uuid.uuid4().hex
        for kind, name in wanted:
            if kind in _IN_PROCESS:
                given[kind].setdefault(name, _IN_PROCESS[kind](f"{name}-{unique}"))
        self._stubbed = [name for kind, name in wanted if kind == "apis" and name not in given["apis"]]
        self._apis = given["apis"]
        self._class = container_class
        self.container: Any = container_class(resources=providers.Object(_without_environment(given)))
        self._stub = StubServer()
        self.container.stub_server = self._stub
        self._overrides = override(self.container, overrides)
        self._lifecycle = Lifecycle(
            self.container, modules=modules, unchecked=_beside(members, own), stop_timeout=stop_timeout
        )

    def _begin(self, stack: ExitStack) -> None:
        stack.callback(_undo_overrides, {each: len(each.overridden) for each in self._class.providers.values()})
        stack.enter_context(self._overrides)
        if self._stubbed:
            stack.enter_context(self._stub)
            self._apis.update({name: {"base_url": f"{self._stub.base_url}/{name}"} for name in self._stubbed})

    def __enter__(self) -> Any:
        with ExitStack() as stack:
            self._begin(stack)
            stack.enter_context(self._lifecycle)
            self._undo = stack.pop_all()
        return self.container

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    async def __aenter__(self) -> Any:
        with ExitStack() as stack:
            self._begin(stack)
            await self._lifecycle.__aenter__()
            self._undo = stack.pop_all()
        return self.container

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._undo:
            await self._lifecycle.__aexit__(kind, error, trace)


def _named(modules: Iterable[ModuleType]) -> Iterator[tuple[str, str]]:
    for name in marker_names(modules):
        kind, _, rest = name.partition(".")
        if kind in Resources.kinds and rest:
            yield kind, rest.partition(".")[0]


def _refuse_unasked(overrides: Mapping[str, object], known: Iterable[tuple[str, str]]) -> None:
    """Refuse what would replace a named resource that nobody asks for: it is misspelt."""
    asked = [f"{kind}.{name}" for kind, name in known]
    for override_of in overrides:
        kind, _, rest = override_of.partition(".")
        name = f"{kind}.{rest.partition('.')[0]}"
        if kind in Resources.kinds and rest and name not in asked:
            near = get_close_matches(name, asked, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"they ask for: {', '.join(sorted(asked)) or 'nothing'}"
            raise ContainerError(f"cannot override {override_of!r}: no marker of what is tested asks for it; {hint}")


def _endpoints(members: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for member in members:
        endpoint = getattr(member, "endpoint", None)
        if isinstance(endpoint, str) and hasattr(member, "on_request"):
            yield "sockets", endpoint


def _beside(members: Iterable[Any], modules: Iterable[ModuleType]) -> list[Any]:
    """Return what ``modules`` hold beside ``members``, which a test of those need not configure."""
    tested = {base for member in members for base in (member.__mro__ if isinstance(member, type) else (member,))}
    held = (value for module in modules for value in list(vars(module).values()))
    return [value for value in held if isinstance(value, (type, FunctionType)) and value not in tested]


# What stands for a resource that a test does not give, by kind, made from a name of its own.
_IN_PROCESS: dict[str, Callable[[str], Any]] = {
    "databases": lambda name: get_sqlite_config(":memory:", application_name=name),
    "peers": lambda name: SocketConfig(SocketType.REQ, f"inproc://{name}"),
    "publishers": lambda name: SocketConfig(SocketType.PUB, f"inproc://{name}", bind=True),
    "sockets": lambda name: SocketConfig(SocketType.REP, f"inproc://{name}", bind=True),
}


def _undo_overrides(before: dict[Any, int]) -> None:
    for provider, count in before.items():
        while len(provider.overridden) > count:
            provider.reset_last_overriding()


def _without_environment(given: dict[str, dict[str, Any]]) -> Resources:
    return Resources.model_construct(_fields_set=None, **given)
