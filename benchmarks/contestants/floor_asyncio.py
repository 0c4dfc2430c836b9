"""The floor for asyncio: many calls in flight on a loop, and a batch."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Connection
from redis.asyncio.retry import Retry

from .driving import AsyncCall, stay_pending, time_async_batch
from .floor_wire import (
    MOST_TASKS,
    PREFIX,
    Books,
    check,
    connection_kwargs,
    message,
    new_id,
    stamped,
    take,
    without_retry,
)
from .job import Job, tell


class _Loop:
    """Two connections; what becomes ready in one turn of the loop goes out in one write."""

    def __init__(self, job: Job) -> None:
        self._queue = job.queue
        self._template = message(job)
        self._broker: Any = Connection(
            retry=without_retry(Retry), **connection_kwargs(job.broker_url, 2)
        )
        self._push: Any = Connection(
            retry=without_retry(Retry), **connection_kwargs(job.backend_url, 3)
        )
        self._books = Books()
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._messages: deque[bytes] = deque()
        self._join: deque[bytes] = deque()
        self._leave: deque[bytes] = deque()
        self._flushing = False
        self._readers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect and begin to read."""
        for connection in (self._broker, self._push):
            await connection.connect()

        async def as_it_is(response: Any) -> Any:
            return response

        # redis-py's own handler formats each message for its debug log.
        self._push._parser.set_pubsub_push_handler(as_it_is)
        self._readers = [
            asyncio.create_task(self._read_results()),
            asyncio.create_task(self._read_replies()),
        ]

    async def close(self) -> None:
        """Read no more and disconnect."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.wait(self._readers)
        for connection in (self._broker, self._push):
            await connection.disconnect(nowait=True)

    async def call(self, _: int) -> None:
        """Push a task and wait for its result."""
        check(await self.submit())

    def submit(self) -> asyncio.Future[bytes]:
        """Push a task; its result will be in the future."""
        task_id = new_id()
        key = PREFIX + task_id
        future = self._waiting[key] = self._loop.create_future()
        self._messages.append(stamped(self._template, task_id))
        self._join.append(key)
        self._flush_soon()
        return future

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        while self._messages:
            packed = self._broker.pack_command("LPUSH", self._queue, *take(self._messages))
            self._broker._writer.write(b"".join(packed))
        while self._leave or self._join:
            commands = self._books.commands(take(self._leave), take(self._join))
            self._push._writer.write(b"".join(self._push.pack_commands(commands)))

    async def _read_results(self) -> None:
        while True:
            response = await self._push.read_response(push_request=True)
            for key, document in self._books.documents(response):
                if (future := self._waiting.pop(key, None)) is not None:
                    self._leave.append(key)
                    self._flush_soon()  # the deletion is written before the caller goes on
                    if not future.done():
                        future.set_result(document)

    async def _read_replies(self) -> None:
        while True:
            await self._broker.read_response()


@asynccontextmanager
async def many_calls(job: Job) -> AsyncIterator[AsyncCall]:
    """Coroutines of a loop share the two connections."""
    loop = _Loop(job)
    await loop.open()
    yield loop.call
    await loop.close()


def batch(job: Job) -> None:
    """Push everything, some hundred tasks a turn, and wait for all the results."""

    async def main() -> None:
        loop = _Loop(job)
        await loop.open()

        async def work() -> None:
            futures = []
            for number in range(job.requests):
                futures.append(loop.submit())
                if number % MOST_TASKS == MOST_TASKS - 1:
                    await asyncio.sleep(0)
            for future in futures:
                check(await future)

        await time_async_batch(work)
        await loop.close()

    asyncio.run(main())


def pending_calls(job: Job) -> None:
    """Wait with a task for each call, for results that do not come."""

    async def main() -> None:
        loop = _Loop(job)
        await loop.open()
        gc.collect()
        await asyncio.to_thread(tell, "ready")
        calls = [asyncio.create_task(loop.call(number)) for number in range(job.requests)]
        await asyncio.to_thread(stay_pending)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await loop.close()

    asyncio.run(main())
