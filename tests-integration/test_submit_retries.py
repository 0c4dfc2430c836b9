"""Submitting again through connections that break: each task is in its queue, and once."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from conftest import MakeClient
from fault_rig import ACQUIRE, IO, QUEUE, Rig, in_time
from light_operator import LightOperator
from local_redis import HOST
from sandai.op.aio import create_async_client
from sandai.op.client import create_client
from sandai.op.models import OperatorConnectionError
from tcp_proxy import Cut, Entry, TcpProxy, Way
from thread_world import ThreadWorld
from watching import eventually, open_redis

MARKERS = "sandai-op:submitted:*"
SOAKED = 100_000
"""Submissions through a proxy that cuts connections."""
TOGETHER = 10


@contextmanager
def healing(rig: Rig, after: float) -> Iterator[None]:
    """Have the broker's proxy forward everything again, a while after the block began."""
    timer = threading.Timer(after, rig.broker.heal)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.mark.parametrize("how", [Cut.RESET, Cut.FIN, Cut.SILENCE])
def test_replies_are_lost(rig: Rig, how: Cut) -> None:
    """The server queued them and nobody heard of it: sent again, they are not queued again."""
    client = rig.client(submit_retries=20)
    client.async_call([], {"n": 0})
    rig.broker.drop_replies = how
    with healing(rig, 0.3):
        ids = [client.async_call([], {"n": n}).task_id for n in range(3)]
        submissions = client.batch_submit([([], {"n": n}) for n in range(3, 1200)])
    assert all(submission.submitted for submission in submissions)
    queued = rig.queued()
    assert set(queued.values()) == {1}
    assert len(queued) == 1201
    assert queued.keys() > {*ids, *(str(submission.task_id) for submission in submissions)}
    for marker in rig.redis.scan_iter(MARKERS):
        assert 0 < rig.redis.pttl(marker) <= 3600_000


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_request_is_cut(rig: Rig, part: float) -> None:
    """A batch of which a part got through is queued as a whole, each task once."""
    client = rig.client(submit_retries=5)
    client.ping()
    tasks: list[Any] = [([], {"n": n, "padding": "x" * 200}) for n in range(500)]
    rig.broker.cut_after(int(500 * 900 * part), Way.REQUESTS, random.choice(list(Cut)))
    assert all(submission.submitted for submission in client.batch_submit(tasks))
    queued = rig.queued()
    assert len(queued) == 500
    assert set(queued.values()) == {1}


def test_a_broker_that_comes_back(rig: Rig) -> None:
    """One that refuses, or was restarted without its data, is tried again until it is there."""
    client = rig.client(submit_retries=30)
    client.async_call([], {"n": 0})
    rig.broker.entry = Entry.REFUSED
    rig.broker.cut()
    with healing(rig, 0.4):
        client.async_call([], {"n": 1})
    assert len(rig.queued()) == 2
    rig.server.kill()
    starting = threading.Timer(0.4, rig.server.start)
    starting.start()
    task_id = client.async_call([], {"n": 2}).task_id
    starting.join()
    assert rig.queued() == {task_id: 1}


def test_the_retries_are_used_up(rig: Rig) -> None:
    """Then the error is the one that there is without retries, in time, and the id is told."""
    client = rig.client(submit_retries=2)
    client.ping()
    rig.broker.drop_replies = Cut.RESET
    with in_time(), pytest.raises(OperatorConnectionError) as caught:
        client.async_call([], {"n": 1})
    task_id = caught.value.task_id
    assert task_id is not None
    eventually(lambda: rig.queued() == {task_id: 1}, within=2)
    rig.broker.heal()
    with LightOperator(rig.server.url):
        assert client.attach(task_id).get(timeout=10)["results"] == {"n": 1}
    rig.broker.entry = Entry.REFUSED
    rig.broker.cut()
    with in_time(), pytest.raises(OperatorConnectionError) as caught:
        client.async_call([], {"n": 2})
    assert caught.value.task_id is None


def test_waiting_for_what_was_sent_again(rig: Rig) -> None:
    """``sync()`` has its answer though the first acknowledgements were lost."""
    with LightOperator(rig.server.url):
        client = rig.client(submit_retries=20)
        rig.broker.drop_replies = Cut.RESET
        with healing(rig, 0.3):
            assert client.sync([], {"n": 1}, timeout=10) == ([], {"n": 1})
        assert client.sync([], {"n": 2}, timeout=10) == ([], {"n": 2})
        # The marker of a task that was queued at once goes with the next one.
        assert client.sync([], {"n": 3}, timeout=10) == ([], {"n": 3})
        assert len(list(rig.redis.scan_iter(MARKERS))) <= 2


def test_its_result_says_that_it_was_queued(rig: Rig) -> None:
    """Where no acknowledgement ever comes and the result does, ``sync()`` returns that."""
    with LightOperator(rig.server.url):
        client = rig.client(submit_retries=1)
        client.ping()
        rig.broker.drop_replies = Cut.RESET
        assert client.sync([], {"n": 1}, timeout=10) == ([], {"n": 1})
    rig.broker.heal()
    client.ping()
    rig.broker.drop_replies = Cut.RESET
    with in_time(), pytest.raises(OperatorConnectionError) as caught:
        client.sync([], {"n": 2}, timeout=10)
    assert rig.queued() == {caught.value.task_id: 1}


