"""Redis gone, frozen, cutting push, and callers cancelled anywhere: no wait of a loop hangs."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from light_operator import LightOperator
from local_redis import LocalRedis
from sandai.op.aio import AsyncOperatorClient, create_async_client
from sandai.op.models import ClientPoolTimeoutError, OperatorConnectionError, TaskTimeoutError
from watching import connections, eventually, open_redis

KEY = "celery-task-meta-"
QUEUE = "normal.bench.v1"
PENDING = 1000


@pytest.fixture
def server() -> Iterator[LocalRedis]:
    """One Redis for one test, to be broken."""
    with LocalRedis() as server:
        yield server


def bench(url: str, **settings: Any) -> AsyncOperatorClient:
    """Make a client of the light operator with short limits."""
    limits = {"pool_acquire_timeout": 1.0, "io_timeout": 0.5}
    return create_async_client("bench", "v1", broker_url=url, timeout=30, **{**limits, **settings})


def pending(client: AsyncOperatorClient) -> int:
    """Count the tasks that are waited for."""
    return sum(reader.pending for reader in client.statistics()[1].readers)


async def until(condition: Any, *, within: float = 10.0) -> None:
    """Wait until something holds that has no event."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def store(redis_client: Any, task_id: str, *, publish: bool) -> None:
    """Store a result as an operator does."""
    document = json.dumps({"status": "SUCCESS", "result": {"status": "success", "results": {}}})
    redis_client.set(KEY + task_id, document, ex=60)
    if publish:
        redis_client.publish(KEY + task_id, document)


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["restart", "kill", "pause"])
async def test_waits_survive_an_outage(server: LocalRedis, how: str) -> None:
    """A thousand waits go on through an outage of Redis, and get their results."""
    async with bench(server.url) as client:
        ids = [str(uuid4()) for _ in range(PENDING)]
        handles = [await client.attach(task_id) for task_id in ids]
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(handle.get(timeout=20)) for handle in handles]
            await until(lambda: pending(client) == PENDING)
            if how == "pause":
                server.pause()
                await asyncio.sleep(1.5)  # three times the I/O timeout
                server.resume()
            else:
                server.stop() if how == "restart" else server.kill()
                await asyncio.sleep(0.7)  # an outage of some length
                server.start()
            with open_redis(server.url) as redis_client:
                for number, task_id in enumerate(ids):
                    store(redis_client, task_id, publish=number % 2 == 0)
        assert {wait.result()["status"] for wait in waits} == {"success"}


@pytest.mark.asyncio
async def test_push_killed_again_and_again(server: LocalRedis) -> None:
    """Results stored in the gaps between reconnect and subscription come all the same."""
    with open_redis(server.url) as redis_client:
        async with bench(server.url) as client:
            ids = [str(uuid4()) for _ in range(PENDING)]
            handles = [await client.attach(task_id) for task_id in ids]
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                waits = [group.create_task(handle.get(timeout=15)) for handle in handles]
                await until(lambda: pending(client) == PENDING)
                for number, task_id in enumerate(ids):
                    if number % 20 == 0:
                        redis_client.client_kill_filter(_type="pubsub")
                    store(redis_client, task_id, publish=number % 2 == 0)
                    await asyncio.sleep(0)
            assert {wait.result()["status"] for wait in waits} == {"success"}
            assert pending(client) == 0


@pytest.mark.asyncio
async def test_stopped_and_back(server: LocalRedis) -> None:
    """With Redis stopped every call says so in time; with Redis back, the same client works."""
    with LightOperator(server.url):
        async with bench(server.url) as client:
            assert await client.sync([], {"n": 1}) == ([], {"n": 1})
            server.stop()
            for _ in range(2):
                began = time.monotonic()
                for call in (client.sync([], {}), client.async_call([], {}), client.desc()):
                    with pytest.raises(OperatorConnectionError) as caught:
                        await call
                    assert caught.value.task_id is None
                assert await client.ping() is False
                assert not (await client.probe()).submit_ok
                [submission] = await client.batch_submit([([], {})])
                assert isinstance(submission.error, OperatorConnectionError)
                assert time.monotonic() - began < 2
            server.start()
            assert await client.ping()
            assert await client.sync([], {"n": 2}) == ([], {"n": 2})


