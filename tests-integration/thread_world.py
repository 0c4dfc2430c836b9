"""The scenarios' view of the client for threads: thin, for that client blocks anyway."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from attrs import frozen
from celery.result import ResultSet

import scripted_operator
from queues import Queues, RedisQueues
from sandai.op.client import OperatorAsyncResult, OperatorClient, SubmittedTask
from sandai.op.models import BatchTaskResult, HealthCheckResult
from sandai.op.transport import BackendStatistics, BrokerStatistics, Inspection
from scenarios import ClientView, Handle, Results, Submission, Task


@frozen
class ThreadHandle:
    """An ``AsyncResult`` with the asyncio handle's methods."""

    result: OperatorAsyncResult

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.result.task_id

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the reply envelope."""
        return self.result.get(timeout=timeout)

    def ready(self) -> bool:
        """Look once."""
        ready: bool = self.result.ready()
        return ready

    def state(self) -> str:
        """Look once."""
        return str(self.result.state)

    def forget(self) -> None:
        """Delete the result."""
        self.result.forget()

    def revoke(self, *, terminate: bool = False, signal: str = "SIGTERM") -> None:
        """Revoke."""
        self.result.revoke(terminate=terminate, signal=signal)


def native(task: Any) -> Any:
    """Return what the client knows."""
    if isinstance(task, Submission):
        return task.native
    return task.result if isinstance(task, ThreadHandle) else task


class ThreadClientView:
    """An ``OperatorClient``."""

    def __init__(self, client: OperatorClient) -> None:
        self.client = client

    def async_call(self, artifacts: Any, options: Any, **controls: Any) -> Handle:
        """Submit."""
        return ThreadHandle(self.client.async_call(artifacts, options, **controls))

    def sync(self, artifacts: Any, options: Any, **controls: Any) -> tuple[Any, Any]:
        """Submit and wait."""
        return self.client.sync(artifacts, options, **controls)

    def desc(self) -> dict[str, Any]:
        """Describe."""
        return self.client.desc

    def batch_submit(self, tasks: Sequence[Task], **controls: Any) -> list[Submission]:
        """Submit a batch."""
        return [
            Submission(
                task.index,
                None if task.async_result is None else ThreadHandle(task.async_result),
                task.error,
                task.submitted,
                task.task_id,
                task,
            )
            for task in self.client.batch_submit(tasks, **controls)
        ]

    def batch_collect(
        self, submissions: Sequence[Submission], **controls: Any
    ) -> list[BatchTaskResult]:
        """Collect a batch."""
        native: list[SubmittedTask] = [submission.native for submission in submissions]
        return self.client.batch_collect(native, **controls)

    def batch_sync_detailed(self, tasks: Sequence[Task], **controls: Any) -> list[BatchTaskResult]:
        """Submit and collect a batch."""
        return self.client.batch_sync_detailed(tasks, **controls)

    def batch_async(self, tasks: Sequence[Task], **controls: Any) -> list[Handle | None]:
        """Submit a batch, the older way."""
        return [
            None if result is None else ThreadHandle(result)
            for result in self.client.batch_async(tasks, **controls)
        ]

    def batch_sync(self, tasks: Sequence[Task], **controls: Any) -> list[tuple[Any, Any]]:
        """Submit and collect a batch, the older way."""
        return list(self.client.batch_sync(tasks, **controls))

    def map(self, tasks: Any, **controls: Any) -> Results:
        """Stream."""
        return self.client.map(tasks, **controls)

    def as_completed(self, submissions: Sequence[Any], **controls: Any) -> Results:
        """Stream results."""
        return self.client.as_completed([native(each) for each in submissions], **controls)

    def revoke(self, tasks: Sequence[Any], **how: Any) -> None:
        """Revoke."""
        self.client.revoke([native(each) for each in tasks], **how)

    def ping(self, timeout: float = 10) -> bool:
        """Ping."""
        return self.client.ping(timeout)

    def probe(self, timeout: float = 10) -> HealthCheckResult:
        """Probe."""
        return self.client.probe(timeout)

    def get_queue_info(self) -> dict[str, str]:
        """Name the queues."""
        return self.client.get_queue_info()

    def attach(self, task_id: str) -> Handle:
        """Return a handle."""
        return ThreadHandle(self.client.attach(task_id))

    def get_all(self, task_ids: Sequence[str], timeout: float) -> list[Any]:
        """Wait for tasks, a handle for each, all of them waited for from the beginning."""
        handles = ResultSet([self.client.attach(task_id) for task_id in task_ids])
        replies: list[Any] = handles.join(timeout=timeout)
        return replies

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete many results."""
        self.client.forget(task_ids)

    def statistics(self) -> tuple[BrokerStatistics, BackendStatistics]:
        """Tell of its connections and of who waits."""
        return self.client.statistics()

    def inspect(self, timeout: float = 2.0) -> Inspection:
        """Tell what there is to see."""
        return self.client.inspect(timeout)

    def close(self) -> None:
        """Close."""
        self.client.close()


class ThreadWorld:
    """Threads, the scripted operator, its queues and its database."""

    def __init__(
        self, url: str, redis_client: Any, queues: Queues | None = None, **settings: Any
    ) -> None:
        self.redis = redis_client
        self.queues: Queues = queues or RedisQueues(redis_client)
        self._settings = {"broker_url": url, "timeout": 20, **settings}
        self._clients: list[OperatorClient] = []

    def client(self, name: str = scripted_operator.NAME, **kwargs: Any) -> ClientView:
        """Make a client of an operator, the scripted one unless told; it is closed at the end."""
        settings = {**self._settings, **kwargs}
        self._clients.append(OperatorClient(name, scripted_operator.VERSION, **settings))
        return ThreadClientView(self._clients[-1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()
