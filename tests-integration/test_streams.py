"""Streams and revocations where servers fail, where workers are processes, and how many go out."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import scripted_operator
from asyncio_world import AsyncioWorld
from celery_worker import CeleryWorker
from conftest import MakeClient
from fault_rig import Rig, pending
from light_operator import LightOperator
from sandai.op.models import (
    BatchTaskResult,
    OperatorConnectionError,
    TaskCancelledError,
    TaskTimeoutError,
)
from scenarios import Task, at_once, sleeping
from stream_scenarios import Source, number
from tcp_proxy import Cut, Entry
from thread_world import ThreadWorld
from watching import eventually, open_redis


def numbered() -> Iterator[Task]:
    """Yield tasks without end."""
    return (([], {"n": n}) for n in itertools.count())


def is_whole(result: BatchTaskResult) -> bool:
    """Return whether it succeeded; then it is its own task's."""
    if result.success:
        assert result.results == {"n": result.index}
    return result.success


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_an_outage_of_the_broker(rig: Rig, ordered: bool) -> None:
    """A broker that is away for a while costs some tasks, each told of, not the whole input."""
    client = rig.client()
    with LightOperator(rig.server.url):
        results = client.map(numbered(), max_in_flight=20, ordered=ordered)
        seen = list(itertools.islice(results, 200))
        assert all(map(is_whole, seen))
        rig.broker.entry = Entry.REFUSED
        rig.broker.cut()
        failed: list[BatchTaskResult] = []
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            seen.append(next(results))
            if not is_whole(seen[-1]):
                failed.append(seen[-1])
        rig.broker.heal()
        seen += itertools.islice(results, 200)
        failed = [result for result in seen if not is_whole(result)]
        assert 1 <= len(failed) < 60
        for result in failed:
            assert isinstance(result.error, OperatorConnectionError)
            assert not result.submitted
        assert all(map(is_whole, seen[-50:]))
        results.close()
        if ordered:
            assert [result.index for result in seen] == list(range(len(seen)))
        assert len({result.index for result in seen}) == len(seen)
        eventually(lambda: pending(client) == 0, within=3)


def test_tasks_in_doubt(rig: Rig) -> None:
    """What was pushed and not acknowledged says so, has its id, and is in its queue once."""
    client = rig.client()
    assert client.ping()
    rig.broker.drop_replies = Cut.RESET
    results = client.map(numbered(), max_in_flight=10)
    first = list(itertools.islice(results, 10))
    results.close()
    rig.broker.heal()
    queued = rig.queued()
    doubted = {result.task_id for result in first if result.task_id is not None}
    assert doubted
    assert set(queued) <= doubted | {result.task_id for result in results}
    assert set(queued.values()) <= {1}
    for result in first:
        assert isinstance(result.error, OperatorConnectionError)
        assert result.error.task_id == result.task_id
        assert not result.submitted


def test_an_outage_of_the_backend(rig: Rig) -> None:
    """Results that cannot be read for a while come when they can; late ones say why."""
    client = rig.client()
    with LightOperator(rig.server.url):
        results = client.map(numbered(), max_in_flight=20, timeout=10)
        assert all(map(is_whole, itertools.islice(results, 100)))
        rig.backend.entry = Entry.REFUSED
        rig.backend.cut()
        healed = threading.Timer(0.8, rig.backend.heal)
        healed.start()
        assert all(map(is_whole, itertools.islice(results, 100)))
        healed.join()
        results.close()
        rig.backend.entry = Entry.REFUSED
        rig.backend.cut()
        late = list(client.map(itertools.islice(numbered(), 3), timeout=0.5))
        rig.backend.heal()
        for result in late:
            assert isinstance(result.error, TaskTimeoutError)
            assert "refused" in str(result.error.__cause__)


def test_revoking_where_the_broker_is_gone(rig: Rig) -> None:
    """It is told in time; what is given up is nobody's error but its own, and is logged."""
    client = rig.client(cancel_on_timeout=True)
    handle = client.async_call([], {})
    rig.broker.entry = Entry.REFUSED
    rig.broker.cut()
    calls: list[Callable[[], None]] = [handle.revoke, lambda: client.revoke([handle])]
    for call in calls:
        began = time.monotonic()
        with pytest.raises(OperatorConnectionError):
            call()
        assert time.monotonic() - began < 3
    rig.broker.heal()
    submitted = client.batch_submit([([], {})])
    rig.broker.entry = Entry.SILENT
    rig.broker.black_hole()
    began = time.monotonic()
    [late] = client.batch_collect(submitted, timeout=0.2)
    assert isinstance(late.error, TaskTimeoutError)
    assert time.monotonic() - began < 0.7
    client.close()
    assert time.monotonic() - began < 3
    rig.broker.heal()


