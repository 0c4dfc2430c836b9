"""What the clients keep of tasks that are done: nothing, however many they were."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import psutil
import pytest

from conftest import MakeClient
from light_operator import BATCH, LightOperator
from watching import open_redis

SECONDS = float(os.environ.get("SOAK_SECONDS") or 20)
TASKS = 1_000_000 if SECONDS >= 300 else 20_000


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
