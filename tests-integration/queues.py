"""What is in an operator's queues, without taking it out: on Redis and on RabbitMQ."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgpack
from kombu.connection import Connection
from kombu.exceptions import ChannelError


class Queues(Protocol):
    """The queues of one broker."""

    #: Whether a worker takes more messages than it works on.
    prefetched: bool

    def count(self, queue: str) -> int:
        """Count the messages in a queue that nobody serves."""

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """Return the headers of the messages, and their kwargs, in order of submission."""

    def delete(self, queue: str) -> None:
        """Delete a queue and what is in it."""

    def exists(self, queue: str) -> bool:
        """Tell whether there is such a queue."""


def message(headers: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Return what a message says."""
    args, kwargs, _ = msgpack.unpackb(body)
    assert args == []
    return {"id": headers["id"], "kwargs": kwargs}


class RedisQueues:
    """The lists of a Redis database."""

    prefetched = True

    def __init__(self, redis_client: Any) -> None:
        self._redis = redis_client

    def count(self, queue: str) -> int:
        """Count."""
        return int(self._redis.llen(queue))

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """Read."""
        found = []
        for text in reversed(self._redis.lrange(queue, 0, -1)):
            envelope = json.loads(text)
            routing = {"exchange": "", "routing_key": queue}
            assert envelope["properties"]["delivery_info"] == routing
            found.append(message(envelope["headers"], base64.b64decode(envelope["body"])))
        return found

    def delete(self, queue: str) -> None:
        """Delete."""
        self._redis.delete(queue)

    def exists(self, queue: str) -> bool:
        """Tell."""
        return bool(self._redis.exists(queue))


class RabbitQueues:
    """The queues of a RabbitMQ."""

    prefetched = True

    def __init__(self, url: str) -> None:
        self._url = url

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """Open a channel for the ``with`` block, apart from all clients."""
        with Connection(self._url, connect_timeout=10) as connection:
            yield connection.default_channel

    def declare(self, queue: str, **arguments: Any) -> None:
        """Make a durable queue, as an operator's deployment would."""
        with self.channel() as channel:
            channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)

    def count(self, queue: str) -> int:
        """Count; a queue that is not there has none."""
        try:
            with self.channel() as channel:
                return int(channel.queue_declare(queue, passive=True).message_count)
        except ChannelError:
            return 0

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """Read, and put back."""
        with self.channel() as channel:
            taken = list(iter(lambda: channel.basic_get(queue), None))
            for one in taken:
                channel.basic_reject(one.delivery_tag, requeue=True)
            return [message(one.headers, one.body) for one in taken]

    def delete(self, queue: str) -> None:
        """Delete."""
        with self.channel() as channel:
            channel.queue_delete(queue)

    def exists(self, queue: str) -> bool:
        """Tell."""
        try:
            with self.channel() as channel:
                channel.queue_declare(queue, passive=True)
        except ChannelError:
            return False
        return True
