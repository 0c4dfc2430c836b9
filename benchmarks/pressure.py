"""The scenarios of the pressure test: how requests are spread over threads, loops and clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from attrs import frozen

from sandai.op.aio import AsyncOperatorClient
from sandai.op.client import OperatorClient

#: The arguments of a client.
Settings = dict[str, Any]
Scenario = Callable[[Settings, "Load"], None]

#: Threads with a loop each, in the scenario that has several.
LOOPS = 4


@frozen
class Load:
    """
    How much is asked of a scenario; the delay is the operator's, in seconds.

    ``threads`` call at once, or ``coroutines`` do.
    """

    requests: int
    threads: int
    coroutines: int
    delay: float
    operator_concurrency: int

    def ideal(self, scenario: str) -> float:
        """Return the seconds that the operator alone needs."""
        callers = self.coroutines if scenario.startswith("async") else self.threads
        at_once = min(callers, self.operator_concurrency)
        rounds = -(-self.requests // at_once)
        return rounds * self.delay


def sync_shared_client_threads(settings: Settings, load: Load) -> None:
    """One client, called by many threads."""
    with OperatorClient(**settings) as client, ThreadPoolExecutor(load.threads) as threads:
        for reply in threads.map(lambda number: _call(client, number), range(load.requests)):
            assert reply


def sync_thread_local_clients(settings: Settings, load: Load) -> None:
    """A client for each thread, all with the same settings."""

    def work(numbers: range) -> bool:
        with OperatorClient(**settings) as client:
            return all(_call(client, number) for number in numbers)

    shares = [range(first, load.requests, load.threads) for first in range(load.threads)]
    with ThreadPoolExecutor(load.threads) as threads:
        assert all(threads.map(work, shares))


def async_single_loop(settings: Settings, load: Load) -> None:
    """One client on one event loop, called by many coroutines."""
    asyncio.run(_coroutines(settings, range(load.requests), load.coroutines))


def async_multi_thread_loops(settings: Settings, load: Load) -> None:
    """Four threads with an event loop and a client each, all with the same settings."""

    def work(first: int) -> None:
        numbers = range(first, load.requests, LOOPS)
        asyncio.run(_coroutines(settings, numbers, load.coroutines // LOOPS))

    with ThreadPoolExecutor(LOOPS) as threads:
        list(threads.map(work, range(LOOPS)))


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        sync_shared_client_threads,
        sync_thread_local_clients,
        async_single_loop,
        async_multi_thread_loops,
    )
}


def _call(client: OperatorClient, number: int) -> bool:
    _, results = client.sync([], {"number": number}, timeout=60)
    return bool(results["number"] == number)


async def _coroutines(settings: Settings, numbers: range, at_once: int) -> None:
    room = asyncio.Semaphore(at_once)

    async def call(number: int) -> None:
        async with room:
            _, results = await client.sync([], {"number": number}, timeout=60)
        assert results["number"] == number

    async with AsyncOperatorClient(**settings) as client, asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(call(number))
