"""How messages leave a loop: many to a command on Redis, by worker threads elsewhere."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol

from sandai.op.models import ClientPoolTimeoutError, OperatorError
from sandai.op.transport import (
    MESSAGES_PER_WRITE,
    Broker,
    Item,
    LimiterStatistics,
    Outcome,
    QueueDepth,
    RedisBroker,
    Rendering,
    TaskMessage,
    TransportError,
    interrupted,
)

from ._flusher import Entry, Flusher
from ._pool import Lease
from ._redis import LoopConnection
from ._turns import Breath
from ._workers import Workers


class Sender(Protocol):
    """A loop's way into the queues."""

    async def send(self, messages: Sequence[TaskMessage], *, patience: float) -> list[Outcome]:
        """Queue messages; return each one's outcome, as :meth:`Broker.send` does."""

    async def ping(self, message: TaskMessage, *, patience: float, timeout: float | None) -> None:
        """Check that a message could be queued; see :meth:`Broker.ping`."""

    async def depths(
        self, queues: Sequence[str], *, patience: float, timeout: float | None
    ) -> list[QueueDepth]:
        """Return how many messages wait in each queue; see :meth:`Broker.depths`."""


def sender_of(broker: Broker) -> Sender:
    """Return the running loop's sender for a broker."""
    loop = asyncio.get_running_loop()

    def make() -> RedisSender | WorkerSender:
        return (
            RedisSender(broker, loop) if isinstance(broker, RedisBroker) else WorkerSender(broker)
        )

    sender = broker.sender(loop, make)
    assert isinstance(sender, RedisSender | WorkerSender)
    return sender


class RedisSender:
    """Push what the coroutines of one loop submit; a write is never repeated."""

    def __init__(self, broker: RedisBroker, loop: asyncio.AbstractEventLoop) -> None:
        self._broker = broker
        self._flusher = Flusher(
            broker.limiter, broker.connector, loop, self._push, "submit", MESSAGES_PER_WRITE
        )
        self._pool = self._flusher.pool

    async def send(self, messages: Sequence[TaskMessage], *, patience: float) -> list[Outcome]:
        """Push messages, together with those of others."""
        try:
            outcomes: list[Outcome] = await self._flusher.put(messages, len(messages), patience)
        except (TransportError, ClientPoolTimeoutError) as error:
            return [error] * len(messages)
        return outcomes

    def post(
        self, message: TaskMessage, *, patience: float, told: Callable[[Outcome], object]
    ) -> Callable[[], None]:
        """
        Push one message, for a caller that has more to wait for.

        *told* is called with the outcome, in the loop's thread. Returns what takes the
        message back, if it is not being sent yet.
        """

        def settled(outcomes: Any, error: OperatorError | None) -> None:
            told(outcomes[0] if error is None else error)

        entry = self._flusher.post([message], 1, patience, settled)
        return partial(self._flusher.take_back, entry)

    async def ping(self, message: TaskMessage, *, patience: float, timeout: float | None) -> None:
        """Push a message and take it out again in one transaction."""
        async with await self._lease(patience, timeout) as connection:
            replies = await connection.execute(self._broker.ping_commands(message))
            self._broker.check_ping(replies)

    async def depths(
        self, queues: Sequence[str], *, patience: float, timeout: float | None
    ) -> list[QueueDepth]:
        """Ask for the lengths of the queues' lists in one write."""
        async with await self._lease(patience, timeout) as connection:
            replies = await connection.execute(self._broker.depth_commands(queues))
        return self._broker.depths_in(queues, replies)

    async def _lease(self, patience: float, timeout: float | None) -> Lease:
        lease = self._pool.acquire_now() if patience <= 0 else self._pool.try_acquire()
        if lease is None:
            try:
                async with asyncio.timeout(patience):
                    lease = await self._pool.acquire()
            except TimeoutError:
                raise self._broker.limiter.timeout_error(patience) from None
        if timeout and timeout < self._broker.connector.io_timeout:
            lease.io_timeout = timeout
        return lease

    def statistics(self) -> LimiterStatistics:
        """Return the budget's."""
        return self._broker.limiter.statistics()

    def close(self) -> None:
        """Close idle connections now, busy ones when their call ends; in any thread."""
        self._pool.close()

    async def _push(self, connection: LoopConnection, entries: Sequence[Entry]) -> None:
        renderings: list[Rendering] = []
        items: list[Item] = []
        plan = self._broker.plan(items)
        failure: TransportError | None = None
        breath = Breath()
        try:
            for entry in entries:
                # Not before: what waits for its turn is small.
                rendering = Rendering(self._broker)
                for message in entry.item:
                    # Receivers of Celery's signals look at the context of who submits.
                    entry.context.run(rendering.add, message)
                    if breath.due:
                        await breath()
                renderings.append(rendering)
                items += rendering.items
            for write in plan.writes():
                replies: list[Any] = []
                try:
                    await connection.execute(write.commands, replies=replies)
                except BaseException as error:
                    failure = interrupted(error)
                    plan.broke_off(write, replies, failure)
                    raise
                plan.answered(write, replies)
                await breath()
        except BaseException as error:
            failure = failure or interrupted(error)
            raise
        finally:
            self._tell(entries, renderings, plan.finish(failure), failure)

    def _tell(
        self,
        entries: Sequence[Entry],
        renderings: Sequence[Rendering],
        written: list[Outcome],
        failure: TransportError | None,
    ) -> None:
        start = 0
        for entry, rendering in zip_longest(entries, renderings):
            messages: Sequence[TaskMessage] = entry.item
            outcomes: list[Outcome] = []
            if rendering is not None:
                end = start + len(rendering.items)
                outcomes, start = rendering.outcomes(written[start:end]), end
            elif failure is not None:
                outcomes = [failure.for_unsent()] * len(messages)
            entry.resolve(outcomes)
            entry.context.run(self._broker.note_sent, messages, outcomes)


class WorkerSender:
    """Send by a broker that blocks, in its worker threads."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._workers = Workers.of(broker, broker.limiter)

    async def send(self, messages: Sequence[TaskMessage], *, patience: float) -> list[Outcome]:
        """Publish messages, one by one."""
        try:
            outcomes: list[Outcome] = await self._workers.run(
                partial(self._broker.send, messages), patience
            )
        except ClientPoolTimeoutError as error:
            return [error] * len(messages)
        return outcomes

    async def ping(self, message: TaskMessage, *, patience: float, timeout: float | None) -> None:
        """Connect and ask for the queue."""
        await self._workers.run(partial(self._broker.ping, message, timeout=timeout), patience)

    async def depths(
        self, queues: Sequence[str], *, patience: float, timeout: float | None
    ) -> list[QueueDepth]:
        """Ask for each queue with a passive declare."""
        depths: list[QueueDepth] = await self._workers.run(
            partial(self._broker.depths, queues, timeout=timeout), patience
        )
        return depths

    def statistics(self) -> LimiterStatistics:
        """Return the budget's."""
        return self._broker.limiter.statistics()

    def close(self) -> None:
        """Let the worker threads end, in any thread; calls under way are made."""
        self._workers.close()
