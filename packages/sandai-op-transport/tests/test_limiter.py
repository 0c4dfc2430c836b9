"""The limiter: fair, bounded, and no permit is ever lost."""

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import pytest

from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import Limiter


class Owner:
    """Closes what it is asked to at once, or when the test says so."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.evicted: list[Any] = []
        self.closing: list[Callable[[], None]] = []
        self._at_once = at_once

    def evict(self, connection: Any, closed: Callable[[], None]) -> None:
        self.evicted.append(connection)
        if self._at_once:
            closed()
        else:
            self.closing.append(closed)


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as another thread has brought something about."""
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def assert_nothing_lost(limiter: Limiter) -> None:
    """Check that all permits can be had, and not one more."""
    now = limiter.statistics()
    assert (now.in_use, now.waiting) == (0, 0)
    owner = Owner()
    futures = [limiter.request(owner) for _ in range(limiter.limit + 1)]
    assert [future.done() for future in futures] == [True] * limiter.limit + [False]


async def take(limiter: Limiter, owner: Owner) -> Any:
    """Wait for a permit on a loop, as a client's hub does."""
    future = limiter.request(owner)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if not future.cancel():
            limiter.release(owner, future.result())
        raise


def test_limit() -> None:
    """At most *limit* permits are out, and the statistics say so."""
    limiter, owner = Limiter("broker", 2), Owner()
    assert limiter.acquire(owner, 0) is None
    assert limiter.try_acquire(owner) == (True, None)
    assert limiter.try_acquire(owner) == (False, None)
    limiter.release(owner, "connection")
    now = limiter.statistics()
    assert (now.name, now.limit, now.in_use, now.idle, now.waiting) == ("broker", 2, 1, 1, 0)


def test_idle_is_used_again_latest_first() -> None:
    """An owner gets its own idle connections back, the warmest first."""
    limiter, owner = Limiter("broker", 3), Owner()
    for _ in range(2):
        limiter.acquire(owner, 0)
    limiter.release(owner, "first")
    limiter.release(owner, "second")
    assert [limiter.acquire(owner, 0) for _ in range(3)] == ["second", "first", None]


def test_zero_tries_once() -> None:
    """A timeout of 0 takes what is there and never waits."""
    limiter, owner = Limiter("broker", 1), Owner()
    limiter.acquire(owner, 0)
    started = time.monotonic()
    with pytest.raises(ClientPoolTimeoutError) as caught:
        limiter.acquire(owner, 0)
    assert time.monotonic() - started < 0.5
    error = caught.value
    assert (error.pool_name, error.timeout, error.limit, error.in_use) == ("broker", 0, 1, 1)
    limiter.release(owner)
    assert_nothing_lost(limiter)


def test_zero_evicts() -> None:
    """Even a caller that tries once gets the place of an idle connection."""
    limiter, one, other = Limiter("broker", 1), Owner(), Owner()
    limiter.acquire(one, 0)
    limiter.release(one, "idle")
    assert limiter.acquire(other, 0) is None
    assert one.evicted == ["idle"]


def test_timeout() -> None:
    """Who waits in vain learns how long, and leaves no trace."""
    limiter, owner = Limiter("broker", 1), Owner()
    limiter.acquire(owner, 0)
    with pytest.raises(ClientPoolTimeoutError) as caught:
        limiter.acquire(owner, 0.02)
    assert caught.value.timeout == 0.02
    limiter.release(owner)
    assert_nothing_lost(limiter)


def test_no_timeout_waits() -> None:
    """Without a timeout a caller waits until it is its turn."""
    limiter, owner = Limiter("broker", 1), Owner()
    limiter.acquire(owner, 0)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(limiter.acquire(owner, None)))
    thread.start()
    until(lambda: limiter.statistics().waiting == 1)
    limiter.release(owner, "handed over")
    thread.join()
    assert got == ["handed over"]


