"""
Everything at once, for a while: callers of both colours, and one fault after the other.

``SOAK_SECONDS`` says for how long, ``SOAK_SEED`` which faults and calls: a failure prints it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil
import pytest

from budget_watch import BudgetWatch
from chaos import Chaos
from colours import OPERATOR, Loops, Threads, run_without_a_loop
from conftest import JANITOR
from ledger_operator import TAKEN, LedgerOperator
from local_redis import HOST, LocalRedis
from loops import LOOPS, run
from sandai.op.transport import statistics
from soaking import ACQUIRE, IO, Caller, Clients, Ledger
from tcp_proxy import TcpProxy
from watching import client_threads, connections, eventually, open_redis

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
THREADS, COROUTINES = 64, 36
LIMITS = {"broker": 6, "backend": 6}
ENDING = 60.0
"""Seconds in which the callers and then the operator must be done, after the last fault."""
QUEUES = [f"{priority}.{OPERATOR}.v1" for priority in ("high", "normal", "low", "very_low")]
MEGABYTE = 1024 * 1024


class Soak:
    """The callers: threads, and coroutines on two loops, until the ``with`` block is left."""

    def __init__(self, seed: int, settings: dict[str, Any]) -> None:
        self.clients = [Clients(Threads(), settings), Clients(Loops(), settings)]
        self.failures: list[BaseException] = []
        self._over = threading.Event()
        self._leave = threading.Event()
        self._resting = threading.Semaphore(0)
        on_threads, on_loops = self.clients
        for clients in self.clients:
            clients.fill(4)
        self._callers = [
            Caller(on_threads, f"{seed} thread {n}", self._over.is_set) for n in range(THREADS)
        ]
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._call, caller), name="caller")
            for caller in self._callers
        ]
        for number, make_loop in enumerate(LOOPS.values()):
            coroutines = [
                Caller(on_loops, f"{seed} loop {number} {n}", self._over.is_set)
                for n in range(COROUTINES)
            ]
            self._callers += coroutines
            arguments = (self._run_loop, make_loop, coroutines, number)
            self._threads.append(
                threading.Thread(target=self._guarded, args=arguments, name="loop")
            )

    def __enter__(self) -> Soak:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> Ledger:
        """Have the calls end; the loops go on, and the clients stay open."""
        self._over.set()
        until = time.monotonic() + ENDING
        for _ in self._threads:
            assert self._resting.acquire(timeout=max(0.0, until - time.monotonic())), "hangs"
        ledger = Ledger()
        for caller in self._callers:
            ledger.add(caller.ledger)
        return ledger

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._leave.set()
        for thread in self._threads:
            thread.join()
        for client in self.clients[0].open:
            client.close()

    def _guarded(self, function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._resting.release()

    def _call(self, caller: Caller) -> None:
        run_without_a_loop(caller.run())

    def _run_loop(self, make_loop: Any, callers: list[Caller], number: int) -> None:
        run(self._coroutines(callers, number), make_loop)

    async def _coroutines(self, callers: list[Caller], number: int) -> None:
        async with asyncio.TaskGroup() as group:
            for caller in callers:
                group.create_task(caller.run_and_cancel())
        self._resting.release()
        await asyncio.to_thread(self._leave.wait)
        for client in self.clients[1].open[number::2]:
            await client.aclose()
        until = time.monotonic() + 10
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            assert time.monotonic() < until, f"tasks are left: {left}"
            await asyncio.sleep(0.02)


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fail where threads, descriptors or objects of ours are more than before."""
    for make_loop in LOOPS.values():
        run(asyncio.sleep(0), make_loop)  # uvloop keeps a pipe, from its first loop on
    gc.collect()
    before, threads, kept = descriptors(), set(threading.enumerate()), objects()
    yield
    eventually(lambda: not client_threads(), within=10)
    assert set(threading.enumerate()) <= threads
    gc.collect()
    assert [each for each in descriptors().items() if each not in before.items()] == []
    assert objects() - kept == Counter()


def objects() -> Counter[str]:
    """Count the objects of our distributions' classes."""
    kinds = (type(each) for each in gc.get_objects())
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        if str(kind.__module__).startswith("sandai.op.")
    )


