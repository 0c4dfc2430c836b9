"""
Streams of tasks: what may be taken from the input, and what may be yielded, and when.

Nothing here does I/O or knows of threads or loops. Times are of ``time.monotonic()``.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from attrs import define, field

from ._errors import (
    ClientPoolTimeoutError,
    ConfigurationError,
    InvalidTaskError,
    OperatorConnectionError,
)
from ._results import BatchTaskResult
from ._text import type_name
from .batch import Outcome, outcome_of, result_of, unsubmitted
from .protocol import check_several, check_timeout

#: Tasks that are taken from the input, and queued, together at most.
MOST = 500
#: Seconds for which tasks are gathered from a slow input before they are queued.
GATHER = 0.01
_BROKER_FAILED = OperatorConnectionError | ClientPoolTimeoutError
#: Seconds without a submission after one that failed; they double up to the second.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


def check_arguments(max_in_flight: object, timeout: object) -> int:
    """
    Return the size of a stream's window.

    Raises :class:`ConfigurationError` unless *max_in_flight* is a whole number
    of at least 1, and for a *timeout* (seconds) of 0: there is nobody to look a
    second time.
    """
    if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
        raise ConfigurationError(
            "max_in_flight", max_in_flight, "must be a whole number of at least 1"
        )
    if check_timeout(timeout) == 0:
        raise ConfigurationError(
            "timeout", timeout, "a stream waits for its tasks: must be more than 0 seconds, or None"
        )
    return max_in_flight


@define
class Window:
    """
    The tasks of a stream that are out, or done and not yet yielded: at most ``size``.

    Whoever does the I/O takes :meth:`wanted` tasks from the input, queues them and
    says so to :meth:`add`, gives what comes to :meth:`accept_reply`, sees to what is
    :meth:`overdue`, and yields what :meth:`pop` returns. Results come out as they come
    in, or with ``ordered`` in the order of the input. A task id that is given again while
    it is out has one outcome, which fills all of its places.
    """

    _size: int
    _ordered: bool = False
    _yielded: int = field(default=0, init=False)
    #: Those waited for, the oldest first: id -> its indexes and its deadline.
    _out: "OrderedDict[str, tuple[tuple[int, ...], float]]" = field(factory=OrderedDict, init=False)
    #: Those too late for their timeout, whose result is on its way all the same.
    _coming: dict[str, tuple[int, ...]] = field(factory=dict, init=False)
    _ready: deque[BatchTaskResult] = field(factory=deque, init=False)
    _held: dict[int, BatchTaskResult] = field(factory=dict, init=False)
    _pause: float = field(default=0.0, init=False)
    _paused_until: float = field(default=-math.inf, init=False)
    #: How many tasks have been taken from the input: whoever takes one says so here.
    taken: int = field(default=0, init=False)
    #: How many of those have been queued, or have failed to be: the index of the next.
    added: int = field(default=0, init=False)
    #: Whether the input took its time: then what is ready does not wait for it.
    slow: bool = field(default=False, init=False)

    def __iter__(self) -> Iterator[str]:
        """Yield the ids that are waited for."""
        yield from self._out
        yield from self._coming

    @property
    def empty(self) -> bool:
        """Whether everything that was taken has been yielded."""
        return self.taken == self._yielded

    def wanted(self, now: float) -> int:
        """
        Return how many tasks to take from the input now; 0: yield, or wait, first.

        Many at a time, so that they share commands; but nobody waits for more
        to come. While submissions fail, one task at a time finds out when that
        is over: the input is not used up in an outage.
        """
        room = self._size - (self.taken - self._yielded)
        if not room or now < self._paused_until:
            return 0
        if self._ready and (self.slow or room < max(1, self._size // 4)):
            return 0
        if self._pause:
            return int(self.taken == self.added)
        return min(room, MOST)

    def add(self, queued: Sequence[str | Exception], deadline: float, now: float) -> list[str]:
        """
        Note what became of the next tasks: each one's id, or why it is not (surely) queued.

        Returns the ids that are to be waited for from now on, until the *deadline*. One that
        is out already is not among them; it is given this deadline, too.
        """
        ids = []
        for each in queued:
            index, self.added = self.added, self.added + 1
            if isinstance(each, Exception):
                self._done(unsubmitted(index, getattr(each, "task_id", None), each))
            elif each in self._coming:
                self._coming[each] += (index,)
            else:
                before, _ = self._out.pop(each, ((), 0.0))
                self._out[each] = (*before, index), deadline
                if not before:
                    ids.append(each)
        if any(isinstance(each, _BROKER_FAILED) for each in queued):
            self._pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, 2 * self._pause))
            self._paused_until = now + self._pause
        elif any(isinstance(each, str) for each in queued):
            self._pause = 0.0
        return ids

    def accept_reply(self, task_id: str, reply: Callable[[], object]) -> None:
        """Take what *reply* returns or raises, decoded; an id not waited for is ignored."""
        if task_id in self._out or task_id in self._coming:
            self.accept(task_id, outcome_of(task_id, reply))

    def accept(self, task_id: str, outcome: Outcome) -> None:
        """Take a task's outcome; an id not waited for is ignored."""
        if (indexes := self._coming.pop(task_id, None)) is None:
            indexes, _ = self._out.pop(task_id, ((), 0.0))
        for index in indexes:
            self._done(result_of(index, task_id, outcome))

    def overdue(self, now: float) -> list[str]:
        """Return the ids whose deadline has passed."""
        late = []
        for task_id, (_, deadline) in self._out.items():
            if deadline > now:
                break
            late.append(task_id)
        return late

    def expire(
        self, late: Sequence[str], given_up: Container[str], error: Callable[[str], Exception]
    ) -> None:
        """
        Give up those of :meth:`overdue` that are in *given_up*, each with its *error*.

        The result of the others is on its way, and told to nobody else: it is waited for.
        """
        for task_id in late:
            if task_id in given_up:
                self.accept(task_id, error(task_id))
            elif (entry := self._out.pop(task_id, None)) is not None:
                self._coming[task_id] = entry[0]

    def wake_at(self, *, more: bool) -> float:
        """
        Return until when to wait for results, if none come.

        *more* says whether the input has more tasks.
        """
        first = next(iter(self._out.values()), ((), math.inf))[1]
        room = self.taken - self._yielded < self._size
        return min(first, self._paused_until) if more and room else first

    def pop(self) -> BatchTaskResult | None:
        """Return the next result to be yielded, if there is one."""
        if not self._ready:
            return None
        self._yielded += 1
        return self._ready.popleft()

    def _done(self, result: BatchTaskResult) -> None:
        if not self._ordered:
            self._ready.append(result)
            return
        self._held[result.index] = result
        while (head := self._held.pop(self._yielded + len(self._ready), None)) is not None:
            self._ready.append(head)


