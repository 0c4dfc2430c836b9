"""Results that are messages (``rpc://``), on RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from conftest import CreateClient
from local_rabbitmq import LocalRabbitMQ
from local_redis import LocalRedis
from queues import RabbitQueues
from rabbit_worlds import WORLD_IDS, WORLDS, Roads
from sandai.op.transport import resolve
from sandai.op.transport._rpc_backend import _SEEN_FOR, RpcBackend
from scenarios import SCENARIOS, Scenario, World, at_once, sleeping
from watching import eventually

STORED = {
    "reading_keeps_without_auto_forget",
    "get_leaves_the_result_to_others",
    "closing_one_client_leaves_the_others",
    "attach_reaches_a_task_of_another_client",
}
"""Scenarios that need results to be stored: one that is a message is where it was taken."""
QUEUED = {
    "queues_are_named_after_the_operator",
    "the_deadline_follows_the_timeout",
    "a_wrong_timeout_is_refused",
    "a_description_goes_to_the_high_queue",
    "an_empty_batch_is_empty",
    "ping_leaves_nothing",
    "ping_keeps_what_is_queued",
    "probe_is_an_ordinary_task",
    "priorities_are_queues",
    "the_cancel_key_goes_along",
    "persistent_output_goes_along",
    "a_late_task_is_skipped_by_its_deadline",
    "a_batch_takes_any_iterable",
    "a_description_may_lack_parts",
    "probe_understands_any_reply",
}
"""Scenarios of what goes out, which is the same whatever comes back."""


@pytest.fixture(scope="module")
def roads(rabbitmq: LocalRabbitMQ, redis_server: LocalRedis) -> Iterator[Roads]:
    """Run a worker on RabbitMQ that replies to the caller."""
    roads = Roads(rabbitmq.url, "rpc://", redis_server.url)
    with roads.worker():
        yield roads


@pytest.fixture(params=WORLDS, ids=WORLD_IDS)
def world(request: pytest.FixtureRequest, roads: Roads) -> Iterator[World]:
    """Give the scenarios each client."""
    with roads.world(request.param) as world:
        yield world


@pytest.mark.parametrize(
    "scenario",
    [scenario for scenario in SCENARIOS if scenario.__name__ not in STORED | QUEUED],
    ids=lambda scenario: scenario.__name__,
)
def test_scenario(scenario: Scenario, world: World) -> None:
    """Each client does with replies what every client must."""
    scenario(world)


def test_inside_a_task(roads: Roads, create_client: CreateClient) -> None:
    """An operator may call another and wait for its reply."""
    client = create_client("scripted", "v1", **roads.settings, timeout=30)
    result = client.async_call([], {"do": "nested"})
    seen = result.get(timeout=30)["results"]
    assert [child["parent_id"] for child in seen["children"]] == [result.id] * 4


def test_clients_share_the_replies(world: World, rabbitmq: LocalRabbitMQ) -> None:
    """The clients of a process share one connection for replies; any of them may wait."""
    sockets = Sockets(rabbitmq.port)
    first, second = world.client(broker_pool_limit=2), world.client(broker_pool_limit=2)
    handles = [first.async_call([], {**sleeping(0.3), "n": n}) for n in range(8)]

    def wait(number: int) -> Any:
        client = (first, second)[number % 2]
        return client.attach(handles[number // 2].task_id).get(timeout=10)

    with at_once(16, wait) as waits:
        eventually(lambda: sockets.count() >= 1, within=5)
        peak = max(sockets.count() for _ in range(20))
        said = [wait.result()["results"]["kwargs"]["options"]["n"] for wait in waits]
    assert said == [number // 2 for number in range(16)]
    assert peak <= 2 + 1
    first.close()
    assert second.sync([], {"n": 9})[1]["kwargs"]["options"] == {"n": 9}
    second.close()
    eventually(lambda: sockets.count() == 0, within=2)


class Sockets:
    """This process's connections to a port, beyond those that there are now."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._before = 0
        self._before = self.count()

    def count(self) -> int:
        """Count."""
        found = psutil.Process().net_connections("tcp")
        own = sum(c.status == "ESTABLISHED" and c.raddr.port == self._port for c in found)
        return own - self._before


def test_reply_queue_is_made_again(
    rabbitmq: LocalRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that was restarted has no reply queue: it is declared before the next task goes."""
    config = resolve(
        "nobody", "v1", env={}, broker_url=rabbitmq.url, result_backend="rpc://", io_timeout=2
    )
    backend, queues = RpcBackend(config.backend_key), RabbitQueues(rabbitmq.url)
    try:
        backend.before_submit()
        assert queues.exists(backend.reply_to)
        # As a restart does, once the idle connection was closed.
        backend._pool.close_idle(float("inf"))
        queues.delete(backend.reply_to)
        backend.before_submit()
        assert not queues.exists(backend.reply_to)  # asked a moment ago
        monkeypatch.setattr("sandai.op.transport._rpc_backend._SEEN_FOR", 0.0)
        backend.before_submit()
        assert queues.exists(backend.reply_to)
        assert 0 < _SEEN_FOR <= 1
    finally:
        queues.delete(backend.reply_to)
        backend.close()
