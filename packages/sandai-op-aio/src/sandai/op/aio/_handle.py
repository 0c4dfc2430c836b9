"""What a submission returns."""

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from ._results import ResultReader


class AsyncTaskHandle:
    """
    A task that was submitted, now or elsewhere.

    It belongs to its client, and may be used on any loop. ``id`` is another name
    of ``task_id``.
    """

    __slots__ = ("_results", "task_id")

    def __init__(self, task_id: str, results: "ResultReader") -> None:
        #: The task's id.
        self.task_id = task_id
        self._results = results

    @property
    def id(self) -> str:
        """The task's id."""
        return self.task_id

    async def get(self, timeout: float | None = None) -> Any:
        """
        Return the operator's raw reply envelope, and leave it stored.

        *timeout* in seconds, ``None`` for the client's, 0 for a single look. Raises
        :class:`TaskTimeoutError`, :class:`TaskExecutionError` (the Celery task
        failed), :class:`TaskCancelledError` (revoked) and
        :class:`InvalidResultFormatError`. Where it runs out of time, or is cancelled,
        the task is left to others: ``cancel_on_timeout`` is not for handles.
        """
        limit = self._results.wait_limit(timeout)
        document = await self._results.wait(self.task_id, limit, delete=False)
        return document.reply()

    async def ready(self) -> bool:
        """Look once: is it over?"""
        return (await self._results.look(self.task_id)).ready

    async def state(self) -> str:
        """Look once: Celery's state; ``PENDING`` also for what nobody knows."""
        return (await self._results.look(self.task_id)).state

    async def revoke(self, *, terminate: bool = False, signal: str = "SIGTERM") -> None:
        """
        Tell the workers to skip the task.

        Whoever waits for it gets :class:`TaskCancelledError`, when a worker comes to
        it. With *terminate* it is sent *signal* if it runs, where the workers are
        processes (``-P prefork``). Raises :class:`ConfigurationError` for the signal,
        :class:`OperatorConnectionError` and :class:`ClientPoolTimeoutError`.
        """
        await self._results.revoke([self.task_id], terminate=terminate, signal=signal)

    async def forget(self) -> None:
        """Delete the result."""
        await self._results.forget([self.task_id])

    def __reduce__(self) -> Any:
        raise TypeError("a handle belongs to its client: keep its task_id, and attach() to it")

    def __repr__(self) -> str:
        return f"<AsyncTaskHandle {self.task_id}>"


@frozen
class AsyncSubmittedTask:
    """
    What became of one task of a batch that was handed in.

    With an ``error`` it is not, or not certainly, queued; ``task_id`` is then
    told where the fate is unknown.
    """

    index: int
    handle: AsyncTaskHandle | None = None
    error: Exception | None = None
    #: The span that it was submitted in, for links; ``None`` without one.
    _link: object = field(default=None, eq=False, repr=False)

    @property
    def submitted(self) -> bool:
        """Whether the task is in its queue for certain."""
        return self.handle is not None and self.error is None

    @property
    def link(self) -> object:
        """What a span of OpenTelemetry is linked by to the one that it was submitted in."""
        return self._link

    @property
    def task_id(self) -> str | None:
        """The task's id, where there is one."""
        if self.handle is not None:
            return self.handle.task_id
        return getattr(self.error, "task_id", None)
