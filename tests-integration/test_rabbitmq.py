"""RabbitMQ as a broker that refuses, blocks, stalls, closes and dies, for both clients."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psutil
import pytest
from celery import Celery
from kombu.exceptions import ChannelError

from conftest import CreateClient
from local_rabbitmq import MAX_MESSAGE_SIZE, LocalRabbitMQ
from local_redis import LocalRedis
from queues import RabbitQueues
from rabbit_worlds import WORLD_IDS, WORLDS, AnyWorld, Roads
from sandai.op.aio import create_async_client
from sandai.op.models import InvalidTaskError, OperatorConnectionError
from sandai.op.transport import Config, resolve
from sandai.op.transport._kombu_broker import KombuBroker
from sandai.op.transport._kombu_connection import LineOpener
from sandai.op.transport._kombu_line import Line
from sandai.op.transport._submission import TaskBuilder, TaskControls
from scenarios import ClientView, at_once
from watching import eventually

QUEUE = "normal.nobody.v1"


@pytest.fixture(scope="module")
def roads(rabbitmq: LocalRabbitMQ, redis_server: LocalRedis) -> Roads:
    """Give the URLs; no operator is there."""
    return Roads(rabbitmq.url, redis_server.url, redis_server.url)


@pytest.fixture(params=WORLDS, ids=WORLD_IDS)
def world(request: pytest.FixtureRequest, roads: Roads) -> Iterator[AnyWorld]:
    """Give each client, with no queue of ``nobody``."""
    with roads.world(request.param) as world:
        yield world


@pytest.fixture
def queues(rabbitmq: LocalRabbitMQ) -> RabbitQueues:
    """Give the queues as they are from outside."""
    return RabbitQueues(rabbitmq.url)


def ids_in(queues: RabbitQueues, queue: str = QUEUE) -> list[str]:
    """Return the ids of the tasks in a queue, in order of submission."""
    return [message["id"] for message in queues.messages(queue)]


def submitted(client: ClientView, **controls: Any) -> str:
    """Submit a task and return its id."""
    return client.async_call([], {}, **controls).task_id


def refused(client: ClientView) -> OperatorConnectionError:
    """Submit a task, which fails; return how."""
    with pytest.raises(OperatorConnectionError) as caught:
        client.async_call([], {})
    return caught.value


def configured(roads: Roads) -> Config:
    """Return a client's configuration."""
    urls: dict[str, Any] = roads.settings
    return resolve("nobody", "v1", env={}, **urls)


@contextmanager
def in_time(limit: float) -> Iterator[None]:
    """Fail if the block takes more than *limit* seconds."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < limit


def sockets(rabbitmq: LocalRabbitMQ) -> int:
    """Count this process's connections to the broker."""
    found = psutil.Process().net_connections("tcp")
    return sum(c.status == "ESTABLISHED" and c.raddr.port == rabbitmq.port for c in found)


# Queues


@pytest.mark.parametrize(
    "arguments",
    [{}, {"x-queue-type": "quorum"}, {"x-max-priority": 5}, {"x-message-ttl": 60_000}],
    ids=["classic", "quorum", "priorities", "ttl"],
)
def test_an_existing_queue_is_left_alone(
    world: AnyWorld, queues: RabbitQueues, arguments: dict[str, Any]
) -> None:
    """Tasks go into a queue whatever it was declared with, in order, to stay on disk."""
    queues.declare(QUEUE, **arguments)
    client = world.client("nobody")
    tasks: list[Any] = [([], {"n": n}) for n in range(3)]
    ids = [submitted(client), *(task.task_id for task in client.batch_submit(tasks))]
    assert ids_in(queues) == ids
    with queues.channel() as channel:
        taken = channel.basic_get(QUEUE)
        channel.basic_reject(taken.delivery_tag, requeue=True)
        assert taken.properties["delivery_mode"] == 2
    with queues.channel() as channel, pytest.raises(ChannelError, match="404"):
        channel.exchange_declare(QUEUE, "direct", passive=True)
    queues.declare(QUEUE, **arguments)  # the same arguments still: no 406


def test_a_missing_queue_is_declared_as_celery_does(
    world: AnyWorld, queues: RabbitQueues, rabbitmq: LocalRabbitMQ
) -> None:
    """A queue that does not exist is made so that a worker's declaration agrees with it."""
    task_id = submitted(world.client("nobody"))
    assert ids_in(queues) == [task_id]
    app = Celery("worker", broker=rabbitmq.url, set_as_current=False)
    with app.connection_for_write() as connection:
        app.amqp.queues.select([QUEUE])
        app.amqp.queues[QUEUE](connection.default_channel).declare()


