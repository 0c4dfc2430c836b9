"""One loop's connections under a budget that it shares with threads and other loops."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any
from weakref import ref

from sandai.op.transport import IDLE_SECONDS, Limiter, RedisConnector, TransportError, watch

from ._ending import close, end
from ._redis import LoopConnection, Twin, open_connection
from ._turns import Closing, call_on, let_go, spawn

_TIDY_INTERVAL = IDLE_SECONDS / 4
#: A loop that does not run closes nothing; then the janitor does, a little later.
_ABANDONED_SECONDS = 2 * IDLE_SECONDS


class Lease:
    """
    A permit, and the connection under it.

    ``async with lease as connection`` opens one where there is none, and gives
    both back; a connection whose user failed is closed. With an *io_timeout*
    (seconds) of the caller's own the connection is a new one, and is closed.
    """

    def __init__(self, pool: "LoopPool", connection: LoopConnection | None) -> None:
        self._pool = pool
        self.connection = connection
        self.io_timeout: float | None = None
        #: What ends the connection while it is being opened.
        self.opening: Twin | None = None

    async def __aenter__(self) -> LoopConnection:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is GeneratorExit:
            # A coroutine that is collected, inside whatever lock: the janitor sees to it.
            self._pool.drop(self)
        else:
            self.give_back(keep=kind is None and self.io_timeout is None)

    async def open(self) -> LoopConnection:
        """Return a connection that is open and in step, or give back and raise."""
        try:
            return await self._connect()
        except GeneratorExit:
            self._pool.drop(self)
            raise
        except BaseException:
            self.give_back(keep=False)
            raise

    def give_back(self, *, keep: bool) -> None:
        """Give the permit back, once, with its connection if that is to be kept."""
        self._pool.take_back(self, keep=keep)

    async def _connect(self) -> LoopConnection:
        connection = self.connection
        if connection is not None and not (self.io_timeout is None and connection.usable):
            self.connection = None
            self._pool.close_connection(connection)
        if self.connection is None:
            self.connection = await self._pool.open(self)
        return self.connection


class LoopPool:
    """
    Lease connections to the coroutines of one loop; an owner to the limiter.

    Whatever becomes of the loop, each permit comes back exactly once: a lease and
    a ticket stand in a set, and who takes them out gives them back.
    """

    def __init__(
        self,
        limiter: Limiter,
        connector: RedisConnector,
        loop: asyncio.AbstractEventLoop,
        *,
        protocol: int = 2,
        on_loop_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.limiter = limiter
        self._on_loop_closed = on_loop_closed
        self._connector = connector
        self._protocol = protocol
        # Weakly: pools are kept by loop, and must not keep it.
        self._loop = ref(loop)
        self._leases: set[Lease] = set()
        self._tickets: set[Future[Any]] = set()
        #: Leases of coroutines that were collected; their finalizers may not lock.
        self._dropped: deque[Lease] = deque()
        self._tidying: asyncio.Task[None] | None = None
        self._closed_loop = Closing()
        self._closed = self._ended = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, unless it is gone."""
        return self._loop()

    # For the loop.

    def try_acquire(self) -> Lease | None:
        """Return a lease if a permit is free and nobody is queued for it."""
        if self._ended:
            return None
        granted, connection = self.limiter.try_acquire(self)
        return self._lease(connection) if granted else None

    def acquire_now(self) -> Lease | None:
        """Return a lease if one is to be had at once, were it by closing another's idle one."""
        lease = self.try_acquire()
        if lease is not None:
            return lease
        ticket = self.limiter.request(self)
        if ticket.done():
            return self._lease(ticket.result())
        self._tickets.add(ticket)
        self._leave(ticket)
        return None

    async def acquire(self) -> Lease:
        """
        Return a lease when it is our turn; cancel to leave the queue.

        Raises :class:`TransportError` when the pool's users are not wanted any more.
        """
        if self._ended:
            raise self._ended_error()
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not granted.done():
                granted.set_result(None)

        def tell(ticket: "Future[Any]") -> None:
            if not call_on(loop, wake):
                self._hand_back(ticket)

        ticket = self.limiter.request(self)
        self._tickets.add(ticket)
        try:
            ticket.add_done_callback(tell)
            watch(self)
            await granted
        except GeneratorExit:
            raise  # collected with its loop, whose tickets the janitor takes back
        except BaseException:
            self._leave(ticket)
            raise
        if not self._claim(ticket):
            raise self._ended_error()
        return self._lease(ticket.result())

    async def open(self, lease: Lease) -> LoopConnection:
        """Open a connection for a lease; raises :class:`TransportError`."""
        return await open_connection(
            self._connector,
            protocol=self._protocol,
            timeout=lease.io_timeout,
            opening=lambda twin: setattr(lease, "opening", twin),
        )

    def close_connection(self, connection: LoopConnection) -> None:
        """Close what a lease does not use."""
        close(connection, self._loop())

    def take_back(self, lease: Lease, *, keep: bool) -> None:
        """Take a lease back; leases do it."""
        connection = lease.connection
        try:
            self._leases.remove(lease)
        except KeyError:
            # Its permit has come back already; the connection came too late.
            if connection is not None:
                close(connection, self._loop())
            return
        keep = keep and not self._closed
        if connection is None or not keep:
            try:
                if connection is not None:
                    close(connection, self._loop())
            finally:
                self.limiter.release(self)
            return
        self.limiter.release(self, connection)
        watch(self)
        self._tidy_up()
        if self._closed:
            self._close_idle(time.monotonic())

    # For any thread.

    def drop(self, lease: Lease) -> None:
        """Leave a collected coroutine's lease to the janitor, unless it was taken back."""
        if lease in self._leases:
            self._dropped.append(lease)

    def evict(self, connection: Any, closed: Callable[[], None]) -> None:
        """Close an idle connection for a caller that is queued elsewhere."""
        try:
            self._end(connection)
        finally:
            closed()

    def tend(self, now: float) -> bool:
        """Give back what a closed loop held; return whether there is anything to tend."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            self.close(busy=True)
            self._dropped.clear()
            if not self._closed_loop.is_over(now):
                return True
            let_go(self._tidying)
            self._tidying = None
            self._on_loop_closed()
            return False
        while self._dropped:
            self._take_away(self._dropped.popleft())
        self._close_idle(now - _ABANDONED_SECONDS)
        return bool(self._leases or self._tickets or self.limiter.idle_count(self))

    def close(self, *, busy: bool = False) -> None:
        """Close the idle connections now, and with *busy* the leased ones too."""
        self._closed = True
        self._close_idle(time.monotonic())
        if not busy:
            return
        self._ended = True
        for ticket in list(self._tickets):
            self._leave(ticket)
        for lease in list(self._leases):
            self._take_away(lease)

    def _take_away(self, lease: Lease) -> None:
        try:
            self._leases.remove(lease)
        except KeyError:
            return
        if lease.connection is not None:
            self._end(lease.connection)
        elif lease.opening is not None:
            lease.opening.shut()
        self.limiter.release(self)

    def _lease(self, connection: LoopConnection | None) -> Lease:
        lease = Lease(self, connection)
        self._leases.add(lease)
        watch(self)
        return lease

    @staticmethod
    def _ended_error() -> TransportError:
        return TransportError("its last client was closed")

    def _claim(self, ticket: "Future[Any]") -> bool:
        try:
            self._tickets.remove(ticket)
        except KeyError:
            return False
        return True

    def _leave(self, ticket: "Future[Any]") -> None:
        if ticket.cancel():
            self._tickets.discard(ticket)
        else:
            # Granted meanwhile, or about to be: the grant passes on to the next.
            ticket.add_done_callback(self._hand_back)

    def _hand_back(self, ticket: "Future[Any]") -> None:
        if not self._claim(ticket) or ticket.cancelled():
            return
        connection = ticket.result()
        if connection is not None:
            self._end(connection)
        self.limiter.release(self)

    def _close_idle(self, idle_since: float) -> bool:
        for connection in self.limiter.take_idle(self, idle_since):
            self._end(connection)
            self.limiter.release(self)
        return self.limiter.idle_count(self) > 0

    def _end(self, connection: LoopConnection) -> None:
        end(connection, self._loop())

    def _tidy_up(self) -> None:
        if self._tidying is None or self._tidying.done():
            self._tidying = spawn(self._tidy(), "idle")
            self._tidying.add_done_callback(self._tidied)

    def _tidied(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            # As asyncio.run() ends it cancels all tasks, perhaps before their first step:
            # what is idle goes now.
            self._close_idle(time.monotonic())

    async def _tidy(self) -> None:
        try:
            idle = True
            while idle or self._leases or self._tickets:
                await asyncio.sleep(_TIDY_INTERVAL)
                idle = self._close_idle(time.monotonic() - IDLE_SECONDS)
        finally:
            self._tidying = None
