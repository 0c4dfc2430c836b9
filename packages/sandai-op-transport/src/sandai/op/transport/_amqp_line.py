"""A connection that speaks AMQP: confirms, returns and alarms, each within the I/O timeout."""

import select
import time
from typing import Any

from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Producer

from sandai.op.models import InvalidTaskError

from ._errors import TransportError
from ._kombu_line import Line
from ._message import TaskMessage, new_id

_PRECONDITION_FAILED = 406
_NOT_FOUND = 404
#: The method ``connection.close`` of AMQP 0-9-1.
_CONNECTION_CLOSE = (10, 50)


class AmqpLine(Line):
    """
    Publish with confirms, and know what became of each message.

    py-amqp can wait for good: for a confirm while heartbeats come, in the middle of a
    frame, for an answer to its goodbye. So the waiting is done here. *timeout* is in
    seconds; *confirms* tells whether the broker shall confirm what it has taken.
    """

    def __init__(self, connection: Connection, timeout: float, confirms: bool) -> None:
        self._timeout = timeout
        self._confirms = confirms
        self._amqp: Any = connection.connection
        # The read timeout among py-amqp's options ends no wait in the middle of a frame.
        self._amqp.sock.settimeout(timeout)
        self._blocked = False
        self._amqp.on_blocked = self._on_blocked
        self._amqp.on_unblocked = self._on_unblocked
        self._published = self._settled = 0
        self._nacked = self._returned = False
        super().__init__(connection)

    def open_channel(self) -> Any:
        """Open a channel on which messages are confirmed."""
        channel = self._amqp.channel()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        if self._confirms:
            channel.confirm_select()
        self._published = self._settled = 0
        return channel

    def usable(self) -> bool:
        """Return whether the broker has not closed the connection meanwhile."""
        try:
            self._listen()
        except Exception:
            return False
        return super().usable()

    def exists(self, queue: str) -> bool:
        """Return whether there is such a queue."""
        self._listen()
        return queue in self.known_queues or self.depth(queue) is not None

    def depth(self, queue: str) -> tuple[int, int | None] | None:
        """Return how many messages and consumers a queue has; ``None`` where there is none."""
        self._listen()
        try:
            declared = self.channel.queue_declare(queue=queue, passive=True)
        except self.connection.channel_errors as error:
            if error.reply_code != _NOT_FOUND:
                raise
            self._replace_channel()
            self.known_queues.discard(queue)
            return None
        self.known_queues.add(queue)
        return int(declared.message_count), int(declared.consumer_count)

    def declare(self, queue: Queue) -> None:
        """Declare a queue that does not exist yet; what somebody else just made is left alone."""
        try:
            super().declare(queue)
        except self.connection.channel_errors as error:
            if error.reply_code != _PRECONDITION_FAILED:
                raise
            self._replace_channel()
            if not self.exists(queue.name):
                raise

    def publish(self, message: TaskMessage, headers: Any, properties: Any) -> bool:
        """
        Publish, and wait until the broker has the message; ``False``: no queue took it.

        Raises :class:`TransportError` when it may not have it, and
        :class:`InvalidTaskError` when it is too large for the broker.
        """
        self._begin()
        try:
            super().publish(message, headers, properties)
            self._await_confirm()
        except self.connection.channel_errors as error:
            if error.reply_code != _PRECONDITION_FAILED:
                raise
            self._replace_channel()
            raise InvalidTaskError("task", f"the broker refuses it: {error.reply_text}") from error
        if self._nacked:
            reason = "the broker refused the task (nack): its queue is full or failed"
            raise TransportError(reason, maybe_done=True)
        return not self._returned

    def try_publishing(self) -> None:
        """
        Publish something to a queue that cannot be there: it comes back.

        RabbitMQ answers everything else while it is short of memory or disk.
        """
        self._begin()
        self._producer.publish(b"", exchange="", routing_key=new_id(), mandatory=True)
        self._await_confirm()

    def close(self) -> None:
        """Say goodbye without waiting for the answer, which a frozen broker does not give."""
        try:
            self._amqp.sock.settimeout(0)
            self._amqp.send_method(_CONNECTION_CLOSE, "BsBB", (0, "", 0, 0))
        except Exception:
            pass  # it is gone already, or reads no more
        finally:
            self.connection.collect()

    def _replace_channel(self) -> None:
        """Use another channel after an error on one."""
        # py-amqp opens it again under the same number: close it, so that numbers are not used up.
        self.channel.close()
        self.channel = self.open_channel()
        self._producer = Producer(self.channel, auto_declare=False)

    def _begin(self) -> None:
        self._check_open_to_tasks(maybe_done=False)
        self._returned = self._nacked = False
        self._published += 1

    def _await_confirm(self) -> None:
        deadline = time.monotonic() + self._timeout
        while self._confirms and self._settled < self._published:
            self._check_open_to_tasks(maybe_done=True)
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                self._amqp.blocking_read(left)
            except TimeoutError as error:
                reason = f"the broker did not confirm the task within {self._timeout:g} s"
                raise TransportError(reason, maybe_done=True) from error

    def _check_open_to_tasks(self, *, maybe_done: bool) -> None:
        # A blocked broker reads on where it stopped once it has room again: it may then take
        # what was written meanwhile, although nobody is there any more.
        if self._blocked:
            reason = "the broker takes no tasks now: it is short of memory or disk"
            raise TransportError(f"{reason} (connection.blocked)", maybe_done)

    def _listen(self) -> None:
        """Take in what the broker has said meanwhile; it may have closed the connection."""
        while _readable(self._amqp.sock):
            self._amqp.blocking_read(self._timeout)

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        self._settled = max(self._settled, delivery_tag)

    def _on_nack(self, delivery_tag: int, multiple: bool) -> None:
        self._settled = max(self._settled, delivery_tag)
        self._nacked = True

    def _on_return(self, *_: Any) -> None:
        self._returned = True

    def _on_blocked(self, _: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False


def _readable(sock: Any) -> bool:
    """Return whether something can be read now: data, or the end."""
    if getattr(sock, "pending", int)():  # what TLS has decrypted already
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
