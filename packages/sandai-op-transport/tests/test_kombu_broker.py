"""The kombu broker on transports that need no server."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from celery import signals
from kombu.connection import Connection
from kombu.transport import memory

from sandai.op.models import ClientPoolTimeoutError, InvalidTaskError
from sandai.op.transport import (
    Config,
    TaskBuilder,
    TaskControls,
    TaskMessage,
    TransportError,
    resolve,
)
from sandai.op.transport._kombu_broker import KombuBroker


def configured(**settings: Any) -> Config:
    """Return a configuration on kombu's memory transport, or another."""
    urls = {"broker_url": "memory://", "result_backend": "cache+memory://"}
    return resolve("kombu", "v1", env={}, **urls | settings)


def messages(broker: KombuBroker, config: Config, count: int) -> list[TaskMessage]:
    """Return messages of a broker."""
    builder = TaskBuilder(config)
    return [builder.task(broker.messages, "", [], {}, TaskControls()) for _ in range(count)]


def drain(queue: str = "normal.kombu.v1") -> list[str]:
    """Take all the task ids out of a memory queue."""
    waiting = memory.Channel.queues[queue]
    return [waiting.get(timeout=5)["headers"]["id"] for _ in range(waiting.qsize())]


@pytest.fixture
def config() -> Config:
    """Return the configuration of most tests."""
    return configured(broker_pool_limit=1)


@pytest.fixture
def broker(config: Config) -> Any:
    """Yield a broker that gives every permit back."""
    broker = KombuBroker(config.broker_key)
    yield broker
    broker.close()
    now = broker.statistics().connections
    assert (now.in_use, now.idle) == (0, 0)
    if "normal.kombu.v1" in memory.Channel.queues:
        drain()


def test_send(broker: KombuBroker, config: Config) -> None:
    """Messages arrive in order, over one connection that stays for the next."""
    batch = messages(broker, config, 3)
    assert broker.send(batch, acquire_timeout=0) == [None] * 3
    assert drain() == [message.task_id for message in batch]
    assert broker.statistics().sent == 3
    assert broker.statistics().connections.idle == 1


def test_depths(broker: KombuBroker, config: Config) -> None:
    """Messages are counted queue by queue, and a queue that is not there is not made."""
    broker.send(messages(broker, config, 3), acquire_timeout=0)
    memory.Channel.queues.pop("low.kombu.v1", None)
    [normal, low] = broker.depths(["normal.kombu.v1", "low.kombu.v1"], acquire_timeout=0)
    assert (normal.queue, normal.messages, normal.problem) == ("normal.kombu.v1", 3, None)
    assert (low.messages, low.problem) == (None, "there is no such queue")
    assert "low.kombu.v1" not in memory.Channel.queues


def test_depths_of_a_broker_that_is_away() -> None:
    """A broker that cannot be asked raises, and gives its permit back."""
    broker = KombuBroker(configured(broker_url="amqp://127.0.0.1:1//").broker_key)
    with pytest.raises(TransportError, match="failed"):
        broker.depths(["normal.kombu.v1"], acquire_timeout=0)
    assert broker.statistics().connections.in_use == 0
    broker.close()


def test_send_nothing(config: Config) -> None:
    """An empty batch has no outcomes, whatever the broker does."""
    broker = KombuBroker(configured(broker_url="amqp://127.0.0.1:1//").broker_key)
    assert broker.send([], acquire_timeout=0) == []


def test_filesystem(tmp_path: Path) -> None:
    """kombu's filesystem transport, with its options, takes tasks too."""
    folder = str(tmp_path)
    options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": folder}
    config = configured(broker_url="filesystem://", broker_transport_options=options)
    broker = KombuBroker(config.broker_key)
    batch = messages(broker, config, 2)
    assert broker.send(batch, acquire_timeout=0) == [None, None]
    broker.ping(batch[0], acquire_timeout=1, timeout=1)
    broker.close()
    stored = [json.loads(path.read_text()) for path in tmp_path.glob("*.msg")]
    assert {message["headers"]["id"] for message in stored} == {m.task_id for m in batch}


def test_ping_leaves_nothing(broker: KombuBroker) -> None:
    """A ping neither publishes nor declares."""
    config = resolve("unheard-of", "v1", env={}, broker_url="memory://", result_backend="rpc://")
    builder = TaskBuilder(config)
    message = builder.task(broker.messages, "", [], {}, TaskControls())
    broker.ping(message, acquire_timeout=1, timeout=1)
    assert message.queue not in memory.Channel.queues


