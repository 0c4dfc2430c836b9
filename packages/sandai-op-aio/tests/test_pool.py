"""One loop's connections: each permit comes back once, whatever happens to its user or loop."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sandai.op.aio import _pool, _redis
from sandai.op.aio._pool import LoopPool
from sandai.op.transport import Limiter, RedisConnector, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RespServer


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds that has no event."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.002)


class Owner:
    """An owner in a thread; what it keeps is closed at once."""

    def evict(self, connection: Any, closed: Any) -> None:
        """Close."""
        closed()


def settled(limiter: Limiter) -> bool:
    """Return whether nobody holds a permit or waits for one."""
    stats = limiter.statistics()
    return stats.in_use == 0 and stats.waiting == 0


def test_kept_and_used_again(server: RespServer, connector: RedisConnector) -> None:
    """A connection is used again by the next, and closed if its user failed."""

    async def main() -> None:
        pool = LoopPool(Limiter("p", 2), connector, asyncio.get_running_loop())
        async with await pool.acquire() as first:
            assert await first.execute([("PING",)]) == [b"PONG"]
        async with await pool.acquire() as second:
            assert second is first
        with pytest.raises(ZeroDivisionError):
            async with await pool.acquire():
                _ = 1 / 0
        assert pool.limiter.idle_count(pool) == 0
        async with await pool.acquire() as third:
            assert third is not first
        pool.close()
        assert settled(pool.limiter)
        await until(lambda: server.connected == 0)

    asyncio.run(main())


def test_one_that_went_is_replaced(server: RespServer, connector: RedisConnector) -> None:
    """An idle connection that the server ended, or that is out of step, is not used."""

    async def main() -> None:
        pool = LoopPool(Limiter("p", 1), connector, asyncio.get_running_loop())
        async with await pool.acquire() as first:
            pass
        server.drop()
        await until(lambda: server.connected == 0)
        async with await pool.acquire() as second:
            assert second is not first
            second.write([("PING",)])
            await until(lambda: len(server.seen(b"PING")) == 1)
        async with await pool.acquire() as third:
            assert third is not second
            assert await third.execute([("PING",)]) == [b"PONG"]
        pool.close()

    asyncio.run(main())


def test_a_reply_that_does_not_come(server: RespServer, connector: RedisConnector) -> None:
    """It is an error within the I/O timeout, perhaps done; what came before is there."""
    server.answer = lambda command: b"" if command[0] == b"GET" else None

    async def main() -> None:
        pool = LoopPool(Limiter("p", 1), connector, asyncio.get_running_loop())
        replies: list[Any] = []
        began = time.monotonic()
        with pytest.raises(TransportError, match="no answer in time") as caught:
            async with await pool.acquire() as connection:
                await connection.execute([("PING",), ("GET", "x")], replies=replies)
        assert caught.value.maybe_done
        assert replies == [b"PONG"]
        assert 0.5 <= time.monotonic() - began < 1.5
        assert settled(pool.limiter)

    asyncio.run(main())


def test_idle_ones_are_closed(
    server: RespServer, connector: RedisConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a task of the pool's own, which then ends; a cancelled one closes them at once."""
    monkeypatch.setattr(_pool, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(_pool, "_TIDY_INTERVAL", 0.01)

    async def main() -> None:
        pool = LoopPool(Limiter("p", 4), connector, asyncio.get_running_loop())
        leases = [await pool.acquire() for _ in range(4)]
        for lease in leases:
            async with lease:
                pass
        assert pool.limiter.idle_count(pool) == 4
        await until(lambda: server.connected == 0 and len(asyncio.all_tasks()) == 1)
        monkeypatch.setattr(_pool, "IDLE_SECONDS", 60)
        async with await pool.acquire():
            pass

    asyncio.run(main())
    deadline = time.monotonic() + 1
    while server.connected:
        assert time.monotonic() < deadline


def test_idle_ones_go_with_the_run(server: RespServer, connector: RedisConnector) -> None:
    """When asyncio.run() is over none is open, though it ends in the turn in which one idles."""
    pools: list[LoopPool] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pools.append(LoopPool(Limiter("p", 1), connector, loop))
        lease = await pools[0].acquire()
        await lease.open()
        # The loop's last turn but those in which the tasks are cancelled.
        loop.call_soon(partial(lease.give_back, keep=True))

    asyncio.run(main())
    # At once: the janitor comes round only half a second later.
    assert pools[0].limiter.idle_count(pools[0]) == 0


def test_a_loop_that_was_closed(server: RespServer, connector: RedisConnector) -> None:
    """Its idle and leased connections are closed, and its tickets' grants passed on."""
    limiter = Limiter("p", 2)
    loop = asyncio.new_event_loop()
    pool = LoopPool(limiter, connector, loop)
    taken: list[Any] = []

    async def hold() -> None:
        async with await pool.acquire():
            taken.append(1)
            await asyncio.get_running_loop().create_future()

    async def idle() -> None:
        async with await pool.acquire():
            pass

    tasks = [loop.create_task(hold()), loop.create_task(idle())]
    loop.run_until_complete(tasks[1])
    # Both permits are gone; these two are queued.
    tasks += [loop.create_task(hold()), loop.create_task(hold())]
    loop.run_until_complete(until(lambda: len(taken) == 2))
    assert limiter.statistics().waiting == 1
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # meant to be
    loop.close()
    assert not tended(pool)
    assert settled(limiter)
    assert limiter.statistics().idle == 0
    # The coroutines are collected now; nothing is given back a second time.
    del tasks, task
    assert limiter.statistics().in_use == 0
    owner = Owner()
    assert [limiter.try_acquire(owner)[0] for _ in range(3)] == [True, True, False]


def tended(pool: LoopPool) -> bool:
    """Have the janitor come by a closed loop's pool, and again when it has come to rest."""
    assert pool.tend(time.monotonic())
    return pool.tend(time.monotonic() + 1)


def test_a_closed_loop_is_let_go(server: RespServer, connector: RedisConnector) -> None:
    """Not even a connection that was waiting for a reply as its loop was closed holds the loop."""
    server.answer = lambda command: b"" if command[0] == b"GET" else None
    loop = asyncio.new_event_loop()
    pool = LoopPool(Limiter("p", 1), connector, loop)

    async def ask() -> None:
        async with await pool.acquire() as connection:
            await connection.execute([("GET", "x")])

    task = loop.create_task(ask())
    loop.run_until_complete(until(lambda: server.seen(b"GET")))
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # meant to be
    loop.close()
    gone = weakref.ref(loop)
    # First the janitor comes by, then the coroutine's finalizer.
    assert not tended(pool)
    task.get_coro().close()
    del task, loop
    gc.collect()
    assert gone() is None
    assert settled(pool.limiter)


def test_evicting_from_a_closed_loop(server: RespServer, connector: RedisConnector) -> None:
    """A thread that waits gets the permit of what idles on a loop that is closed."""
    limiter = Limiter("p", 1)
    loop = asyncio.new_event_loop()
    pool = LoopPool(limiter, connector, loop)

    async def use() -> None:
        async with await pool.acquire():
            pass

    loop.run_until_complete(use())
    if pool._tidying is not None:
        pool._tidying._log_destroy_pending = False  # type: ignore[attr-defined]  # meant to be
    loop.close()
    owner = Owner()
    assert limiter.acquire(owner, 1) is None
    limiter.release(owner)


def test_grant_and_cancel_race(connector: RedisConnector) -> None:
    """A grant that comes with the cancel passes on to the next."""

    async def main() -> None:
        limiter = Limiter("p", 1)
        pool = LoopPool(limiter, connector, asyncio.get_running_loop())
        held = pool.try_acquire()
        assert held is not None
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        held.give_back(keep=False)  # granted, but the loop has not come round
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert settled(limiter)
        lease = pool.try_acquire()
        assert lease is not None
        lease.give_back(keep=True)
        lease.give_back(keep=True)
        assert [limiter.try_acquire(pool)[0] for _ in range(2)] == [True, False]

    asyncio.run(main())


@pytest.mark.parametrize("limit", [1, 3])
def test_loops_and_threads_at_random(
    server: RespServer, connector: RedisConnector, limit: int
) -> None:
    """Three loops that cancel at random, and two threads, never exceed it and lose no permit."""
    limiter = Limiter("p", limit)
    using, most, lock = [0], [0], threading.Lock()
    done = [0]

    def enter() -> None:
        with lock:
            using[0] += 1
            most[0] = max(most[0], using[0])

    def leave() -> None:
        with lock:
            using[0] -= 1
            done[0] += 1

    async def one(pool: LoopPool, number: int) -> None:
        async with await pool.acquire() as connection:
            enter()
            try:
                text = b"%d" % number
                server_said = await connection.execute([("ECHO", text), ("PING",)])
                assert server_said == [text, b"PONG"]
            finally:
                leave()

    async def main(seed: int) -> None:
        randomness = random.Random(seed)
        pool = LoopPool(limiter, connector, asyncio.get_running_loop())
        tasks = []
        for number in range(150):
            tasks.append(asyncio.create_task(one(pool, seed * 1000 + number)))
            if randomness.random() < 0.7:
                wait = randomness.choice([0, 0.0005, 0.002, 0.01])
                asyncio.get_running_loop().call_later(wait, tasks[-1].cancel)
            if randomness.random() < 0.3:
                await asyncio.sleep(0)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        pool.close()

    def thread(seed: int) -> None:
        randomness, owner = random.Random(seed), Owner()
        for _ in range(100):
            limiter.acquire(owner, 20)
            enter()
            time.sleep(randomness.random() / 2000)
            leave()
            limiter.release(owner)

    def echo(command: list[bytes]) -> bytes | None:
        return b"$%d\r\n%b\r\n" % (len(command[1]), command[1]) if command[0] == b"ECHO" else None

    server.answer = echo
    with ThreadPoolExecutor(5) as pool:
        works = [pool.submit(lambda n=n: asyncio.run(main(n))) for n in range(3)]  # type: ignore[misc]  # mypy and defaults of lambdas
        works += [pool.submit(thread, seed) for seed in (7, 8)]
        for work in works:
            work.result(timeout=50)
    assert done[0] > 200
    assert most[0] <= limit
    assert server.most <= limit
    assert settled(limiter)
    owner = Owner()
    assert sum(limiter.try_acquire(owner)[0] for _ in range(limit + 1)) == limit


def test_connecting_is_cancelled(server: RespServer, connector: RedisConnector) -> None:
    """At whatever step of connecting, the socket is closed and the permit is back."""
    reached = threading.Event()

    def silent(command: list[bytes]) -> bytes | None:
        reached.set()
        return b""

    async def main() -> None:
        pool = LoopPool(Limiter("p", 1), connector, asyncio.get_running_loop())
        for wait in (0.0, 0.0, 0.001, 0.05):
            lease = await pool.acquire()
            opening = asyncio.create_task(lease.open())
            await asyncio.sleep(wait)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            assert settled(pool.limiter)
        await until(lambda: server.connected == 0)
        assert reached.is_set()

    server.answer = silent
    asyncio.run(main())
    assert _redis.LoopConnection is not None


def test_a_collected_coroutine_takes_no_lock(connector: RedisConnector) -> None:
    """A coroutine may be closed by its finalizer inside the limiter's own lock."""

    async def main() -> None:
        pool = LoopPool(Limiter("p", 1), connector, asyncio.get_running_loop())

        async def hold() -> None:
            async with await pool.acquire():
                await asyncio.get_running_loop().create_future()

        coroutine = hold()
        # Where it stands, opening or holding, it is all the same to its finalizer.
        await asyncio.wait([coroutine.send(None)], timeout=0.5)
        assert pool.limiter.statistics().in_use == 1 or pool.limiter.statistics().waiting == 1
        with pool.limiter._lock:
            coroutine.close()
        pool.tend(time.monotonic())
        pool.close(busy=True)
        assert settled(pool.limiter)

    asyncio.run(main())


def test_a_collected_coroutine_that_was_connecting(
    server: RespServer, connector: RedisConnector
) -> None:
    """Collected with its loop in the middle of the handshake, it takes no lock and is silent."""
    # It answers nothing: the client waits for the reply to its first command.
    server.answer = lambda _: b""
    loop = asyncio.new_event_loop()
    pool = LoopPool(Limiter("p", 1), connector, loop)

    async def hold() -> None:
        async with await pool.acquire():
            raise AssertionError("it cannot connect")

    task = loop.create_task(hold())
    loop.run_until_complete(until(lambda: server.commands))
    loop.run_until_complete(asyncio.sleep(0.01))
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # meant to be
    loop.close()
    raised: list[BaseException] = []

    def collect() -> None:
        try:
            task.get_coro().close()
        except BaseException as error:
            raised.append(error)

    collecting = threading.Thread(target=collect)
    with pool.limiter._lock:
        # In a thread, so that it fails here, and does not hang, where it waits for the lock.
        collecting.start()
        collecting.join(5)
        locks = collecting.is_alive()
    collecting.join(5)
    assert (locks, raised) == (False, [])
    pool.tend(time.monotonic())
    assert settled(pool.limiter)


def test_tidying_that_is_collected_takes_no_lock(
    server: RespServer, connector: RedisConnector
) -> None:
    """The pool's own task, closed by its finalizer with a closed loop, waits for nobody."""

    async def use(pool: LoopPool) -> Any:
        async with await pool.acquire():
            pass
        tidying = pool._tidy()
        tidying.send(None)
        return tidying

    loop = asyncio.new_event_loop()
    pool = LoopPool(Limiter("p", 1), connector, loop)
    tidying = loop.run_until_complete(use(pool))
    if pool._tidying is not None:
        pool._tidying._log_destroy_pending = False  # type: ignore[attr-defined]  # meant to be
    loop.close()
    collecting = threading.Thread(target=tidying.close)
    with pool.limiter._lock:
        # In a thread, so that it fails here, and does not hang, where it waits for the lock.
        collecting.start()
        collecting.join(5)
        assert not collecting.is_alive()
    assert pool.limiter.idle_count(pool) == 1
    assert not tended(pool)
    assert pool.limiter.idle_count(pool) == 0


def test_what_idles_elsewhere_is_to_be_had_at_once(
    server: RespServer, connector: RedisConnector
) -> None:
    """Without patience too, another loop's idle connection makes room; a leased one does not."""
    limiter = Limiter("p", 1)
    idle, over = threading.Event(), threading.Event()

    async def keep() -> None:
        pool = LoopPool(limiter, connector, asyncio.get_running_loop())
        async with await pool.acquire():
            pass
        idle.set()
        await asyncio.to_thread(over.wait, 10)

    async def take() -> None:
        pool = LoopPool(limiter, connector, asyncio.get_running_loop())
        assert pool.try_acquire() is None
        lease = pool.acquire_now()
        assert lease is not None
        async with lease as connection:
            assert await connection.execute([("PING",)]) == [b"PONG"]
            assert LoopPool(limiter, connector, asyncio.get_running_loop()).acquire_now() is None
            assert limiter.statistics().waiting == 0
        await until(lambda: server.connected == 1)
        pool.close()

    with ThreadPoolExecutor(1) as threads:
        keeping = threads.submit(asyncio.run, keep())
        assert idle.wait(10)
        try:
            asyncio.run(take())
        finally:
            over.set()
        keeping.result(timeout=5)
    assert settled(limiter)


def test_a_loop_that_does_not_run_keeps_nobody_waiting(
    server: RespServer, connector: RedisConnector
) -> None:
    """Its idle connections are ended from another loop."""
    limiter, stopped = Limiter("p", 2), asyncio.new_event_loop()

    async def hold() -> LoopPool:
        pool = LoopPool(limiter, connector, asyncio.get_running_loop())
        leases = [await pool.acquire() for _ in range(2)]
        for lease in leases:
            await lease.open()
        for lease in leases:
            lease.give_back(keep=True)
        return pool

    async def use() -> None:
        pool = LoopPool(limiter, connector, asyncio.get_running_loop())
        async with asyncio.timeout(1), await pool.acquire(), await pool.acquire():
            pass
        pool.close()

    async def end(pool: LoopPool) -> None:
        pool.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await until(lambda: server.connected == 0)

    held = stopped.run_until_complete(hold())
    assert limiter.statistics().idle == 2
    asyncio.run(use())
    stopped.run_until_complete(end(held))
    stopped.close()
    assert settled(limiter)
