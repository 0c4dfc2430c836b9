"""The asyncio client when it is cancelled, and when Redis fails."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from light_operator import LightOperator
from local_redis import LocalRedis
from loops import LOOPS, eventually, run
from sandai.op.aio import AsyncOperatorClient, AsyncSubmittedTask
from sandai.op.models import (
    ClientClosedError,
    ClientPoolTimeoutError,
    OperatorConnectionError,
    TaskTimeoutError,
)
from watching import connections, open_redis
from watching import eventually as in_time

MakeLoop = Callable[[], asyncio.AbstractEventLoop]
EXPIRED = 0.4


@pytest.fixture
def own_redis() -> Iterator[LocalRedis]:
    """One that a test may break; it keeps its data over a restart."""
    with LocalRedis("--save", "", "--appendonly", "yes", "--appendfsync", "no") as server:
        yield server


def store(server: Any, task_ids: list[str], *, publish: bool = True) -> None:
    """Store results as Celery would."""
    pipe = server.pipeline(transaction=False)
    for number, task_id in enumerate(task_ids):
        document = f'{{"status": "SUCCESS", "result": {{"n": {number}}}, "task_id": "{task_id}"}}'
        pipe.set(f"celery-task-meta-{task_id}", document)
        if publish:
            pipe.publish(f"celery-task-meta-{task_id}", document)
    pipe.execute()


async def wait_for(client: AsyncOperatorClient, count: int) -> tuple[list[str], Any]:
    """Submit tasks that nobody serves; return their ids, and the waits under way."""
    submissions: list[AsyncSubmittedTask] = await client.batch_submit([([], {})] * count)
    ids = [str(submission.task_id) for submission in submissions]
    waits = asyncio.gather(*[(await client.attach(task_id)).get() for task_id in ids])
    return ids, waits


def pushing(client: AsyncOperatorClient) -> bool:
    """Return whether the client's one hub has a push line."""
    return any(hub.pushing for hub in client.statistics()[1].readers)


def swept(client: AsyncOperatorClient) -> int:
    """Return how often its hub has looked."""
    return sum(hub.sweeps for hub in client.statistics()[1].readers)