def test_nobody_there(config: Config) -> None:
    """A refused connection is certain: nothing was sent, and the permit is back."""
    broker = KombuBroker(configured(broker_url="amqp://me:canary@127.0.0.1:1//").broker_key)
    started = time.monotonic()
    for outcome in broker.send(messages(broker, config, 2), acquire_timeout=0):
        assert isinstance(outcome, TransportError)
        assert outcome.maybe_done is False
        assert "canary" not in str(outcome)
    with pytest.raises(TransportError):
        broker.ping(messages(broker, config, 1)[0], acquire_timeout=1, timeout=1)
    assert time.monotonic() - started < 1
    assert broker.statistics().connections.in_use == 0


def test_no_slot(broker: KombuBroker, config: Config) -> None:
    """Without a slot in time every message has that error."""
    with broker.permit(0):
        outcomes = broker.send(messages(broker, config, 2), acquire_timeout=0)
    assert [type(outcome) for outcome in outcomes] == [ClientPoolTimeoutError] * 2


class Unlisted(Exception):
    """What a transport's own library raises, unknown to kombu."""


@pytest.mark.parametrize("failure", [OSError("reset"), Unlisted("odd")])
def test_broke_off(
    broker: KombuBroker, config: Config, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Those before stand, the one that broke off is in doubt, the rest was not sent."""
    published = 0
    plain: Any = memory.Channel.basic_publish

    def basic_publish(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal published
        published += 1
        if published == 2:
            raise failure
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(memory.Channel, "basic_publish", basic_publish)
    first, *others = broker.send(messages(broker, config, 4), acquire_timeout=0)
    assert first is None
    doubts = [error.maybe_done for error in others if isinstance(error, TransportError)]
    assert doubts == [True, False, False]
    assert published == 2
    assert broker.statistics().connections.idle == 0


def test_broke_off_before_publishing(
    broker: KombuBroker, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure to ask for the queue is certain: nothing was published."""

    def queue_declare(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError("reset")

    monkeypatch.setattr(memory.Channel, "queue_declare", queue_declare)
    [outcome] = broker.send(messages(broker, config, 1), acquire_timeout=0)
    assert isinstance(outcome, TransportError)
    assert outcome.maybe_done is False


def test_interrupted(broker: KombuBroker, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while connecting or publishing leaves no connection and no permit behind."""
    released = []
    plain: Any = Connection.release

    def interrupt(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    def release(self: Any) -> None:
        released.append(self)
        plain(self)

    monkeypatch.setattr(Connection, "release", release)
    for target, name in ((Connection, "ensure_connection"), (memory.Channel, "basic_publish")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                broker.send(messages(broker, config, 1), acquire_timeout=0)
    assert len(released) == 2
    assert broker.statistics().connections.in_use == 0


def test_listener_that_spoils_one_task(broker: KombuBroker, config: Config) -> None:
    """A listener that makes one task unencodable disturbs no other task."""
    batch = messages(broker, config, 3)

    def before_publish(headers: Any, body: Any, **_: Any) -> None:
        if headers["id"] == batch[1].task_id:
            body[1]["options"]["spoilt"] = object()

    signals.before_task_publish.connect(before_publish)
    try:
        outcomes = broker.send(batch, acquire_timeout=0)
    finally:
        signals.before_task_publish.disconnect(before_publish)
    assert (outcomes[0], outcomes[2]) == (None, None)
    assert isinstance(outcomes[1], InvalidTaskError)
    assert drain() == [batch[0].task_id, batch[2].task_id]


def test_existing_queue_is_left_alone(
    broker: KombuBroker, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue is declared once, when it does not exist; then it is only asked for."""
    declared: list[bool] = []
    plain: Any = memory.Channel.queue_declare

    def queue_declare(self: Any, *args: Any, **kwargs: Any) -> Any:
        declared.append(bool(kwargs.get("passive")))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(memory.Channel, "queue_declare", queue_declare)
    memory.Channel.queues.pop("normal.kombu.v1", None)
    assert broker.send(messages(broker, config, 2), acquire_timeout=0) == [None, None]
    assert declared == [True, False]
    broker.close()
    declared.clear()
    again = KombuBroker(config.broker_key)
    assert again.send(messages(again, config, 2), acquire_timeout=0) == [None, None]
    assert declared == [True]
    again.close()
