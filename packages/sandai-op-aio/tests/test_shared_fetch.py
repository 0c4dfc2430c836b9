"""One fetch for all who ask at a time, on whatever loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sandai.op.aio._shared_fetch import SharedFetch

WAIT = 10.0


@pytest.mark.asyncio
async def test_one_fetch_for_many() -> None:
    """A hundred ask, one fetches, and later ones fetch nothing."""
    shared: SharedFetch[str] = SharedFetch()
    begun, go = 0, asyncio.Event()

    async def fetch() -> str:
        nonlocal begun
        begun += 1
        await go.wait()
        return "value"

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(shared.get(fetch)) for _ in range(100)]
        await asyncio.sleep(0)
        go.set()
    assert [task.result() for task in tasks] == ["value"] * 100
    assert await shared.get(fetch) == "value"
    assert begun == 1


@pytest.mark.asyncio
async def test_a_failure_reaches_all_and_is_not_kept() -> None:
    """Who asked meanwhile gets the error too; the next who asks fetches."""
    shared: SharedFetch[str] = SharedFetch()
    fails = True

    async def fetch() -> str:
        await asyncio.sleep(0)
        if fails:
            raise KeyError("no")
        return "value"

    results = await asyncio.gather(*(shared.get(fetch) for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [KeyError] * 5
    fails = False
    assert await shared.get(fetch) == "value"


@pytest.mark.asyncio
async def test_when_the_first_is_cancelled_another_takes_over() -> None:
    """And a follower that is cancelled disturbs nobody."""
    shared: SharedFetch[int] = SharedFetch()
    begun: list[int] = []
    go = asyncio.Event()

    async def fetch() -> int:
        begun.append(len(begun))
        await go.wait()
        return begun[-1]

    tasks = [asyncio.create_task(shared.get(fetch)) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    tasks[0].cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert begun == [0, 1]
    go.set()
    assert [await task for task in tasks[1:3]] == [1, 1]
    assert [task.cancelled() for task in tasks] == [True, False, False, True]


def test_several_loops_share_one_fetch() -> None:
    """Loops in several threads that ask at once cost one fetch."""
    shared: SharedFetch[str] = SharedFetch()
    start, count, found = threading.Barrier(4), [], []

    async def fetch() -> str:
        count.append(1)
        await asyncio.sleep(0.2)
        return "value"

    async def ask() -> None:
        start.wait(WAIT)
        found.append(await shared.get(fetch))

    threads = [threading.Thread(target=asyncio.run, args=(ask(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert found == ["value"] * 4
    assert len(count) == 1