@pytest.mark.parametrize("kind", [ThreadWorld, AsyncioWorld], ids=["threads", "asyncio"])
def test_a_running_task_is_stopped(database: str, kind: Any) -> None:
    """terminate=True ends what runs in a worker's process; the next tasks are done."""
    environment = {"SCRIPTED_OPERATOR_URL": database}
    operator = (scripted_operator.NAME, scripted_operator.VERSION)
    with (
        open_redis(database) as looking,
        CeleryWorker(
            "scripted_operator", *operator, environment=environment, pool="prefork", concurrency=2
        ),
        kind(database, looking) as world,
    ):
        client = world.client()
        running = [client.async_call([], sleeping(60)) for _ in range(2)]
        eventually(lambda: all(each.state() == "STARTED" for each in running), within=10)
        running[0].revoke()
        assert running[0].state() == "STARTED"
        client.revoke(running[:1], terminate=True, signal="SIGKILL")
        running[1].revoke(terminate=True)
        for each in running:
            with pytest.raises(TaskCancelledError):
                each.get(timeout=10)
        [result] = client.map([([], {"n": 1})])
        assert number(result) == 1


def test_those_who_give_up_together_are_one_broadcast(
    make_client: MakeClient, database: str
) -> None:
    """However many run out of time in one call, or in many at once, few messages go out."""
    client = make_client(database, cancel_on_timeout=True)
    with open_redis(database) as looking, looking.pubsub() as listening:
        listening.psubscribe("*celery.pidbox*")
        assert listening.get_message(timeout=5)["type"] == "psubscribe"

        def broadcasts() -> int:
            count = 0
            while listening.get_message(timeout=0.5) is not None:
                count += 1
            return count

        late = client.batch_sync_detailed([([], {"n": n}) for n in range(300)], timeout=0.3)
        assert all(isinstance(result.error, TaskTimeoutError) for result in late)
        assert broadcasts() == 1

        def give_up(_: int) -> None:
            with pytest.raises(TaskTimeoutError):
                client.sync([], {}, timeout=0.3)

        with at_once(16, give_up) as calls:
            for call in calls:
                call.result(5)
        assert 1 <= broadcasts() <= 12
        list(client.map([([], {})] * 50, timeout=0.2))
        assert 1 <= broadcasts() <= 3
        stopped = client.map(Source(lambda n: {} if n else "wrong"), max_in_flight=40)
        next(stopped)
        eventually(lambda: pending(client) >= 39, within=5)
        stopped.close()
        assert broadcasts() == 1
        off = make_client(database)
        list(off.map([([], {})] * 5, timeout=0.1))
        off.batch_sync([([], {})], timeout=0.1)
        assert broadcasts() == 0


def test_submissions_share_commands(make_client: MakeClient, database: str) -> None:
    """A stream is about as few commands as a batch, not one for each task."""
    with LightOperator(database, concurrency=256), open_redis(database) as looking:
        client = make_client(database)
        assert client.ping()
        looking.config_resetstat()
        tasks = itertools.islice(numbered(), 5000)
        assert sum(map(is_whole, client.map(tasks, max_in_flight=500))) == 5000
        calls = looking.info("commandstats")
        writes = looking.info("stats")["total_reads_processed"]
        assert calls["cmdstat_lpush"]["calls"] < 500
        assert writes < 2500


@pytest.mark.parametrize("limit", [1, 8])
def test_a_stream_keeps_to_the_budget(make_client: MakeClient, database: str, limit: int) -> None:
    """Streams at the same time, on one connection too."""
    with LightOperator(database):
        client = make_client(database, broker_pool_limit=limit, backend_pool_limit=limit)

        def consume(_: int) -> None:
            tasks = itertools.islice(numbered(), 300)
            assert sum(map(is_whole, client.map(tasks, max_in_flight=50))) == 300

        with at_once(4, consume) as streams:
            for each in streams:
                each.result(30)
        broker, backend = client.statistics()
        assert broker.connections.idle <= limit
        assert backend.commands.idle <= limit
