"""A loop's pool: bounded together with threads and other loops, and no permit is ever lost."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sandai.op.aio._pool import Lease, LoopPool
from sandai.op.transport import Limiter, RedisConnector

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import OkServer

WAIT = 10.0


def pool_of(limiter: Limiter, connector: RedisConnector) -> LoopPool:
    """Return a pool of the running loop."""
    return LoopPool(limiter, connector, asyncio.get_running_loop())


async def taken(pool: LoopPool) -> Lease:
    """Wait for a lease, and open its connection."""
    lease = pool.try_acquire() or await pool.acquire()
    await lease.open()
    return lease


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread brings about."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_all_back(limiter: Limiter) -> None:
    """Check that no permit is out and nobody waits."""
    now = limiter.statistics()
    assert (now.in_use, now.waiting) == (0, 0)


@pytest.mark.asyncio
async def test_a_connection_is_used_again(
    limiter: Limiter, connector: RedisConnector, server: OkServer
) -> None:
    """The connection of a user who succeeded is kept, that of one who failed is closed."""
    pool = pool_of(limiter, connector)
    async with await pool.acquire() as first:
        assert await first.execute([("PING",)]) == [b"OK"]
    async with await pool.acquire() as second:
        assert second is first

    async def fail() -> None:
        async with await pool.acquire() as third:
            assert third is first
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    await asyncio.to_thread(server.wait_for, 0)
    async with await pool.acquire() as fourth:
        assert fourth is not first
    pool.close()
    assert_all_back(limiter)


@pytest.mark.asyncio
async def test_a_connection_that_the_server_closed_is_not_used(
    limiter: Limiter, connector: RedisConnector, server: OkServer
) -> None:
    """What ended while it was idle costs nobody an error."""
    pool = pool_of(limiter, connector)
    for _ in range(3):
        async with await pool.acquire() as connection:
            assert await connection.execute([("PING",)]) == [b"OK"]
        for sock in list(server.open):
            sock.shutdown(2)
    pool.close()


@pytest.mark.asyncio
async def test_who_is_cancelled_leaves_nothing(
    limiter: Limiter, connector: RedisConnector, server: OkServer
) -> None:
    """Cancelled in the queue, while opening, in the middle of a reply, at any moment."""
    pool = pool_of(limiter, connector)

    async def use() -> None:
        async with asyncio.timeout(random.uniform(0, 0.05)):
            async with await taken(pool) as connection:
                assert await connection.execute([("PING",)] * 3) == [b"OK"] * 3

    for _ in range(30):
        results = await asyncio.gather(*(use() for _ in range(60)), return_exceptions=True)
        assert [r for r in results if r is not None and type(r) is not TimeoutError] == []
    async with await taken(pool) as connection:
        assert await connection.execute([("PING",)]) == [b"OK"]
    pool.close()
    assert_all_back(limiter)
    await asyncio.to_thread(server.wait_for, 0)


def test_loops_and_threads_share_a_budget(
    limiter: Limiter, connector: RedisConnector, server: OkServer
) -> None:
    """Four loops on two permits: an idle connection of one makes room for another's caller."""
    errors: list[BaseException] = []

    async def work() -> None:
        pool = pool_of(limiter, connector)
        for _ in range(30):
            async with asyncio.timeout(WAIT):
                async with await taken(pool) as connection:
                    assert await connection.execute([("PING",)]) == [b"OK"]
        pool.close()

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert errors == []
    assert_all_back(limiter)
    server.wait_for(0)


def test_a_blocked_loop_keeps_nobody_waiting(
    limiter: Limiter, connector: RedisConnector, server: OkServer
) -> None:
    """The idle connections of a loop that does not run are ended from elsewhere."""
    loop = asyncio.new_event_loop()

    async def hold() -> LoopPool:
        pool = pool_of(limiter, connector)
        for lease in [await taken(pool) for _ in range(2)]:
            lease.give_back(keep=True)
        return pool

    held = loop.run_until_complete(hold())
    assert limiter.statistics().idle == 2

    async def use() -> None:
        pool = pool_of(limiter, connector)
        async with asyncio.timeout(1), await taken(pool), await taken(pool):
            pass
        pool.close()

    asyncio.run(use())
    held.close()
    loop.run_until_complete(asyncio.sleep(0))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    server.wait_for(0)
    assert_all_back(limiter)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_closed_loop_gives_back(
    limiter: Limiter, connector: RedisConnector, server: OkServer
) -> None:
    """Leases, idle connections and places in the queue of a loop that is closed come back."""
    loop = asyncio.new_event_loop()
    pools: list[LoopPool] = []
    stranded: list[asyncio.Task[None]] = []

    async def strand() -> None:
        pool = pool_of(limiter, connector)
        pools.append(pool)
        await taken(pool)
        (await taken(pool)).give_back(keep=True)
        stranded.extend(loop.create_task(hang(pool)) for _ in range(2))
        await asyncio.sleep(0.05)

    async def hang(pool: LoopPool) -> None:
        async with await taken(pool):
            await asyncio.get_running_loop().create_future()

    loop.run_until_complete(strand())
    loop.close()
    until(lambda: limiter.statistics().in_use == 0 and limiter.statistics().waiting == 0)
    server.wait_for(0)
    assert pools[0].tend(time.monotonic()) is False

    async def use() -> None:
        pool = pool_of(limiter, connector)
        async with asyncio.timeout(WAIT), await taken(pool), await taken(pool):
            pass
        pool.close()

    asyncio.run(use())
    assert_all_back(limiter)


@pytest.mark.asyncio
async def test_a_collected_coroutine_takes_no_lock(
    limiter: Limiter, connector: RedisConnector
) -> None:
    """A coroutine that is closed by its finalizer may be so inside the limiter's own lock."""
    pool = pool_of(limiter, connector)

    async def hold() -> None:
        async with await taken(pool):
            await asyncio.get_running_loop().create_future()

    coroutine = hold()
    while limiter.statistics().in_use == 0 or not pool._leases:
        future = coroutine.send(None)
        if future is not None:
            await asyncio.wait([future], timeout=0.05)
    with limiter._lock:
        coroutine.close()
    assert pool.tend(time.monotonic()) in (True, False)
    assert_all_back(limiter)
    pool.close()