@pytest.mark.asyncio
async def test_nothing_is_doubled(server: LocalRedis) -> None:
    """Frozen in the middle: each task comes once, and its id is told."""
    with LightOperator(server.url):
        async with bench(server.url) as client:
            await client.sync([], {})
    async with bench(server.url) as client:
        assert await client.ping()
        server.pause()
        results = await asyncio.gather(
            *(client.async_call([], {"n": n}) for n in range(50)), return_exceptions=True
        )
        server.resume()
        assert {type(result) for result in results} <= {
            OperatorConnectionError,
            ClientPoolTimeoutError,
        }
        unsure = {r.task_id for r in results if isinstance(r, OperatorConnectionError)} - {None}
        assert unsure
        with open_redis(server.url) as redis_client:
            queued = [json.loads(m)["headers"]["id"] for m in redis_client.lrange(QUEUE, 0, -1)]
            assert len(set(queued)) == len(queued)
            assert set(queued) <= unsure
            with LightOperator(server.url):
                for task_id in queued:
                    handle = await client.attach(task_id)
                    assert (await handle.get(timeout=10))["status"] == "success"


@pytest.mark.asyncio
async def test_a_timeout_in_an_outage_has_its_cause(server: LocalRedis) -> None:
    """A wait that runs out while the backend is gone has the last failure as its cause."""
    async with bench(server.url) as client:
        handle = await client.async_call([], {})
        server.stop()
        with pytest.raises(TaskTimeoutError) as caught:
            await handle.get(timeout=1.0)
        assert str(server.port) in str(caught.value.__cause__)
        with pytest.raises(OperatorConnectionError):
            await handle.ready()


@pytest.mark.asyncio
@pytest.mark.timeout(120)
async def test_cancelled_anywhere(database: str) -> None:
    """
    Thousands are cancelled at random while others run: the others get their own answers,
    and no slot, connection, subscription, waiter or message is left.
    """
    with LightOperator(database, delay=0.002, concurrency=64), open_redis(database) as redis_client:
        async with create_async_client("bench", "v1", broker_url=database, timeout=20) as client:
            cancelled = 0

            async def call(number: int) -> None:
                nonlocal cancelled
                delay = random.choice([None, random.uniform(0, 0.02)])
                how = random.randrange(4)
                try:
                    async with asyncio.timeout(delay):
                        if how == 0:
                            _, results = await client.sync([], {"n": number})
                        elif how == 1:
                            handle = await client.async_call([], {"n": number})
                            results = (await handle.get())["results"]
                        elif how == 2:
                            [result] = await client.batch_sync_detailed([([], {"n": number})])
                            results = result.results
                        else:
                            handle = await client.async_call([], {"n": number})
                            await handle.ready()
                            results = (await handle.get())["results"]
                            await handle.forget()
                        assert results == {"n": number}
                except TimeoutError:
                    cancelled += 1

            for first in range(0, 6000, 150):
                async with asyncio.TaskGroup() as group:
                    for number in range(first, first + 150):
                        group.create_task(call(number))
            assert cancelled > 1000
            assert await client.sync([], {"last": 1}) == ([], {"last": 1})
            broker, backend = client.statistics()
            assert (broker.connections.in_use, broker.connections.waiting) == (0, 0)
            assert (backend.commands.in_use, backend.commands.waiting) == (0, 0)
            await until(lambda: pending(client) == 0)
            await until(lambda: not redis_client.pubsub_channels(f"{KEY}*"))
            # Idle, it holds nothing.
            await until(lambda: not any(connections(redis_client).values()))
        eventually(lambda: redis_client.llen(QUEUE) == 0, within=5)
