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
import redis

from chaos import Chaos
from conftest import JANITOR
from ledger_operator import TAKEN, LedgerOperator
from local_redis import HOST, LocalRedis
from loops import LOOPS, run
from sandai.op.transport import statistics
from soaking import (
    ACQUIRE,
    IO,
    OPERATOR,
    Caller,
    Clients,
    Ledger,
    Loops,
    Threads,
    run_without_a_loop,
)
from tcp_proxy import TcpProxy
from watching import BACKEND, BROKER, client_threads, connections, eventually, open_redis

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
THREADS, COROUTINES = 64, 36
LIMITS = {"broker": 6, "backend": 6}
ENDING = 60.0
"""Seconds in which the callers and then the operator must be done, after the last fault."""
QUEUES = [f"{priority}.{OPERATOR}.v1" for priority in ("high", "normal", "low", "very_low")]
OPEN = {psutil.CONN_SYN_SENT, psutil.CONN_ESTABLISHED}
MEGABYTE = 1024 * 1024


class Watch:
    """
    Count connections while it is entered: those that the server lists, and those held here.

    The server may list connections that were given up long ago and of whose end it has not
    heard. So one that it lists counts if, afterwards, this process still holds the client's end
    of it: whatever is counted was there at one time. What is held here counts, too, when the
    server cannot be asked.
    """

    def __init__(self, url: str, proxies: dict[str, TcpProxy]) -> None:
        self.listed = Counter[str]()
        self.held = Counter[str]()
        self.over: list[str] = []
        self.samples = 0
        self.failure: BaseException | None = None
        self._url = url
        self._proxies = proxies
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            with redis.Redis.from_url(self._url, socket_timeout=0.3, retry=None) as redis_client:
                while not self._over.wait(0.03):
                    self._look(redis_client)
        except BaseException as error:
            self.failure = error

    def _look(self, redis_client: Any) -> None:
        try:
            clients = redis_client.client_list()
        except redis.RedisError:
            clients = []
        routes = {side: proxy.routes() for side, proxy in self._proxies.items()}
        ports = {proxy.port: side for side, proxy in self._proxies.items()}
        held: dict[str, set[int]] = {side: set() for side in self._proxies}
        for each in psutil.Process().net_connections("tcp4"):
            # What was shut down waits for its loop to close it: it is no connection any more.
            if each.status in OPEN and each.raddr.port in ports:
                held[ports[each.raddr.port]].add(each.laddr.port)
        for side, prefix in (("broker", BROKER), ("backend", BACKEND)):
            ours = [
                int(client["addr"].rpartition(":")[2])
                for client in clients
                if client["name"] == f"{prefix}{os.getpid()}"
            ]
            listed = sum(routes[side].get(port) in held[side] for port in ours)
            self.listed[side] = max(self.listed[side], listed)
            self.held[side] = max(self.held[side], len(held[side]))
            if max(listed, len(held[side])) > LIMITS[side]:
                self.over.append(f"{side}: {listed} of {ours} listed, {sorted(held[side])} held")
        self.samples += bool(clients)


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
        durable = ("--appendonly", "yes", "--appendfsync", "always")
        server = stack.enter_context(LocalRedis(*durable))
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
    with Soak(seed, settings) as callers, Watch(server.url, proxies) as watch:
        with Chaos(seed, server, *proxies.values()) as chaos:
            time.sleep(SECONDS / 4)
            early = resident()
            time.sleep(SECONDS * 3 / 4)
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
    assert watch.samples > SECONDS
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

    eventually(lambda: not busy(), within=15)


def check_tasks(ledger: Ledger, ids: Counter[str], numbers: Counter[int]) -> None:
    """Hold the callers' ledger against the operator's."""
    assert [task_id for task_id, times in ids.items() if times > 1] == []
    assert [n for n, times in numbers.items() if times > 1] == []
    assert ledger.acknowledged - numbers.keys() == set(), "lost"
    assert ledger.refused & numbers.keys() == set(), "refused, and executed"
    assert not ledger.acknowledged & ledger.refused
    assert ledger.answered > 5 * SECONDS
    assert len(ledger.acknowledged) > 5 * SECONDS


def tell(ledger: Ledger, chaos: Chaos, watch: Watch, grown: int, ids: Counter[str]) -> None:
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