def test_a_queue_that_goes_is_made_again(world: AnyWorld, queues: RabbitQueues) -> None:
    """A queue that is deleted between two calls costs no task."""
    client = world.client("nobody")
    submitted(client)
    queues.delete(QUEUE)
    task_id = submitted(client)
    assert ids_in(queues) == [task_id]


def test_a_task_that_no_queue_takes(
    world: AnyWorld, queues: RabbitQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that the broker returns is an error, and certainly not queued."""
    monkeypatch.setattr(Line, "declare", lambda *_: None)
    monkeypatch.setattr("sandai.op.transport._amqp_line.AmqpLine.declare", lambda *_: None)
    client = world.client("nobody")
    for _ in range(2):
        error = refused(client)
        assert "no queue took it" in str(error)
        assert error.task_id is None
    assert not queues.exists(QUEUE)


def test_a_full_queue(world: AnyWorld, queues: RabbitQueues) -> None:
    """A task that the broker refuses (nack) is an error that names it; other queues go on."""
    queues.declare(QUEUE, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    client = world.client("nobody")
    task_id = submitted(client)
    error = refused(client)
    assert "nack" in str(error)
    assert error.task_id
    assert submitted(client, priority="low")
    assert ids_in(queues) == [task_id]


def test_ping_and_what_it_leaves(world: AnyWorld, queues: RabbitQueues) -> None:
    """ping() is True where a task can be submitted, and makes neither queue nor message."""
    client = world.client("nobody")
    assert client.ping() is True
    assert not queues.exists(QUEUE)
    task_id = submitted(client)
    assert client.ping(timeout=1) is True
    assert ids_in(queues) == [task_id]
    assert world.client("nobody", broker_url="amqp://guest:guest@127.0.0.1:1//").ping() is False


# One connection, below the clients


@pytest.fixture
def line(roads: Roads) -> Iterator[Line]:
    """Open a connection as the pool does."""
    opener = LineOpener(configured(roads).broker_key)
    line = opener.open(None)
    yield line
    opener.close(line)


def test_publishing_after_a_channel_error(line: Line, roads: Roads, queues: RabbitQueues) -> None:
    """A queue that is not there, or is declared otherwise, costs the channel and not the line."""
    config = configured(roads)
    factory = KombuBroker(config.broker_key).messages
    message = TaskBuilder(config).task(factory, "", [], {}, TaskControls())
    celerys = Celery("worker", set_as_current=False).amqp.queues[QUEUE]
    queues.delete(QUEUE)
    for _ in range(2):
        assert not line.exists(QUEUE)
        assert not line.publish(message, factory.headers(message), factory.properties(message))
    # Between our question and our declaration a worker makes the queue, in its own way.
    queues.declare(QUEUE, **{"x-queue-type": "quorum"})
    line.declare(celerys)
    assert line.publish(message, factory.headers(message), factory.properties(message))
    assert ids_in(queues) == [message.task_id]
    assert len(line.connection.connection.channels) == 2  # itself, and one


# A broker that does not answer


@pytest.mark.timeout(30)
def test_a_broker_that_never_confirms(
    world: AnyWorld, rabbitmq: LocalRabbitMQ, queues: RabbitQueues
) -> None:
    """A frozen broker: the task whose confirm is missing is in doubt, later ones are not sent."""
    client = world.client("nobody", io_timeout=0.5)
    first = submitted(client)
    rabbitmq.pause()
    try:
        with in_time(1.0):
            error = refused(client)
        assert "did not confirm" in str(error)
        assert error.task_id
        for _ in range(2):  # there is no connection any more
            with in_time(1.5):
                assert refused(client).task_id is None
        with in_time(1.5):
            assert client.ping() is False
        with in_time(1.5):
            assert [task.submitted for task in client.batch_submit([([], {})] * 3)] == [False] * 3
    finally:
        rabbitmq.resume()
    last = submitted(client)
    # What had gone out is queued once, if at all.
    assert ids_in(queues) in ([first, error.task_id, last], [first, last])


@pytest.mark.timeout(30)
def test_a_batch_at_a_broker_that_never_confirms(world: AnyWorld, rabbitmq: LocalRabbitMQ) -> None:
    """Of a batch, the task that is being sent is in doubt, and the others are not tried."""
    client = world.client("nobody", io_timeout=0.5)
    submitted(client)
    rabbitmq.pause()
    try:
        with in_time(1.5):
            batch = client.batch_submit([([], {"n": n}) for n in range(5)])
    finally:
        rabbitmq.resume()
    assert [task.submitted for task in batch] == [False] * 5
    assert [task.task_id is not None for task in batch] == [True] + [False] * 4
    assert len(client.batch_collect(batch, timeout=5)) == 5  # which waits for none of them


@pytest.mark.timeout(30)
def test_closing_does_not_wait_for_a_frozen_broker(
    world: AnyWorld, rabbitmq: LocalRabbitMQ
) -> None:
    """close() says goodbye and does not wait for the answer."""
    client = world.client("nobody")
    submitted(client)
    rabbitmq.pause()
    try:
        with in_time(0.5):
            client.close()
        eventually(lambda: sockets(rabbitmq) == 0, within=1)
    finally:
        rabbitmq.resume()


@pytest.mark.timeout(30)
def test_a_loop_goes_on_while_kombu_publishes(roads: Roads, rabbitmq: LocalRabbitMQ) -> None:
    """A frozen broker does not hold up the event loop of who submits."""

    async def main() -> float:
        async with create_async_client(
            "nobody",
            "v1",
            broker_url=roads.broker_url,
            result_backend=roads.result_backend,
            io_timeout=1.0,
        ) as client:
            await client.async_call([], {})
            rabbitmq.pause()
            call = asyncio.ensure_future(client.async_call([], {}))
            longest = 0.0
            while not call.done():
                began = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - began)
            rabbitmq.resume()
            with pytest.raises(OperatorConnectionError):
                await call
            return longest

    try:
        assert asyncio.run(main()) < 0.3
    finally:
        rabbitmq.resume()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("how", ["frozen", "short of memory"])
def test_revoke_is_bounded(
    rabbitmq: LocalRabbitMQ, roads: Roads, create_client: CreateClient, how: str
) -> None:
    """revoke(), which Celery's own code publishes, is tried once and ends in time."""
    client = create_client("nobody", "v1", **roads.settings, io_timeout=0.5)
    result = client.async_call([], {})
    if how == "frozen":
        rabbitmq.pause()
    else:
        rabbitmq.control("set_vm_memory_high_watermark", "0")
    try:
        for _ in range(2):
            with in_time(1.5), pytest.raises(OperatorConnectionError):
                result.revoke()
    finally:
        rabbitmq.resume()
        rabbitmq.control("set_vm_memory_high_watermark", "0.4")
    result.revoke()


# A broker that refuses


@pytest.mark.timeout(30)
def test_a_memory_alarm(world: AnyWorld, rabbitmq: LocalRabbitMQ, queues: RabbitQueues) -> None:
    """A broker that is short of memory is told of at once, and takes tasks again afterwards."""
    client = world.client("nobody")
    first = submitted(client)
    rabbitmq.control("set_vm_memory_high_watermark", "0")
    try:
        doubtful: list[str | None] = []
        for _ in range(2):
            with in_time(1.0):
                error = refused(client)
            assert "short of memory" in str(error)
            doubtful.append(error.task_id)
        with in_time(1.0):
            assert client.ping() is False
        with in_time(1.0):
            assert client.probe().submit_ok is False
        with in_time(1.0):
            batch = client.batch_submit([([], {})] * 3)
        assert [task.task_id is not None for task in batch] == [True, False, False]
    finally:
        rabbitmq.control("set_vm_memory_high_watermark", "0.4")
    last = submitted(client)
    assert client.ping() is True
    # RabbitMQ may take what it had not read yet; the errors said so.
    eventually(lambda: sockets(rabbitmq) <= 1, within=2)
    found = ids_in(queues)
    assert {first, last} <= set(found) <= {first, last, *doubtful, batch[0].task_id}
    assert len(found) == len(set(found))


@pytest.mark.timeout(30)
def test_a_task_too_large_for_the_broker(world: AnyWorld, queues: RabbitQueues) -> None:
    """Larger than the broker takes is that task's own error; its neighbours are queued."""
    client = world.client("nobody")
    large = {"text": "x" * (MAX_MESSAGE_SIZE + 1)}
    with pytest.raises(InvalidTaskError, match="larger than") as caught:
        client.async_call([], large)
    assert caught.value.path == "task"
    tasks: list[Any] = [([], options) for options in ({"n": 0}, large, {"n": 2})]
    batch = client.batch_submit(tasks)
    assert [task.submitted for task in batch] == [True, False, True]
    assert isinstance(batch[1].error, InvalidTaskError)
    fits = submitted(client)
    assert client.async_call([], {"text": "x" * (MAX_MESSAGE_SIZE // 2)}).task_id
    assert ids_in(queues)[:3] == [batch[0].task_id, batch[2].task_id, fits]


@pytest.mark.parametrize("wrong", ["password", "virtual host", "protocol"])
def test_a_broker_that_lets_nobody_in(
    world: AnyWorld, rabbitmq: LocalRabbitMQ, redis_server: LocalRedis, wrong: str
) -> None:
    """Who is not let in hears of it, without the password."""
    url = {
        "password": f"amqp://guest:canary@127.0.0.1:{rabbitmq.port}//",
        "virtual host": f"amqp://guest:guest@127.0.0.1:{rabbitmq.port}/elsewhere",
        "protocol": f"amqp://guest:canary@127.0.0.1:{redis_server.port}//",
    }[wrong]
    client = world.client("nobody", broker_url=url, io_timeout=0.5)
    for _ in range(2):
        with in_time(1.0):
            error = refused(client)
        assert error.task_id is None
        assert "canary" not in str(error)
    assert client.ping() is False


# Connections


def test_a_connection_that_the_broker_closed(
    world: AnyWorld, rabbitmq: LocalRabbitMQ, queues: RabbitQueues
) -> None:
    """An idle connection that the broker has closed meanwhile fails no call."""
    client = world.client("nobody")
    ids = [submitted(client)]
    rabbitmq.control("close_all_connections", "maintenance")
    ids.append(submitted(client))
    rabbitmq.control("close_all_connections", "maintenance")
    assert client.ping() is True
    assert ids_in(queues) == ids


@pytest.mark.timeout(40)
def test_many_threads_on_few_connections(
    world: AnyWorld, rabbitmq: LocalRabbitMQ, queues: RabbitQueues
) -> None:
    """Thirty-two callers on four connections: each task is confirmed and there, once."""
    client: Any = world.client("nobody", broker_pool_limit=4)
    ids: list[str] = []
    seen = threading.Event()

    def work(_: int) -> None:
        turns = 0
        while turns < 20 or not seen.is_set():
            ids.append(submitted(client))
            turns += 1

    with at_once(32, work) as calls:
        try:
            eventually(lambda: sockets(rabbitmq) >= 2, within=20)
            shown = len(rabbitmq.control("list_connections", "pid", "--no-table-headers").split())
            most = max(sockets(rabbitmq) for _ in range(20))
        finally:
            seen.set()
        while not all(call.done() for call in calls):
            most = max(most, sockets(rabbitmq))
        for call in calls:
            call.result()
    assert most <= 4
    assert 1 <= shown <= 4
    assert sorted(ids_in(queues)) == sorted(ids)
    assert len(set(ids)) == len(ids) >= 32 * 20
    broker, _ = client.client.statistics()
    assert broker.sent == len(ids)
    assert broker.connections.in_use == 0


@pytest.mark.timeout(60)
def test_killed_and_started_again(
    world: AnyWorld, rabbitmq: LocalRabbitMQ, queues: RabbitQueues
) -> None:
    """A broker that dies under eight callers: what was confirmed is there, nothing twice."""
    # A name of its own: what kill -9 leaves on the disk may be of an earlier queue of that name.
    name = f"mortal-{uuid4().hex}"
    queue = f"normal.{name}.v1"
    client = world.client(name, io_timeout=2.0)
    queues.declare(queue)
    queued: list[str] = []
    doubtful: list[str] = []
    refusals = 0
    back = False

    def work(_: int) -> None:
        nonlocal refusals
        after = 0
        while after < 5:
            try:
                queued.append(submitted(client))
                after += back
            except OperatorConnectionError as error:
                if error.task_id:
                    doubtful.append(error.task_id)
                else:
                    refusals += 1
                    time.sleep(0.05)  # as a caller who tries again would

    with at_once(8, work) as calls:
        eventually(lambda: len(queued) > 50, within=10)
        rabbitmq.kill()
        eventually(lambda: refusals >= 8, within=10)
        rabbitmq.start()
        back = True
        for call in calls:
            call.result(timeout=30)
    found = ids_in(queues, queue)
    queues.delete(queue)
    assert len(found) == len(set(found))
    assert set(queued) <= set(found) <= {*queued, *doubtful}
    assert len(doubtful) <= 8
