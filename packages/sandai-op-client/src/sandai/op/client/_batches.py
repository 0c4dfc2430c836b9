"""The batch calls: submit many, collect many."""

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
from sandai.op.transport import UNOBSERVED, Config, Evidence, Revoker, TaskControls, Telemetry

from ._handle import OperatorAsyncResult, SubmittedTask
from ._results import ResultReader
from ._submitter import Submitter, Tasks


class BatchCalls:
    """What a client does with many tasks at once."""

    config: Config
    _submitter: Submitter
    _results: ResultReader
    _revoker: Revoker
    _telemetry: Telemetry | None

    def _learn_options(self, controls: TaskControls, deadline: float) -> TaskControls:
        raise NotImplementedError

    def attach(self, task_id: str) -> OperatorAsyncResult:
        """
        Return a handle on a task that was submitted earlier, or elsewhere.

        Raises :class:`InvalidTaskError` for what is no task's id.
        """
        self._results.check_open()
        return self._results.handle(task_id)

    def revoke(
        self,
        tasks: Iterable[OperatorAsyncResult | SubmittedTask | str],
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
        self._results.check_open()
        several = protocol.check_several("tasks", tasks, "handles, submissions or task ids")
        self._revoker.revoke(map(_id_of, several), terminate=terminate, signal=signal)

    def forget(self, task_ids: Iterable[str]) -> None:
        """
        Delete the results of many tasks, and what tells that they were submitted.

        The latter with the client's next submission: from then on their ids are new ones.
        Raises :class:`OperatorConnectionError`, :class:`ClientPoolTimeoutError`, and
        :class:`InvalidTaskError` for what is no task's id.
        """
        forgotten = list(protocol.check_several("task_ids", task_ids, "task ids"))
        self._results.forget(forgotten)
        self._submitter.forget(forgotten)

    def batch_submit(
        self,
        tasks: Tasks,
        *,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> list[SubmittedTask]:
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
            controls = self._learn_options(controls, self._results.deadline(timeout))
        outcomes = self._submitter.tasks(tasks, controls)
        return [
            SubmittedTask(index, error=queued, link=outcomes.link)
            if isinstance(queued, OperatorError)
            else SubmittedTask(index, self._results.handle(queued), link=outcomes.link)
            for index, queued in enumerate(outcomes)
        ]

    def batch_collect(
        self, submissions: Iterable[SubmittedTask], *, timeout: float | None = None
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
        reducer = batch.BatchReducer()
        links: dict[int, object] = {}  # many share one
        what = "what batch_submit() returned"
        given = protocol.check_several("submissions", submissions, what)
        for number, submission in enumerate(given):
            if not isinstance(submission, SubmittedTask):
                kind = type(submission).__name__
                reason = f"what batch_submit() returned was expected, not {kind}"
                raise InvalidTaskError(f"submissions[{number}]", reason)
            reducer.expect(submission.index, submission.task_id, submission.error)
            if submission.link is not None:
                links[id(submission.link)] = submission.link
        telemetry = self._telemetry
        with (
            UNOBSERVED if telemetry is None else telemetry.collection(links.values(), len(reducer))
        ):
            return self._results_of(reducer, timeout, deadline)

    def batch_sync_detailed(
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
            controls = self._learn_options(controls, deadline)
        telemetry = self._telemetry
        with (
            UNOBSERVED if telemetry is None else telemetry.request("batch_sync", priority)
        ) as observed:
            # Without handles: nobody sees them, and each costs as much as the task itself.
            reducer = batch.BatchReducer()
            for index, queued in enumerate(self._submitter.tasks(tasks, controls)):
                reducer.expect_queued(index, queued)
            if observed is not None:
                observed.note("messaging.batch.message_count", len(reducer))
            queue = self._submitter.queue(controls)
            return self._results_of(reducer, timeout, deadline, queue)

    def batch_async(
        self,
        tasks: Tasks,
        *,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> list[OperatorAsyncResult | None]:
        """Submit a batch; return a handle per task, ``None`` where that failed."""
        submissions = self.batch_submit(
            tasks,
            priority=priority,
            timeout=timeout,
            cancel_key=cancel_key,
            persistent_output=persistent_output,
        )
        return [submission.async_result for submission in submissions]

    def batch_sync(
        self,
        tasks: Tasks,
        *,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> list[LegacyTaskResult]:
        """Submit and collect; ``(artifacts, results)`` per task, ``([], {})`` for a failure."""
        results = self.batch_sync_detailed(
            tasks,
            priority=priority,
            timeout=timeout,
            cancel_key=cancel_key,
            persistent_output=persistent_output,
        )
        return [result.to_legacy_tuple() for result in results]

    def _results_of(
        self,
        reducer: batch.BatchReducer,
        timeout: float | None,
        deadline: float,
        queue: str | None = None,
    ) -> list[BatchTaskResult]:
        limit, delete = self._results.wait_limit(timeout), self.config.auto_forget_result
        documents = self._results.wait_many(list(reducer), limit, delete=delete, deadline=deadline)
        for document in documents:
            reducer.accept_reply(document.task_id, document.reply)
        if reducer:
            evidence = self._results.evidence(list(reducer)) if limit else Evidence()
            if limit:  # a look gives nothing up
                self._revoker.give_up(reducer)
            make = partial(self._results.too_late, evidence, queue=queue)
            reducer.expire(limit, self._results.failure, make=make)
        return reducer.results()


def _id_of(task: object) -> object:
    return task.task_id if isinstance(task, OperatorAsyncResult | SubmittedTask) else task
