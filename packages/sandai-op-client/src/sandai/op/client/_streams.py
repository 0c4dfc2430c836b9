"""The streaming calls: results as they come, of tasks that are out a number at a time."""

import os
import time
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Any

from sandai.op.models import BatchTaskResult, stream
from sandai.op.transport import Config, Evidence, Revoker, TaskBuilder, TaskControls

from ._handle import OperatorAsyncResult, SubmittedTask
from ._hub import ResultHub
from ._mailbox import Mailbox
from ._results import ResultReader
from ._submitter import Submitter, Tasks

Results = Generator[BatchTaskResult, None, None]


class StreamCalls:
    """What a client does with tasks that come and go."""

    config: Config
    _submitter: Submitter
    _results: ResultReader
    _revoker: Revoker

    def _learn_options(self, controls: TaskControls, deadline: float) -> TaskControls:
        raise NotImplementedError

    def map(
        self,
        tasks: Tasks,
        *,
        max_in_flight: int = 256,
        ordered: bool = False,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> Results:
        """
        Submit ``(input_artifacts, options)`` pairs and yield a result for each.

        Results come as tasks finish, or with *ordered* in the order of *tasks*;
        ``index`` is the task's number there. *tasks* is any iterable, of any length. It
        is read, in the consumer's thread, as far as *max_in_flight* allows: so many
        tasks are out, or done and not yet yielded.

        *timeout* (seconds) is each task's own, counted from its submission. Whatever
        is wrong with one task (not submitted, late, failed) is the ``error`` of its
        result, and the stream goes on. An exception that *tasks* raises is raised here
        once what is out by then has been yielded.

        When the consumer stops (``break``, ``close()``, an exception), nothing more is
        read or waited for, and *tasks* is closed if it is a generator; one that was never
        begun is left alone.

        The call itself raises :class:`ConfigurationError`,
        :class:`InvalidPriorityError` and :class:`InvalidTaskError` for its arguments;
        the iterator raises :class:`ClientClosedError`.
        """
        self._results.check_open()
        size = stream.check_arguments(max_in_flight, timeout)
        controls = TaskControls(priority, timeout, cancel_key, persistent_output)
        self._submitter.check(controls)
        source = Source(TaskBuilder.iterated(tasks))
        return _Stream(self, source, stream.Window(size, bool(ordered)), controls).results()

    def as_completed(
        self,
        submissions: Iterable[SubmittedTask | OperatorAsyncResult],
        *,
        timeout: float | None = None,
    ) -> Results:
        """
        Yield the results of tasks that were submitted before, as they come.

        *submissions* are what :meth:`batch_submit`, :meth:`async_call` and
        :meth:`attach` returned. ``index`` is a submission's own; a handle's is its
        place in *submissions*. What stands there twice is yielded twice.

        *timeout* (seconds) is one budget for all, counted from the call: what is not
        there by then is yielded at the end, as a :class:`TaskTimeoutError`; 0 looks
        once. The call raises :class:`InvalidTaskError` for what is no submission, the
        iterator :class:`ClientClosedError`, and with a timeout of 0 what a single look
        raises.
        """
        self._results.check_open()
        deadline = self._results.deadline(timeout)
        arrivals = stream.Arrivals.of(submissions, SubmittedTask, OperatorAsyncResult)
        return self._arriving(arrivals, self._results.wait_limit(timeout), deadline)

    def _arriving(self, arrivals: stream.Arrivals, limit: float | None, deadline: float) -> Results:
        while arrivals.failed:
            yield arrivals.failed.popleft()
        delete = self.config.auto_forget_result
        documents = self._results.wait_many(list(arrivals), limit, delete=delete, deadline=deadline)
        for document in documents:
            yield from arrivals.accept_reply(document.task_id, document.reply)
        if late := list(arrivals):
            evidence = self._results.evidence(late) if limit else Evidence()
            if limit:  # a look gives nothing up
                self._revoker.give_up(late)
            for task_id in late:
                error = self._results.too_late(evidence, task_id, limit)
                yield from arrivals.accept(task_id, error)


class Source:
    """The input of a stream."""

    def __init__(self, tasks: Iterator[Any]) -> None:
        self._tasks = tasks
        #: Whether there may be more.
        self.open = True
        #: What the input raised.
        self.error: Exception | None = None

    def take(self, count: int) -> tuple[list[Any], bool]:
        """Return the next tasks, and whether they took their time: then fewer than asked for."""
        taken: list[Any] = []
        began = time.monotonic()
        try:
            while len(taken) < count:
                taken.append(next(self._tasks))
                if time.monotonic() - began > stream.GATHER:
                    return taken, True
        except StopIteration:
            self.open = False
        except Exception as error:
            # Without this frame, which holds what holds the error.
            trace = error.__traceback__ and error.__traceback__.tb_next
            self.open, self.error = False, error.with_traceback(trace)
        return taken, False

    def close(self) -> None:
        """Take no more."""
        self.open = False
        tasks, self._tasks = self._tasks, iter(())
        if isinstance(tasks, Generator):
            tasks.close()


class _Stream:
    """One stream under way."""

    def __init__(
        self, client: StreamCalls, source: Source, window: stream.Window, controls: TaskControls
    ) -> None:
        self._client = client  # which is not to be dropped before its stream
        self._submitter, self._reader = client._submitter, client._results
        self._revoker = client._revoker
        self._delete = client.config.auto_forget_result
        self._source = source
        self._window = window
        self._controls = controls
        self._limit = self._reader.wait_limit(controls.timeout)
        self._queue = self._submitter.queue(controls)
        self._learn = client._learn_options if self._submitter.wants_schema else None

    def results(self) -> Results:
        learn, self._learn = self._learn, None
        if learn is not None:
            learn(self._controls, self._reader.deadline(self._controls.timeout))
            learn = None  # which holds the client
        window = self._window
        with self._reader.mailbox() as mailbox:
            hub = self._reader.hub_to_wait_on()
            held, process = self._revoker.hold(), os.getpid()
            try:
                while self._source.open or not window.empty:
                    self._reader.check_open()
                    self._receive(hub, mailbox, 0.0)
                    if self._source.open and (count := window.wanted(time.monotonic())):
                        self._submit(hub, mailbox, count)
                    elif (result := window.pop()) is not None:
                        yield result
                        del result
                    else:
                        until = window.wake_at(more=self._source.open)
                        self._receive(hub, mailbox, until)
            except GeneratorExit:
                # Dropped, perhaps in a finalizer, inside any lock: the hub's thread sees to it.
                if gone := list(window):
                    hub.unwatch_later(gone, mailbox)
                raise
            except BaseException:
                hub.unwatch(list(window), mailbox)
                raise
            finally:
                if held:
                    self._revoker.let_go(list(window), process)
                self._source.close()
        if self._source.error is not None:
            try:
                raise self._source.error
            finally:
                self._source.error = None

    def _submit(self, hub: ResultHub, mailbox: Mailbox, count: int) -> None:
        window = self._window
        tasks, window.slow = self._source.take(count)
        if not tasks:
            return
        window.taken += len(tasks)
        deadline = self._reader.deadline(self._controls.timeout)
        queued = self._submitter.tasks(tasks, self._controls, first=window.added)
        ids = window.add(queued, deadline, time.monotonic())
        if ids:
            hub.watch(ids, mailbox, delete=self._delete)
            if self._reader.steps is not None:
                self._reader.steps.watching(ids, self._limit)

    def _receive(self, hub: ResultHub, mailbox: Mailbox, until: float) -> None:
        window = self._window
        for document in mailbox.get_all(until):
            window.accept_reply(document.task_id, document.reply)
            if self._reader.steps is not None:
                self._reader.steps.arrived(document, deleted=self._delete)
        if late := window.overdue(time.monotonic()):
            given_up = hub.unwatch(late, mailbox)
            evidence = self._reader.evidence(list(given_up)) if given_up else Evidence()
            self._revoker.give_up(given_up)
            error = partial(self._reader.too_late, evidence, timeout=self._limit, queue=self._queue)
            window.expire(late, given_up, error)
