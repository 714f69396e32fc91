"""``inject`` on signatures of every shape, and markers written in every way."""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import pytest
from dependency_injector import containers, providers

from app.containers import Lease, Lifecycle, Provide, inject
from tests.support.ledger import Connection, Ledger, LedgerContainer
from tests.support.modules import module_with

if TYPE_CHECKING:
    from decimal import Decimal

First: TypeAlias = Annotated[Connection, Provide["first"]]


@inject
def positional_only(number: int, first: Any = Provide["first"], /, last: int = 3) -> Any:
    return number, first, last


@inject
def keyword_only(number: int, *, first: Any = Provide["first"], last: int = 3) -> Any:
    return number, first, last


@inject
def variadic(number: int, *rest: int, first: Any = Provide["first"], **named: int) -> Any:
    return number, rest, first, named


@inject
def after_a_marker(number: int, first: Any = Provide["first"], *rest: int) -> Any:
    return number, first, rest


@inject
def annotated(number: int, first: Annotated[Connection, Provide["first"]]) -> Any:
    return number, first


@inject
def by_alias(first: First) -> Any:
    return first


@inject
def annotated_first(first: Annotated[Connection, Provide["first"]], number: int) -> Any:
    return first, number


@inject
async def annotated_coroutine(first: Annotated[Connection, Provide["first"]]) -> Any:
    return first


@inject
def with_unknown_types(amount: Decimal, first: Any = Provide["first"]) -> Any:
    return amount, first


@inject
def mixed(
    greeting: str = Provide["greeting"],
    first: Any = Provide["first"],
    bare: Any = Provide["bare"],
    second: Any = Provide["second"],
) -> list[Any]:
    return [greeting, first, bare, second]


@inject
async def mixed_async(
    greeting: str = Provide["greeting"], first: Any = Provide["first"], bare: Any = Provide["bare"]
) -> list[Any]:
    return [greeting, first, bare]


@inject
def named_like_the_wrapper(provider: Any = Provide["first"], manager: int = 1, function: int = 2) -> Any:
    return provider, manager, function


@inject
def swallowing(first: Any = Provide["first"], second: Any = Provide["swallow"]) -> str:
    raise ZeroDivisionError


@inject
def failing_exit(first: Any = Provide["first"], second: Any = Provide["bad_exit"]) -> str:
    return "returned"


@contextmanager
def bare_lease() -> Iterator[str]:
    yield "bare"


@contextmanager
def swallow() -> Iterator[str]:
    with suppress(ZeroDivisionError):
        yield "swallows"


@contextmanager
def bad_exit() -> Iterator[str]:
    yield "value"
    raise OSError("cannot give back")


class Container(LedgerContainer):
    bare = providers.Factory(Lease, providers.Object(bare_lease))
    swallow = providers.Factory(Lease, providers.Object(swallow))
    bad_exit = providers.Factory(Lease, providers.Object(bad_exit))


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    container: Any = Container()
    with Lifecycle(container, modules=[sys.modules[__name__]]):
        yield container.ledger()
    assert [] == container.ledger().leased


def is_lease(value: Any) -> bool:
    return isinstance(value, Connection)


def test_positional_only_parameters_are_injected(ledger: Ledger) -> None:
    """A marker may stand on a positional-only parameter, and an argument in its place wins."""
    number, first, last = positional_only(1)
    assert (1, 3) == (number, last)
    assert is_lease(first)
    assert (1, "mine", 4) == positional_only(1, "mine", last=4)


def test_keyword_only_parameters_are_injected(ledger: Ledger) -> None:
    """A marker may stand behind a star, and an argument by name wins."""
    number, first, last = keyword_only(1, last=5)
    assert (1, 5) == (number, last)
    assert is_lease(first)
    assert (1, "mine", 3) == keyword_only(1, first="mine")


def test_star_arguments_pass_through(ledger: Ledger) -> None:
    """Further positional and named arguments reach the function as they are."""
    number, rest, first, named = variadic(1, 2, 3, a=4)
    assert (1, (2, 3), {"a": 4}) == (number, rest, named)
    assert is_lease(first)
    assert (1, "mine", (2, 3)) == after_a_marker(1, "mine", 2, 3)


def test_wrong_arguments_are_the_functions_own_error(ledger: Ledger) -> None:
    """A missing or unknown argument names the function, and nothing is checked out for it."""
    with pytest.raises(TypeError, match=r"keyword_only\(\) missing 1 required positional argument: 'number'"):
        keyword_only()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        keyword_only(1, nothing=2)  # type: ignore[call-arg]
    assert [] == ledger.log[1:]


@pytest.mark.parametrize("call", [lambda: annotated(1)[1], by_alias, lambda: annotated_first(number=1)[0]])
def test_annotated_markers_work_with_postponed_annotations(call: Callable[[], Any], ledger: Ledger) -> None:
    """``Annotated[X, Provide[...]]``, also behind an alias, is a marker although annotations are strings here."""
    assert is_lease(call())