@define
class Arrivals:
    """
    Results of tasks that were submitted before, as they come.

    A task id that stands in several places fills them all.
    """

    _waiting: dict[str, tuple[int, ...]] = field(factory=dict, init=False)
    #: The results of what was not, or not certainly, submitted.
    failed: deque[BatchTaskResult] = field(factory=deque, init=False)

    @classmethod
    def of(cls, submissions: object, submission: type[Any], handle: type[Any]) -> "Arrivals":
        """
        Return the places of what was submitted: *submission* and *handle* are its two kinds.

        Raises :class:`InvalidTaskError` for what is neither.
        """
        arrivals = cls()
        given = check_several("submissions", submissions, "submissions or handles")
        for number, each in enumerate(given):
            if isinstance(each, submission):
                arrivals.expect(each.index, each.task_id, each.error)
            elif isinstance(each, handle):
                arrivals.expect(number, each.task_id, None)
            else:
                reason = f"a submission or a handle was expected, not {type_name(each)}"
                raise InvalidTaskError(f"submissions[{number}]", reason)
        return arrivals

    def __iter__(self) -> Iterator[str]:
        """Yield the ids still waited for."""
        return iter(self._waiting)

    def __len__(self) -> int:
        """Return how many ids are still waited for."""
        return len(self._waiting)

    def expect(self, index: int, task_id: str | None, error: Exception | None) -> None:
        """Add a place; *index* is the caller's own number for it."""
        if error is not None or task_id is None:
            self.failed.append(unsubmitted(index, task_id, error))
        else:
            self._waiting[task_id] = (*self._waiting.get(task_id, ()), index)

    def accept_reply(self, task_id: str, reply: Callable[[], object]) -> list[BatchTaskResult]:
        """Return a result for each place of *task_id*; an id not waited for has none."""
        return self.accept(task_id, outcome_of(task_id, reply)) if task_id in self._waiting else []

    def accept(self, task_id: str, outcome: Outcome) -> list[BatchTaskResult]:
        """Return a result for each place of *task_id*, with this outcome."""
        return [result_of(index, task_id, outcome) for index in self._waiting.pop(task_id, ())]
