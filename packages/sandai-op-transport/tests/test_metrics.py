"""Metrics, by a real SDK with a reader in memory."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from sandai.op.models import ClientPoolTimeoutError, InvalidTaskError
from sandai.op.transport import (
    Config,
    Limiter,
    Telemetry,
    Transport,
    TransportError,
    resolve,
)
from sandai.op.transport import _limiter as limiters
from sandai.op.transport._metrics import Metrics

SEND = {
    "messaging.system": "redis",
    "server.address": "h",
    "server.port": 6379,
    "sandai.op.operator.name": "op",
    "sandai.op.operator.version": "v1",
    "messaging.operation.name": "send",
    "messaging.operation.type": "send",
    "messaging.destination.name": "normal.op.v1",
}
OPERATOR = {"sandai.op.operator.name": "op", "sandai.op.operator.version": "v1"}
AT = {"server.address": "h", "server.port": 6379}

Points = dict[frozenset[tuple[str, Any]], Any]


class Meter:
    """Instruments, and what they have recorded."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])
        self.metrics = Metrics(self.provider.get_meter("test"))

    def points(self, name: str) -> Points:
        """Return the data points of a metric by their attributes."""
        found: Points = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        for point in metric.data.data_points:
                            found[frozenset((point.attributes or {}).items())] = point
        return found

    def value(self, name: str, **attributes: Any) -> Any:
        """Return the value of the one point that has these attributes."""
        [point] = [p for a, p in self.points(name).items() if attributes.items() <= dict(a).items()]
        return point.value


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    """Give instruments that permits are reported to."""
    meter = Meter()
    monkeypatch.setattr(limiters, "on_wait", meter.metrics.waited)
    yield meter
    meter.provider.shutdown()


def config(**settings: Any) -> Config:
    """Return a configuration that leads to nobody."""
    return resolve("op", "v1", env={}, broker_url="redis://u:hunter2@h", **settings)


def test_operations(meter: Meter) -> None:
    """Each has its duration in seconds, an error its type; no attribute tells tasks apart."""
    telemetry = Telemetry(config(), None, meter.metrics)
    for _ in range(2):
        with telemetry.submission(None) as sending:
            sending.holds("some-id")
            sending.settle(None)
    with telemetry.submission(None) as sending:
        sending.settle(TransportError("gone"))
    points = meter.points("messaging.client.operation.duration")
    failed = SEND | {"error.type": "OperatorConnectionError"}
    assert set(points) == {frozenset(SEND.items()), frozenset(failed.items())}
    well = points[frozenset(SEND.items())]
    assert well.count == 2
    assert 0 < well.sum < 1
    assert 10 in well.explicit_bounds
    sent = meter.points("messaging.client.sent.messages")
    assert sent[frozenset(SEND.items())].value == 2
    assert sent[frozenset(failed.items())].value == 1


def test_what_was_not_sent_is_not_counted(meter: Meter) -> None:
    """A task that cannot be built has a duration and an error, but was not sent."""
    telemetry = Telemetry(config(), None, meter.metrics)
    with pytest.raises(ValueError, match="no"), telemetry.submission(None):
        raise ValueError("no")
    with telemetry.submission(None) as sending:
        sending.settle(InvalidTaskError("options", "too large for the broker"))
    assert len(meter.points("messaging.client.operation.duration")) == 2
    assert not meter.points("messaging.client.sent.messages")


def test_a_batch_counts_its_messages(meter: Meter) -> None:
    """One duration, as many messages as were sent."""
    telemetry = Telemetry(config(), None, meter.metrics)
    with telemetry.batch(None) as sending:
        for _ in range(5):
            sending.settle(None)
    [duration] = meter.points("messaging.client.operation.duration").values()
    assert duration.count == 1
    assert meter.value("messaging.client.sent.messages") == 5


def test_pools(meter: Meter) -> None:
    """Budgets, used and idle connections and queued callers are observed by pool."""
    first = Transport(config(broker_pool_limit=3))
    # Another budget that no attribute tells from the first.
    second = Transport(config(broker_pool_limit=2))
    try:
        limiter, owner = first.broker.limiter, Owner()
        limiter.acquire(owner, 0)
        limiter.release(owner, "a connection")
        limiter.acquire(owner, 0)
        limiter.acquire(owner, 0)
        limiter.acquire(owner, 0)
        limiter.release(owner, "idle")
        broker = {**AT, **OPERATOR, "sandai.op.pool.name": "broker"}
        state = "sandai.op.pool.state"
        assert meter.value("sandai.op.pool.connections", **broker, **{state: "used"}) == 2
        assert meter.value("sandai.op.pool.connections", **broker, **{state: "idle"}) == 1
        assert meter.value("sandai.op.pool.connections.max", **broker) == 5
        assert meter.value("sandai.op.pool.pending_requests", **broker) == 0
        limiter.acquire(owner, 0)
        queued = limiter.request(owner)
        assert meter.value("sandai.op.pool.pending_requests", **broker) == 1
        queued.cancel()
        push = broker | {"sandai.op.pool.name": "backend push"}
        assert meter.value("sandai.op.pool.connections.max", **push) == 4
        assert meter.value("sandai.op.tasks.pending", **AT, **OPERATOR) == 0
        everything = str(meter.points("sandai.op.pool.connections"))
        assert "hunter2" not in everything
    finally:
        first.release()
        second.release()


class Owner:
    """An owner of connections that are only words."""

    def evict(self, connection: Any, closed: Any) -> None:
        """Close it."""
        closed()


def test_only_who_waits_is_timed(meter: Meter) -> None:
    """A permit that is free costs no record; a wait is recorded with whether it was granted."""
    owner = Owner()
    limiter = Limiter("backend", 1, config().backend_key)
    limiter.acquire(owner, 5)
    assert not meter.points("sandai.op.pool.wait_time")
    with pytest.raises(ClientPoolTimeoutError):
        limiter.acquire(owner, 0.05)
    waiting = threading.Thread(target=limiter.acquire, args=(owner, 5))
    waiting.start()
    while not limiter.statistics().waiting:
        time.sleep(0.001)
    limiter.release(owner)
    waiting.join()
    named = {**AT, **OPERATOR, "sandai.op.pool.name": "backend"}
    points = meter.points("sandai.op.pool.wait_time")
    assert set(points) == {
        frozenset({**named, "sandai.op.pool.granted": granted}.items()) for granted in (True, False)
    }
    in_vain = points[frozenset({**named, "sandai.op.pool.granted": False}.items())]
    assert in_vain.count == 1
    assert in_vain.sum >= 0.05


def test_nobody_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without metrics a queued caller's future has nobody to tell."""
    monkeypatch.setattr(limiters, "on_wait", None)
    limiter = Limiter("backend", 1)
    limiter.acquire(Owner(), 0)
    assert vars(limiter.request(Owner()))["_done_callbacks"] == []
