"""The scenarios of the pressure test: how requests are spread over threads and clients."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from attrs import frozen

from sandai.op.client import OperatorClient

MakeClient = Callable[[], OperatorClient]
Scenario = Callable[[MakeClient, "Load"], None]


@frozen
class Load:
    """How much is asked of a scenario; the delay is the operator's, in seconds."""

    requests: int
    threads: int
    delay: float
    operator_concurrency: int

    @property
    def ideal(self) -> float:
        """The seconds that the operator alone needs."""
        at_once = min(self.threads, self.operator_concurrency)
        rounds = -(-self.requests // at_once)
        return rounds * self.delay


def sync_shared_client_threads(make_client: MakeClient, load: Load) -> None:
    """One client, called by many threads."""
    with make_client() as client, ThreadPoolExecutor(load.threads) as threads:
        for reply in threads.map(lambda number: _call(client, number), range(load.requests)):
            assert reply


def sync_thread_local_clients(make_client: MakeClient, load: Load) -> None:
    """A client for each thread, all with the same settings."""

    def work(numbers: range) -> bool:
        with make_client() as client:
            return all(_call(client, number) for number in numbers)

    shares = [range(first, load.requests, load.threads) for first in range(load.threads)]
    with ThreadPoolExecutor(load.threads) as threads:
        assert all(threads.map(work, shares))


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (sync_shared_client_threads, sync_thread_local_clients)
}


def _call(client: OperatorClient, number: int) -> bool:
    _, results = client.sync([], {"number": number}, timeout=60)
    return bool(results["number"] == number)
