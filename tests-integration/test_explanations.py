"""Timeouts that say what is known: still queued, picked up, started, or nothing at all."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from celery_worker import without_celery_variables
from fault_rig import SLACK, Rig, new_ids
from light_operator import LightOperator
from local_rabbitmq import LocalRabbitMQ
from local_redis import LocalRedis
from rabbit_worlds import WORLD_IDS, WORLDS, AnyWorld, Roads
from sandai.op.models import ClientClosedError, TaskTimeoutError
from sandai.op.transport import LOOK_SECONDS
from scenarios import KEY, ClientView, World, at_once, sleeping
from tcp_proxy import Entry
from watching import eventually


def late(call: Any, *args: Any, timeout: float = 0.3, **kwargs: Any) -> TaskTimeoutError:
    """Return the error of a call that runs out of time, no later than is promised."""
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError) as caught:
        call(*args, timeout=timeout, **kwargs)
    took = time.monotonic() - began
    assert timeout <= took <= timeout + LOOK_SECONDS + SLACK
    return caught.value


def told(error: BaseException | None) -> tuple[Any, ...]:
    """Return what an error says besides its id and timeout."""
    assert isinstance(error, TaskTimeoutError)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert again.args == error.args
    return (error.state, error.queue, error.queue_depth)


# Still in the queue


def test_no_worker(rig: Rig) -> None:
    """A task that nobody takes is queued, with the messages of its queue."""
    client = rig.client()
    error = late(client.sync, [], {})
    assert told(error) == ("queued", "normal.bench.v1", 1)
    assert "1 message waits in queue normal.bench.v1" in str(error)
    error = late(client.sync, [], {})
    assert told(error) == ("queued", "normal.bench.v1", 2)
    assert told(late(client.sync, [], {}, priority="low")) == ("queued", "low.bench.v1", 1)


def test_a_handle(rig: Rig) -> None:
    """A handle does not know its queue: all of the operator's are counted."""
    client = rig.client()
    handle = client.async_call([], {}, priority="high")
    client.async_call([], {}, priority="low")
    assert told(late(handle.get)) == ("queued", None, 2)
    assert told(late(client.attach(new_ids(1)[0]).get)) == ("queued", None, 2)


def test_a_batch(rig: Rig) -> None:
    """Each task of a batch is explained, by one look at the queues for all of them."""
    client = rig.client()
    client.batch_sync_detailed([([], {})], timeout=0.1)  # connections are open now
    before = rig.broker.round_trips
    results = client.batch_sync_detailed([([], {})] * 40, timeout=0.3, priority="very_low")
    assert {told(result.error) for result in results} == {("queued", "very_low.bench.v1", 40)}
    assert rig.broker.round_trips - before <= 2 + 2  # to submit and to look, perhaps to connect
    submissions = client.batch_submit([([], {})] * 2)
    collected = client.batch_collect(submissions, timeout=0.2)
    assert {told(result.error) for result in collected} == {("queued", None, 43)}


def test_a_probe(rig: Rig) -> None:
    """A probe that nobody answers says how many tasks wait where it went."""
    client = rig.client()
    client.async_call([], {}, priority="low")
    health = client.probe(timeout=0.3)
    assert (health.submit_ok, health.retrieval_ok) == (True, False)
    assert "2 messages wait in queue low.bench.v1" in str(health.error)


# Picked up


def test_a_busy_worker(rig: Rig) -> None:
    """A task that a worker has taken is no longer queued; one behind it is."""
    with LightOperator(rig.server.url, delay=3.0, concurrency=1):
        client = rig.client()
        error = late(client.sync, [], {})
        assert told(error) == ("picked_up", "normal.bench.v1", 0)
        assert "queue normal.bench.v1 is empty" in str(error)
        assert "a worker has taken it and is at it, or it was lost" in str(error)


def test_a_worker_that_says_that_it_started(world: World) -> None:
    """A worker that tracks started tasks is quoted, and so is an operator's own state."""
    client = world.client()
    error = late(client.sync, [], sleeping(1.0), timeout=0.6)
    assert told(error)[:2] == ("started", "normal.scripted.v1")
    assert error.stored_state == "STARTED"
    assert "in state STARTED" in str(error)
    handle = client.async_call([], {"do": "state", "state": "HALFWAY", "seconds": 1.0})
    eventually(lambda: handle.state() == "HALFWAY", within=5)
    error = late(handle.get)
    assert (error.state, error.stored_state) == ("started", "HALFWAY")
    assert handle.get(timeout=10)["status"] == "success"


def test_a_lost_result(rig: Rig) -> None:
    """A result that somebody else has deleted is told as one that may be lost."""
    with LightOperator(rig.server.url):
        client = rig.client(auto_forget_result=False)
        handle = client.async_call([], {"n": 1})
        handle.get(timeout=5)
        rig.redis.delete(KEY + handle.task_id)
        error = late(rig.client().attach(handle.task_id).get)
        assert told(error) == ("picked_up", None, 0)
        assert "the operator's queues are empty" in str(error)


# Nothing known


def test_a_single_look_explains_nothing(rig: Rig) -> None:
    """A timeout of 0 is one look, and costs no second one."""
    client = rig.client()
    handle = client.async_call([], {})
    before = rig.broker.round_trips
    with pytest.raises(TaskTimeoutError) as caught:
        handle.get(timeout=0)
    assert told(caught.value) == ("unknown", None, None)
    [result] = client.batch_collect(client.batch_submit([([], {})]), timeout=0)
    assert told(result.error) == ("unknown", None, None)
    assert rig.broker.round_trips - before == 1  # the submission's


