"""One of kombu's connections, whatever it speaks."""

from typing import Any

from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Producer

from ._message import TaskMessage


class Line:
    """A connection, its channel, its producer, and the queues seen to exist over it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.known_queues: set[str] = set()
        self.channel: Any = self.open_channel()
        self._producer = Producer(self.channel, auto_declare=False)

    def open_channel(self) -> Any:
        """Open a channel."""
        return self.connection.default_channel

    def usable(self) -> bool:
        """Return whether kombu holds the connection for open."""
        return bool(self.connection.connected)

    def exists(self, queue: str) -> bool:
        """Return whether there is such a queue."""
        return queue in self.known_queues or self.depth(queue) is not None

    def depth(self, queue: str) -> tuple[int, int | None] | None:
        """
        Return how many messages wait in a queue; ``None`` for one that does not exist.

        And how many consumers it has, where the broker tells.
        """
        channel = self.connection.channel()
        try:
            declared = channel.queue_declare(queue=queue, passive=True)
        except self.connection.channel_errors as error:
            if _code(error) not in (404, "404"):
                raise
            self.known_queues.discard(queue)
            return None
        finally:
            channel.close()
        self.known_queues.add(queue)
        return int(declared.message_count), None  # kombu's own transports count no consumers

    def declare(self, queue: Queue) -> None:
        """Declare a queue that does not exist yet."""
        queue(self.channel).declare()
        self.known_queues.add(queue.name)

    def publish(self, message: TaskMessage, headers: Any, properties: Any) -> bool:
        """Publish a message; return ``False`` where the broker says that no queue took it."""
        self._producer.publish(
            message.body,
            exchange="",
            routing_key=message.queue,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=headers,
            retry=False,
            mandatory=True,
            **properties,
        )
        return True

    def try_publishing(self) -> None:
        """Raise what publishing would raise now, where that can be found out with no trace."""

    def close(self) -> None:
        """Close the connection and its channels."""
        self.connection.release()


def _code(error: BaseException) -> Any:
    return getattr(error, "reply_code", None) or getattr(error, "code", None)
