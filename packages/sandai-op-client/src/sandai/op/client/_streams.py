"""The streaming calls: as many tasks as the input has, some of them out at a time."""

import time
from collections.abc import Generator, Iterator
from typing import Any

from sandai.op.models import BatchTaskResult, stream
from sandai.op.transport import Config, TaskBuilder, TaskControls

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
        read or waited for, and *tasks* is closed if it is a generator.

        The call itself raises :class:`ConfigurationError`,
        :class:`InvalidPriorityError` and :class:`InvalidTaskError` for its arguments;
        the iterator raises :class:`ClientClosedError`.
        """
        self._results.check_open()
        size = stream.check_arguments(max_in_flight, timeout)
        controls = TaskControls(priority, timeout, cancel_key, persistent_output)
        self._submitter.check(controls)
        source = Source(TaskBuilder.iterated(tasks))
        return _Stream(self, source, stream.Window(size, ordered), controls).results()


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
        self._submitter, self._reader = client._submitter, client._results
        self._delete = client.config.auto_forget_result
        self._source = source
        self._window = window
        self._controls = controls
        self._limit = self._reader.wait_limit(controls.timeout)

    def results(self) -> Results:
        window = self._window
        hub = None
        with self._reader.mailbox() as mailbox:
            try:
                hub = self._reader.hub_to_wait_on()
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
                if hub is not None and (gone := list(window)):
                    hub.unwatch_later(gone, mailbox)
                raise
            except BaseException:
                if hub is not None:
                    hub.unwatch(list(window), mailbox)
                raise
            finally:
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
        deadline = self._reader.deadline(self._controls.timeout)
        queued = self._submitter.tasks(tasks, self._controls, first=window.taken)
        ids = window.add(queued, deadline, time.monotonic())
        if ids:
            hub.watch(ids, mailbox, delete=self._delete)

    def _receive(self, hub: ResultHub, mailbox: Mailbox, until: float) -> None:
        window = self._window
        for document in mailbox.get_all(until):
            window.accept_reply(document.task_id, document.reply)
        late = window.overdue(time.monotonic())
        if not late:
            return
        given_up = hub.unwatch(late, mailbox)
        for task_id in late:
            if task_id in given_up:
                window.accept(task_id, self._reader.late(task_id, self._limit))
            else:
                # Taken for us at the last moment: nobody else will be told of it.
                window.expect_late(task_id)
