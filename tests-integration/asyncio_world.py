"""The scenarios' view of the client for asyncio: a loop in a thread, each call handed to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from attrs import frozen

import scripted_operator
from queues import Queues, RedisQueues
from sandai.op.aio import (
    AsyncOperatorClient,
    AsyncSubmittedTask,
    AsyncTaskHandle,
    ResultStream,
)
from sandai.op.models import BatchTaskResult, HealthCheckResult
from sandai.op.transport import BackendStatistics, BrokerStatistics, Inspection
from scenarios import ClientView, Handle, Results, Submission, Task

R = TypeVar("R")


class LoopThread:
    """An event loop in a thread, until the ``with`` block is left."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.run(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Return what a coroutine returns on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def _cancel_all(self) -> None:
        # As asyncio.run() does.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@frozen
class BlockingHandle:
    """An ``AsyncTaskHandle`` whose calls block."""

    handle: AsyncTaskHandle
    loop: LoopThread

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.handle.task_id

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the reply envelope."""
        return self.loop.run(self.handle.get(timeout=timeout))

    def ready(self) -> bool:
        """Look once."""
        return self.loop.run(self.handle.ready())

    def state(self) -> str:
        """Look once."""
        return self.loop.run(self.handle.state())

    def forget(self) -> None:
        """Delete the result."""
        self.loop.run(self.handle.forget())

    def revoke(self, *, terminate: bool = False, signal: str = "SIGTERM") -> None:
        """Revoke."""
        self.loop.run(self.handle.revoke(terminate=terminate, signal=signal))


class BlockingStream:
    """A ``ResultStream`` whose calls block."""

    def __init__(self, stream: ResultStream, loop: LoopThread) -> None:
        self._stream = stream
        self._loop = loop

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BatchTaskResult:
        """Wait for the next one."""
        found = self._loop.run(self._next())
        if found is None:
            raise StopIteration
        return found

    async def _next(self) -> BatchTaskResult | None:
        return await anext(self._stream, None)

    def close(self) -> None:
        """Stop."""
        self._loop.run(self._stream.aclose())


def native(task: Any) -> Any:
    """Return what the client knows."""
    if isinstance(task, Submission):
        return task.native
    return task.handle if isinstance(task, BlockingHandle) else task


class AsyncioClientView:
    """An ``AsyncOperatorClient`` whose calls block."""

    def __init__(self, client: AsyncOperatorClient, loop: LoopThread) -> None:
        self.client = client
        self._loop = loop

    def async_call(self, artifacts: Any, options: Any, **controls: Any) -> Handle:
        """Submit."""
        return self._handle(self._loop.run(self.client.async_call(artifacts, options, **controls)))

    def sync(self, artifacts: Any, options: Any, **controls: Any) -> tuple[Any, Any]:
        """Submit and wait."""
        return self._loop.run(self.client.sync(artifacts, options, **controls))

    def desc(self) -> dict[str, Any]:
        """Describe."""
        return self._loop.run(self.client.desc())

    def batch_submit(self, tasks: Sequence[Task], **controls: Any) -> list[Submission]:
        """Submit a batch."""
        return [
            Submission(
                task.index,
                None if task.handle is None else self._handle(task.handle),
                task.error,
                task.submitted,
                task.task_id,
                task,
            )
            for task in self._loop.run(self.client.batch_submit(tasks, **controls))
        ]

    def batch_collect(
        self, submissions: Sequence[Submission], **controls: Any
    ) -> list[BatchTaskResult]:
        """Collect a batch."""
        native: list[AsyncSubmittedTask] = [submission.native for submission in submissions]
        return self._loop.run(self.client.batch_collect(native, **controls))

    def batch_sync_detailed(self, tasks: Sequence[Task], **controls: Any) -> list[BatchTaskResult]:
        """Submit and collect a batch."""
        return self._loop.run(self.client.batch_sync_detailed(tasks, **controls))

    def batch_async(self, tasks: Sequence[Task], **controls: Any) -> list[Handle | None]:
        """Submit a batch, the older way."""
        return [
            None if handle is None else self._handle(handle)
            for handle in self._loop.run(self.client.batch_async(tasks, **controls))
        ]

    def batch_sync(self, tasks: Sequence[Task], **controls: Any) -> list[tuple[Any, Any]]:
        """Submit and collect a batch, the older way."""
        return list(self._loop.run(self.client.batch_sync(tasks, **controls)))

    def map(self, tasks: Any, **controls: Any) -> Results:
        """Stream."""
        return BlockingStream(self.client.map(tasks, **controls), self._loop)

    def as_completed(self, submissions: Sequence[Any], **controls: Any) -> Results:
        """Stream results."""
        given = [native(each) for each in submissions]
        return BlockingStream(self.client.as_completed(given, **controls), self._loop)

    def revoke(self, tasks: Sequence[Any], **how: Any) -> None:
        """Revoke."""
        self._loop.run(self.client.revoke([native(each) for each in tasks], **how))

    def ping(self, timeout: float = 10) -> bool:
        """Ping."""
        return self._loop.run(self.client.ping(timeout))

    def probe(self, timeout: float = 10) -> HealthCheckResult:
        """Probe."""
        return self._loop.run(self.client.probe(timeout))

    def get_queue_info(self) -> dict[str, str]:
        """Name the queues."""
        return self.client.get_queue_info()

    def attach(self, task_id: str) -> Handle:
        """Return a handle."""
        return self._handle(self._loop.run(self.client.attach(task_id)))

    def get_all(self, task_ids: Sequence[str], timeout: float) -> list[Any]:
        """Wait for tasks, each in a coroutine of its own."""

        async def get(task_id: str) -> Any:
            return await (await self.client.attach(task_id)).get(timeout=timeout)

        async def gather() -> list[Any]:
            return await asyncio.gather(*map(get, task_ids))

        return self._loop.run(gather())

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete many results."""
        self._loop.run(self.client.forget(task_ids))

    def statistics(self) -> tuple[BrokerStatistics, BackendStatistics]:
        """Tell of its connections and of who waits."""
        return self.client.statistics()

    def inspect(self, timeout: float = 2.0) -> Inspection:
        """Tell what there is to see."""
        return self._loop.run(self.client.inspect(timeout))

    def close(self) -> None:
        """Close."""
        self._loop.run(self.client.aclose())

    def _handle(self, handle: AsyncTaskHandle) -> Handle:
        return BlockingHandle(handle, self._loop)


class AsyncioWorld:
    """A loop in a thread, the scripted operator, its queues and its database."""

    def __init__(
        self, url: str, redis_client: Any, queues: Queues | None = None, **settings: Any
    ) -> None:
        self.redis = redis_client
        self.queues: Queues = queues or RedisQueues(redis_client)
        self._settings = {"broker_url": url, "timeout": 20, **settings}
        self._loop = LoopThread()
        self._clients: list[AsyncOperatorClient] = []

    def client(self, name: str = scripted_operator.NAME, **kwargs: Any) -> ClientView:
        """Make a client of an operator, the scripted one unless told; it is closed at the end."""
        settings = {**self._settings, **kwargs}
        self._clients.append(AsyncOperatorClient(name, scripted_operator.VERSION, **settings))
        return AsyncioClientView(self._clients[-1], self._loop)

    def __enter__(self) -> Self:
        self._loop.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for client in self._clients:
            self._loop.run(client.aclose())
        self._loop.__exit__(kind, error, traceback)