def test_first_come_first_served_across_threads_and_loops() -> None:
    """Threads and two event loops are served in the order in which they asked."""
    limiter, owner = Limiter("broker", 1), Owner()
    limiter.acquire(owner, 0)
    order: list[int] = []

    def in_a_thread(number: int) -> None:
        limiter.acquire(owner, 10)
        order.append(number)
        limiter.release(owner)

    async def on_a_loop(number: int) -> None:
        await take(limiter, owner)
        order.append(number)
        limiter.release(owner)

    loops = [asyncio.new_event_loop() for _ in range(2)]
    loop_threads = [threading.Thread(target=loop.run_forever) for loop in loops]
    for thread in loop_threads:
        thread.start()
    waits: list[Future[None]] = []
    threads = []
    for number in range(12):
        if number % 3:
            waits.append(asyncio.run_coroutine_threadsafe(on_a_loop(number), loops[number % 3 - 1]))
        else:
            threads.append(threading.Thread(target=in_a_thread, args=(number,)))
            threads[-1].start()
        until(lambda number=number: limiter.statistics().waiting == number + 1)  # type: ignore[misc]  # mypy cannot infer it
    limiter.release(owner)
    for wait in waits:
        wait.result(10)
    for thread in threads:
        thread.join()
    for loop, thread in zip(loops, loop_threads, strict=True):
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert order == list(range(12))
    assert_nothing_lost(limiter)


def test_nobody_barges_past_the_queue() -> None:
    """A permit that comes back belongs to who waits longest, not to who asks at that moment."""
    limiter, owner, other = Limiter("broker", 1), Owner(), Owner(at_once=False)
    limiter.acquire(other, 0)
    first, second = limiter.request(owner), limiter.request(owner)
    limiter.release(other, "closing")
    assert not first.done()  # granted, while the other's connection is being closed
    assert limiter.try_acquire(owner) == (False, None)
    assert limiter.try_acquire(other) == (False, None)
    [closed] = other.closing
    closed()
    assert first.result(0) is None
    assert not second.done()


def test_released_connection_goes_to_a_waiter_of_the_same_owner() -> None:
    """An open connection is handed over as it is within one owner."""
    limiter, owner = Limiter("broker", 1), Owner()
    limiter.acquire(owner, 0)
    future = limiter.request(owner)
    limiter.release(owner, "open")
    assert future.result(0) == "open"
    assert owner.evicted == []


def test_released_connection_is_closed_for_a_waiter_of_another_owner() -> None:
    """A foreign waiter gets the permit once the connection is closed."""
    limiter, owner, other = Limiter("broker", 1), Owner(), Owner()
    limiter.acquire(owner, 0)
    future = limiter.request(other)
    limiter.release(owner, "open")
    assert future.result(0) is None
    assert owner.evicted == ["open"]


def test_eviction_of_the_longest_idle() -> None:
    """A queued caller has the connection closed that is idle longest, and only that."""
    limiter, one, two, asking = Limiter("broker", 2), Owner(), Owner(at_once=False), Owner()
    limiter.acquire(one, 0)
    limiter.acquire(two, 0)
    limiter.release(two, "older")
    limiter.release(one, "newer")
    future = limiter.request(asking)
    assert (two.evicted, one.evicted) == (["older"], [])
    assert not future.done()
    two.closing.pop()()
    assert future.result(0) is None


def test_eviction_for_one_that_left() -> None:
    """A permit that was being freed for somebody who left is free for the next."""
    limiter, one, asking = Limiter("broker", 1), Owner(at_once=False), Owner()
    limiter.acquire(one, 0)
    limiter.release(one, "idle")
    future = limiter.request(asking)
    assert future.cancel()
    one.closing.pop()()
    assert_nothing_lost(limiter)


def test_one_eviction_for_each_that_waits() -> None:
    """Two callers have two connections closed, not more."""
    limiter, one, asking = Limiter("broker", 3), Owner(at_once=False), Owner()
    for _ in range(3):
        limiter.acquire(one, 0)
    for name in "abc":
        limiter.release(one, name)
    futures = [limiter.request(asking), limiter.request(asking)]
    assert one.evicted == ["a", "b"]
    while one.closing:
        one.closing.pop()()
    assert [future.result(0) for future in futures] == [None, None]


def test_take_idle() -> None:
    """Only an owner's own connections that are idle for long are taken out."""
    limiter, owner, other = Limiter("broker", 3), Owner(), Owner()
    for each in (owner, owner, other):
        limiter.acquire(each, 0)
    limiter.release(owner, "old")
    between = time.monotonic()
    until(lambda: time.monotonic() > between)
    limiter.release(owner, "young")
    limiter.release(other, "other's")
    assert limiter.take_idle(owner, between) == ["old"]
    assert (limiter.idle_count(owner), limiter.idle_count(other)) == (1, 1)
    assert limiter.statistics().in_use == 1  # until the one that is being closed is given back
    limiter.release(owner)
    assert limiter.statistics().in_use == 0


