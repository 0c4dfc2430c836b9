"""The batch calls: submit many, collect many."""

import asyncio
from collections.abc import Iterable
from functools import partial

from sandai.op.models import (
    BatchTaskResult,
    InvalidTaskError,
    LegacyTaskResult,
    OperatorError,
    batch,
    protocol,
)
from sandai.op.transport import (
    UNOBSERVED,
    BatchOutcomes,
    Config,
    Evidence,
    ResultDocument,
    Revoker,
    TaskControls,
    Telemetry,
)

from ._handle import AsyncSubmittedTask, AsyncTaskHandle
from ._results import ResultReader
from ._submitter import Submitter, Tasks
from ._turns import Breath

#: Tasks that are given up before others get their turn.
_EXPIRED = 200


class BatchCalls:
    """What a client does with many tasks at once."""

    config: Config
    _submitter: Submitter
    _results: ResultReader
    _revoker: Revoker
    _telemetry: Telemetry | None

    async def _learn_options(self, controls: TaskControls, deadline: float) -> TaskControls:
        raise NotImplementedError

    async def attach(self, task_id: str) -> AsyncTaskHandle:
        """
        Return a handle on a task that was submitted earlier, or elsewhere; asks nobody.

        Raises :class:`InvalidTaskError` for what is no task's id.
        """
        self._results.check_open()
        return AsyncTaskHandle(protocol.check_task_id(task_id), self._results)

    async def revoke(
        self,
        tasks: Iterable[AsyncTaskHandle | AsyncSubmittedTask | str],
        *,
        terminate: bool = False,
        signal: str = "SIGTERM",
    ) -> None:
        """
        Tell the workers to skip tasks: handles, submissions or task ids; one broadcast.

        Whoever waits for one that has not begun gets :class:`TaskCancelledError`, when
        a worker comes to it. With *terminate* one that runs is sent *signal*, where the
        workers are processes (``-P prefork``). Workers that are not there do not hear
        it. Raises :class:`InvalidTaskError` for what has no task's id,
        :class:`ConfigurationError` for the signal,
        :class:`OperatorConnectionError` and :class:`ClientPoolTimeoutError`.
        """
        several = protocol.check_several("tasks", tasks, "handles, submissions or task ids")
        await self._results.revoke(map(_id_of, several), terminate=terminate, signal=signal)

    async def forget(self, task_ids: Iterable[str]) -> None:
        """
        Delete the results of many tasks, and what tells that they were submitted.

        The latter with the client's next submission: from then on their ids are new ones.
        Raises :class:`OperatorConnectionError`, :class:`ClientPoolTimeoutError`, and
        :class:`InvalidTaskError` for what is no task's id.
        """
        forgotten = list(protocol.check_several("task_ids", task_ids, "task ids"))
        await self._results.forget(forgotten)
        self._submitter.forget(forgotten)

    async def batch_submit(
        self,
        tasks: Tasks,
        *,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> list[AsyncSubmittedTask]:
        """
        Submit ``(input_artifacts, options)`` pairs; many go out in one command.

        A task that cannot be submitted has its ``error``; the others go on. A third
        part, ``(input_artifacts, options, task_id)``, is the task's id: a new one for
        each task, and the same one to submit a task again whose fate is unknown. On
        Redis a task is queued once however often it is submitted within an hour.
        Raises for the controls alone (:class:`InvalidPriorityError`,
        :class:`ConfigurationError`), and when *tasks* is no iterable of pairs.
        """
        self._results.check_open()
        controls = TaskControls(priority, timeout, cancel_key, persistent_output)
        if self._submitter.wants_schema:
            controls = await self._learn_options(controls, self._results.deadline(timeout))
        submissions: list[AsyncSubmittedTask] = []
        breath = Breath()
        outcomes = await self._submitted(tasks, controls)
        link = outcomes.link
        for index, queued in enumerate(outcomes):
            if isinstance(queued, OperatorError):
                submissions.append(AsyncSubmittedTask(index, error=queued, link=link))
            else:
                handle = AsyncTaskHandle(queued, self._results)
                submissions.append(AsyncSubmittedTask(index, handle, link=link))
            if breath.due:
                await breath()
        return submissions

    async def batch_collect(
        self, submissions: Iterable[AsyncSubmittedTask], *, timeout: float | None = None
    ) -> list[BatchTaskResult]:
        """
        Wait for submissions; return a result per submission, in order.

        *timeout* (seconds) is one budget for all: what is not there by then is
        a :class:`TaskTimeoutError` in its own place. Raises
        :class:`ClientClosedError`, :class:`InvalidTaskError` for what is no
        submission, and with a timeout of 0 what a single look raises.
        """
        self._results.check_open()
        deadline = self._results.deadline(timeout)
        reducer, breath = batch.BatchReducer(), Breath()
        links: dict[int, object] = {}  # many share one
        what = "what batch_submit() returned"
        given = protocol.check_several("submissions", submissions, what)
        for number, submission in enumerate(given):
            if not isinstance(submission, AsyncSubmittedTask):
                kind = type(submission).__name__
                reason = f"what batch_submit() returned was expected, not {kind}"
                raise InvalidTaskError(f"submissions[{number}]", reason)
            reducer.expect(submission.index, submission.task_id, submission.error)
            if submission.link is not None:
                links[id(submission.link)] = submission.link
            if breath.due:
                await breath()
        telemetry = self._telemetry
        with (
            UNOBSERVED if telemetry is None else telemetry.collection(links.values(), len(reducer))
        ):
            return await self._results_of(reducer, timeout, deadline)

    async def batch_sync_detailed(
        self,
        tasks: Tasks,
        *,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> list[BatchTaskResult]:
        """
        Submit a batch and collect it; see :meth:`batch_submit`, :meth:`batch_collect`.

        *timeout* is counted from the beginning of the call.
        """
        self._results.check_open()
        deadline = self._results.deadline(timeout)
        controls = TaskControls(priority, timeout, cancel_key, persistent_output)
        if self._submitter.wants_schema:
            controls = await self._learn_options(controls, deadline)
        telemetry = self._telemetry
        with (
            UNOBSERVED if telemetry is None else telemetry.request("batch_sync", priority)
        ) as observed:
            reducer, breath = batch.BatchReducer(), Breath()
            for index, queued in enumerate(await self._submitted(tasks, controls)):
                reducer.expect_queued(index, queued)
                if breath.due:
                    await breath()
            if observed is not None:
                observed.note("messaging.batch.message_count", len(reducer))
            queue = self._submitter.queue(controls)
            return await self._results_of(reducer, timeout, deadline, queue)

    async def batch_async(
        self,
        tasks: Tasks,
        *,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> list[AsyncTaskHandle | None]:
        """Submit a batch; return a handle per task, ``None`` where that failed."""
        submissions = await self.batch_submit(
            tasks,
            priority=priority,
            timeout=timeout,
            cancel_key=cancel_key,
            persistent_output=persistent_output,
        )
        return [submission.handle for submission in submissions]

    async def batch_sync(
        self,
        tasks: Tasks,
        *,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> list[LegacyTaskResult]:
        """Submit and collect; ``(artifacts, results)`` per task, ``([], {})`` for a failure."""
        results = await self.batch_sync_detailed(
            tasks,
            priority=priority,
            timeout=timeout,
            cancel_key=cancel_key,
            persistent_output=persistent_output,
        )
        return [result.to_legacy_tuple() for result in results]

    async def _submitted(self, tasks: Tasks, controls: TaskControls) -> BatchOutcomes:
        unsure: list[str] = []
        try:
            return await self._submitter.tasks(tasks, controls, unsure=unsure)
        except asyncio.CancelledError:
            self._revoker.give_up(unsure)
            raise

    async def _results_of(
        self,
        reducer: batch.BatchReducer,
        timeout: float | None,
        deadline: float,
        queue: str | None = None,
    ) -> list[BatchTaskResult]:
        limit, breath = self._results.wait_limit(timeout), Breath()

        def accept(document: ResultDocument) -> None:
            reducer.accept_reply(document.task_id, document.reply)

        evidence = Evidence()
        try:
            await self._results.wait_many(
                list(reducer),
                limit,
                accept,
                delete=self.config.auto_forget_result,
                deadline=deadline,
            )
            if reducer and limit:
                evidence = await self._results.evidence(list(reducer))
        except asyncio.CancelledError:
            self._revoker.give_up(reducer)
            raise
        if limit:  # a look gives nothing up
            self._revoker.give_up(reducer)
        make = partial(self._results.too_late, evidence, queue=queue)
        while reducer:
            reducer.expire(limit, self._results.failure, most=_EXPIRED, make=make)
            await breath()
        return reducer.results()


def _id_of(task: object) -> object:
    return task.task_id if isinstance(task, AsyncTaskHandle | AsyncSubmittedTask) else task
