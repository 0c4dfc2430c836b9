"""
Programs that fork, each run in a process of its own by ``test_forks.py``.

``python forking.py <program> <url of a Redis with a light operator>``. A program that ends with
the code 0 and says nothing has found everything in order.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from celery.result import ResultSet

from sandai.op.aio import AsyncOperatorClient
from sandai.op.client import OperatorClient
from sandai.op.models import ClientClosedError
from sandai.op.transport import statistics
from watching import BACKEND, BROKER, connections, eventually, open_redis

Program = Callable[[str], None]

WAIT = 20.0
"""Seconds that nothing here takes by far, unless it hangs."""


_inherited: OperatorClient


# Children


def fork(work: Callable[[], object]) -> int:
    """Fork a child that does some work, sees what the collector has to say, and ends."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        gc.collect()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def join(*pids: int) -> None:
    """Wait for children; fail for one that failed, or that hangs, having it say where."""
    deadline = time.monotonic() + WAIT
    codes = []
    for pid in pids:
        ended, status = os.waitpid(pid, os.WNOHANG)
        while not ended and time.monotonic() < deadline:
            time.sleep(0.002)  # with a time limit, waitpid() cannot do it
            ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)  # for its tracebacks
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        codes.append(os.waitstatus_to_exitcode(status))
    assert not any(codes), f"the children ended with {codes}"


def use(client: OperatorClient, *, own: int = 4) -> None:
    """Call everything on a client in this process, from some threads."""

    def call(number: int) -> None:
        assert client.sync([], {"n": number}, timeout=WAIT) == ([], {"n": number})
        assert client.async_call([], {"n": number}).get(timeout=WAIT)["results"] == {"n": number}

    call(0)
    with ThreadPoolExecutor(own) as pool:
        list(pool.map(call, range(2 * own)))
    results = client.batch_sync_detailed([([], {"n": n}) for n in range(20)], timeout=WAIT)
    assert [result.results for result in results] == [{"n": n} for n in range(20)]
    assert client.ping(WAIT)
    assert client.probe(WAIT).response_ok
    assert client.desc["doc"] == "light"


def within_budget(url: str) -> None:
    """See that this process's connections are as many as it says, and within the budget."""
    with open_redis(url) as redis_client:
        there = connections(redis_client)
        assert all(count <= 8 for count in there.values()), there
        [broker], [backend] = statistics().brokers.values(), statistics().backends.values()
        assert there["broker"] <= broker.connections.in_use + broker.connections.idle
        assert backend.push is not None
        known = backend.commands.in_use + backend.commands.idle + backend.push.in_use
        assert there["backend"] <= known


def ids_of(url: str, pid: int) -> set[str]:
    """Name the server's connections of a process's clients."""
    names = (f"{BROKER}{pid}", f"{BACKEND}{pid}")
    with open_redis(url) as redis_client:
        return {item["id"] for item in redis_client.client_list() if item["name"] in names}


def push_connects(client: OperatorClient) -> int:
    """Count the push connections that this process has opened."""
    return sum(reader.push_connects for reader in client.statistics()[1].readers)


@contextmanager
def untouched(url: str, client: OperatorClient) -> Iterator[None]:
    """Fail if a connection of this process's ends meanwhile, or push has to connect again."""
    ids, pushes = ids_of(url, os.getpid()), push_connects(client)
    assert ids
    assert pushes == 1
    yield
    assert ids <= ids_of(url, os.getpid())
    assert push_connects(client) == pushes


@contextmanager
def load(client: OperatorClient, threads: int = 8) -> Iterator[None]:
    """Have threads submit, wait, look, and batch all the while."""
    over = threading.Event()

    def work(number: int) -> int:
        done = 0
        while not over.is_set():
            options = {"n": done, "thread": number}
            if number % 4 == 0:
                tasks: list[Any] = [([], options)] * 100
                for result in client.batch_sync_detailed(tasks, timeout=WAIT):
                    assert result.results == options
            elif number % 4 == 1:
                handle = client.async_call([], options, timeout=WAIT)
                while not handle.ready():
                    continue
                assert handle.get(timeout=WAIT)["results"] == options
                handle.forget()
            else:
                assert client.sync([], options, timeout=WAIT) == ([], options)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        works = [pool.submit(work, number) for number in range(threads)]
        try:
            yield
        finally:
            over.set()
        assert all(each.result(WAIT) for each in works)


