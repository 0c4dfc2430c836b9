"""What every broker offers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from attrs import frozen

from sandai.op.models import OperatorError

from ._backend import Reader
from ._limiter import Limiter, LimiterStatistics
from ._message import MessageFactory, TaskMessage

#: What became of one message: ``None`` when it is in its queue.
Outcome = OperatorError | None


@frozen
class BrokerStatistics:
    """A broker at one moment; ``sent`` counts messages since it was opened."""

    connections: LimiterStatistics
    sent: int


@frozen
class QueueDepth:
    """
    How many messages wait in a queue; those that workers have fetched are not in it.

    ``consumers`` is how many consumers the broker sees on it, where it tells (AMQP).
    ``messages`` is ``None`` where the queue cannot be read; ``problem`` says why.
    """

    queue: str
    messages: int | None
    consumers: int | None = None
    problem: str | None = None


class Broker(Protocol):
    """A shared, bounded way into the queues; for threads."""

    limiter: Limiter
    messages: MessageFactory
    #: Whether a message with an ``attempt`` may be sent again, and is queued once all the same.
    takes_once: bool
    #: Whether it keeps to a timeout, whatever the server does; not every library of kombu's does.
    punctual: bool

    def send(self, messages: Sequence[TaskMessage], *, acquire_timeout: float) -> list[Outcome]:
        """
        Queue messages, in order; return each one's outcome.

        An outcome is ``None``, a :class:`ClientPoolTimeoutError`, an
        :class:`InvalidTaskError` or a :class:`TransportError`.
        """

    def ping(
        self, message: TaskMessage, *, acquire_timeout: float, timeout: float | None = None
    ) -> None:
        """
        Check that *message* could be queued, and leave nothing behind.

        A *timeout* (seconds) shorter than the I/O timeout takes its place. Raises
        what :meth:`send` returns.
        """

    def depths(
        self, queues: Sequence[str], *, acquire_timeout: float, timeout: float | None = None
    ) -> list[QueueDepth]:
        """
        Return how many messages wait in each queue.

        A *timeout* (seconds) shorter than the I/O timeout takes its place. A queue that
        cannot be read has its ``problem``; a broker that cannot be asked raises
        :class:`ClientPoolTimeoutError` or :class:`TransportError`.
        """

    def sender(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """
        Return what *owner*, an event loop, sends with; made once, closed with the broker.

        *owner* is held weakly.
        """

    def permit(self, acquire_timeout: float) -> AbstractContextManager[None]:
        """Hold a permit for a connection that Celery's own code opens."""

    def forget(self, task_ids: Sequence[str]) -> None:
        """Drop, with a later write, what tells that these tasks were queued; no I/O."""

    def statistics(self) -> BrokerStatistics:
        """Return a snapshot."""

    def close(self) -> None:
        """Close what is open; called once, at the last release."""
