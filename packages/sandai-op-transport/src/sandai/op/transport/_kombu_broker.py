"""Every broker that is not Redis, through kombu; for threads."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from celery import Celery

from sandai.op.models import ClientPoolTimeoutError, InvalidTaskError, OperatorError

from ._amqp_url import is_amqp
from ._app import broker_app
from ._backend import Reader
from ._broker import BrokerStatistics, Outcome, QueueDepth
from ._config import BrokerKey
from ._errors import TransportError
from ._kombu_connection import LineOpener
from ._kombu_line import Line
from ._limiter import limiter_of
from ._message import MessageFactory, TaskMessage, someone_listens_before_publish
from ._pool import ConnectionPool
from ._readers import Readers


class KombuBroker:
    """
    Publish over pooled kombu connections, one holder per connection at a time.

    On AMQP with publisher confirms and ``mandatory``: a message that no queue
    takes is an error. A queue that does not exist yet is declared as Celery
    would declare it; an existing one is left alone.
    """

    takes_once = False

    def __init__(self, key: BrokerKey) -> None:
        self.limiter = limiter_of(key, "broker", key.broker_pool_limit)
        self._key = key
        self._app: Celery = broker_app(key)
        self.messages = MessageFactory(self._app, key.task_serializer)
        self.punctual = is_amqp(key.broker_url)
        self._opener = LineOpener(key)
        self._pool: ConnectionPool[Line] = ConnectionPool(self.limiter, self._opener)
        self._senders = Readers()
        self._sent = 0

    def send(self, messages: Sequence[TaskMessage], *, acquire_timeout: float) -> list[Outcome]:
        """Publish messages one by one; see :meth:`Broker.send`."""
        outcomes: list[Outcome] = []
        failure: OperatorError
        if not messages:
            return outcomes
        try:
            with self._pool.lease(acquire_timeout) as line:
                for message in messages:
                    try:
                        self._publish(line, message)
                    except InvalidTaskError as error:
                        outcomes.append(error)
                        continue
                    outcomes.append(None)
                    self._sent += 1
                    self.messages.after_publish(message)
                return outcomes
        except (ClientPoolTimeoutError, TransportError) as error:
            failure = error
        outcomes.append(failure)
        rest = TransportError(failure.reason) if isinstance(failure, TransportError) else failure
        return outcomes + [rest] * (len(messages) - len(outcomes))

    def ping(
        self, message: TaskMessage, *, acquire_timeout: float, timeout: float | None = None
    ) -> None:
        """Connect, ask for the queue, and see whether messages are taken; queues nothing."""
        shorter = timeout if timeout and timeout < self._key.io_timeout else None
        with self._pool.lease(acquire_timeout, io_timeout=shorter) as line:
            try:
                line.exists(message.queue)
                line.try_publishing()
            except OperatorError:
                raise
            except Exception as error:
                raise self._opener.failure(error, maybe_done=False) from error

    def depths(
        self, queues: Sequence[str], *, acquire_timeout: float, timeout: float | None = None
    ) -> list[QueueDepth]:
        """Ask for each queue with a passive declare; one that does not exist is not made."""
        shorter = timeout if timeout and timeout < self._key.io_timeout else None
        with self._pool.lease(acquire_timeout, io_timeout=shorter) as line:
            return [self._depth(line, queue) for queue in queues]

    def sender(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """Return the one sender of *owner*."""
        return self._senders.get(owner, make)

    def permit(self, acquire_timeout: float) -> AbstractContextManager[None]:
        """Hold a permit for a connection of Celery's own."""
        return self._pool.permit(acquire_timeout)

    def forget(self, task_ids: Sequence[str]) -> None:
        """Do nothing: nothing tells which tasks were queued."""

    def statistics(self) -> BrokerStatistics:
        """Return a snapshot."""
        return BrokerStatistics(self.limiter.statistics(), self._sent)

    def close(self) -> None:
        """Close idle connections now, busy ones when their call ends."""
        self._senders.close()
        self._pool.close()

    def _depth(self, line: Line, queue: str) -> QueueDepth:
        try:
            found = line.depth(queue)
        except Exception as error:
            raise self._opener.failure(error, maybe_done=False) from error
        if found is None:
            return QueueDepth(queue, None, problem="there is no such queue")
        messages, consumers = found
        return QueueDepth(queue, messages, consumers)

    def _publish(self, line: Line, message: TaskMessage) -> None:
        headers, properties = self.messages.headers(message), self.messages.properties(message)
        if someone_listens_before_publish():
            message = self.messages.before_publish(message, headers, properties)
        self._see_to_queue(line, message.queue)
        if not self._deliver(line, message, headers, properties):
            # It has gone since it was last seen, and nothing was queued.
            line.known_queues.discard(message.queue)
            self._see_to_queue(line, message.queue)
            if not self._deliver(line, message, headers, properties):
                raise TransportError("the broker returned the task: no queue took it")

    def _see_to_queue(self, line: Line, queue: str) -> None:
        try:
            if not line.exists(queue):
                line.declare(self._app.amqp.queues[queue])
        except Exception as error:
            raise self._opener.failure(error, maybe_done=False) from error

    def _deliver(self, line: Line, message: TaskMessage, headers: Any, properties: Any) -> bool:
        try:
            return line.publish(message, headers, properties)
        except OperatorError:
            raise
        except Exception as error:
            raise self._opener.failure(error, maybe_done=True) from error