def test_cancel_races() -> None:
    """Hundreds of cancels at any moment, from threads, lose no permit."""
    limiter, owners = Limiter("broker", 3), [Owner(), Owner()]
    generator = random.Random(7)
    plan = [(generator.random(), generator.random() < 0.5, index % 2) for index in range(600)]

    def work(steps: list[tuple[float, bool, int]]) -> None:
        for patience, keeps, which in steps:
            owner = owners[which]
            future = limiter.request(owner)
            if patience < 0.7:
                if future.cancel():
                    continue
                connection = future.result(10)
            else:
                connection = future.result(10)
            limiter.release(owner, (connection or object()) if keeps else None)

    threads = [threading.Thread(target=work, args=(plan[start::6],)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limiter.statistics().waiting == 0
    assert_nothing_lost(limiter)


def test_cancel_races_of_timeouts() -> None:
    """Timeouts that run out just when the permit comes lose no permit."""
    limiter, owner = Limiter("broker", 2), Owner()

    def work(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(60):
            try:
                connection = limiter.acquire(owner, generator.random() * 0.002)
            except ClientPoolTimeoutError:
                continue
            limiter.release(owner, connection)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_nothing_lost(limiter)


def test_cancel_races_on_loops() -> None:
    """Cancelled tasks of an event loop lose no permit."""
    limiter, owner = Limiter("broker", 2), Owner()
    generator = random.Random(3)

    async def use() -> None:
        connection = await take(limiter, owner)
        try:
            await asyncio.sleep(0)
        finally:
            limiter.release(owner, connection)

    async def main() -> None:
        tasks = [asyncio.create_task(use()) for _ in range(400)]
        while not all(task.done() for task in tasks):
            generator.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert_nothing_lost(limiter)


class Interrupted(BaseException):
    """What a signal's handler raises."""


def test_interrupt_while_waiting() -> None:
    """A signal in the middle of a wait gives the place in the queue back."""
    limiter, owner = Limiter("broker", 1), Owner()
    limiter.acquire(owner, 0)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def send() -> None:
        until(lambda: limiter.statistics().waiting == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(Interrupted):
            limiter.acquire(owner, 10)
    finally:
        signal.signal(signal.SIGUSR1, previous)
        thread.join()
    limiter.release(owner)
    assert_nothing_lost(limiter)


def test_interrupt_after_the_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes with the grant hands the permit on."""
    limiter, owner = Limiter("broker", 1), Owner()
    limiter.acquire(owner, 0)
    plain = Future.result
    calls = []

    def result(self: "Future[Any]", timeout: float | None = None) -> Any:
        calls.append(timeout)
        if len(calls) == 1:
            limiter.release(owner)
            raise Interrupted
        return plain(self, timeout)

    monkeypatch.setattr(Future, "result", result)
    with pytest.raises(Interrupted):
        limiter.acquire(owner, 10)
    assert_nothing_lost(limiter)


def test_interrupt_while_evicting() -> None:
    """A signal in the middle of closing another's connection loses no permit."""
    limiter, asking = Limiter("broker", 1), Owner()

    class Interrupting(Owner):
        def evict(self, connection: Any, closed: Callable[[], None]) -> None:
            closed()
            raise Interrupted

    one = Interrupting()
    limiter.acquire(one, 0)
    limiter.release(one, "idle")
    with pytest.raises(Interrupted):
        limiter.acquire(asking, 0)
    assert_nothing_lost(limiter)


def test_those_who_left_are_forgotten() -> None:
    """Thousands who left behind one who stays do not stay in the queue."""
    limiter = Limiter("pool", 1)
    owner = Owner()
    limiter.acquire(owner, 0)
    patient = limiter.request(owner)
    for _ in range(5000):
        assert limiter.request(owner).cancel()
    assert len(limiter._queue) < 200
    assert limiter.statistics().waiting == 1
    limiter.release(owner)
    assert patient.done()
