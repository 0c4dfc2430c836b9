"""What the clients keep of tasks that are done: nothing, however many they were."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from conftest import MakeClient
from light_operator import BATCH, LightOperator
from sandai.op.aio import ResultStream, create_async_client
from sandai.op.client import create_client
from sandai.op.models import TaskResult
from sandai.op.transport.testing import FakeOperator
from watching import open_redis

SECONDS = float(os.environ.get("SOAK_SECONDS") or 20)
TASKS = 1_000_000 if SECONDS >= 300 else 20_000
IN_PROCESS = 1_000_000 if SECONDS >= 300 else 50_000


def mapped_in_a_thread(url: str, tasks: Iterator[Any]) -> Iterator[int]:
    """Count the results of a thread's stream."""
    with create_client("op", "v1", broker_url=url) as client:
        for count, result in enumerate(client.map(tasks), 1):
            assert result.success, result.error
            yield count


def mapped_on_a_loop(url: str, tasks: Iterator[Any]) -> Iterator[int]:
    """Count the results of a loop's stream, some at a time."""

    async def some(results: ResultStream) -> int:
        count = 0
        async for result in results:
            assert result.success, result.error
            count += 1
            if count == 5_000:
                break
        return count

    with asyncio.Runner() as runner:
        client = create_async_client("op", "v1", broker_url=url)
        results, count = client.map(tasks), 0
        while step := runner.run(some(results)):
            count += step
            yield count
        runner.run(client.aclose())


@pytest.mark.timeout(60 + 2 * SECONDS)
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_memory_of_a_stream_stays_flat(
    make_client: MakeClient, database: str, ordered: bool
) -> None:
    """However long a stream is, and whatever becomes of its tasks: nothing of them is kept."""
    with LightOperator(database, concurrency=BATCH):
        client = make_client(database)
        process, seen = psutil.Process(), []
        tasks: Any = ((([], {"n": n}) if n % 100 else "wrong") for n in range(TASKS * 5 // 4))
        failed = 0
        results = client.map(tasks, ordered=ordered, timeout=60, max_in_flight=64)
        for count, result in enumerate(results, 1):
            failed += not result.success
            if count % (TASKS // 4) == 0:
                del result
                gc.collect()
                seen.append((sys.getallocatedblocks(), process.memory_info().rss))
        print(seen)
        assert failed == TASKS * 5 // 400
        assert len(seen) == 5
        blocks, rss = (last - first for first, last in zip(seen[1], seen[-1], strict=True))
        assert blocks < 4_000  # the window may be full, and may be empty
        assert rss < 16 * 2**20


@pytest.mark.timeout(60 + 2 * SECONDS)
def test_memory_stays_flat(make_client: MakeClient, database: str) -> None:
    """However many tasks have been submitted and read, nothing of them is kept."""
    with LightOperator(database, concurrency=BATCH):
        client = make_client(database)
        process, seen = psutil.Process(), []
        for count in [5_000, *[TASKS // 4] * 4]:
            for n in range(0, count, 1_000):
                done = client.batch_sync([([], {"n": n + k}) for k in range(1_000)], timeout=30)
                assert [results["n"] for _, results in done] == list(range(n, n + 1_000))
                for k in range(10):
                    assert client.sync([], {"n": k}, timeout=10) == ([], {"n": k})
            del done
            gc.collect()
            seen.append((sys.getallocatedblocks(), process.memory_info().rss))
        print(seen)
        blocks, rss = (last - first for first, last in zip(seen[1], seen[-1], strict=True))
        # A single object kept of each task would be thousands.
        assert blocks < 2_000
        assert rss < 16 * 2**20
        with open_redis(database) as looking:
            assert looking.dbsize() == 0
            assert not looking.pubsub_channels("*")


@pytest.mark.parametrize("stream", [mapped_in_a_thread, mapped_on_a_loop])
@pytest.mark.timeout(60 + 4 * SECONDS)
def test_a_stream_in_process(stream: Callable[[str, Iterator[Any]], Iterator[int]]) -> None:
    """A million tasks through map(), their broker and their operator fit in 64 MiB more."""
    url = f"memory://{stream.__name__}"
    answer = TaskResult(results={"done": True})
    with FakeOperator("op", "v1", lambda _: answer, url=url) as operator:
        process = psutil.Process()
        before = most = process.memory_info().rss
        tasks: Iterator[Any] = (([], {"n": n}) for n in range(IN_PROCESS))
        for count in stream(url, tasks):
            if count % 5_000 == 0:
                most = max(most, process.memory_info().rss)
        print(f"{(most - before) / 2**20:.1f} MiB more")
        assert (count, operator.received) == (IN_PROCESS, IN_PROCESS)
        assert most - before < 64 * 2**20
        assert not operator.world.size()
