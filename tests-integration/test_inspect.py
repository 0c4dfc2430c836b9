"""inspect(): what it tells of queues, workers, budgets and waits, and of servers that are away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import MakeClient
from fault_rig import Rig, in_time, new_ids, pushing
from local_rabbitmq import LocalRabbitMQ
from local_redis import LocalRedis
from rabbit_worlds import WORLD_IDS, WORLDS, AnyWorld, Roads
from sandai.op.models import ClientClosedError, ConfigurationError
from scenarios import World
from tcp_proxy import Entry
from watching import eventually, open_redis


def inspecting() -> list[str]:
    """Name the threads that ask."""
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("sandai-op-inspect")]


def test_a_well_operator(world: World) -> None:
    """The worker that consumes the queues answers, and the queues are empty."""
    client = world.client()
    client.sync([], {})
    seen = client.inspect()
    assert (seen.operator_name, seen.operator_version) == ("scripted", "v1")
    assert {priority: depth.queue for priority, depth in seen.queues.items()} == {
        priority: f"{priority}.scripted.v1" for priority in ("high", "normal", "low", "very_low")
    }
    assert [depth.messages for depth in seen.queues.values()] == [0] * 4
    assert seen.messages == 0
    [worker] = seen.consumers
    assert worker.name.startswith("scripted@")
    assert sorted(worker.queues) == sorted(depth.queue for depth in seen.queues.values())
    assert seen.broker_problem is seen.workers_problem is seen.backend_problem is None
    assert seen.broker.connections.limit == 8
    assert seen.broker.sent == 1
    assert seen.backend.push is not None
    eventually(lambda: not inspecting(), within=2)


def test_it_leaves_nothing_behind(world: World) -> None:
    """Of question and answers nothing stays in Redis but the notes that kombu keeps of queues."""
    client = world.client()
    client.sync([], {})
    before = set(world.redis.keys())
    client.inspect()
    left = set(world.redis.keys())
    assert all(key.startswith(b"_kombu.binding") for key in left - before)
    sizes = {key: world.redis.memory_usage(key) for key in left}
    client.inspect()
    assert {key: world.redis.memory_usage(key) for key in world.redis.scan_iter()} == sizes


def test_no_worker(world: World) -> None:
    """Tasks of an operator without workers are counted by priority; others' workers are told."""
    client = world.client("nobody")
    for priority, count in (("high", 1), ("low", 3)):
        for _ in range(count):
            client.async_call([], {}, priority=priority)
    seen = client.inspect()
    assert {priority: depth.messages for priority, depth in seen.queues.items()} == {
        "high": 1,
        "normal": 0,
        "low": 3,
        "very_low": 0,
    }
    assert seen.messages == 4
    assert seen.consumers == ()
    assert [worker.queues for worker in seen.workers] == [()]


def test_who_waits(rig: Rig) -> None:
    """Pending waits, push and budgets are in one place."""
    client = rig.client(broker_pool_limit=3, backend_pool_limit=2)
    waiting = rig.begin(client, ids := new_ids(5))
    eventually(lambda: pushing(client), within=5)
    seen = client.inspect()
    assert seen.pending == 5
    assert seen.pushing
    assert seen.backend.push is not None
    assert (seen.backend.push.limit, seen.backend.push.in_use) == (1, 1)
    assert seen.broker.connections.limit == 3
    rig.store(ids)
    waiting.result(timeout=10)
    seen = client.inspect()
    assert seen.pushed + seen.swept == 5


def test_plain_data(rig: Rig) -> None:
    """to_dict() is plain, and no password is in it."""
    password = "geheim"  # of nobody
    url = rig.broker.url.replace("redis://", f"redis://:{password}@")
    client = rig.client(broker_url=url, result_backend=url)
    waiting = threading.Thread(target=lambda: _ignored(client.attach(new_ids(1)[0]).get, 2.0))
    waiting.start()
    eventually(lambda: any(reader.outage for reader in client.statistics()[1].readers), within=5)
    plain = client.inspect(timeout=1.0).to_dict()
    waiting.join()
    text = json.dumps(plain)
    assert json.loads(text) == plain
    assert password not in text
    assert plain["operator"] == {"name": "bench", "version": "v1"}
    assert "refused" in plain["broker"]["problem"]
    assert "refused" in plain["backend"]["problem"]
    assert plain["workers"]["problem"]
    assert plain["queues"]["low"]["messages"] is None
    assert plain["queues"]["low"]["problem"] == plain["broker"]["problem"]
    assert plain["backend"]["readers"][0]["outage"]


def _ignored(call: object, timeout: float) -> None:
    try:
        call(timeout=timeout)  # type: ignore[operator]  # a method
    except Exception:
        return


@pytest.mark.parametrize("entry", [Entry.REFUSED, Entry.SILENT])
def test_servers_that_are_away(rig: Rig, entry: Entry) -> None:
    """Each part says what failed, within the timeout, and nothing is raised."""
    client = rig.client()
    for proxy in (rig.broker, rig.backend):
        proxy.entry = entry
    with in_time(1.0):
        seen = client.inspect(timeout=1.0)
    assert seen.broker_problem
    assert seen.workers_problem
    assert seen.backend_problem
    assert seen.messages is None
    assert [depth.messages for depth in seen.queues.values()] == [None] * 4
    assert {depth.problem for depth in seen.queues.values()} == {seen.broker_problem}
    eventually(lambda: not inspecting(), within=5)