@pytest.mark.parametrize("fault", ["full", "replica", "type"])
def test_a_server_that_refuses(rig: Rig, fault: str) -> None:
    """What the script meets is told as what LPUSH meets is; nothing is queued, no marker left."""
    client = rig.client(submit_retries=1)
    client.ping()
    if fault == "full":
        rig.redis.config_set("maxmemory-policy", "noeviction")
        rig.redis.config_set("maxmemory", "1")
    elif fault == "replica":
        rig.redis.replicaof(HOST, 1)
    else:
        rig.redis.set(QUEUE, "no list")
    with in_time(), pytest.raises(OperatorConnectionError) as caught:
        client.async_call([], {"n": 1})
    said = {"full": "OutOfMemoryError: ", "replica": "ReadOnlyError: You", "type": "WRONGTYPE"}
    assert said[fault] in str(caught.value.reason)
    assert caught.value.task_id is None
    if fault == "type":
        # Of two queues in one write, the other one's tasks are not lost with it.
        client.async_call([], {"n": 2}, priority="high")
        rig.redis.delete(QUEUE)
    rig.redis.config_set("maxmemory", "0")
    rig.redis.replicaof("NO", "ONE")
    assert client.async_call([], {"n": 3}).task_id in rig.queued()
    assert len(rig.queued()) == (2 if fault == "type" else 1)


@pytest.mark.parametrize("rig", [ThreadWorld], ids=["both"], indirect=True)
def test_neither_lost_nor_doubled(rig: Rig) -> None:
    """
    Threads and a loop submit while connections are cut, also after the server acted.

    What is in the queues then is what was acknowledged, and each task is there once.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    settings: dict[str, Any] = {
        "broker_url": rig.broker.url,
        "result_backend": rig.server.url,
        "pool_acquire_timeout": 20 * ACQUIRE,
        "io_timeout": IO,
        "submit_retries": 50,
    }
    numbers = itertools.count()
    acknowledged: list[str] = []
    over = threading.Event()

    def submit() -> None:
        with create_client("bench", "v1", **settings) as client:
            while (taken := next(numbers)) * TOGETHER < SOAKED:
                if taken % 2:
                    done = client.batch_submit([([], {"n": n}) for n in range(TOGETHER)])
                    assert all(each.submitted for each in done)
                    acknowledged.extend(str(each.task_id) for each in done)
                else:
                    for n in range(TOGETHER):
                        acknowledged.append(client.async_call([], {"n": n}).id)

    async def submit_on_a_loop() -> None:
        async with create_async_client("bench", "v1", **settings) as client:
            while (taken := next(numbers)) * TOGETHER < SOAKED:
                if taken % 2:
                    done = await client.batch_submit([([], {"n": n}) for n in range(TOGETHER)])
                    assert all(each.submitted for each in done)
                    acknowledged.extend(str(each.task_id) for each in done)
                else:
                    handles = await asyncio.gather(
                        *(client.async_call([], {"n": n}) for n in range(TOGETHER))
                    )
                    acknowledged.extend(handle.task_id for handle in handles)

    breaker = threading.Thread(target=break_connections, args=(rig.broker, seed, over))
    breaker.start()
    try:
        with ThreadPoolExecutor(17) as threads:
            working = [threads.submit(submit) for _ in range(16)]
            working.append(threads.submit(lambda: asyncio.run(submit_on_a_loop())))
            for each in working:
                each.result()
    finally:
        over.set()
        breaker.join()
    queued = rig.queued()
    assert rig.broker.cuts > 20
    assert len(acknowledged) >= SOAKED
    assert [task_id for task_id, times in queued.items() if times > 1] == []
    assert queued.keys() == set(acknowledged)


def break_connections(proxy: TcpProxy, seed: int, over: threading.Event) -> None:
    """Cut what is open, after some bytes of either way or at once, with and without a word."""
    choice = random.Random(seed)
    while not over.wait(choice.uniform(0.005, 0.03)):
        how = choice.choice([Cut.RESET, Cut.RESET, Cut.FIN, Cut.FIN, Cut.SILENCE])
        match choice.randrange(3):
            case 0:
                proxy.cut(Cut.RESET if how is Cut.SILENCE else how)
            case 1:
                proxy.cut_after(choice.randrange(20_000), choice.choice(list(Way)), how)
            case 2 if how is not Cut.SILENCE:
                proxy.drop_replies = how
                over.wait(choice.uniform(0.0, 0.01))
                proxy.drop_replies = None
    proxy.heal()


def test_ids_of_the_callers_own(make_client: MakeClient, database: str) -> None:
    """Submitted again under its id, by whomever, a task is queued once, until it is forgotten."""
    ids = [f"mine-{n}" for n in range(700)]
    tasks: list[Any] = [([], {"n": n}, task_id) for n, task_id in enumerate(ids)]
    with open_redis(database) as redis:
        for _ in range(2):
            submissions = make_client(database).batch_submit(tasks)
            assert [submission.task_id for submission in submissions] == ids
        client = make_client(database)
        assert client.batch_submit(tasks[:1])[0].submitted
        assert redis.llen(QUEUE) == len(ids)
        assert 0 < redis.pttl("sandai-op:submitted:mine-0") <= 3600_000
        with LightOperator(database):
            results = client.batch_collect(client.batch_submit(tasks))
            assert [result.results["n"] for result in results] == list(range(len(ids)))
            assert redis.dbsize() == len(ids)  # the markers
        redis.set("celery-task-meta-mine-1", "{}")  # whose deletion is seen
        client.forget(ids)
        assert redis.dbsize() == len(ids)
        client.batch_submit([([], {})])  # which takes the markers along
        assert redis.dbsize() == 1
