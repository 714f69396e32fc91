"""The loop over a call's attempts, for threads and for tasks. What follows each attempt, the call decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, cast

from app.pools.http_pool.account import Account
from app.pools.http_pool.async_transport import AsyncTransport
from app.pools.http_pool.calls import Answer, Call, Elsewhere, Failure, Step
from app.pools.http_pool.config import HTTPConfig
from app.pools.http_pool.sync_transport import SyncTransport


class Closable(Answer, Protocol):
    """An answer that holds a connection until it is closed."""

    def close(self) -> object:
        """Give the connection back."""


A = TypeVar("A", bound=Closable)
B = TypeVar("B", bound=Closable)


def attempt_until_settled(
    call: Call, enter: Callable[[HTTPConfig], Account], send: Callable[[SyncTransport, Call], A | Failure]
) -> A:
    """Return the answer that stands.

    Args:
        call: the call, counted in at its account; afterwards it may be counted in at another one.
        enter: returns the account of a configuration with the call counted in.
        send: makes one attempt.
    """
    while True:
        outcome = _attempt(call, send)
        step = _what_follows(call, outcome)
        if step is None:
            return cast(A, outcome)
        if isinstance(step, Elsewhere):
            _move(call, enter(step.config))
        else:
            time.sleep(step)


def _attempt(call: Call, send: Callable[[SyncTransport, Call], A | Failure]) -> A | Failure:
    account = call.account
    probe = account.circuit.admit()
    healthy: bool | None = None
    error = ""
    try:
        if account.pacer is not None:
            time.sleep(call.turn())
        if account.tokens is not None and call.wants_token:
            call.authorize(account.tokens.get(call.remaining()))
        if account.gate is not None:
            call.place = account.gate.checkout(call.remaining())
        call.attempts += 1
        account.origin.attempt_started()
        outcome = send(account.transport.sync, call)
        healthy = call.healthy(outcome)
        if healthy is False:
            error = call.trouble(outcome)
        return outcome
    finally:
        account.circuit.settle(probe=probe, healthy=healthy, error=error)


async def attempt_until_settled_async(
    call: Call, enter: Callable[[HTTPConfig], Account], send: Callable[[AsyncTransport, Call], Awaitable[B | Failure]]
) -> B:
    """Do what ``attempt_until_settled`` does without blocking the event loop."""
    while True:
        outcome = await _attempt_async(call, send)
        step = _what_follows(call, outcome)
        if step is None:
            return cast(B, outcome)
        if isinstance(step, Elsewhere):
            _move(call, enter(step.config))
        else:
            await asyncio.sleep(step)


async def _attempt_async(call: Call, send: Callable[[AsyncTransport, Call], Awaitable[B | Failure]]) -> B | Failure:
    account = call.account
    probe = account.circuit.admit()
    healthy: bool | None = None
    error = ""
    sent = False
    try:
        if account.pacer is not None:
            await asyncio.sleep(call.turn())
        if account.tokens is not None and call.wants_token:
            call.authorize(await account.tokens.get_async(call.remaining()))
        if account.gate is not None:
            call.queue = account.gate
            call.place = await account.gate.checkout_async(call.remaining())
        call.attempts += 1
        account.origin.attempt_started()
        sent = True
        call.queue = account.transport.tasks.slots
        outcome = await send(account.transport.tasks, call)
        healthy = call.healthy(outcome)
        if healthy is False:
            error = call.trouble(outcome)
        return outcome
    except asyncio.CancelledError:
        if sent and call.queue is None and time.monotonic() >= call.deadline:
            healthy, error = False, "no answer until the deadline"  # while it was the server's turn
        raise
    finally:
        account.circuit.settle(probe=probe, healthy=healthy, error=error)


def _what_follows(call: Call, outcome: Closable | Failure) -> Step:
    """Return what follows an attempt; ``None`` for an answer that stands. Any other gives back what it holds."""
    if isinstance(outcome, Failure):
        give_up_place(call)
        return call.after_failure(outcome)
    try:
        step = call.after_answer(outcome)
    except BaseException:
        outcome.close()
        raise
    if step is not None:
        outcome.close()
        give_up_place(call)
    return step


def leave(call: Call) -> None:
    """Count a call out, wherever it has got to."""
    give_up_place(call)
    call.account.transport.leave()


def _move(call: Call, account: Account) -> None:
    call.account, left = account, call.account
    left.transport.leave()


def give_up_place(call: Call) -> None:
    """Give back the place that the call holds among ``max_concurrency``, if it does."""
    place, call.place = call.place, None
    if place is not None and call.account.gate is not None:
        call.account.gate.give_back(place)
