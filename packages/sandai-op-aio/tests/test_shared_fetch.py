"""One fetch for all who ask at a time."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandai.op.aio._shared_fetch import SharedFetch


def test_one_fetch_for_all() -> None:
    """On one loop, and the value is kept."""

    async def main() -> None:
        shared: SharedFetch[int] = SharedFetch()
        fetched = []

        async def fetch() -> int:
            fetched.append(1)
            await asyncio.sleep(0.01)
            return 7

        assert set(await asyncio.gather(*(shared.get(fetch) for _ in range(50)))) == {7}
        assert await shared.get(fetch) == 7
        assert len(fetched) == 1

    asyncio.run(main())


def test_a_failure_is_not_kept() -> None:
    """It reaches all who waited; the next one fetches again."""

    async def main() -> None:
        shared: SharedFetch[int] = SharedFetch()

        async def fail() -> int:
            await asyncio.sleep(0.01)
            raise ValueError("no")

        results = await asyncio.gather(
            *(shared.get(fail) for _ in range(5)), return_exceptions=True
        )
        assert [str(result) for result in results] == ["no"] * 5

        async def work() -> int:
            return 3

        assert await shared.get(work) == 3

    asyncio.run(main())


def test_nobody_waits_for_anothers_fetch_longer_than_it_may() -> None:
    """At its deadline a follower goes, and the fetch goes on for the others."""

    async def main() -> None:
        shared: SharedFetch[int] = SharedFetch()
        go = asyncio.Event()

        async def fetch() -> int:
            await go.wait()
            return 7

        first = asyncio.create_task(shared.get(fetch))
        await asyncio.sleep(0)
        for seconds in (0.05, -1):
            with pytest.raises(TimeoutError):
                await shared.get(fetch, time.monotonic() + seconds)
        go.set()
        assert await first == 7
        assert await shared.get(fetch, time.monotonic() - 1) == 7

    asyncio.run(main())


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_cancelling(who: str) -> None:
    """A cancelled leader is succeeded by a follower; a cancelled follower disturbs nobody."""

    async def main() -> None:
        shared: SharedFetch[int] = SharedFetch()
        fetched: list[int] = []
        go = asyncio.Event()

        async def fetch() -> int:
            fetched.append(1)
            await go.wait()
            return len(fetched)

        tasks = [asyncio.create_task(shared.get(fetch)) for _ in range(5)]
        await asyncio.sleep(0.01)
        victim = tasks.pop(0 if who == "leader" else 2)
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        await asyncio.sleep(0.01)
        go.set()
        async with asyncio.timeout(5):
            assert set(await asyncio.gather(*tasks)) == {2 if who == "leader" else 1}

    asyncio.run(main())


def test_several_loops() -> None:
    """Loops in threads share one fetch."""
    shared: SharedFetch[int] = SharedFetch()
    fetched = []
    barrier = threading.Barrier(4)

    async def fetch() -> int:
        fetched.append(1)
        await asyncio.sleep(0.1)
        return 9

    async def ask() -> list[int]:
        barrier.wait(5)
        return list(await asyncio.gather(*(shared.get(fetch) for _ in range(10))))

    with ThreadPoolExecutor(4) as pool:
        for asked in [pool.submit(lambda: asyncio.run(ask())) for _ in range(4)]:
            assert asked.result(timeout=10) == [9] * 10
    assert len(fetched) == 1


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "stopped"])
def test_the_leaders_loop_stops(closed: bool) -> None:
    """Who waits for a loop that runs no more notices, and fetches."""
    shared: SharedFetch[int] = SharedFetch()
    loop = asyncio.new_event_loop()

    async def stuck() -> int:
        await asyncio.get_running_loop().create_future()
        return 1

    task = loop.create_task(shared.get(stuck))
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # meant to be
    begun, over = threading.Event(), threading.Event()

    def lead() -> None:
        loop.run_until_complete(asyncio.sleep(0))
        loop.call_soon(begun.set)
        loop.run_until_complete(asyncio.to_thread(over.wait, 10))
        if closed:
            loop.close()

    async def fetch() -> int:
        return 2

    async def main() -> int:
        asking = asyncio.create_task(shared.get(fetch))
        await asyncio.sleep(0.05)
        assert not asking.done()
        over.set()
        return await asyncio.wait_for(asking, 5)

    with ThreadPoolExecutor(1) as threads:
        leading = threads.submit(lead)
        assert begun.wait(5)
        assert asyncio.run(main()) == 2
        leading.result(5)
    loop.close()