def descriptors() -> dict[str, str]:
    """Tell what this process has open."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


@pytest.mark.timeout(SECONDS + 2 * ENDING + 60)
def test_nothing_is_lost_doubled_or_leaked() -> None:
    """Whatever breaks: each call ends in time, each task is accounted for, and nothing is left."""
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(2**32))
    print(f"SOAK_SEED={seed}")
    with nothing_left_behind(), ExitStack() as stack:
        durable = ("--appendonly", "yes", "--appendfsync", "always")  # what is acknowledged is kept
        server = stack.enter_context(LocalRedis(*durable, start_timeout=ENDING))
        stack.callback(server.kill)
        soak(seed, server, stack)


def soak(seed: int, server: LocalRedis, stack: ExitStack) -> None:
    """Run it, and check it."""
    operator = stack.enter_context(LedgerOperator(server.url, name=OPERATOR))
    proxies = {side: stack.enter_context(TcpProxy(HOST, server.port)) for side in LIMITS}
    settings = {
        "broker_url": proxies["broker"].url,
        "result_backend": proxies["backend"].url,
        "timeout": 3.0,
        "broker_pool_limit": LIMITS["broker"],
        "backend_pool_limit": LIMITS["backend"],
        "pool_acquire_timeout": ACQUIRE,
        "io_timeout": IO,
    }
    with Soak(seed, settings) as callers, BudgetWatch(server.url, proxies, LIMITS) as watch:
        with Chaos(seed, server, *proxies.values()) as chaos:
            chaos.last(SECONDS / 4)
            early = resident()
            chaos.last(SECONDS * 3 / 4)
        ledger = callers.stop()
        grown = resident() - early
        with open_redis(server.url) as redis_client:
            at_rest(callers, redis_client)
            eventually(lambda: not redis_client.exists(TAKEN, *QUEUES), within=ENDING)
    with open_redis(server.url) as redis_client:
        eventually(lambda: not any(connections(redis_client).values()), within=5)
    ids, numbers = operator.report()
    tell(ledger, chaos, watch, grown, ids)
    assert not callers.failures
    assert not ledger.wrong, "\n".join(ledger.wrong[:5])
    check_tasks(ledger, ids, numbers)
    assert len(chaos.struck) == chaos.kinds
    assert watch.over == []
    assert all(watch.listed[side] > 1 and watch.held[side] > 1 for side in LIMITS)
    assert watch.samples > SECONDS / 2
    assert grown < 64 * MEGABYTE + 400 * len(ids)
    assert not statistics().brokers
    assert not statistics().backends
    assert client_threads(besides=[JANITOR]) == []


def resident() -> int:
    """Return this process's resident memory, in bytes."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def at_rest(callers: Soak, redis_client: Any) -> None:
    """Check that nobody waits or holds a permit, though the clients are open yet."""

    def busy() -> list[Any]:
        found: list[Any] = []
        for clients in callers.clients:
            broker, backend = clients.open[0].statistics()
            found += [reader for reader in backend.readers if reader.pending]
            for pool in (broker.connections, backend.commands):
                if pool.in_use or pool.waiting:
                    found.append(pool)
        return [*found, *redis_client.pubsub_channels()]

    until = time.monotonic() + 15
    while (found := busy()) and time.monotonic() < until:
        time.sleep(0.02)  # nobody tells when all of them have come to rest
    assert found == []


def check_tasks(ledger: Ledger, ids: Counter[str], numbers: Counter[int]) -> None:
    """Hold the callers' ledger against the operator's."""
    assert [task_id for task_id, times in ids.items() if times > 1] == []
    assert [n for n, times in numbers.items() if times > 1] == []
    assert ledger.acknowledged - numbers.keys() == set(), "lost"
    assert ledger.refused & numbers.keys() == set(), "refused, and executed"
    assert not ledger.acknowledged & ledger.refused
    assert ledger.answered > 5 * SECONDS
    assert len(ledger.acknowledged) > 5 * SECONDS


def tell(ledger: Ledger, chaos: Chaos, watch: BudgetWatch, grown: int, ids: Counter[str]) -> None:
    """Print what happened, for whoever reads of a failure."""
    print(
        f"{len(ids)} executed, {len(ledger.acknowledged)} acknowledged, "
        f"{len(ledger.refused)} refused, {len(ledger.doubted)} in doubt, "
        f"{ledger.answered} answered; {grown / MEGABYTE:.1f} MiB more; "
        f"connections: {dict(watch.listed)} listed, {dict(watch.held)} held, "
        f"{watch.samples} samples"
    )
    print("faults:", dict(chaos.struck))
    late = {what: round(seconds, 1) for what, seconds in ledger.longest.items()}
    print("at the latest, in seconds after their bound:", late)
    print("calls:", dict(sorted(ledger.ended.items())))
