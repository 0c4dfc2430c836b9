"""The scenarios of the pressure test: how requests are spread over threads, loops and clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from attrs import frozen

from sandai.op.aio import AsyncOperatorClient
from sandai.op.client import OperatorClient


@frozen
class Clients:
    """Make clients with a scenario's limits."""

    sync: Callable[[], OperatorClient]
    aio: Callable[[], AsyncOperatorClient]


Scenario = Callable[[Clients, "Load"], None]


@frozen
class Load:
    """
    How much is asked of a scenario; the delay is the operator's, in seconds.

    *concurrency* is of one loop, *loop_concurrency* of each of *loops* in threads.
    """

    requests: int
    threads: int
    concurrency: int
    loops: int
    loop_concurrency: int
    delay: float
    operator_concurrency: int

    def ideal(self, scenario: str) -> float:
        """Return the seconds that the operator alone needs."""
        at_once = {
            "async_single_loop": self.concurrency,
            "async_multi_thread_loops": self.loops * self.loop_concurrency,
        }.get(scenario, self.threads)
        return -(-self.requests // min(at_once, self.operator_concurrency)) * self.delay


def sync_shared_client_threads(clients: Clients, load: Load) -> None:
    """One client, called by many threads."""
    with clients.sync() as client, ThreadPoolExecutor(load.threads) as threads:
        for reply in threads.map(lambda number: _call(client, number), range(load.requests)):
            assert reply


def sync_thread_local_clients(clients: Clients, load: Load) -> None:
    """A client for each thread, all with the same settings."""

    def work(numbers: range) -> bool:
        with clients.sync() as client:
            return all(_call(client, number) for number in numbers)

    with ThreadPoolExecutor(load.threads) as threads:
        assert all(threads.map(work, _shares(load.requests, load.threads)))


def async_single_loop(clients: Clients, load: Load) -> None:
    """One client on one loop."""
    asyncio.run(_on_a_loop(clients, range(load.requests), load.concurrency))


def async_multi_thread_loops(clients: Clients, load: Load) -> None:
    """A client on each of several loops in threads, all with the same settings."""

    def work(numbers: range) -> None:
        asyncio.run(_on_a_loop(clients, numbers, load.loop_concurrency))

    with ThreadPoolExecutor(load.loops) as threads:
        list(threads.map(work, _shares(load.requests, load.loops)))


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        sync_shared_client_threads,
        sync_thread_local_clients,
        async_single_loop,
        async_multi_thread_loops,
    )
}


def _shares(requests: int, parts: int) -> list[range]:
    return [range(first, requests, parts) for first in range(parts)]


def _call(client: OperatorClient, number: int) -> bool:
    _, results = client.sync([], {"number": number}, timeout=60)
    return bool(results["number"] == number)


async def _on_a_loop(clients: Clients, numbers: range, concurrency: int) -> None:
    room = asyncio.Semaphore(concurrency)

    async def call(client: AsyncOperatorClient, number: int) -> None:
        async with room:
            _, results = await client.sync([], {"number": number}, timeout=60)
            assert results["number"] == number

    async with clients.aio() as client, asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(call(client, number))
