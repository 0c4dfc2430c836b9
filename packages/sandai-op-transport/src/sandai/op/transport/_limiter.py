"""
The fair limiter: connection permits, first come, first served.

One limiter guards one budget for every thread and every event loop of the
process. It decides; it does no I/O and closes nothing under its lock.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Protocol
from weakref import WeakValueDictionary

from attrs import define, frozen

from sandai.op.models import ClientPoolTimeoutError

#: Queued tickets from which on those of callers who left are looked for.
_PURGE_AT = 64


#: Told of each caller that had to queue: whose limiter, for how many seconds, and whether it
#: got a permit in the end. ``None`` as long as nobody measures.
on_wait: "Callable[[Limiter, float, bool], None] | None" = None


class ConnectionOwner(Protocol):
    """Whoever keeps idle connections: the threads' pool, or one event loop's."""

    def evict(self, connection: Any, closed: Callable[[], None]) -> None:
        """Close an idle connection, then call *closed*. Never raises, never waits long."""


@frozen
class LimiterStatistics:
    """A limiter at one moment; all are numbers of connections or of callers."""

    name: str
    limit: int
    in_use: int
    idle: int
    waiting: int


@define(eq=False)
class _Idle:
    connection: Any
    owner: ConnectionOwner
    since: float


@define(eq=False)
class _Ticket:
    owner: ConnectionOwner
    #: Resolves to an idle connection of the same owner, or to ``None``: open one.
    granted: "Future[Any]"


class Limiter:
    """
    Hand out at most *limit* permits, in the order of asking.

    A permit belongs to one connection for as long as that is open, in use or
    idle. A grant carries the owner's most recently used idle connection, or
    ``None``, which is leave to open a new one. Nobody barges past the queue; a
    queued caller has the connection that is idle longest closed, whoever keeps
    it.
    """

    def __init__(self, name: str, limit: int, key: Hashable = None) -> None:
        self.name = name
        self.limit = limit
        #: The sharing key of what it guards.
        self.key = key
        self._lock = threading.Lock()
        self._free = limit
        self._idle: deque[_Idle] = deque()  # longest idle first
        self._queue: deque[_Ticket] = deque()
        self._evicting = 0
        self._purge_at = _PURGE_AT

    def try_acquire(self, owner: ConnectionOwner) -> tuple[bool, Any]:
        """Return ``(granted, connection or None)`` without waiting or evicting."""
        with self._lock:
            return self._take(owner)

    def request(self, owner: ConnectionOwner) -> "Future[Any]":
        """
        Queue for a permit; the future resolves to a connection or ``None``.

        Cancel the future to leave the queue. When cancelling fails the permit
        was granted meanwhile: take the result and give it back.
        """
        with self._lock:
            granted, connection = self._take(owner)
            future: Future[Any] = Future()
            if granted:
                future.set_running_or_notify_cancel()
                future.set_result(connection)
                return future
            self._purge()
            self._queue.append(_Ticket(owner, future))
            victim = self._pick_victim()
        if on_wait is not None:
            self._time(future, on_wait)
        if victim is not None:
            try:
                victim.owner.evict(victim.connection, self._evicted)
            except BaseException:
                self._leave(owner, future)
                raise
        return future

    def acquire(self, owner: ConnectionOwner, timeout: float | None) -> Any:
        """
        Return an idle connection of *owner*, or ``None`` for leave to open one.

        Waits *timeout* seconds (``None``: for good; 0: tries once), then raises
        :class:`ClientPoolTimeoutError`.
        """
        granted, connection = self.try_acquire(owner)
        if granted:
            return connection
        future = self.request(owner)
        try:
            try:
                return future.result(timeout)
            except FutureTimeoutError:
                if not future.cancel():
                    return future.result()
                raise self.timeout_error(timeout or 0.0) from None
        except BaseException:
            self._leave(owner, future)
            raise

    def release(self, owner: ConnectionOwner, connection: Any = None) -> None:
        """
        Give a permit back, with its open connection or (closed) without.

        With a connection, the caller is *owner*'s own thread or loop.
        """
        with self._lock:
            ticket = self._next_ticket()
            if ticket is None:
                if connection is None:
                    self._free += 1
                else:
                    self._idle.append(_Idle(connection, owner, time.monotonic()))
                return
        if connection is None or ticket.owner is owner:
            ticket.granted.set_result(connection)
        else:
            owner.evict(connection, lambda: ticket.granted.set_result(None))

    def take_idle(self, owner: ConnectionOwner, idle_since: float) -> list[Any]:
        """
        Remove and return *owner*'s connections idle since before *idle_since*.

        *idle_since* is of ``time.monotonic()``. The caller closes each, then
        calls :meth:`release` once for each.
        """
        with self._lock:
            taken = [i for i in self._idle if i.owner is owner and i.since <= idle_since]
            for item in taken:
                self._idle.remove(item)
        return [item.connection for item in taken]

    def idle_count(self, owner: ConnectionOwner) -> int:
        """Return how many idle connections *owner* keeps."""
        with self._lock:
            return sum(item.owner is owner for item in self._idle)

    def statistics(self) -> LimiterStatistics:
        """Return a snapshot."""
        with self._lock:
            idle = len(self._idle)
            waiting = sum(not ticket.granted.cancelled() for ticket in self._queue)
            return LimiterStatistics(
                self.name, self.limit, self.limit - self._free - idle, idle, waiting
            )

    def timeout_error(self, timeout: float) -> ClientPoolTimeoutError:
        """Return the error for a caller that waited *timeout* seconds in vain."""
        now = self.statistics()
        return ClientPoolTimeoutError(self.name, timeout, self.limit, now.in_use, now.waiting)

    def _time(self, future: "Future[Any]", told: "Callable[[Limiter, float, bool], None]") -> None:
        began = time.monotonic()

        def over(future: "Future[Any]") -> None:
            told(self, time.monotonic() - began, not future.cancelled())

        future.add_done_callback(over)

    def _leave(self, owner: ConnectionOwner, future: "Future[Any]") -> None:
        # Interrupted while waiting: the place in the queue, or the grant that
        # came at that moment, goes on to the next.
        if not future.cancel():
            self.release(owner, future.result())

    def _take(self, owner: ConnectionOwner) -> tuple[bool, Any]:
        self._drop_cancelled()
        if self._queue:
            return False, None
        for position in range(len(self._idle) - 1, -1, -1):
            if self._idle[position].owner is owner:
                connection = self._idle[position].connection
                del self._idle[position]
                return True, connection
        if self._free:
            self._free -= 1
            return True, None
        return False, None

    def _pick_victim(self) -> _Idle | None:
        if not self._idle or self._evicting >= len(self._queue):
            return None
        self._evicting += 1
        return self._idle.popleft()

    def _evicted(self) -> None:
        with self._lock:
            self._evicting -= 1
            ticket = self._next_ticket()
            if ticket is None:
                self._free += 1
                return
        ticket.granted.set_result(None)

    def _next_ticket(self) -> _Ticket | None:
        """Pop the first ticket whose caller is still there and accepts the grant."""
        while self._queue:
            ticket = self._queue.popleft()
            if ticket.granted.set_running_or_notify_cancel():
                return ticket
        return None

    def _purge(self) -> None:
        """Forget those who left behind one who stays, before they are many."""
        if len(self._queue) < self._purge_at:
            return
        stay: deque[_Ticket] = deque()
        for ticket in self._queue:
            if ticket.granted.cancelled():
                ticket.granted.set_running_or_notify_cancel()
            else:
                stay.append(ticket)
        self._queue = stay
        self._purge_at = max(_PURGE_AT, 2 * len(stay))

    def _drop_cancelled(self) -> None:
        while self._queue and self._queue[0].granted.cancelled():
            self._queue.popleft().granted.set_running_or_notify_cancel()


_limiters: "WeakValueDictionary[Hashable, Limiter]" = WeakValueDictionary()


def limiter_of(key: Hashable, name: str, limit: int) -> Limiter:
    """
    Return the one limiter of a budget.

    It outlives the broker or backend that was closed while calls were under way:
    their connections count against the next one's budget. Called under the
    registry's lock.
    """
    limiter = _limiters.get((key, name))
    if limiter is None or limiter.limit != limit:
        limiter = _limiters[key, name] = Limiter(name, limit, key)
    return limiter


def reset_after_fork() -> None:
    """Forget the parent's budgets."""
    global _limiters
    _limiters = WeakValueDictionary()