async def test_annotated_markers_work_in_coroutines(ledger: Ledger) -> None:
    """So it is in a coroutine."""
    assert is_lease(await annotated_coroutine())


def test_annotations_that_only_a_type_checker_knows_are_left_alone(ledger: Ledger) -> None:
    """A type imported for type checking only does not keep other parameters from being injected."""
    assert is_lease(with_unknown_types(1)[1])  # type: ignore[arg-type]


def test_a_marker_whose_annotation_cannot_be_evaluated_is_refused() -> None:
    """A marker that would silently be no marker is an error at decoration that says what to do."""

    def handle(first: Annotated[Unknown, Provide["first"]]) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TypeError, match=r"cannot be evaluated .* write the marker as the default"):
        inject(handle)


def test_values_and_leases_mix(ledger: Ledger) -> None:
    """Plain values, leases of our providers and leases of others come in any order, all closed in reverse."""
    greeting, first, bare, second = mixed()
    assert ("hello", "bare") == (greeting, bare)
    assert [second, first] == ledger.returned
    assert ["mine", "bare"] == [mixed(first="mine")[1], mixed(first="mine")[2]]


async def test_values_and_leases_mix_in_coroutines(ledger: Ledger) -> None:
    """A lease that only has a synchronous side is entered in a coroutine, too."""
    greeting, first, bare = await mixed_async()
    assert ("hello", "bare") == (greeting, bare)
    assert is_lease(first)


def test_no_parameter_name_is_reserved(ledger: Ledger) -> None:
    """Parameters may have the names that the wrapper's source seems to use."""
    provider, manager, function = named_like_the_wrapper(function=5)
    assert is_lease(provider)
    assert (1, 5) == (manager, function)


def test_a_lease_may_swallow_the_error_as_with_does(ledger: Ledger) -> None:
    """If a manager swallows the error, the call returns nothing, and the outer lease ends without an error."""
    assert swallowing() is None
    assert ledger.returned[0].ended_by is None


def test_an_error_while_closing_reaches_the_outer_lease(ledger: Ledger) -> None:
    """What a manager raises at its end is raised by the call, and ends the leases opened before it."""
    with pytest.raises(OSError, match="cannot give back"):
        failing_exit()
    assert isinstance(ledger.returned[0].ended_by, OSError)


def test_a_traceback_shows_the_wrappers_line(ledger: Ledger) -> None:
    """An error that passes through a compiled wrapper has a readable line there."""
    try:
        failing_exit()
    except OSError as error:
        text = "".join(traceback.format_exception(error))
    assert 'File "<inject> tests.containers.test_signatures.failing_exit", line' in text
    assert "raise _inject_error" in text


def test_five_thousand_nested_calls_leave_nothing_behind(ledger: Ledger) -> None:
    """Calls within calls each lease and return their own."""

    @inject
    def down(depth: int, first: Any = Provide["first"]) -> int:
        return depth if depth == 0 else down(depth - 1)

    with Lifecycle(LedgerContainer(), modules=[module_with(down)]) as lifecycle:
        for _ in range(50):
            assert 0 == down(100)
        used: Any = lifecycle.container
        assert [] == used.ledger().leased
        assert 50 * 101 == len(used.ledger().returned)


async def test_tasks_and_threads_of_a_call_have_leases_of_their_own(ledger: Ledger) -> None:
    """Neither ``gather`` nor ``to_thread`` hands a parent's lease to a child."""
    coroutines = await asyncio.gather(annotated_coroutine(), annotated_coroutine())
    threads = await asyncio.gather(asyncio.to_thread(by_alias), asyncio.to_thread(by_alias))

    assert 4 == len({connection.number for connection in [*coroutines, *threads]})


def test_both_decorators_may_serve_one_module() -> None:
    """dependency-injector's own ``inject``, with its ``Closing``, works beside ours."""
    from dependency_injector import wiring

    log: list[str] = []

    def resource() -> Iterator[str]:
        log.append("open")
        yield "resource"
        log.append("close")

    class Both(containers.DeclarativeContainer):
        ledger = LedgerContainer.ledger
        first = LedgerContainer.first
        resource_of_theirs = providers.Resource(resource)

    @wiring.inject
    def theirs(value: str = wiring.Closing[wiring.Provide["resource_of_theirs"]]) -> str:
        return value

    @inject
    def ours(value: str = wiring.Closing[wiring.Provide["resource_of_theirs"]], first: Any = Provide["first"]) -> str:
        return value

    container = Both()
    container.wire(modules=[module_with(theirs, ours)])
    assert ["resource", "resource"] == [theirs(), ours()]
    assert ["open", "close", "open", "close"] == log
    container.unwire()


def test_the_signature_is_the_functions() -> None:
    """Tools see the original's parameters, kinds and markers."""
    assert str(inspect.signature(inspect.unwrap(variadic))) == str(inspect.signature(variadic))
