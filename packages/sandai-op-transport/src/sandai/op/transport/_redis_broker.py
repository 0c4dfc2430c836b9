"""The Redis broker for threads: LPUSH, many messages to a command."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from redis.exceptions import ResponseError

from sandai.op.models import OperatorError

from ._app import broker_app
from ._backend import Reader
from ._broker import BrokerStatistics, Outcome, QueueDepth
from ._config import BrokerKey
from ._errors import TransportError
from ._freeze import thaw
from ._group_commit import GroupCommit, Posting, Wake
from ._limiter import limiter_of
from ._message import MessageFactory, TaskMessage
from ._pool import ConnectionPool
from ._readers import Readers
from ._redis import Command, RedisConnection, RedisConnector, RedisOpener, execute, hurried
from ._redis_envelope import EnvelopeRenderer
from ._redis_push import (
    MESSAGES_PER_WRITE,
    Item,
    PushPlan,
    Rendering,
    interrupted,
    marker_of,
)
from ._url import RedisAddress

_MOST_TAKEN = 10_000


class RedisBroker:
    """
    Push messages straight to the queues' lists, where Celery's workers pop them.

    A write that broke off is never repeated: the server may have acted on it. A message
    with an ``attempt`` is pushed by a script that takes it once, so it may be sent again.
    """

    takes_once = True
    punctual = True

    def __init__(self, key: BrokerKey) -> None:
        address = RedisAddress.parse("broker_url", key.broker_url, thaw(key.transport_options))
        self.limiter = limiter_of(key, "broker", key.broker_pool_limit)
        self.connector = RedisConnector(address, key.io_timeout, f"sandai-op:broker:{os.getpid()}")
        app = broker_app(key)
        self.messages = MessageFactory(app, key.task_serializer)
        self.renderer = EnvelopeRenderer(self.messages, app)
        self._pool: ConnectionPool[RedisConnection] = ConnectionPool(
            self.limiter, RedisOpener(self.connector)
        )
        self._pushes = GroupCommit(self._pool, self._push, MESSAGES_PER_WRITE)
        self._senders = Readers()
        self._sent = 0
        # Atomic to add to and to take from; what is beyond that expires by itself.
        self._taken: deque[str] = deque(maxlen=_MOST_TAKEN)

    def send(self, messages: Sequence[TaskMessage], *, acquire_timeout: float) -> list[Outcome]:
        """Push messages, together with those of other threads; see :meth:`Broker.send`."""
        rendering = Rendering(self)
        for message in messages:
            rendering.add(message)
        items = rendering.items
        written = self._pushes.submit(items, acquire_timeout) if items else []
        outcomes = rendering.outcomes(written)
        self.note_sent(messages, outcomes)
        return outcomes

    def post(
        self, message: TaskMessage, *, acquire_timeout: float, wake: Wake[Item]
    ) -> Posting[Item]:
        """
        Queue one message for pushing, for a caller that has more to wait for.

        The caller tells :meth:`note_sent` of the outcome. Raises
        :class:`InvalidTaskError` for a message that is too large.
        """
        rendering = Rendering(self)
        rendering.add(message)
        if not rendering.items:
            [refusal] = rendering.outcomes([])
            assert refusal is not None
            raise refusal
        return self._pushes.post(rendering.items, acquire_timeout, wake)

    def _push(
        self, connection: RedisConnection, items: Sequence[Item], outcomes: list[Outcome]
    ) -> None:
        plan = self.plan(items)
        failure: OperatorError | None = None
        try:
            for write in plan.writes():
                replies: list[Any] = []
                try:
                    execute(self.connector, connection, write.commands, replies=replies)
                except BaseException as error:
                    failure = interrupted(error)
                    plan.broke_off(write, replies, failure)
                    raise
                plan.answered(write, replies)
        except TransportError as error:
            failure = error
            raise
        finally:
            outcomes += plan.finish(failure)

    def plan(self, items: Sequence[Item]) -> PushPlan:
        """Return the plan for pushing *items*; whoever does the I/O carries it out."""
        return PushPlan(self.connector, items, self._taken)

    def note_sent(self, messages: Sequence[TaskMessage], outcomes: Sequence[Outcome]) -> None:
        """Count what was queued and tell Celery's signal of it."""
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome is None:
                self._sent += 1
                if message.attempt == 1:
                    # Nothing of it is on its way any more, which could be late and find none.
                    self._taken.append(marker_of(self.connector, message.task_id))
                self.messages.after_publish(message)

    def ping(
        self, message: TaskMessage, *, acquire_timeout: float, timeout: float | None = None
    ) -> None:
        """Push a message and take it out again in one transaction."""
        shorter = timeout if timeout and timeout < self.connector.io_timeout else None
        with self._pool.lease(acquire_timeout, io_timeout=shorter) as connection:
            commands = self.ping_commands(message)
            self.check_ping(execute(self.connector, connection, commands))

    def ping_commands(self, message: TaskMessage) -> list[Command]:
        """Return the transaction that shows whether *message* could be queued."""
        queue = self.connector.address.key_prefix + message.queue
        envelope = self.renderer.render(message, signals=False)
        return [("MULTI",), ("LPUSH", queue, envelope), ("LREM", queue, 1, envelope), ("EXEC",)]

    def check_ping(self, replies: Sequence[Any]) -> None:
        """Raise :class:`TransportError` for the first error among a ping's replies."""
        executed = replies[-1] if isinstance(replies[-1], list) else []
        for reply in (*replies, *executed):
            if isinstance(reply, ResponseError):
                raise self.connector.failure(reply, maybe_done=False)

    def depths(
        self, queues: Sequence[str], *, acquire_timeout: float, timeout: float | None = None
    ) -> list[QueueDepth]:
        """Ask for the lengths of the queues' lists in one write."""
        shorter = timeout if timeout and timeout < self.connector.io_timeout else None
        commands = self.depth_commands(queues)
        with (
            self._pool.lease(acquire_timeout, io_timeout=shorter, reuse=True) as connection,
            hurried(connection, shorter),
        ):
            replies = execute(self.connector, connection, commands)
        return self.depths_in(queues, replies)

    def depth_commands(self, queues: Sequence[str]) -> list[Command]:
        """Return the commands that ask how many messages wait in queues."""
        return [("LLEN", self.connector.address.key_prefix + queue) for queue in queues]

    def depths_in(self, queues: Sequence[str], replies: Sequence[Any]) -> list[QueueDepth]:
        """Return what the replies to :meth:`depth_commands` say."""
        depths = []
        for queue, reply in zip(queues, replies, strict=True):
            if isinstance(reply, ResponseError):
                refusal = self.connector.failure(reply, maybe_done=False)
                depths.append(QueueDepth(queue, None, problem=str(refusal)))
            elif isinstance(reply, int):
                depths.append(QueueDepth(queue, reply))
            else:
                depths.append(QueueDepth(queue, None, problem="the answer to LLEN is no number"))
        return depths

    def sender(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """Return the one sender of *owner*."""
        return self._senders.get(owner, make)

    def permit(self, acquire_timeout: float) -> AbstractContextManager[None]:
        """Hold a permit for a connection of Celery's own."""
        return self._pool.permit(acquire_timeout)

    def forget(self, task_ids: Sequence[str]) -> None:
        """Have these tasks' markers deleted with the next write."""
        self._taken.extend(marker_of(self.connector, task_id) for task_id in task_ids)

    def statistics(self) -> BrokerStatistics:
        """Return a snapshot."""
        return BrokerStatistics(self.limiter.statistics(), self._sent)

    def close(self) -> None:
        """Close idle connections now, busy ones when their call ends."""
        self._senders.close()
        self._pool.close()
