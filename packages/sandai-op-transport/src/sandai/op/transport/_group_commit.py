"""
Group commit: threads that write at the same time have one of them write for all.

A write that is under way takes nobody along; who comes meanwhile is queued, and
the first of those writes for the others when it is over. A lone caller writes at
once, in its own thread.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sandai.op.models import ClientPoolTimeoutError

from ._broker import Outcome
from ._errors import TransportError
from ._pool import ConnectionPool

C = TypeVar("C")
I = TypeVar("I")  # noqa: E741  # an item

#: Seconds after which who is queued does not wait for a writer that is stuck.
_STUCK = 0.02
#: Seconds between looks for outcomes that are told anyhow.
_LONG = 1.0


class Posting(Generic[I]):
    """
    One caller's items on their way.

    Until :attr:`outcomes` are there the caller calls :meth:`pursue`, again whenever
    it was woken and after the seconds that the last call returned.
    """

    def __init__(
        self,
        commit: "GroupCommit[Any, I]",
        items: Sequence[I],
        timeout: float,
        wake: "Wake[I]",
    ) -> None:
        self._commit = commit
        self.items = items
        self.timeout = timeout
        self.wake = wake
        self.begun = time.monotonic()
        self.is_queued = True
        #: What became of each item, once that is known.
        self.outcomes: Sequence[Outcome] | None = None

    def pursue(self) -> float:
        """Write, if it is this caller's turn; return for how many seconds to wait for news."""
        if self.is_queued:
            self._commit.write_in_turn(self)
        if self.outcomes is not None:
            return math.inf
        return _STUCK if self.is_queued else _LONG

    def withdraw(self) -> bool:
        """Take the items out of the queue; return ``False`` if they are not there any more."""
        return self._commit.withdraw(self)


#: Called, in any thread, when there are outcomes and when it is the posting's turn to write.
Wake = Callable[[Posting[I]], object]
#: Writes items on a connection; adds an outcome for each, also when it raises.
Write = Callable[[C, Sequence[I], list[Outcome]], None]


class GroupCommit(Generic[C, I]):
    """
    Write the items of many threads with few writes, each caller's in order.

    *write* is called in a caller's thread, under a lease of *pool*, with at most
    *most* items (unless one caller alone brings more).
    """

    def __init__(self, pool: ConnectionPool[C], write: Write[C, I], most: int) -> None:
        self._pool = pool
        self._write = write
        self._most = most
        self._lock = threading.Lock()
        self._queued: deque[Posting[I]] = deque()
        self._writing = threading.Lock()

    def submit(self, items: Sequence[I], timeout: float) -> Sequence[Outcome]:
        """
        Return an outcome for each item.

        Waits *timeout* seconds for a connection; 0 tries once.
        """
        woken = threading.Event()
        posting = self.post(items, timeout, lambda _: woken.set())
        try:
            while True:
                pause = posting.pursue()
                if posting.outcomes is not None:
                    return posting.outcomes
                if woken.wait(pause):
                    woken.clear()
        finally:
            posting.withdraw()

    def post(self, items: Sequence[I], timeout: float, wake: Wake[I]) -> Posting[I]:
        """Queue items, for a caller that has something else to wait for, too."""
        posting = Posting(self, items, timeout, wake)
        with self._lock:
            self._queued.append(posting)
        return posting

    def write_in_turn(self, posting: Posting[I]) -> None:
        """Write for all who are queued, if nobody does, or whoever does is stuck."""
        now = time.monotonic()
        turn = self._writing.acquire(blocking=False)
        # Who may not wait does not wait for another's write either.
        if not turn and posting.timeout > 0 and now - posting.begun < _STUCK:
            return
        try:
            if posting.is_queued:
                self._write_some(posting, max(0.0, posting.begun + posting.timeout - now))
        except (ClientPoolTimeoutError, TransportError) as error:
            # For want of a connection; unless another took these items along.
            if self.withdraw(posting):
                if isinstance(error, ClientPoolTimeoutError):
                    error = self._pool.limiter.timeout_error(posting.timeout)
                posting.outcomes = [error] * len(posting.items)
        finally:
            if turn:
                self._writing.release()
                # After that: who was queued before found it taken.
                self._wake_next()

    def _write_some(self, own: Posting[I], timeout: float) -> None:
        postings: list[Posting[I]] = []
        outcomes: list[Outcome] = []
        interruption = "submitting was interrupted"
        try:
            with self._pool.lease(timeout) as connection:
                self._take(postings)
                if postings:
                    items = [item for posting in postings for item in posting.items]
                    self._write(connection, items, outcomes)
        except TransportError:
            if not postings:
                raise  # else it is theirs, and in their outcomes
        except BaseException as error:
            interruption += f" ({type(error).__name__})"
            raise
        finally:
            missing = sum(len(posting.items) for posting in postings) - len(outcomes)
            if missing:
                outcomes += [TransportError(interruption, True)] * missing
            start = 0
            for taken in postings:
                taken.outcomes = outcomes[start : start + len(taken.items)]
                start += len(taken.items)
                if taken is not own:
                    taken.wake(taken)

    def _take(self, postings: list[Posting[I]]) -> None:
        size = 0
        with self._lock:
            while self._queued:
                posting = self._queued[0]
                size += len(posting.items)
                if postings and size > self._most:
                    return
                # In this order: an interruption between leaves nobody without an outcome.
                postings.append(posting)
                posting.is_queued = False
                self._queued.popleft()

    def withdraw(self, posting: Posting[I]) -> bool:
        """Take a posting out of the queue; return ``False`` if another has it."""
        with self._lock:
            if not posting.is_queued:
                return False
            posting.is_queued = False
            self._queued.remove(posting)
        # It may have been this one's turn.
        self._wake_next()
        return True

    def _wake_next(self) -> None:
        with self._lock:
            if self._queued:
                self._queued[0].wake(self._queued[0])
