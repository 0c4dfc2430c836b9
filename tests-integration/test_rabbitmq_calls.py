"""Every call of the contract with RabbitMQ as broker, and results in Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import CreateClient
from local_rabbitmq import LocalRabbitMQ
from local_redis import LocalRedis
from rabbit_worlds import WORLD_IDS, WORLDS, Roads
from sandai.op.models import TaskCancelledError
from scenarios import SCENARIOS, Scenario, World, sleeping
from stream_scenarios import STREAMS


@pytest.fixture(scope="module")
def roads(rabbitmq: LocalRabbitMQ, redis_server: LocalRedis) -> Iterator[Roads]:
    """Run a worker on RabbitMQ."""
    roads = Roads(rabbitmq.url, redis_server.url, redis_server.url)
    with roads.worker():
        yield roads


@pytest.fixture(params=WORLDS, ids=WORLD_IDS)
def world(request: pytest.FixtureRequest, roads: Roads) -> Iterator[World]:
    """Give the scenarios each client."""
    with roads.world(request.param) as world:
        yield world


@pytest.mark.parametrize("scenario", [*SCENARIOS, *STREAMS], ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Scenario, world: World) -> None:
    """Each client does on RabbitMQ what every client must."""
    scenario(world)


def test_inside_a_task(roads: Roads, create_client: CreateClient) -> None:
    """An operator on RabbitMQ may call another, and waits for it."""
    client = create_client("scripted", "v1", **roads.settings, timeout=30)
    result = client.async_call([], {"do": "nested"})
    seen = result.get(timeout=30)["results"]
    assert [child["parent_id"] for child in seen["children"]] == [result.id] * 4


def test_revoke(roads: Roads, create_client: CreateClient) -> None:
    """revoke() reaches the workers over RabbitMQ."""
    client = create_client("scripted", "v1", **roads.settings, timeout=50)
    # More than it prefetches: what Celery 5.5 has handed to its threads is not revoked any more
    # (and it pauses for ten seconds, once those are done).
    busy = [client.async_call([], sleeping(0.2)) for _ in range(40)]
    victim = client.async_call([], {"n": 1})
    victim.revoke()
    with pytest.raises(TaskCancelledError):
        victim.get(timeout=40)
    assert [result.get(timeout=10)["status"] for result in busy] == ["success"] * 40
