"""
Group commit: threads that write at the same time have one of them write for all.

A write that is under way takes nobody along; who comes meanwhile is queued, and
the first of those writes for the others when it is over. A lone caller writes at
once, in its own thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

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


class _Entry(Generic[I]):
    """One caller's items, and what became of them."""

    __slots__ = ("is_queued", "items", "outcomes", "woken")

    def __init__(self, items: Sequence[I]) -> None:
        self.items = items
        self.is_queued = True
        self.outcomes: Sequence[Outcome] | None = None
        #: Set when the outcomes are there, and when this caller is the next to write.
        self.woken = threading.Event()


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
        self._queued: deque[_Entry[I]] = deque()
        self._writing = threading.Lock()

    def submit(self, items: Sequence[I], timeout: float) -> Sequence[Outcome]:
        """
        Return an outcome for each item.

        Waits *timeout* seconds for a connection; 0 tries once. Raises
        :class:`ClientPoolTimeoutError`, and :class:`TransportError` when none can be
        opened: then nothing was written.
        """
        entry = _Entry(items)
        deadline = time.monotonic() + timeout
        with self._lock:
            self._queued.append(entry)
        try:
            # Who may not wait does not wait for another's write either.
            if timeout <= 0 or self._writing.acquire(blocking=False):
                self._lead(entry, timeout, turn=timeout > 0)
            while entry.outcomes is None:
                if entry.woken.wait(_STUCK if entry.is_queued else _LONG):
                    entry.woken.clear()
                if entry.is_queued:
                    # The next to write; or whoever writes is stuck, and not waited for.
                    turn = self._writing.acquire(blocking=False)
                    self._lead(entry, max(0.0, deadline - time.monotonic()), turn=turn)
        except ClientPoolTimeoutError:
            raise self._pool.limiter.timeout_error(timeout) from None
        finally:
            self._withdraw(entry)
        return entry.outcomes

    def _lead(self, entry: _Entry[I], timeout: float, *, turn: bool) -> None:
        """Write for all who are queued; with a *turn*, which then is the next one's."""
        try:
            if entry.is_queued:
                self._write_some(timeout)
        except (ClientPoolTimeoutError, TransportError):
            # For want of a connection; unless another took this entry along.
            if self._withdraw(entry):
                raise
        finally:
            if turn:
                self._writing.release()
                # After that: who was queued before found it taken.
                self._wake_next()

    def _write_some(self, timeout: float) -> None:
        entries: list[_Entry[I]] = []
        outcomes: list[Outcome] = []
        interruption = "submitting was interrupted"
        try:
            with self._pool.lease(timeout) as connection:
                self._take(entries)
                if entries:
                    items = [item for entry in entries for item in entry.items]
                    self._write(connection, items, outcomes)
        except TransportError:
            if not entries:
                raise  # else it is theirs, and in their outcomes
        except BaseException as error:
            interruption += f" ({type(error).__name__})"
            raise
        finally:
            missing = sum(len(entry.items) for entry in entries) - len(outcomes)
            outcomes += [TransportError(interruption, True)] * missing
            start = 0
            for taken in entries:
                taken.outcomes = outcomes[start : start + len(taken.items)]
                start += len(taken.items)
                taken.woken.set()

    def _take(self, entries: list[_Entry[I]]) -> None:
        size = 0
        with self._lock:
            while self._queued:
                entry = self._queued[0]
                size += len(entry.items)
                if entries and size > self._most:
                    return
                # In this order: an interruption between leaves nobody without an outcome.
                entries.append(entry)
                entry.is_queued = False
                self._queued.popleft()

    def _withdraw(self, entry: _Entry[I]) -> bool:
        """Take *entry* out of the queue; return ``False`` if another has it."""
        with self._lock:
            if not entry.is_queued:
                return False
            entry.is_queued = False
            self._queued.remove(entry)
            return True

    def _wake_next(self) -> None:
        with self._lock:
            if self._queued:
                self._queued[0].woken.set()