# Programs


def calls_in_flight(url: str) -> None:
    """Fork while others wait, submit and read: both sides go on, with connections of their own."""
    with OperatorClient("bench", "v1", url) as client, ThreadPoolExecutor(8) as pool:
        slow = [client.async_call([], {"n": n, "delay": 1.5}) for n in range(8)]
        waits = [pool.submit(handle.get, WAIT) for handle in slow]
        eventually(lambda: pending(client) == 8, within=5)
        with untouched(url, client), load(client):

            def child() -> None:
                assert slow[0].get(timeout=WAIT)["results"]["n"] == 0
                use(client)
                within_budget(url)
                client.close()
                eventually(partial(gone, url, os.getpid()), within=1)
                with OperatorClient("bench", "v1", url) as another:
                    use(another)

            join(*[fork(child) for _ in range(3)])
        assert [wait.result(WAIT)["results"]["n"] for wait in waits] == list(range(8))


def pending(client: OperatorClient) -> int:
    """Count what is waited for."""
    return sum(reader.pending for reader in client.statistics()[1].readers)


def before_any_call(url: str) -> None:
    """A client that was only made works on both sides."""
    client = OperatorClient("bench", "v1", url)

    def child() -> None:
        use(client)
        client.close()

    children = [fork(child) for _ in range(3)]
    use(client)
    join(*children)
    use(client)
    client.close()


def after_close(url: str) -> None:
    """A closed client is closed in the child too; a new one works there."""
    client = OperatorClient("bench", "v1", url)
    use(client)
    client.close()

    def child() -> None:
        try:
            client.sync([], {})
        except ClientClosedError:
            client.close()
        else:
            raise AssertionError("it was closed")
        with OperatorClient("bench", "v1", url) as another:
            use(another)

    join(fork(child))


def callbacks_outstanding(url: str) -> None:
    """What waits by callback in the parent stays there, whatever the child closes and drops."""
    with OperatorClient("bench", "v1", url) as client:
        use(client)
        called = threading.Event()
        handles = [client.async_call([], {"n": n, "delay": 1.5}) for n in range(2)]
        handles[0].then(lambda _: called.set())
        results = ResultSet(list(handles))
        channels = [f"celery-task-meta-{handle.id}" for handle in handles]
        with untouched(url, client), open_redis(url) as redis_client:
            eventually(lambda: subscribed(redis_client, channels), within=5)

            def closes() -> None:
                client.close()

            def drops() -> None:
                nonlocal results, handles
                del results, handles
                gc.collect()
                use(client)
                client.close()

            def reads() -> None:
                answers = results.join(timeout=WAIT)
                assert [answer["results"]["n"] for answer in answers] == [0, 1]
                client.close()

            join(fork(closes), fork(drops))
            # Nobody unsubscribed in the parent's name.
            assert subscribed(redis_client, channels)
            join(fork(reads))
            assert called.wait(WAIT)
            assert len(results.join(timeout=WAIT)) == 2
        assert handles[0].get(timeout=WAIT)["results"]["n"] == 0


def subscribed(redis_client: Any, channels: list[str]) -> bool:
    """Return whether there is a subscriber to each channel."""
    return all(count == 1 for _, count in redis_client.pubsub_numsub(*channels))


def held_locks(url: str) -> None:
    """Whatever lock of ours another thread holds at the fork, the child does not wait for it."""
    from sandai.op.transport import _janitor, _limiter, _registry  # noqa: F401  # the locks

    with OperatorClient("bench", "v1", url) as client:
        use(client)
        handle = client.async_call([], {"n": 1, "delay": 1.0})
        handle.then(lambda _: None)
        hub = client._results.hub
        broker, backend = client._transport.broker, client._transport.backend
        locks: list[Any] = [
            _registry.registry.lock,
            _janitor._lock,
            broker.limiter._lock,
            broker._pushes._lock,  # type: ignore[attr-defined]  # on Redis it has
            broker._pushes._writing,  # type: ignore[attr-defined]
            backend.limiter._lock,
            backend.push_limiter._lock,  # type: ignore[attr-defined]
            backend._readers._lock,  # type: ignore[attr-defined]
            hub._table._lock,
            hub._thread_lock,
            client._description._lock,
            client._results._app._lock,
            client._revoker._lock,
        ]
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            for lock in locks:
                lock.acquire()
            held.set()
            over.wait()
            for lock in reversed(locks):
                lock.release()

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(WAIT)

        def child() -> None:
            assert handle.get(timeout=WAIT)["results"]["n"] == 1
            use(client)
            client.close()

        pids = [fork(child), fork(client.close), fork(statistics)]
        over.set()
        holder.join()
        join(*pids)
        use(client)


