"""
The hub: one reader thread per result backend, for every client in every thread.

It keeps the push connection, sweeps for what push may have missed, and ends
when nobody has waited for a few seconds. Waiting costs no thread of its own and
no connection.
"""

import logging
import math
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from sandai.op.models import ClientPoolTimeoutError, OperatorError
from sandai.op.transport import (
    IDLE_SECONDS,
    SHORTEST,
    Backend,
    HubStatistics,
    Outage,
    ResultDocument,
    SweepSchedule,
    TransportError,
    Waiter,
    WaiterTable,
)

from ._push_keeper import PushKeeper
from ._push_line import PushLine
from ._wakeup import Wakeup

logger = logging.getLogger("sandai.op.client")

#: Seconds that a sweep waits for a connection: the next sweep comes anyway.
_ACQUIRE_TIMEOUT = 1.0
_CLOSE_TIMEOUT = 1.0
#: Deletions kept for later while they fail; what is beyond that expires by itself.
_MOST_DELETIONS = 10_000


class ResultHub:
    """Tell waiters of results: pushed ones at once, the others by sweeping."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._process = os.getpid()
        self._table = WaiterTable()
        self._schedule = SweepSchedule()
        self._outage = Outage("reading results", logger)
        # Of its own: who may read but not delete gets results all the same.
        self._deletions = Outage("deleting results", logger)
        self._push = PushKeeper(backend, self._table, self._outage)
        self._thread_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._wakeup = Wakeup()
        self._asleep_until = 0.0
        self._gone: deque[tuple[Sequence[str], Waiter]] = deque()
        self._pushed = self._swept = self._sweeps = 0

    def watch(self, task_ids: Iterable[str], waiter: Waiter, *, delete: bool) -> None:
        """
        Have *waiter* told of each task once, by the hub's thread.

        *delete* has the results deleted when they are read.
        """
        self._table.add(task_ids, waiter, delete=delete)
        line = self._push.line
        # From here, not from the hub's thread: a thread switch saved.
        left = line is None or line.flush()
        with self._thread_lock:
            if self._thread is None:
                self._start()
                return
        if left or self._asleep_until > time.monotonic() + SHORTEST:
            self._wakeup.set()

    def unwatch(self, task_ids: Iterable[str], waiter: Waiter) -> set[str]:
        """Stop waiting; return the tasks still waited for, the others are being told."""
        if self._process != os.getpid():
            # In a forked child: the line is the parent's, and the table may be locked for good.
            return set(task_ids)
        given_up = self._table.discard(task_ids, waiter)
        line = self._push.line
        if line is not None and line.flush():
            self._wakeup.set()
        return given_up

    def unwatch_later(self, task_ids: Sequence[str], waiter: Waiter) -> None:
        """Stop waiting soon; for finalizers: no lock, no I/O."""
        self._gone.append((task_ids, waiter))

    @property
    def failure(self) -> OperatorError | None:
        """Why results cannot be read at the moment; ``None`` while they can."""
        return self._outage.error

    def statistics(self) -> HubStatistics:
        """Return a snapshot."""
        return HubStatistics(
            pending=len(self._table),
            pushing=self._push.line is not None,
            pushed=self._pushed,
            swept=self._swept,
            sweeps=self._sweeps,
            push_connects=self._push.opened,
            outage=None if (error := self._outage.error) is None else str(error),
            push_outage=self._push.problem,
        )

    def close(self) -> None:
        """End the thread and its connection; waits for both, not for long."""
        self._closing = True
        with self._thread_lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wakeup.set()
            thread.join(_CLOSE_TIMEOUT)

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in the hub's thread, where nothing may wait for it."""
        return self._thread is threading.current_thread()

    # The thread.

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sandai-op-results", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            # No thread to be had, or interrupted: the next watch tries again, and
            # this one, should it run after all, sees that it is not wanted.
            self._thread = None
            raise

    def _run(self) -> None:
        with self._thread_lock:
            if not self.is_current_thread:
                return
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            self._attended: PushLine | None = None
            idle_since = time.monotonic()
            while True:
                now = time.monotonic()
                if len(self._table):
                    idle_since = now
                if (self._closing or now - idle_since >= IDLE_SECONDS) and self._end():
                    return
                try:
                    self._work(now)
                    self._attend(selector)
                    self._sleep(selector, now)
                except Exception as error:
                    # The reader outlives everything: all the waits depend on it.
                    if self._outage.error is None:
                        logger.exception("reading results failed unexpectedly; going on")
                    said = f"{type(error).__name__}: {error}"
                    self._outage.failed(TransportError(said), time.monotonic())
                    time.sleep(SHORTEST)

    def _end(self) -> bool:
        with self._thread_lock:
            # Who adds to the table looks for a thread after that, under the lock.
            if len(self._table) and not self._closing:
                return False
            self._thread = None
            self._push.close(linger=SHORTEST)
        return True

    def _attend(self, selector: selectors.BaseSelector) -> None:
        line = self._push.line
        if line is not self._attended:
            before, self._attended = self._attended, None
            if before is not None:
                selector.unregister(before)  # which it finds also when that is closed
            if line is not None:
                selector.register(line, selectors.EVENT_READ)
            self._attended = line
        if line is not None:
            writing = selectors.EVENT_WRITE if line.unsent else 0
            selector.modify(line, selectors.EVENT_READ | writing)

    def _sleep(self, selector: selectors.BaseSelector, now: float) -> None:
        # Said before looking at the table: who adds to it after that wakes us.
        self._asleep_until = math.inf
        pushing = self._push.line is not None
        timeout = self._schedule.pause(self._table, now, pushing=pushing)
        self._asleep_until = now + timeout
        ready = {key.fileobj for key, _ in selector.select(timeout)}
        self._asleep_until = 0.0
        if self._wakeup in ready:
            self._wakeup.clear()
        if self._push.line in ready:
            self._receive()

    # Its work.

    def _work(self, now: float) -> None:
        while self._gone:
            self._table.discard(*self._gone.popleft())
        self._push.check()
        line = self._push.line
        if line is not None and line.look_wanted:
            line.look_wanted = False
            self._schedule.look_soon()
        if self._push.line is None and len(self._table):
            pushed = self._push.open_when_possible(now)
            if pushed is not None:
                self._pushed += self._tell(pushed)
                self._schedule.reset(time.monotonic())
        self._apply_changes()
        if len(self._table) and self._outage.try_now(now):
            pushing = self._push.line is not None
            self._look(self._schedule.due(self._table, now, pushing=pushing))

    def _receive(self) -> None:
        documents = self._push.receive(self._schedule.pushed)
        if documents:
            # An acknowledgement says nothing: who may subscribe may be forbidden to read.
            self._outage.worked()
        self._pushed += self._tell(documents)

    def _look(self, task_ids: Sequence[str]) -> None:
        began = time.monotonic()
        for piece in self._schedule.pieces(task_ids):
            try:
                found = self._backend.look(piece, acquire_timeout=_ACQUIRE_TIMEOUT)
            except (TransportError, ClientPoolTimeoutError) as error:
                if isinstance(error, TransportError) and error.maybe_done:
                    self._schedule.unanswered(piece)
                self._outage.failed(error, time.monotonic())
                return
            self._outage.worked()
            self._sweeps += 1
            self._schedule.looked(piece, found, time.monotonic())
            for document in found:
                document.how = "found by a sweep"
            self._swept += self._tell(found)
        self._schedule.took(time.monotonic() - began)

    def _tell(self, documents: Sequence[ResultDocument]) -> int:
        told = [(document, self._table.settle(document)) for document in documents]
        try:
            # Deletions go out before anybody is told: who has the result finds no key.
            self._apply_changes()
        finally:
            # Whatever happens: nobody else will tell them.
            for document, waiters in told:
                for waiter in waiters:
                    try:
                        waiter.deliver(document)
                    except Exception:
                        about = {"task_id": document.task_id}
                        logger.exception("telling of task %s failed", document.task_id, extra=about)
        return sum(bool(waiters) for _, waiters in told)

    def _apply_changes(self) -> None:
        line = self._push.line
        if line is not None:
            line.flush()
            return
        changes = self._table.changes()
        if changes.join:
            self._schedule.look_soon()
        if not changes.delete:
            return
        try:
            if self._closing or self._deletions.try_now(time.monotonic()):
                self._backend.delete(changes.delete, acquire_timeout=_ACQUIRE_TIMEOUT)
                self._deletions.worked()
                return
        except (TransportError, ClientPoolTimeoutError) as error:
            self._deletions.failed(error, time.monotonic())
        self._table.delete(changes.delete[-_MOST_DELETIONS:])