# Cancellation


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("limit", [8, 2, 1])
def test_cancelled_everywhere(database: str, make_loop: MakeLoop, limit: int) -> None:
    """Of thousands of calls on two loops, most cancelled at random, the rest get their own."""
    limits: dict[str, Any] = {
        "broker_pool_limit": limit,
        "backend_pool_limit": limit,
        "timeout": 30,
    }
    client = AsyncOperatorClient("bench", "v1", database, **limits)
    finished = []

    async def one(number: int, randomness: random.Random) -> None:
        kind, options = randomness.random(), {"n": number}
        if kind < 0.6:
            _, results = await client.sync([], options)
            assert results == options
        elif kind < 0.7:
            found = await client.batch_sync_detailed([([], {"n": [number, k]}) for k in range(5)])
            assert [result.results for result in found] == [{"n": [number, k]} for k in range(5)]
        elif kind < 0.85:
            handle = await client.async_call([], options)
            await handle.ready()
            reply = await handle.get()
            assert reply["results"] == options
            await handle.forget()
        elif kind < 0.95:
            assert await client.ping()
        else:
            health = await client.probe()
            assert health.response_ok
        finished.append(number)

    async def main(seed: int) -> None:
        randomness = random.Random(seed)
        running: set[asyncio.Task[None]] = set()
        for number in range(1200):
            task = asyncio.create_task(one(number, randomness))
            running.add(task)
            task.add_done_callback(running.discard)
            if randomness.random() < 0.8:
                loop = asyncio.get_running_loop()
                loop.call_later(randomness.choice([0, 0, 0.001, 0.005, 0.02]), task.cancel)
            if len(running) >= 80:
                await asyncio.sleep(randomness.choice([0, 0.001, 0.002]))
            if len(running) >= 200:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for result in await asyncio.gather(*running, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        # Everything is there for the next caller.
        await asyncio.wait_for(client.sync([], {}), 10)

    with (
        LightOperator(database, delay=0.003, concurrency=256),
        open_redis(database) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        works = [pool.submit(run, main(seed), make_loop) for seed in (limit, limit + 100)]
        for work in works:
            work.result(timeout=55)
        assert len(finished) > 100
        stats = client.statistics()
        for budget in (stats[0].connections, stats[1].commands, stats[1].push):
            assert budget is not None
            assert budget.in_use == budget.waiting == 0
        assert sum(hub.pending for hub in stats[1].readers) == 0
        in_time(lambda: server.pubsub_channels() == [], within=2)
        in_time(lambda: not any(connections(server).values()), within=1)
        asyncio.run(client.aclose())


def test_a_cancelled_submission_leaves_the_others(own_redis: LocalRedis) -> None:
    """What is queued behind a stalled server goes on when a neighbour is cancelled."""

    async def main() -> None:
        async with AsyncOperatorClient("op", "v1", own_redis.url, broker_pool_limit=1) as client:
            await client.async_call([], {})
            own_redis.pause()
            first = asyncio.create_task(client.async_call([], {"n": 1}))
            await asyncio.sleep(0.05)
            others = [asyncio.create_task(client.async_call([], {"n": n})) for n in range(10)]
            await asyncio.sleep(0.05)
            for task in (first, *others[::2]):
                task.cancel()
            await asyncio.sleep(0.05)
            own_redis.resume()
            async with asyncio.timeout(5):
                await asyncio.gather(*others[1::2])
            with open_redis(own_redis.url) as server:
                # The first was on its way already.
                assert server.llen("normal.op.v1") == 1 + 1 + 5

    asyncio.run(main())


def test_the_hub_is_cancelled(database: str) -> None:
    """Whoever cancels all tasks but its own waits: the waits get their results."""

    async def main() -> None:
        async with AsyncOperatorClient("nobody", "v1", database, timeout=20) as client:
            ids, waits = await wait_for(client, 5)
            await eventually(lambda: len(server.pubsub_channels()) == 5, within=5)
            for task in asyncio.all_tasks():
                if task.get_name().startswith("sandai-op-"):
                    task.cancel()
            await asyncio.sleep(0)
            store(server, ids, publish=False)
            async with asyncio.timeout(5):
                assert len(await waits) == 5

    with open_redis(database) as server:
        asyncio.run(main())


# Submitting


def test_patience(own_redis: LocalRedis) -> None:
    """No slot in time is a ClientPoolTimeoutError that names the limit; 0 tries once."""

    async def main() -> None:
        settings: dict[str, Any] = {"broker_pool_limit": 1, "io_timeout": 3.0}
        async with (
            AsyncOperatorClient(
                "op", "v1", own_redis.url, pool_acquire_timeout=0.3, **settings
            ) as client,
            AsyncOperatorClient(
                "op", "v1", own_redis.url, pool_acquire_timeout=0, **settings
            ) as hasty,
        ):
            await asyncio.gather(*(hasty.async_call([], {}) for _ in range(10)))
            own_redis.pause()
            stuck = asyncio.create_task(client.async_call([], {}))
            await asyncio.sleep(0.05)
            for chosen, patience in ((hasty, 0.0), (client, 0.3), (hasty, 0.0)):
                began = time.monotonic()
                with pytest.raises(ClientPoolTimeoutError) as caught:
                    await chosen.async_call([], {})
                assert patience <= time.monotonic() - began < patience + 0.2
                assert (caught.value.limit, caught.value.timeout) == (1, patience)
            own_redis.resume()
            await stuck
            with open_redis(own_redis.url) as server:
                assert server.llen("normal.op.v1") == 11

    asyncio.run(main())


def test_unreachable() -> None:
    """A refused port is an OperatorConnectionError at once, and nothing was queued."""

    async def main() -> None:
        async with AsyncOperatorClient("op", "v1", "redis://127.0.0.1:1/0") as client:
            began = time.monotonic()
            with pytest.raises(OperatorConnectionError) as caught:
                await client.async_call([], {})
            assert caught.value.task_id is None
            assert not await client.ping()
            with pytest.raises(OperatorConnectionError):
                await (await client.attach("id")).ready()
            with pytest.raises(TaskTimeoutError) as late:
                await (await client.attach("id")).get(timeout=0.3)
            assert isinstance(late.value.__cause__, Exception)
            assert time.monotonic() - began < 1.5

    asyncio.run(main())


def test_a_stalled_server_leaves_the_fate_open(own_redis: LocalRedis) -> None:
    """A submission without a reply names its task, was made once, and can be attached to."""

    async def main() -> None:
        async with AsyncOperatorClient("op", "v1", own_redis.url, io_timeout=0.4) as client:
            await client.async_call([], {})
            own_redis.pause()
            began = time.monotonic()
            outcomes = await asyncio.gather(
                *(client.async_call([], {"n": n}) for n in range(5)), return_exceptions=True
            )
            assert time.monotonic() - began < 1.2
            own_redis.resume()
            assert all(isinstance(error, OperatorConnectionError) for error in outcomes)
            assert len({getattr(error, "task_id", None) for error in outcomes} - {None}) == 5
            with open_redis(own_redis.url) as server:
                in_time(lambda: server.llen("normal.op.v1") == 6, within=2)
            await client.async_call([], {})

    asyncio.run(main())


def test_sync_with_a_frozen_broker(own_redis: LocalRedis) -> None:
    """Whatever its timeout, each of twenty callers hears what became of its submission."""

    async def call(client: AsyncOperatorClient, number: int) -> Any:
        began = time.monotonic()
        with pytest.raises((OperatorConnectionError, ClientPoolTimeoutError)) as caught:
            await client.sync([], {"n": number}, timeout=0.1)
        assert time.monotonic() - began < 2.5
        return getattr(caught.value, "task_id", None)

    async def main() -> None:
        settings: dict[str, Any] = {"io_timeout": 0.5, "pool_acquire_timeout": 1.0}
        async with AsyncOperatorClient(
            "bench", "v1", own_redis.url, broker_pool_limit=1, **settings
        ) as client:
            assert await client.ping()
            own_redis.pause()
            first = asyncio.create_task(call(client, 0))
            await asyncio.sleep(0.05)
            doubtful = {await first, *await asyncio.gather(*(call(client, n) for n in range(20)))}
            own_redis.resume()
            with open_redis(own_redis.url) as server:
                expected = len(doubtful - {None})
                await eventually(lambda: server.llen("normal.bench.v1") == expected > 0, within=2)
                await eventually(lambda: not server.pubsub_channels(), within=5)
            broker, backend = client.statistics()
            assert broker.connections.in_use == broker.connections.waiting == 0
            assert sum(hub.pending for hub in backend.readers) == 0
            with LightOperator(own_redis.url):
                assert await client.sync([], {"n": 1}, timeout=10) == ([], {"n": 1})

    asyncio.run(main())


def test_sync_without_a_broker_leaves_nothing(own_redis: LocalRedis) -> None:
    """A submission that fails ends the wait that had begun."""

    async def main() -> None:
        async with AsyncOperatorClient(
            "op", "v1", "redis://127.0.0.1:1/0", own_redis.url, timeout=20
        ) as client:
            for timeout in (10, 0, 0.001):
                with pytest.raises(OperatorConnectionError) as caught:
                    await client.sync([], {}, timeout=timeout)
                assert caught.value.task_id is None
            with open_redis(own_redis.url) as server:
                await eventually(lambda: not server.pubsub_channels(), within=2)
            assert sum(hub.pending for hub in client.statistics()[1].readers) == 0

    asyncio.run(main())


# Waiting


@pytest.mark.parametrize("publish", [True, False], ids=["published", "stored"])
def test_killed_subscription(own_redis: LocalRedis, publish: bool) -> None:
    """After CLIENT KILL TYPE pubsub every wait has its result, those of the gap too."""

    async def main() -> None:
        async with AsyncOperatorClient("op", "v1", own_redis.url, timeout=20) as client:
            ids, waits = await wait_for(client, 1000)
            await eventually(lambda: len(server.pubsub_channels()) == 1000, within=5)
            for start in range(0, 1000, 250):
                server.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                # Written in the gap, before anybody subscribes again.
                store(server, ids[start : start + 250], publish=publish)
                await asyncio.sleep(0.15)
            async with asyncio.timeout(10):
                replies = await waits
            assert [reply["n"] for reply in replies] == list(range(250)) * 4

    with open_redis(own_redis.url) as server:
        asyncio.run(main())


def test_restart(own_redis: LocalRedis, caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that is killed and comes back: the waits go on, and the log says it once."""

    async def main() -> None:
        async with AsyncOperatorClient("op", "v1", own_redis.url, timeout=30) as client:
            ids, waits = await wait_for(client, 500)
            await eventually(lambda: pushing(client), within=5)
            await asyncio.to_thread(own_redis.kill)
            await asyncio.sleep(EXPIRED)
            with pytest.raises(OperatorConnectionError):
                await client.async_call([], {})
            await asyncio.to_thread(own_redis.start)
            with open_redis(own_redis.url) as server:
                await asyncio.to_thread(store, server, ids, publish=False)
            async with asyncio.timeout(10):
                assert len(await waits) == 500
            # Push works again.
            ids, waits = await wait_for(client, 3)
            await eventually(lambda: pushing(client), within=5)
            with open_redis(own_redis.url) as server:
                await asyncio.to_thread(store, server, ids)
            async with asyncio.timeout(5):
                await waits

    asyncio.run(main())
    said = [record.getMessage() for record in caplog.records]
    assert sum("trying on" in text for text in said) == 1
    assert sum("well again" in text for text in said) == 1


def test_a_silent_server(own_redis: LocalRedis) -> None:
    """A stopped Redis is noticed; waits end with their own timeout, or their result later."""

    async def main() -> None:
        async with AsyncOperatorClient(
            "op", "v1", own_redis.url, timeout=20, io_timeout=0.5
        ) as client:
            ids, waits = await wait_for(client, 100)
            await eventually(lambda: pushing(client), within=5)
            own_redis.pause()
            began = time.monotonic()
            with pytest.raises(TaskTimeoutError) as caught:
                await (await client.attach(ids[0])).get(timeout=1.5)
            assert 1.5 <= time.monotonic() - began < 1.8
            assert isinstance(caught.value.__cause__, Exception)
            assert not pushing(client)
            own_redis.resume()
            with open_redis(own_redis.url) as server:
                store(server, ids, publish=False)
            async with asyncio.timeout(10):
                assert len(await waits) == 100

    asyncio.run(main())


def test_push_forbidden(own_redis: LocalRedis, caplog: pytest.LogCaptureFixture) -> None:
    """A user without pub/sub is polled for, within the commands' budget; the log says so once."""
    with open_redis(own_redis.url) as server:
        server.execute_command("ACL SETUSER plain on >pw ~* +@all -subscribe")

        async def main() -> None:
            url = own_redis.url.replace("redis://", "redis://plain:pw@")
            async with AsyncOperatorClient("op", "v1", url, timeout=20) as client:
                ids, waits = await wait_for(client, 50)
                await eventually(lambda: swept(client) > 2, within=5)
                store(server, ids)
                async with asyncio.timeout(5):
                    assert len(await waits) == 50
                results = await client.batch_sync_detailed([([], {})], timeout=0.2)
                assert isinstance(results[0].error, TaskTimeoutError)

        asyncio.run(main())
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "does not allow push" in text]) == 1


def test_deletion_forbidden(own_redis: LocalRedis, caplog: pytest.LogCaptureFixture) -> None:
    """A user without DEL gets its results all the same."""
    with LightOperator(own_redis.url), open_redis(own_redis.url) as server:
        server.execute_command("ACL SETUSER plain on >pw ~* &* +@all -del")

        async def main() -> None:
            url = own_redis.url.replace("redis://", "redis://plain:pw@")
            async with AsyncOperatorClient("bench", "v1", url, timeout=20) as client:
                async with asyncio.timeout(10):
                    for number in range(5):
                        assert (await client.sync([], {"n": number}))[1] == {"n": number}

        asyncio.run(main())
        assert len(server.keys("celery-task-meta-*")) == 5


def test_a_connection_that_went_while_idle(own_redis: LocalRedis) -> None:
    """Idle connections that the server closed are replaced before anything is written."""

    async def main() -> None:
        async with AsyncOperatorClient("op", "v1", own_redis.url) as client:
            for _ in range(5):
                await client.async_call([], {})
                await (await client.attach("id")).ready()
                server.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    with open_redis(own_redis.url) as server:
        asyncio.run(main())
        assert server.llen("normal.op.v1") == 5


def test_memory_full(own_redis: LocalRedis) -> None:
    """A full Redis refuses: the error says so, and that nothing was queued."""

    async def main() -> None:
        async with AsyncOperatorClient("op", "v1", own_redis.url) as client:
            server.config_set("maxmemory", "1")
            with pytest.raises(OperatorConnectionError, match="OutOfMemory") as caught:
                await client.async_call([], {})
            assert caught.value.task_id is None
            server.config_set("maxmemory", "0")
            await client.async_call([], {})

    with open_redis(own_redis.url) as server:
        asyncio.run(main())


def test_aclose_with_a_stalled_server(own_redis: LocalRedis) -> None:
    """Looks under way and queued, and waits, end at once with a ClientClosedError."""

    async def main() -> None:
        client = AsyncOperatorClient("op", "v1", own_redis.url, backend_pool_limit=2)
        _, waits = await wait_for(client, 3)
        await (await client.attach("id")).ready()
        own_redis.pause()
        looks: list[asyncio.Task[Any]] = []
        looks += [asyncio.create_task((await client.attach("id")).ready()) for _ in range(2)]
        await asyncio.sleep(0.05)
        looks += [asyncio.create_task((await client.attach("id")).state()) for _ in range(2)]
        looks += [asyncio.create_task((await client.attach("id")).forget()) for _ in range(2)]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await client.aclose()
        outcomes = await asyncio.gather(*looks, waits, return_exceptions=True)
        assert time.monotonic() - began < 0.5
        assert [type(outcome) for outcome in outcomes] == [ClientClosedError] * 7
        own_redis.resume()
        with open_redis(own_redis.url) as server:
            await eventually(lambda: not any(connections(server).values()), within=1)

    asyncio.run(main())