def test_the_backend_is_away(rig: Rig) -> None:
    """The cause says it, and the broker is not asked."""
    client = rig.client()
    handle = client.async_call([], {})
    rig.backend.entry = Entry.REFUSED
    rig.backend.cut()
    before = rig.broker.round_trips
    error = late(handle.get)
    assert told(error) == ("unknown", None, None)
    assert "failed" in str(error.__cause__)
    assert rig.broker.round_trips == before


@pytest.mark.parametrize("entry", [Entry.REFUSED, Entry.SILENT])
def test_the_broker_is_away(rig: Rig, entry: Entry) -> None:
    """The error comes all the same, and in time."""
    client = rig.client()
    handle = client.async_call([], {})
    rig.broker.entry = entry
    if entry is Entry.SILENT:
        rig.broker.black_hole()
    else:
        rig.broker.cut()
    assert told(late(handle.get)) == ("unknown", None, None)


def test_both_fall_silent(rig: Rig) -> None:
    """A wait whose servers freeze in its last moment ends in time."""
    client = rig.client(io_timeout=3.0)
    handle = client.async_call([], {})
    rig.begin(client, new_ids(1), timeout=0.4)
    for proxy in (rig.broker, rig.backend):
        proxy.entry = Entry.SILENT
        proxy.black_hole()
    error = late(handle.get)
    assert told(error) == ("unknown", None, None)


def test_no_connection_is_free(rig: Rig) -> None:
    """Where the budget is spent nobody waits for a permit beyond the bound."""
    client = rig.client(broker_pool_limit=1, io_timeout=2.0)
    handle = client.async_call([], {})
    rig.broker.black_hole()
    rig.broker.entry = Entry.SILENT
    stuck = threading.Thread(target=lambda: client.ping(timeout=2.0))
    stuck.start()
    eventually(lambda: client.statistics()[0].connections.in_use == 1, within=5)
    assert told(late(handle.get)) == ("unknown", None, None)
    stuck.join()


def test_a_queue_that_is_no_list(rig: Rig) -> None:
    """What cannot be read is not made up."""
    client = rig.client()
    task_id = new_ids(1)[0]
    rig.redis.set("low.bench.v1", "no list")
    assert told(late(client.attach(task_id).get)) == ("unknown", None, None)


# Many at once


def test_many_waits_end_at_once(rig: Rig) -> None:
    """A hundred waits that run out together cost a few round trips, and all are explained."""
    client = rig.client()
    handles = [client.attach(task_id) for task_id in new_ids(100)]
    client.async_call([], {})
    errors: list[TaskTimeoutError] = []
    before = rig.broker.round_trips
    with at_once(100, lambda number: handles[number].get(timeout=0.5)) as futures:
        for future in futures:
            error = future.exception()
            assert isinstance(error, TaskTimeoutError)
            errors.append(error)
    explained = [error for error in errors if told(error) == ("queued", None, 1)]
    assert len(explained) >= 90
    assert rig.broker.round_trips - before <= 40


def test_closing_does_not_wait_for_an_explanation(rig: Rig) -> None:
    """close() is as quick as ever while somebody looks."""
    client = rig.client(io_timeout=2.0)
    handle = client.async_call([], {})
    rig.broker.black_hole()
    rig.broker.entry = Entry.SILENT
    ended = threading.Event()

    def wait() -> None:
        with suppress(TaskTimeoutError, ClientClosedError):
            handle.get(timeout=0.2)
        ended.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: client.statistics()[0].connections.in_use == 1 or ended.is_set(), within=5)
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < SLACK
    waiting.join()
    assert ended.is_set()


# RabbitMQ


@pytest.fixture(params=WORLDS, ids=WORLD_IDS)
def rabbit_world(
    request: pytest.FixtureRequest, rabbitmq: LocalRabbitMQ, redis_server: LocalRedis
) -> Iterator[AnyWorld]:
    """Give clients of each colour on RabbitMQ, without a worker."""
    with Roads(rabbitmq.url, redis_server.url, redis_server.url).world(request.param) as world:
        yield world


def test_rabbitmq(rabbit_world: AnyWorld) -> None:
    """Messages are counted on RabbitMQ, too, and the queues that are not there are no problem."""
    client: ClientView = rabbit_world.client("nobody")
    assert told(late(client.sync, [], {}, priority="low")) == ("queued", "low.nobody.v1", 1)
    assert told(late(client.sync, [], {}, priority="low")) == ("queued", "low.nobody.v1", 2)
    handle = client.async_call([], {}, priority="low")
    assert told(late(handle.get)) == ("queued", None, 3)


@pytest.mark.parametrize("entry", [Entry.REFUSED, Entry.SILENT])
def test_rabbitmq_is_away(rig: Rig, entry: Entry) -> None:
    """An AMQP broker that is not there, or says nothing, delays no error beyond the bound."""
    rig.broker.entry = entry
    client = rig.client(broker_url=f"amqp://guest:guest@127.0.0.1:{rig.broker.port}//")
    assert told(late(client.attach(new_ids(1)[0]).get)) == ("unknown", None, None)


# The page


def test_the_page(database: str) -> None:
    """The snippets of docs/errors.md run as they stand, on a Redis without a worker."""
    page = (Path(__file__).parents[1] / "docs" / "errors.md").read_text("utf-8")
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(snippets)],
        env=without_celery_variables(os.environ) | {"SANDAI_OPERATOR_CELERY_BROKER_URL": database},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for quoted in re.findall(r"^> no result of task 81d1… (.*)$", page, re.MULTILINE):
        assert quoted in done.stdout
