"""Both clients and results that are hard to get: a wait ends with its result or its timeout."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from fault_rig import (
    IO,
    OPERATOR,
    Rig,
    ids_in,
    in_time,
    new_ids,
    pending,
    push_connects,
    pushing,
    sweeps,
)
from light_operator import LightOperator
from local_redis import LocalRedis
from loops import eventually as in_loop
from sandai.op.aio import AsyncOperatorClient
from sandai.op.models import OperatorConnectionError, TaskTimeoutError
from scenarios import KEY, at_once
from tcp_proxy import Cut, Entry, Way
from watching import best_of, connections, eventually, open_redis

MANY = 1000


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what our log says that is not well."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextmanager
def again_and_again(strike: Callable[[], object], every: Callable[[], float]) -> Iterator[None]:
    """Do something in a thread until the block is left."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every()):
            strike()

    with ThreadPoolExecutor(1) as pool:
        striking = pool.submit(run)
        try:
            yield
        finally:
            over.set()
            striking.result()


# The backend goes away


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_restarted_with_many_pending(rig: Rig, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """A thousand waits go through a restart of the backend, which is logged once."""
    client = rig.client()
    ids = new_ids(MANY)
    waits = rig.begin(client, ids)
    rig.server.stop() if how == "restart" else rig.server.kill()
    with in_time(), pytest.raises(OperatorConnectionError):
        client.attach(ids[0]).ready()
    eventually(lambda: warnings(caplog), within=2)
    rig.server.start()
    # Some at once, and unpublished: nobody may have subscribed again.
    rig.store(ids[:300], publish=False)
    eventually(lambda: rig.channels() >= MANY - 300, within=3)
    rig.store(ids[300:])
    with in_time(1.0):
        assert ids_in(waits.result(10)) == ids
    gone, back = warnings(caplog)
    assert "trying on" in gone
    assert "well again" in back


def test_subscriptions_killed_again_and_again(rig: Rig) -> None:
    """A thousand waits lose their push connection every 50 ms; every result comes."""
    client = rig.client()
    ids = new_ids(MANY)
    waits = rig.begin(client, ids)
    with again_and_again(
        lambda: rig.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub"), lambda: 0.05
    ):
        for start in range(0, MANY - 100, 60):
            rig.store(ids[start : start + 60], publish=start % 120 == 0)
            time.sleep(0.1)  # ... for a second and a half
        assert push_connects(client) > 3
    rig.store(ids[900:])
    with in_time(2.0):
        assert ids_in(waits.result(10)) == ids


def test_killed_for_as_long_as_it_waits(rig: Rig) -> None:
    """Where no push connection lasts longer than a moment, results come all the same, soon."""
    client = rig.client()
    ids = new_ids(50)
    waits = rig.begin(client, ids)
    with again_and_again(
        lambda: rig.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub"), lambda: 0.02
    ):
        time.sleep(0.3)
        rig.store(ids)
        with in_time(1.0):
            assert ids_in(waits.result(10)) == ids


def test_random_resets(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Connections that are reset at random end no wait, with or without a published result."""
    client = rig.client()
    ids = new_ids(200)
    waits = rig.begin(client, ids)
    randomness = random.Random(24)
    with again_and_again(
        lambda: rig.backend.cut(randomness.choice([Cut.RESET, Cut.FIN])),
        lambda: randomness.uniform(0.005, 0.1),
    ):
        for position in range(0, 180, 10):
            rig.store(ids[position : position + 10], publish=randomness.random() < 0.5)
            time.sleep(0.05)
    rig.store(ids[180:])
    with in_time(2.0):
        assert ids_in(waits.result(10)) == ids
    # One outage at a time is told of, with its end.
    said = warnings(caplog)
    for kind in {text.partition(":")[0] for text in said}:
        texts = [text for text in said if text.startswith(kind)]
        assert all("trying on" in text for text in texts[::2])
        assert all("well again" in text for text in texts[1::2])


@pytest.mark.parametrize("fault", [Entry.REFUSED, Entry.SILENT])
def test_gone_for_good(rig: Rig, fault: Entry) -> None:
    """A wait tries on to its own deadline, and then tells of the last failure."""
    client = rig.client(io_timeout=0.2)
    ids = new_ids(100)
    waits = rig.begin(client, ids, timeout=1.0)
    rig.backend.entry = fault
    rig.backend.cut()
    with in_time(1.0):
        error = waits.exception(10)
    assert isinstance(error, TaskTimeoutError)
    assert isinstance(error.__cause__, Exception)
    assert str(rig.backend.port) in str(error.__cause__)
    # The next one waits as long, and no longer.
    began = time.monotonic()
    with in_time(0.3), pytest.raises(TaskTimeoutError) as caught:
        client.attach(ids[0]).get(timeout=0.3)
    assert time.monotonic() - began >= 0.3
    assert isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize("fault", [Entry.REFUSED, Entry.SILENT])
def test_back_in_time(rig: Rig, fault: Entry) -> None:
    """An outage that ends before the deadline costs no more than a second."""
    client = rig.client(io_timeout=0.2)
    ids = new_ids(20)
    waits = rig.begin(client, ids)
    rig.backend.entry = fault
    rig.backend.cut(Cut.SILENCE if fault is Entry.SILENT else Cut.RESET)
    rig.store(ids)
    time.sleep(0.8)  # tried again at growing intervals
    assert not waits.done()
    rig.backend.heal()
    with in_time(1.0):
        assert ids_in(waits.result(10)) == ids


# The push connection


def test_half_open(rig: Rig) -> None:
    """A push connection that is silent without an end is noticed by a PONG that is missing."""
    client = rig.client()
    ids = new_ids(MANY)
    waits = rig.begin(client, ids)
    # Nothing is published, so that nothing else would show it.
    rig.backend.black_hole()
    eventually(lambda: push_connects(client) == 2 and pushing(client), within=5 * IO)
    eventually(lambda: rig.redis.pubsub_numsub(KEY + ids[-1])[0][1] == 2, within=1)
    rig.store(ids)
    with in_time(1.0):
        assert ids_in(waits.result(10)) == ids


def test_half_open_with_results(rig: Rig) -> None:
    """Results that are published into a black hole are found by the next sweep that gets out."""
    client = rig.client()
    ids = new_ids(100)
    waits = rig.begin(client, ids)
    rig.backend.black_hole()
    rig.store(ids)
    with in_time(2 * IO):
        assert ids_in(waits.result(10)) == ids


def test_written_while_reconnecting(rig: Rig) -> None:
    """Whenever a result is published while a slow connection is made again, it is seen at once."""
    client = rig.client(io_timeout=5)
    ids = new_ids(200)
    waits = rig.begin(client, ids)
    # Old enough that the sweep after this one is more than a second away.
    time.sleep(1.3)
    before = sweeps(client)
    eventually(lambda: sweeps(client) > before, within=2)
    rig.backend.delay = 0.02
    rig.backend.cut()
    for start in range(0, 200, 5):
        rig.store(ids[start : start + 5])
        time.sleep(0.01)
    with in_time(0.3):
        assert ids_in(waits.result(10)) == ids


@pytest.mark.parametrize("limits", ["pubsub 64kb 0 0", "normal 1mb 0 0 pubsub 64kb 0 0"])
def test_output_buffer_limit(rig: Rig, limits: str) -> None:
    """Where a large result drops the subscriber, and many drop who looks, all of them come."""
    rig.redis.config_set("client-output-buffer-limit", limits)
    client = rig.client()
    ids = new_ids(60)
    waits = rig.begin(client, ids)
    rig.store(ids[:30], pad=100_000)
    rig.store(ids[30:])
    with in_time(3.0):
        assert ids_in(waits.result(10)) == ids
    # What is small is pushed again, over another connection.
    waits = rig.begin(client, more := new_ids(10))
    rig.store(more)
    with in_time(0.3):
        assert ids_in(waits.result(10)) == more
    assert push_connects(client) > 1


def test_a_result_that_nobody_gets(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A result that the server will not send costs its own wait, and no other a second."""
    rig.redis.config_set("client-output-buffer-limit", "normal 1mb 0 0 pubsub 64kb 0 0")
    client = rig.client()
    ids = new_ids(400)
    worst = new_ids(1)
    lost = rig.begin(client, worst, timeout=1.5)
    waits = rig.begin(client, ids)
    rig.store(worst, pad=2_000_000)
    # Without a message of it each is to be found, and this one is in the way.
    for start in range(0, 400, 100):
        rig.store(ids[start : start + 100], publish=False)
        time.sleep(0.1)
    with in_time(1.0):
        assert ids_in(waits.result(10)) == ids
    error = lost.exception(10)
    assert isinstance(error, TaskTimeoutError)
    assert isinstance(error.__cause__, Exception)
    assert len(warnings(caplog)) <= 2


def test_a_large_result_over_a_slow_network(rig: Rig) -> None:
    """A reply may take longer than the I/O timeout, as long as it comes."""
    client = rig.client()
    rig.backend.rate = 6_000_000
    ids = new_ids(2)
    waits = rig.begin(client, ids)
    rig.store(ids, pad=4_000_000, publish=False)
    with in_time(2.0):
        assert ids_in(waits.result(10)) == ids
    with in_time(1.0):
        assert client.attach(ids[0]).ready()


def test_a_slow_subscriber(rig: Rig) -> None:
    """One that reads slower than results are published is dropped, and gets them all."""
    rig.redis.config_set("client-output-buffer-limit", "pubsub 256kb 0 0")
    client = rig.client()
    ids = new_ids(400)
    waits = rig.begin(client, ids)
    rig.backend.rate = 20_000_000
    rig.store(ids, pad=40_000)
    with in_time(5.0):
        assert ids_in(waits.result(10)) == ids


def test_a_server_without_subscribe(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Such a server is polled, soon enough and within the budget; the log says so once."""
    with LocalRedis("--rename-command", "SUBSCRIBE", "") as poor, open_redis(poor.url) as server:
        operator = LightOperator(rig.server.url, backend_url=poor.url, delay=0.3, concurrency=200)
        client = rig.client(result_backend=poor.url, backend_pool_limit=2)
        with operator:
            with in_time(0.3 + 0.15):
                assert client.sync([], {"n": 1}) == ([], {"n": 1})
            results = client.batch_sync_detailed([([], {"n": n}) for n in range(200)])
        assert [result.results for result in results] == [{"n": n} for n in range(200)]
        assert not pushing(client)
        assert connections(server)["backend"] == 1
        [said] = warnings(caplog)
        assert "does not allow push" in said
        client.close()


# What is stored


def test_expired_before_it_is_read(rig: Rig) -> None:
    """A result that expired is waited for until the wait's own timeout."""
    client = rig.client()
    [task_id] = new_ids(1)
    rig.store([task_id], px=1)
    eventually(lambda: not rig.redis.exists(KEY + task_id), within=1)
    began = time.monotonic()
    with in_time(0.5), pytest.raises(TaskTimeoutError) as caught:
        client.attach(task_id).get(timeout=0.5)
    assert time.monotonic() - began >= 0.5
    assert (caught.value.task_id, caught.value.timeout) == (task_id, 0.5)
    assert caught.value.__cause__ is None
    assert client.attach(task_id).state() == "PENDING"


def test_an_unknown_task(rig: Rig) -> None:
    """A task that nobody submitted is pending, and a wait for it ends with its timeout."""
    client = rig.client(timeout=0.4)
    handle = client.attach("no-such-task")
    assert (handle.ready(), handle.state()) == (False, "PENDING")
    # Without a timeout of its own, it is the client's.
    with in_time(0.4), pytest.raises(TaskTimeoutError) as caught:
        handle.get()
    assert (caught.value.task_id, caught.value.timeout) == ("no-such-task", 0.4)


def test_what_is_read_is_deleted(rig: Rig) -> None:
    """Read results leave no key; what is only looked at keeps the operator's expiry."""
    with LightOperator(rig.server.url):
        client = rig.client()
        client.batch_sync_detailed([([], {"n": n}) for n in range(200)])
        client.sync([], {})
        client.desc()
        # The deletion has gone out by then, through a proxy.
        eventually(lambda: rig.redis.dbsize() == 0, within=0.5)
        handle = client.async_call([], {})
        handle.get(timeout=10)
        assert handle.ready()
        ttl = rig.redis.ttl(KEY + handle.task_id)
        assert 86_000 < ttl <= 86_400
        handle.forget()
        assert rig.redis.dbsize() == 0


def test_a_deletion_that_is_lost(rig: Rig) -> None:
    """Where the deletion of what was pushed gets lost with its connection, it is made again."""
    client = rig.client()
    submissions = client.batch_submit([([], {})] * 50)
    ids = [str(submission.task_id) for submission in submissions]
    with ThreadPoolExecutor(1) as pool:
        collecting = pool.submit(client.batch_collect, submissions)
        eventually(lambda: rig.channels() == 50, within=2)
        rig.backend.black_hole(Way.REQUESTS)
        rig.store(ids)
        assert all(result.success for result in collecting.result(10))
    eventually(lambda: not rig.redis.keys(f"{KEY}*"), within=2 + 2 * IO)


def test_no_channel_is_left(rig: Rig) -> None:
    """Waits that are over, with a result or without, leave no subscription."""
    client = rig.client()
    ids = new_ids(300)
    waits = rig.begin(client, ids)
    rig.store(ids)
    waits.result(10)
    late = rig.begin(client, new_ids(300), timeout=0.5)
    with pytest.raises(TaskTimeoutError):
        late.result(10)
    # Handles wait as long as they live, and the traceback knows them.
    del late
    gc.collect()
    assert client.attach(ids[0]).get(timeout=0)["status"] == "success"
    eventually(lambda: rig.channels() == 0, within=1)
    assert all(count == 0 for _, count in rig.redis.pubsub_numsub(*(KEY + i for i in ids)))
    assert pending(client) == 0


@pytest.mark.parametrize("stays", [0, 9], ids=["first", "last"])
def test_nine_of_ten_give_up(rig: Rig, stays: int) -> None:
    """Of ten that wait for one task nine give up; the tenth stays subscribed, and is told."""
    client = rig.client()
    [task_id] = new_ids(1)

    def wait(number: int) -> Any:
        return client.attach(task_id).get(timeout=20 if number == stays else 0.3)

    with at_once(10, wait) as waits:
        stayed = waits.pop(stays)
        assert all(isinstance(wait.exception(5), TaskTimeoutError) for wait in waits)
        assert rig.channels() == pending(client) == 1
        rig.store([task_id])
        with in_time(0.1):
            assert ids_in([stayed.result(5)]) == [task_id]
    eventually(lambda: rig.channels() == 0, within=1)


@pytest.mark.parametrize("stays", [0, 9], ids=["first", "last"])
def test_nine_of_ten_are_cancelled(database: str, stays: int) -> None:
    """Of ten coroutines that wait nine are cancelled; the tenth stays subscribed, and is told."""

    async def main() -> None:
        async with AsyncOperatorClient(OPERATOR, "v1", database, timeout=20) as client:
            handle = await client.attach("task")
            waits = [asyncio.create_task(handle.get()) for _ in range(10)]
            await in_loop(redis_client.pubsub_channels, within=2)
            for number, wait in enumerate(waits):
                if number != stays:
                    wait.cancel()
            await asyncio.wait(waits, timeout=0.1)
            assert sum(wait.cancelled() for wait in waits) == 9
            assert len(redis_client.pubsub_channels()) == 1
            document = json.dumps({"status": "SUCCESS", "result": 1, "task_id": "task"})
            redis_client.set(f"{KEY}task", document)
            redis_client.publish(f"{KEY}task", document)
            async with asyncio.timeout(0.5):
                assert await waits[stays] == 1
            await in_loop(lambda: not redis_client.pubsub_channels(), within=1)

    with open_redis(database) as redis_client:
        asyncio.run(main())


# How soon


def test_from_store_to_wake(rig: Rig) -> None:
    """Of two hundred published results 99 in 100 wake who waits within 30 ms."""
    client = rig.client()

    def measure() -> float:
        ids = new_ids(64)
        stored: dict[str, float] = {}
        woken: dict[str, float] = {}

        def wait(number: int) -> None:
            client.attach(ids[number]).get(timeout=20)
            woken[ids[number]] = time.monotonic()

        with at_once(64, wait) as calls:
            eventually(lambda: rig.channels() == 64, within=5)
            time.sleep(1.3)  # no sweep is near
            for task_id in ids:
                stored[task_id] = time.monotonic()
                rig.store([task_id])
                time.sleep(0.005)
            for call in calls:
                call.result()
        latencies = [woken[task_id] - stored[task_id] for task_id in ids]
        return statistics.quantiles(latencies, n=100)[98]

    assert best_of(3, measure, limit=0.03) <= 0.03


def test_one_look(rig: Rig) -> None:
    """A timeout of 0 is one look: a round trip, and no more, also where nothing is there."""
    client = rig.client()
    handle = client.attach("no-such-task")
    handle.ready()
    rig.backend.delay = 0.05
    for _ in range(2):
        before = rig.backend.round_trips
        with pytest.raises(TaskTimeoutError):
            handle.get(timeout=0)
        assert rig.backend.round_trips == before + 1


def test_bulk_over_a_slow_network(rig: Rig) -> None:
    """Ten thousand tasks over a network of 2 ms each way are a few dozen round trips."""
    client = rig.client(io_timeout=5)
    assert client.ping()
    rig.broker.delay = 0.002
    before = rig.broker.round_trips
    with in_time(3.0):
        submissions = client.batch_submit([([], {"n": n}) for n in range(10_000)])
    assert all(submission.submitted for submission in submissions)
    assert rig.broker.round_trips - before <= 40
    assert rig.redis.llen("normal.bench.v1") == 10_000


def test_many_more_callers_than_connections(rig: Rig) -> None:
    """Two hundred calls at once share one connection a side, over a slow network, in time."""
    rig.broker.delay = rig.backend.delay = 0.002
    with LightOperator(rig.server.url, concurrency=256):
        client = rig.client(broker_pool_limit=1, backend_pool_limit=1, io_timeout=5)
        with at_once(200, lambda n: client.sync([], {"n": n})) as calls:
            for number, call in enumerate(calls):
                assert call.result() == ([], {"n": number})
        assert rig.broker.accepted == rig.backend.accepted == 1


def test_a_gather_of_a_thousand(database: str) -> None:
    """A thousand coroutines at once share one connection a side; nobody waits for a slot long."""

    async def main() -> None:
        limits: dict[str, Any] = {"broker_pool_limit": 1, "backend_pool_limit": 1}
        async with AsyncOperatorClient(
            OPERATOR, "v1", database, pool_acquire_timeout=2.0, timeout=20, **limits
        ) as client:
            found = await asyncio.gather(*(client.sync([], {"n": n}) for n in range(1000)))
            assert [results["n"] for _, results in found] == list(range(1000))

    with LightOperator(database, concurrency=512):
        asyncio.run(main())
