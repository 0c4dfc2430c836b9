"""What no real broker does on demand: it is alive, and its confirm never comes."""

import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from sandai.op.transport import Config, TaskBuilder, TaskControls, TransportError, resolve
from sandai.op.transport._amqp_line import AmqpLine
from sandai.op.transport._kombu_broker import KombuBroker


class Silent:
    """py-amqp's connection and its one channel; there is nothing but heartbeats to read."""

    channel_errors = ()

    def __init__(self) -> None:
        self.connection = self
        self.sock, self._server = socket.socketpair()
        self.events: dict[str, Any] = defaultdict(set)
        self.heartbeats = 0
        self.tag = 0

    def channel(self) -> "Silent":
        return self

    def confirm_select(self) -> None: ...

    def prepare_message(self, *args: Any, **kwargs: Any) -> None: ...

    def basic_publish(self, *args: Any, **kwargs: Any) -> None:
        self.tag += 1

    def blocking_read(self, timeout: float) -> bool:
        time.sleep(0.01)
        self.heartbeats += 1
        return False

    def close(self) -> None:
        self.sock.close()
        self._server.close()


@pytest.fixture
def amqp() -> Iterator[Any]:
    """Give the connection."""
    amqp = Silent()
    yield amqp
    amqp.close()


@pytest.fixture
def config() -> Config:
    """Return a configuration."""
    return resolve("op", "v1", env={}, broker_url="memory://", result_backend="rpc://")


def publish(line: AmqpLine, config: Config) -> bool:
    """Publish a task."""
    factory = KombuBroker(config.broker_key).messages
    message = TaskBuilder(config).task(factory, "", [], {}, TaskControls())
    return line.publish(message, factory.headers(message), factory.properties(message))


def test_heartbeats_are_no_confirm(amqp: Any, config: Config) -> None:
    """A wait for a confirm ends in time, however often the broker shows that it is alive."""
    line = AmqpLine(amqp, 0.2, True)
    began = time.monotonic()
    with pytest.raises(TransportError, match="did not confirm") as caught:
        publish(line, config)
    assert caught.value.maybe_done
    assert 0.2 <= time.monotonic() - began < 1
    assert amqp.heartbeats > 2


def test_a_late_confirm_is_not_the_next_ones(
    amqp: Any, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A confirm counts for the messages up to its number, and for none after."""

    def confirm(number: int) -> Any:
        def blocking_read(timeout: float) -> bool:
            time.sleep(0.01)
            for told in amqp.events["basic_ack"]:
                told(number, False)
            return True

        return blocking_read

    line = AmqpLine(amqp, 0.1, True)
    monkeypatch.setattr(amqp, "blocking_read", confirm(1))
    assert publish(line, config)
    with pytest.raises(TransportError, match="did not confirm"):
        publish(line, config)
    monkeypatch.setattr(amqp, "blocking_read", confirm(3))
    assert publish(line, config)


def test_without_confirms(amqp: Any, config: Config) -> None:
    """Who switched confirms off waits for none."""
    assert publish(AmqpLine(amqp, 5, False), config)
    assert amqp.heartbeats == 0
