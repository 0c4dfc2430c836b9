"""
The users: threads and loops that call, the same for every contestant.

A `call` takes a number and returns once it has the answer to it, which it checks.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from typing import Any

from .job import Job, Stopwatch, tell

Call = Callable[[int], object]
AsyncCall = Callable[[int], Awaitable[object]]
WARM_UP = 3
"""Calls of each thread or loop before the time runs."""


class _Start:
    """A line at which all wait until each is ready and the suite gives the sign."""

    def __init__(self, parties: int, requests: int) -> None:
        self.numbers: Iterator[int] = iter(range(requests))  # next() is atomic: all may share it
        self.latencies: list[float] = []
        self.stopwatch: Stopwatch
        self._barrier = threading.Barrier(parties, action=self._go)
        self._end = threading.Barrier(parties, action=self._done)

    def _go(self) -> None:
        tell("ready")
        self.stopwatch = Stopwatch()

    def _done(self) -> None:
        figures = self.stopwatch.stop()
        tell("done", **_percentiles(self.latencies), **figures)

    def wait(self) -> None:
        """Wait for the others, and for the sign."""
        self._barrier.wait()

    def end(self) -> None:
        """Wait until the others have ended too: nobody closes before the time is taken."""
        self._end.wait()

    def abort(self) -> None:
        """Wait for nobody any more, for somebody failed."""
        self._barrier.abort()
        self._end.abort()


def call_in_turn(job: Job, opened: AbstractContextManager[Call]) -> None:
    """One caller, one call after the other."""
    latencies = []
    with opened as call:
        for number in range(WARM_UP * 5):
            call(number)
        tell("ready")
        stopwatch = Stopwatch()
        for number in range(job.requests):
            began = time.perf_counter()
            call(number)
            latencies.append(time.perf_counter() - began)
        figures = stopwatch.stop()
        tell("done", **_percentiles(latencies), **figures)


def call_in_threads(
    job: Job, open_one: Callable[[], AbstractContextManager[Call]], *, shared: bool
) -> None:
    """Threads that call, with one client between them or one each."""
    start = _Start(job.concurrency, job.requests)

    def work(call: Call) -> None:
        for number in range(WARM_UP):
            call(number)
        start.wait()
        latencies = []
        for number in start.numbers:
            began = time.perf_counter()
            call(number)
            latencies.append(time.perf_counter() - began)
        start.latencies += latencies
        start.end()

    def work_with_own() -> None:
        with open_one() as call:
            work(call)

    with ExitStack() as stack:
        if shared:
            call = stack.enter_context(open_one())
            _run_threads(job.concurrency, lambda: work(call), start)
        else:
            _run_threads(job.concurrency, work_with_own, start)


def call_on_loops(job: Job, open_one: Callable[[], AbstractAsyncContextManager[AsyncCall]]) -> None:
    """Loops in threads, a client on each, with coroutines that call."""
    start = _Start(job.loops, job.requests)

    async def call_on(call: AsyncCall, latencies: list[float]) -> None:
        for number in start.numbers:
            began = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - began)

    async def work() -> None:
        async with open_one() as call:
            for number in range(WARM_UP):
                await call(number)
            await asyncio.to_thread(start.wait)
            latencies: list[float] = []
            async with asyncio.TaskGroup() as group:
                for _ in range(job.concurrency):
                    group.create_task(call_on(call, latencies))
            start.latencies += latencies
            await asyncio.to_thread(start.end)

    _run_threads(job.loops, lambda: asyncio.run(work()), start)


def _run_threads(count: int, work: Callable[[], None], start: _Start) -> None:
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        if not isinstance(failure, threading.BrokenBarrierError):
            raise failure


def _percentiles(latencies: list[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    return {
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
    }


def time_batch(work: Callable[[], Any]) -> None:
    """Time one call that is the whole work."""
    tell("ready")
    stopwatch = Stopwatch()
    work()
    tell("done", **stopwatch.stop())


async def time_async_batch(work: Callable[[], Awaitable[Any]]) -> None:
    """Time one call that is the whole work; the loop has nothing else to do meanwhile."""
    await asyncio.to_thread(tell, "ready")
    stopwatch = Stopwatch()
    await work()
    figures = stopwatch.stop()
    await asyncio.to_thread(lambda: tell("done", **figures))


def stay_pending() -> None:
    """Say that all is under way, then measure what this process does while nothing happens."""
    tell("pending")
    stopwatch = Stopwatch()
    tell("idle")
    tell("done", **stopwatch.stop())
