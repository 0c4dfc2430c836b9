"""Metrics of real calls, by a real SDK with a reader in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from conftest import MakeClient
from light_operator import LightOperator
from local_redis import LocalRedis
from sandai.op.models import InvalidTaskError, TaskTimeoutError
from sandai.op.transport import _limiter, _metrics
from tcp_proxy import HOST, TcpProxy
from watching import eventually

DURATION = "messaging.client.operation.duration"
QUEUE = "normal.bench.v1"


class Meter:
    """What has been recorded."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def points(self, name: str, **attributes: Any) -> list[Any]:
        """Return a metric's data points that have these attributes; dots are underscores."""
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if metric.name == name and wanted.items() <= dict(point.attributes or {}).items()
        ]


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    """Have metrics read in memory."""
    meter = Meter()
    monkeypatch.setattr(metrics, "get_meter", meter.provider.get_meter)
    monkeypatch.setattr(_metrics, "_metrics", None)
    monkeypatch.setattr(_limiter, "on_wait", None)
    yield meter
    meter.provider.shutdown()


def test_calls(database: str, make_client: MakeClient, meter: Meter) -> None:
    """Each operation has its duration, each queue its messages, each error its class."""
    client = make_client(database, metrics=True, timeout=20)
    with LightOperator(database):
        for _ in range(3):
            client.sync([], {})
        client.batch_sync_detailed([([], {})] * 7)
        client.async_call([], {}, priority="high").get()
        assert client.probe().response_ok
    with pytest.raises(TaskTimeoutError):
        client.sync([], {}, timeout=0.05)
    with pytest.raises(InvalidTaskError):
        client.sync([], {"bytes": object()})

    def counts(**attributes: Any) -> int:
        found = meter.points(DURATION, messaging_destination_name=QUEUE, **attributes)
        return sum(point.count for point in found)

    assert counts(messaging_operation_name="sync") == 5
    assert counts(messaging_operation_name="sync", error_type="TaskTimeoutError") == 1
    assert counts(messaging_operation_name="sync", error_type="InvalidTaskError") == 1
    assert counts(messaging_operation_name="batch_sync") == 1
    assert counts(messaging_operation_name="send", messaging_operation_type="send") == 6
    sent = "messaging.client.sent.messages"
    [normal] = meter.points(sent, messaging_destination_name=QUEUE)
    [high] = meter.points(sent, messaging_destination_name="high.bench.v1")
    assert (normal.value, high.value) == (11, 1)


def test_pools(database: str, make_client: MakeClient, meter: Meter) -> None:
    """What is open, what may be, who waits for a result: seen while a call is under way."""
    client = make_client(database, metrics=True, timeout=20)
    with LightOperator(database, delay=30), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.sync, [], {}, timeout=20)
        eventually(lambda: value(meter, "sandai.op.tasks.pending") == 1, within=5)
        name = "sandai.op.pool.connections"
        eventually(lambda: value(meter, name, sandai_op_pool_name="broker") == 1, within=5)
        pushing = {"sandai_op_pool_name": "backend push", "sandai_op_pool_state": "used"}
        eventually(lambda: value(meter, name, **pushing) == 1, within=5)
        assert value(meter, f"{name}.max", sandai_op_pool_name="broker") == 8
        client.close()
        assert waiting.exception() is not None
    assert value(meter, "sandai.op.tasks.pending") == 0


def value(meter: Meter, name: str, **attributes: Any) -> int:
    """Return the sum of what is observed."""
    return sum(point.value for point in meter.points(name, **attributes))


def test_waits_for_connections(
    redis_server: LocalRedis, make_client: MakeClient, meter: Meter
) -> None:
    """Callers that share one connection and had to queue for it are timed, and no others."""
    barrier = threading.Barrier(8)
    with TcpProxy(HOST, redis_server.port) as proxy, ThreadPoolExecutor(8) as pool:
        client = make_client(proxy.url, metrics=True, timeout=20, broker_pool_limit=1)
        assert client.ping()
        assert not meter.points("sandai.op.pool.wait_time", sandai_op_pool_name="broker")
        proxy.delay = 0.03  # longer than it takes all to ask

        def ping(_: int) -> None:
            barrier.wait(5)
            assert client.ping()

        list(pool.map(ping, range(8)))
    [point] = meter.points("sandai.op.pool.wait_time", sandai_op_pool_name="broker")
    assert 1 <= point.count <= 7
    assert point.sum >= 0.03
    assert point.attributes["sandai.op.pool.granted"] is True
    assert value(meter, "sandai.op.pool.pending_requests") == 0