def preloaded(url: str) -> None:
    """As gunicorn does: used in the master, then workers forked again and again, all at work."""
    with OperatorClient("bench", "v1", url) as client:
        use(client)

        def worker() -> None:
            for _ in range(3):
                use(client)
            within_budget(url)

        with untouched(url, client):
            for _ in range(2):
                workers = [fork(worker) for _ in range(4)]
                use(client)
                join(*workers)
        use(client)


def from_another_thread(url: str) -> None:
    """A thread that is not the main one forks; in the child it is."""
    with OperatorClient("bench", "v1", url) as client, load(client, 4):

        def child() -> None:
            assert threading.current_thread() is threading.main_thread()
            use(client)
            client.close()

        with ThreadPoolExecutor(4) as pool:
            pids = list(pool.map(fork, [child] * 4))
        join(*pids)


def child_leaves_properly(url: str) -> None:
    """A child that ends as an interpreter does, its clients open or closed, is silent."""
    global _inherited
    client = _inherited = OperatorClient("bench", "v1", url)
    use(client)
    slow = [client.async_call([], {"delay": 1.0}) for _ in range(2)]
    threading.Thread(target=slow[0].get).start()
    eventually(lambda: pending(client) == 1, within=5)
    children = []
    for how in ("unused", "used", "closed"):
        pid = os.fork()
        if pid == 0:
            if how != "unused":
                use(client)
            if how == "closed":
                client.close()
            raise SystemExit  # up to where the program began
        children.append(pid)
    join(*children)
    assert slow[1].get(timeout=WAIT)
    client.close()


def grandchildren(url: str) -> None:
    """A child forks, too."""
    with OperatorClient("bench", "v1", url) as client:
        use(client)

        def child() -> None:
            use(client)
            join(fork(lambda: use(client)), fork(client.close))
            use(client)
            client.close()

        join(fork(child))
        use(client)


def many_forks(url: str) -> None:
    """A hundred forks under load: no lock, of ours or of a library's, is held in a child."""
    with OperatorClient("bench", "v1", url) as client, load(client):
        call = client.sync

        def child() -> None:
            assert call([], {"n": 1}, timeout=WAIT) == ([], {"n": 1})
            client.close()

        for _ in range(25):
            join(*[fork(child) for _ in range(4)])


def many_forks_of_short_lives(url: str) -> None:
    """The same while clients are made and closed all the time: building is not for two, either."""
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            with OperatorClient("bench", "v1", url) as client:
                assert client.sync([], {"n": 1}, timeout=WAIT) == ([], {"n": 1})

    def child() -> None:
        with OperatorClient("bench", "v1", url) as client:
            assert client.sync([], {"n": 1}, timeout=WAIT) == ([], {"n": 1})

    with ThreadPoolExecutor(4) as pool:
        works = [pool.submit(come_and_go) for _ in range(4)]
        try:
            for _ in range(15):
                join(*[fork(child) for _ in range(4)])
        finally:
            over.set()
        for work in works:
            work.result(WAIT)


# On loops


async def use_async(client: AsyncOperatorClient) -> None:
    """Call everything on a client on this loop."""
    calls = [client.sync([], {"n": n}, timeout=WAIT) for n in range(10)]
    assert [results for _, results in await asyncio.gather(*calls)] == [{"n": n} for n in range(10)]
    handle = await client.async_call([], {"n": 1})
    assert (await handle.get(timeout=WAIT))["results"] == {"n": 1}
    results = await client.batch_sync_detailed([([], {"n": n}) for n in range(20)], timeout=WAIT)
    assert [result.results for result in results] == [{"n": n} for n in range(20)]
    assert await client.ping(WAIT)
    assert (await client.desc())["doc"] == "light"