def test_one_part_fails(rig: Rig) -> None:
    """With the backend away the queues are counted all the same."""
    client = rig.client()
    client.async_call([], {})
    rig.backend.entry = Entry.REFUSED
    seen = client.inspect()
    assert seen.queues["normal"].messages == 1
    assert seen.broker_problem is None
    assert seen.backend_problem is not None
    assert seen.workers == ()
    assert seen.workers_problem is None


def test_a_queue_of_another_kind(rig: Rig) -> None:
    """A queue that cannot be read is told apart from the others."""
    rig.redis.set("low.bench.v1", "no list")
    seen = rig.client().inspect()
    assert seen.queues["low"].messages is None
    assert "WRONGTYPE" in str(seen.queues["low"].problem)
    assert seen.queues["high"].messages == 0
    assert seen.messages == 0
    assert seen.broker_problem is None


def test_budget_spent(rig: Rig) -> None:
    """Where no connection is to be had in time it says so."""
    client = rig.client(broker_pool_limit=1, io_timeout=2.0)
    rig.broker.entry = Entry.SILENT
    stuck = threading.Thread(target=lambda: client.ping(timeout=2.0))
    stuck.start()
    eventually(lambda: client.statistics()[0].connections.in_use == 1, within=5)
    with in_time(0.5):
        seen = client.inspect(timeout=0.5)
    assert seen.broker.connections.in_use == 1
    assert "no free slot" in str(seen.broker_problem) or "no answer" in str(seen.broker_problem)
    stuck.join()
    eventually(lambda: not inspecting(), within=10)


def test_workers_are_asked_within_the_budget(rig: Rig) -> None:
    """Their answers come over a second connection, which counts, and is none of a budget of one."""
    client = rig.client(broker_pool_limit=2)
    with ThreadPoolExecutor(1) as thread:
        inspecting = thread.submit(client.inspect)
        most = 0
        while not inspecting.done():
            most = max(most, rig.broker.open)
            time.sleep(0.005)
    assert inspecting.result().workers_problem is None
    assert most <= 2
    seen = rig.client(broker_pool_limit=1).inspect()
    assert "broker_pool_limit is 1" in str(seen.workers_problem)
    assert seen.broker_problem is None


def test_long_tasks_are_not_given_to_others(rig: Rig) -> None:
    """What a worker has held for hours stays with it: how long it may is the workers' affair."""
    client = rig.client()
    client.async_call([], {})
    envelope = json.loads(rig.redis.rpop("normal.bench.v1"))
    tag = envelope["properties"]["delivery_tag"]
    rig.redis.hset("unacked", tag, json.dumps([envelope, "", "normal.bench.v1"]))
    rig.redis.zadd("unacked_index", {tag: time.time() - 20_000})
    client.inspect()
    client.inspect()
    assert rig.redis.zcard("unacked_index") == 1
    assert rig.queued() == {}


def test_misuse(rig: Rig) -> None:
    """A timeout that is none, and a closed client, are the caller's errors."""
    client = rig.client()
    for wrong in (0, -1, "soon", float("nan")):
        with pytest.raises(ConfigurationError):
            client.inspect(timeout=wrong)  # type: ignore[arg-type]  # on purpose
    client.close()
    with pytest.raises(ClientClosedError):
        client.inspect()


def test_closed_meanwhile(rig: Rig) -> None:
    """Closing the client during an inspection ends both."""
    client = rig.client()
    rig.broker.entry = Entry.SILENT
    inspecting_thread = threading.Thread(target=client.inspect, args=(1.0,))
    inspecting_thread.start()
    eventually(inspecting, within=5)
    client.close()
    inspecting_thread.join(5)
    assert not inspecting_thread.is_alive()
    eventually(lambda: not inspecting(), within=5)


# RabbitMQ


@pytest.fixture
def rabbit_roads(rabbitmq: LocalRabbitMQ, redis_server: LocalRedis) -> Roads:
    """Lead over RabbitMQ."""
    return Roads(rabbitmq.url, redis_server.url, redis_server.url)


@pytest.fixture(params=WORLDS, ids=WORLD_IDS)
def rabbit_world(request: pytest.FixtureRequest, rabbit_roads: Roads) -> Iterator[AnyWorld]:
    """Give clients of each colour on RabbitMQ."""
    with rabbit_roads.world(request.param) as world:
        yield world


def test_rabbitmq(rabbit_world: AnyWorld) -> None:
    """Messages are counted on RabbitMQ, and a queue that is not there is told and not made."""
    client = rabbit_world.client("nobody")
    for _ in range(2):
        client.async_call([], {}, priority="low")
    seen = client.inspect()
    low, high = seen.queues["low"], seen.queues["high"]
    assert (low.messages, low.consumers, low.problem) == (2, 0, None)
    assert (high.messages, high.problem) == (None, "there is no such queue")
    assert seen.broker_problem is None
    assert not rabbit_world.queues.exists("high.nobody.v1")
    client.async_call([], {}, priority="low")
    assert client.inspect().queues["low"].messages == 3


def test_rabbitmq_workers(rabbit_roads: Roads, make_client: MakeClient) -> None:
    """A worker on RabbitMQ answers, and its broker counts it as a consumer."""
    with rabbit_roads.worker():
        client = make_client(
            rabbit_roads.broker_url, "scripted", result_backend=rabbit_roads.result_backend
        )
        began = time.monotonic()
        seen = client.inspect(timeout=5)
        assert time.monotonic() - began < 4.5
        [worker] = seen.consumers
        assert len(worker.queues) == 4
        assert [depth.consumers for depth in seen.queues.values()] == [1] * 4
    with open_redis(rabbit_roads.redis_url) as redis_client:
        redis_client.flushdb()
