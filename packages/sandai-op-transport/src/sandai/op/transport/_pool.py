"""The threads' pool: connections leased within a limiter's budget."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from . import _janitor
from ._limiter import Limiter

C = TypeVar("C")

#: Idle connections are closed after this many seconds.
IDLE_SECONDS = 3.0


class Opener(Protocol[C]):
    """Opens and closes one kind of connection."""

    def open(self, timeout: float | None) -> C: ...
    def usable(self, connection: C) -> bool: ...
    def close(self, connection: C) -> None: ...


class ConnectionPool(Generic[C]):
    """
    Lease connections to threads.

    The connections of a pool are shared by all threads; the limiter may be
    shared with other owners (event loops), whose idle connections make room.
    """

    def __init__(self, limiter: Limiter, opener: Opener[C]) -> None:
        self.limiter = limiter
        self._opener = opener
        self._closed = False

    @contextmanager
    def lease(
        self, timeout: float, *, io_timeout: float | None = None, reuse: bool = False
    ) -> Iterator[C]:
        """
        Lease a connection that is open and in step.

        Waits *timeout* seconds for a permit (:class:`ClientPoolTimeoutError`)
        and opens within the opener's I/O timeout. A connection whose user failed
        is closed. An *io_timeout* of the caller's own (seconds) gets it a
        connection of its own, which is closed afterwards; with *reuse* an idle one does,
        and the caller sees to the time itself.
        """
        connection: C | None = self.limiter.acquire(self, timeout)
        keep, healthy = io_timeout is None, False
        try:
            if connection is not None:
                keep = keep or reuse
                if not (keep and self._opener.usable(connection)):
                    unfit, connection = connection, None
                    keep = io_timeout is None
                    self._close(unfit)
            if connection is None:
                connection = self._opener.open(io_timeout)
            yield connection
            healthy = True
        finally:
            self._give_back(connection, keep and healthy)

    @contextmanager
    def permit(self, timeout: float) -> Iterator[None]:
        """Hold a permit without a connection of this pool, to use one of another kind."""
        connection: C | None = self.limiter.acquire(self, timeout)
        try:
            if connection is not None:
                self._close(connection)
            yield
        finally:
            self.limiter.release(self)

    def _give_back(self, connection: C | None, keep: bool) -> None:
        if connection is None:
            self.limiter.release(self)
            return
        keep = keep and not self._closed
        if not keep:
            self._discard(connection)
            return
        self.limiter.release(self, connection)
        _janitor.watch(self)
        if self._closed:
            self.close_idle(time.monotonic())

    def _discard(self, connection: C) -> None:
        # The permit comes back even when closing is interrupted (Ctrl-C).
        try:
            self._close(connection)
        finally:
            self.limiter.release(self)

    def evict(self, connection: Any, closed: Callable[[], None]) -> None:
        """Close an idle connection for a caller that is queued elsewhere."""
        try:
            self._close(connection)
        finally:
            closed()

    def close_idle(self, idle_since: float) -> bool:
        """
        Close what is idle since before *idle_since* (``time.monotonic()``).

        Returns whether idle connections are left.
        """
        for connection in self.limiter.take_idle(self, idle_since):
            self._discard(connection)
        return self.limiter.idle_count(self) > 0

    def tend(self, now: float) -> bool:
        """Close what has been idle for too long; the janitor calls it."""
        return self.close_idle(now - IDLE_SECONDS)

    def close(self) -> None:
        """Close the idle connections now, the leased ones when they come back."""
        self._closed = True
        self.close_idle(time.monotonic())

    def _close(self, connection: C) -> None:
        try:
            self._opener.close(connection)
        except Exception:
            # A connection that cannot even be closed is gone all the same.
            return
