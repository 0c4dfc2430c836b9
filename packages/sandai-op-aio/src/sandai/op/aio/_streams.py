"""The streaming calls: results as they come, of tasks that are out a number at a time."""

from collections.abc import AsyncIterable, Iterable

from sandai.op.models import stream
from sandai.op.transport import Config, Revoker, TaskControls

from ._arrivals import Arriving
from ._handle import AsyncSubmittedTask, AsyncTaskHandle
from ._result_stream import ResultStream
from ._results import ResultReader
from ._source import Source
from ._streaming import Streaming
from ._submitter import Submitter, Task, Tasks


class StreamCalls:
    """What a client does with tasks that come and go."""

    config: Config
    _submitter: Submitter
    _results: ResultReader
    _revoker: Revoker

    async def _learn_options(self, controls: TaskControls, deadline: float) -> TaskControls:
        raise NotImplementedError

    def map(
        self,
        tasks: Tasks | AsyncIterable[Task],
        *,
        max_in_flight: int = 256,
        ordered: bool = False,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> ResultStream:
        """
        Submit ``(input_artifacts, options)`` pairs and give a result for each.

        Results come as tasks finish, or with *ordered* in the order of *tasks*;
        ``index`` is the task's number there. *tasks* is any iterable or async iterable,
        of any length. It is read, in a task of the stream's own, as far as
        *max_in_flight* allows: so many tasks are out, or done and not yet taken.

        *timeout* (seconds) is each task's own, counted from its submission. Whatever
        is wrong with one task (not submitted, late, failed) is the ``error`` of its
        result, and the stream goes on. An exception that *tasks* raises is raised here
        once what is out by then has been taken.

        When the consumer stops (``break``, ``aclose()``, an exception, a cancellation),
        nothing more is read or waited for, and *tasks* is closed if it is a generator.
        Use :func:`contextlib.aclosing` to have that done where the block is left.

        The call itself raises :class:`ConfigurationError`,
        :class:`InvalidPriorityError` and :class:`InvalidTaskError` for its arguments;
        the iterator raises :class:`ClientClosedError`.
        """
        self._results.check_open()
        size = stream.check_arguments(max_in_flight, timeout)
        controls = TaskControls(priority, timeout, cancel_key, persistent_output)
        self._submitter.check(controls)
        window = stream.Window(size, bool(ordered))
        work = Streaming(
            self._submitter,
            self._results,
            self._revoker,
            Source(tasks),
            window,
            controls,
            delete=self.config.auto_forget_result,
            learn=self._learn_options if self._submitter.wants_schema else None,
        )
        return ResultStream(work, self)

    def as_completed(
        self,
        submissions: Iterable[AsyncSubmittedTask | AsyncTaskHandle],
        *,
        timeout: float | None = None,
    ) -> ResultStream:
        """
        Give the results of tasks that were submitted before, as they come.

        *submissions* are what :meth:`batch_submit`, :meth:`async_call` and
        :meth:`attach` returned. ``index`` is a submission's own; a handle's is its
        place in *submissions*. What stands there twice is given twice.

        *timeout* (seconds) is one budget for all, counted from the call: what is not
        there by then is given at the end, as a :class:`TaskTimeoutError`; 0 looks
        once. The call raises :class:`InvalidTaskError` for what is no submission, the
        iterator :class:`ClientClosedError`, and with a timeout of 0 what a single look
        raises.
        """
        self._results.check_open()
        deadline = self._results.deadline(timeout)
        arrivals = stream.Arrivals.of(submissions, AsyncSubmittedTask, AsyncTaskHandle)
        work = Arriving(
            self._results,
            self._revoker,
            arrivals,
            self._results.wait_limit(timeout),
            deadline,
            delete=self.config.auto_forget_result,
        )
        return ResultStream(work, self)
