"""The batch reducer: outcomes in any order in, one result per task in order out."""

from collections.abc import Callable, Iterator
from itertools import islice

from attrs import define, field

from ._errors import OperatorError, TaskTimeoutError
from ._results import BatchTaskResult, TaskResult
from .protocol import decode_reply

Outcome = TaskResult | Exception


def outcome_of(task_id: str, reply: Callable[[], object]) -> Outcome:
    """Return what *reply* returns, decoded, or the error that it raises or tells of."""
    try:
        return decode_reply(task_id, reply())
    except OperatorError as error:
        return error


def result_of(index: int, task_id: str, outcome: Outcome) -> BatchTaskResult:
    """Return the result of a task that was queued."""
    if isinstance(outcome, TaskResult):
        return BatchTaskResult(index, task_id, True, outcome.artifacts, outcome.results)
    return BatchTaskResult(index, task_id, True, error=outcome)


def unsubmitted(index: int, task_id: str | None, error: Exception | None) -> BatchTaskResult:
    """Return the result of a task that was not, or not certainly, queued."""
    fault = error or OperatorError("the task was not submitted")
    return BatchTaskResult(index, task_id, False, error=fault)


@define
class BatchReducer:
    """
    Gather a batch's outcomes; whoever does the I/O feeds it.

    Give every submission to :meth:`expect`, every outcome to :meth:`accept`,
    and read :meth:`results`. A task id that stands in several places (the same
    submission handed in twice) fills them all.
    """

    #: The results; while one is open, the caller's index stands in its place.
    _places: list[BatchTaskResult | int] = field(factory=list, init=False)
    #: The places of each id.
    _waiting: dict[str, tuple[int, ...]] = field(factory=dict, init=False)

    def expect(self, index: int, task_id: str | None, error: Exception | None) -> None:
        """
        Add the next place of the batch.

        *index* is the caller's own number for it. With an *error*, or without
        an id, it was not (certainly) submitted and is not waited for.
        """
        if error is not None or task_id is None:
            self._places.append(unsubmitted(index, task_id, error))
            return
        self._waiting[task_id] = (*self._waiting.get(task_id, ()), len(self._places))
        self._places.append(index)

    def expect_queued(self, index: int, queued: str | Exception) -> None:
        """Add the next place, of a task's id or of why it was not (certainly) submitted."""
        if isinstance(queued, Exception):
            self.expect(index, getattr(queued, "task_id", None), queued)
        else:
            self.expect(index, queued, None)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids still waited for."""
        return iter(self._waiting)

    def __len__(self) -> int:
        """Return how many ids are still waited for."""
        return len(self._waiting)

    def accept(self, task_id: str, outcome: Outcome) -> None:
        """Fill the places of *task_id*; an id not waited for is ignored."""
        for position in self._waiting.pop(task_id, ()):
            index = self._places[position]
            assert isinstance(index, int)
            self._places[position] = result_of(index, task_id, outcome)

    def expire(
        self,
        timeout: float | None,
        cause: BaseException | None = None,
        *,
        most: int | None = None,
        make: Callable[[str, float | None], TaskTimeoutError] = TaskTimeoutError,
    ) -> None:
        """
        Fill what is still open, or *most* of it, with :class:`TaskTimeoutError`.

        *make* makes each, of a task id and the timeout.
        """
        for task_id in list(islice(self._waiting, most)):
            error = make(task_id, timeout)
            error.__cause__ = cause
            self.accept(task_id, error)

    def accept_reply(self, task_id: str, reply: Callable[[], object]) -> None:
        """Fill the places of *task_id* with what *reply* returns or raises, decoded."""
        self.accept(task_id, outcome_of(task_id, reply))

    def results(self) -> list[BatchTaskResult]:
        """
        Return a result per place, in the order of :meth:`expect`.

        Raises :class:`OperatorError` while ids are still waited for.
        """
        if self._waiting:
            raise OperatorError(f"{len(self)} tasks are still waited for")
        return [place for place in self._places if isinstance(place, BatchTaskResult)]
