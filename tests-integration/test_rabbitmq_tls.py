"""RabbitMQ over TLS: who is trusted, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from local_rabbitmq import LocalRabbitMQ
from local_redis import HOST, LocalRedis
from queues import RabbitQueues
from rabbit_worlds import WORLD_IDS, WORLDS, AnyWorld, Roads
from sandai.op.models import OperatorConnectionError


@pytest.fixture(params=WORLDS, ids=WORLD_IDS)
def world(
    request: pytest.FixtureRequest, rabbitmq: LocalRabbitMQ, redis_server: LocalRedis
) -> Iterator[AnyWorld]:
    """Give each client."""
    roads = Roads(rabbitmq.url, redis_server.url, redis_server.url)
    with roads.world(request.param) as world:
        yield world


def over_tls(rabbitmq: LocalRabbitMQ, host: str = HOST) -> str:
    """Return the URL of a node's TLS port."""
    return f"amqps://guest:guest@{host}:{rabbitmq.tls_port}//"


def test_a_private_authority(world: AnyWorld, rabbitmq: LocalRabbitMQ) -> None:
    """With the authority's certificate named, everything goes as it does without TLS."""
    client = world.client(
        "nobody",
        broker_url=over_tls(rabbitmq),
        broker_transport_options={"ssl": {"ca_certs": rabbitmq.authority}},
        io_timeout=1.0,
    )
    assert client.ping() is True
    tasks: list[Any] = [([], {"text": "x" * size}) for size in (1, 1_000_000)]
    ids = [task.task_id for task in client.batch_submit(tasks)]
    rabbitmq.control("close_all_connections", "maintenance")
    ids.append(client.async_call([], {}).task_id)
    queues = RabbitQueues(rabbitmq.url)
    assert [message["id"] for message in queues.messages("normal.nobody.v1")] == ids
    rabbitmq.pause()
    try:
        with pytest.raises(OperatorConnectionError, match="did not confirm") as caught:
            client.async_call([], {})
        client.close()
    finally:
        rabbitmq.resume()
    assert caught.value.task_id


def test_the_authority_in_the_url(world: AnyWorld, rabbitmq: LocalRabbitMQ) -> None:
    """The URL's ``ssl_*`` parameters mean what they mean for Redis."""
    url = over_tls(rabbitmq)
    said = f"{url}?ssl_ca_certs={rabbitmq.authority}&ssl_cert_reqs=CERT_REQUIRED"
    assert world.client("nobody", broker_url=said).ping() is True
    assert world.client("nobody", broker_url=f"{url}?ssl_cert_reqs=none").ping() is True


@pytest.mark.parametrize("named", [False, True], ids=["unknown authority", "another host"])
def test_a_stranger(world: AnyWorld, rabbitmq: LocalRabbitMQ, named: bool) -> None:
    """An unknown authority is refused, and a certificate for another host, by default."""
    options = {"ssl": {"ca_certs": rabbitmq.authority}} if named else {}
    url = over_tls(rabbitmq, "localhost" if named else HOST)
    client = world.client("nobody", broker_url=url, broker_transport_options=options)
    with pytest.raises(OperatorConnectionError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        client.async_call([], {})
    assert caught.value.task_id is None
    assert client.ping() is False