def while_a_loop_runs(url: str) -> None:
    """A coroutine forks: the child has a loop of its own, the parent's is not disturbed."""

    async def main() -> None:
        async with AsyncOperatorClient("bench", "v1", url) as client:
            await use_async(client)
            slow = await client.async_call([], {"n": 1, "delay": 1.5})
            wait = asyncio.create_task(slow.get(timeout=WAIT))
            await asyncio.sleep(0.1)  # until it waits, and what is idle is so
            ids = ids_of(url, os.getpid())

            def child() -> None:
                async def work() -> None:
                    await use_async(client)
                    gc.collect()
                    await use_async(client)
                    await client.aclose()

                asyncio.run(work())

            def closes() -> None:
                asyncio.run(client.aclose())

            pids = [fork(child), fork(closes)]
            await asyncio.to_thread(join, *pids)
            # At once: what was idle is read as before.
            began = time.monotonic()
            await use_async(client)
            assert time.monotonic() - began < 2
            assert (await wait)["results"]["n"] == 1
            assert ids <= ids_of(url, os.getpid())
            [backend] = statistics().backends.values()
            assert [reader.push_connects for reader in backend.readers] == [1]

    asyncio.run(main())


def many_forks_while_a_loop_runs(url: str) -> None:
    """Coroutines call all the while; children, forked from a thread, run loops of their own."""

    async def main() -> None:
        async with AsyncOperatorClient("bench", "v1", url) as client:
            over = False

            async def call() -> int:
                done = 0
                while not over:
                    assert await client.sync([], {"n": done}, timeout=WAIT) == ([], {"n": done})
                    done += 1
                return done

            def child() -> None:
                async def work() -> None:
                    calls = [client.sync([], {"n": 1}, timeout=WAIT) for _ in range(5)]
                    assert await asyncio.gather(*calls) == [([], {"n": 1})] * 5
                    await client.aclose()

                asyncio.run(work())

            calls = [asyncio.create_task(call()) for _ in range(16)]
            for _ in range(15):
                pids = [await asyncio.to_thread(fork, child) for _ in range(2)]
                await asyncio.to_thread(join, *pids)
            over = True
            assert all(await asyncio.gather(*calls))

    asyncio.run(main())


# A parent that dies


def killed_parent(url: str) -> None:
    """The connections of a parent that is killed end, though its children live on."""
    for open_all in (open_in_thread, open_on_loop):
        receiver, sender = os.pipe()
        pid = fork(partial(open_all, url, partial(fork_and_stay, sender)))
        worker = int.from_bytes(os.read(receiver, 4), "big")
        try:
            assert len(ids_of(url, pid)) >= 2
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            eventually(partial(gone, url, pid), within=2)
        finally:
            os.kill(worker, signal.SIGKILL)


def fork_and_stay(told: int) -> None:
    """Fork a child that stays, tell of its process id, and stay."""
    worker = os.fork()
    if worker:
        os.write(told, worker.to_bytes(4, "big"))
    signal.pause()


def gone(url: str, pid: int) -> bool:
    """Return whether the server has no connection of a process's clients."""
    return not ids_of(url, pid)


def open_in_thread(url: str, then: Callable[[], object]) -> None:
    """Go on with open connections of each kind."""
    with OperatorClient("bench", "v1", url) as client:
        use(client)
        then()


def open_on_loop(url: str, then: Callable[[], object]) -> None:
    """Do the same on a loop."""

    async def main() -> None:
        async with AsyncOperatorClient("bench", "v1", url) as client:
            await use_async(client)
            then()

    asyncio.run(main())


# multiprocessing


def in_process(url: str) -> int:
    """Use a client of this process."""
    with OperatorClient("bench", "v1", url) as client:
        use(client)
    return os.getpid()


def in_process_inherited(_: int) -> int:
    """Use the client that the parent made, where processes are forked."""
    use(_inherited)
    return os.getpid()


def multiprocessing_pools(url: str) -> None:
    """Pools of processes that are forked, spawned, or forked by a server."""
    global _inherited
    with OperatorClient("bench", "v1", url) as client:
        _inherited = client
        use(client)
        with untouched(url, client):
            for method in ("fork", "forkserver", "spawn"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    used = pool.map(in_process, [url] * 4)
                    if method == "fork":
                        used += pool.map(in_process_inherited, range(4))
                    pool.close()
                    pool.join()
                assert os.getpid() not in used
                use(client)


def main() -> NoReturn:
    """Run a program."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _, program, url = sys.argv
    globals()[program](url)
    raise SystemExit


if __name__ == "__main__":
    main()
