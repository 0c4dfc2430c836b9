"""What becomes ready in the same turn of a loop goes out together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from sandai.op.models import OperatorError
from sandai.op.transport import Limiter, RedisConnector, TransportError, watch

from ._pool import LoopPool
from ._redis import LoopConnection
from ._turns import let_go, spawn

logger = logging.getLogger("sandai.op.aio")

#: Seconds after which what is queued does not wait for work that is stuck.
_STUCK = 0.02

#: Told the result, or why there is none; in the loop's thread.
Told = Callable[[Any, OperatorError | None], object]


class Entry:
    """
    One caller's part of what goes out.

    *size* says how much of it there is, *patience* for how many seconds it waits.
    """

    __slots__ = ("_timer", "_told", "_until", "context", "item", "patience", "size")

    def __init__(
        self, item: Any, size: int, patience: float, loop: asyncio.AbstractEventLoop, told: Told
    ) -> None:
        self.item = item
        self.size = size
        self.patience = patience
        #: The caller's, for what is called on its behalf.
        self.context = copy_context()
        self._until = loop.time() + patience
        self._timer: asyncio.TimerHandle | None = None
        self._told: Told | None = told

    def arm(self, loop: asyncio.AbstractEventLoop, expire: Callable[["Entry"], None]) -> None:
        """Have *expire* called when the patience is over, unless it is disarmed."""
        if self.patience > 0 and self._timer is None:
            self._timer = loop.call_at(self._until, expire, self)

    def disarm(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resolve(self, result: Any, error: OperatorError | None = None) -> None:
        """Tell the caller, once, and keep nothing for it any more."""
        told, self._told, self.item = self._told, None, None
        if told is not None:
            with suppress(RuntimeError):  # its loop is closed
                told(result, error)


Work = Callable[[LoopConnection, Sequence[Entry]], Awaitable[None]]


class Flusher:
    """
    Collect entries until a connection is to be had, then hand *work* what there is.

    What comes while it works is collected too, and goes out when that is over: the
    busier, the more goes out together. But nothing waits so for more than a moment,
    nor what has no patience: then it works on several connections at a time. At most
    one task waits for a connection.

    A caller that is cancelled takes back its entry, unless it is being worked on: then
    the work goes on for the others. *most* bounds the size of what goes out at once,
    except for a single entry.
    """

    def __init__(
        self,
        limiter: Limiter,
        connector: RedisConnector,
        loop: asyncio.AbstractEventLoop,
        work: Work,
        name: str,
        most: int,
    ) -> None:
        self.pool = LoopPool(limiter, connector, loop, on_loop_closed=self._strand)
        self._work = work
        self._name = name
        self._most = most
        self._queued: dict[Entry, None] = {}
        self._acquiring: asyncio.Task[None] | None = None
        self._in_line = False
        #: Who began to work last, until that is over, and until when others wait for it.
        self._latest: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._held: asyncio.TimerHandle | None = None
        # asyncio holds tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    async def put(self, item: Any, size: int, patience: float) -> Any:
        """
        Return what *work* resolves the entry with, or raise its error.

        Waits *patience* seconds for a connection, 0 if it is to be had at once; else
        raises :class:`ClientPoolTimeoutError`.
        """
        outcome: asyncio.Future[tuple[Any, OperatorError | None]]
        outcome = self._loop().create_future()

        def told(result: Any, error: OperatorError | None) -> None:
            if not outcome.done():
                outcome.set_result((result, error))

        entry = self.post(item, size, patience, told)
        try:
            result, error = await outcome
        finally:
            self.take_back(entry)
        if error is not None:
            raise error
        return result

    def post(self, item: Any, size: int, patience: float, told: Told) -> Entry:
        """Hand in an entry, for a caller that has more to wait for; see :meth:`put`."""
        loop = self._loop()
        entry = Entry(item, size, patience, loop, told)
        if patience <= 0 and self._in_line:
            entry.resolve(None, self.pool.limiter.timeout_error(0.0))
            return entry
        self._queued[entry] = None
        if self._acquiring is None and patience > 0 and self._is_busy(loop.time()):
            if self._held is None:
                self._held = loop.call_at(self._not_before, self._release)
            return entry
        self._start()
        if self._in_line:
            entry.arm(loop, self._expire)
        return entry

    def _loop(self) -> asyncio.AbstractEventLoop:
        return self.pool.loop or asyncio.get_running_loop()

    def take_back(self, entry: Entry) -> None:
        """Forget an entry's caller, and the entry if it is not being worked on."""
        entry.disarm()
        if self._queued.pop(entry, entry) is None:
            self._stop_if_unwanted()

    def _is_busy(self, now: float) -> bool:
        return self._latest is not None and now < self._not_before

    def _over(self, task: "asyncio.Task[None] | None") -> None:
        if self._latest is task:
            self._latest = None
            self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if self._queued:
            self._start()

    def _start(self) -> None:
        if self._acquiring is None:
            # Its first step is a turn away: what becomes ready in this one comes along.
            task = self._acquiring = spawn(self._flush(), self._name)
            watch(self.pool)  # should the loop close before that
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if self._acquiring is task:
            # Cancelled in the queue, by whomever; others may be waiting.
            self._acquiring, self._in_line = None, False
            if self._queued:
                self._start()
        self._over(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The entries were told, but not by whose fault.
            logger.error("%s failed unexpectedly", self._name, exc_info=error)

    def _stop_if_unwanted(self) -> None:
        if not self._queued and self._in_line and self._acquiring is not None:
            with suppress(RuntimeError):  # its loop is closed
                self._acquiring.cancel()

    def _expire(self, entry: Entry) -> None:
        if entry in self._queued:
            del self._queued[entry]
            entry.resolve(None, self.pool.limiter.timeout_error(entry.patience))
            self._stop_if_unwanted()

    def _strand(self) -> None:
        # Nobody will resolve them, and nothing else holds who waits.
        self._queued.clear()
        for task in list(self._tasks):
            let_go(task)
        self._tasks.clear()
        # The timer is not cancelled: its loop may be in the middle of ending it.
        self._acquiring, self._in_line, self._latest, self._held = None, False, None, None

    async def _flush(self) -> None:
        lease = self.pool.try_acquire()
        if lease is None and any(entry.patience <= 0 for entry in self._queued):
            lease = self.pool.acquire_now()
        if lease is None:
            for entry in list(self._queued):
                if entry.patience <= 0:
                    self._expire(entry)
            if not self._queued:
                return
            self._in_line = True
            # Only now: as a rule there is a connection, and nobody waits for one.
            loop = self._loop()
            for entry in self._queued:
                entry.arm(loop, self._expire)
            try:
                lease = await self.pool.acquire()
            except TransportError as error:  # closed
                queued, self._queued = list(self._queued), {}
                _fail(queued, error)
                return
        entries = self._take()
        self._acquiring, self._in_line = None, False
        if self._queued:
            self._start()
        if not entries:
            lease.give_back(keep=True)
            return
        begun = False
        task = self._latest = asyncio.current_task()
        self._not_before = self._loop().time() + _STUCK
        try:
            async with lease as connection:
                begun = True
                await self._work(connection, entries)
        except OperatorError as error:
            _fail(entries, error)
        except GeneratorExit:
            raise  # collected with its loop: nobody is left to tell
        except BaseException as error:
            said = TransportError(f"it was interrupted ({type(error).__name__})", begun)
            _fail(entries, said)
            raise
        self._over(task)

    def _take(self) -> list[Entry]:
        taken: list[Entry] = []
        size = 0
        for entry in self._queued:
            size += entry.size
            if taken and size > self._most:
                break
            taken.append(entry)
        for entry in taken:
            entry.disarm()
            del self._queued[entry]
        return taken


def _fail(entries: Sequence[Entry], error: OperatorError) -> None:
    for entry in entries:
        entry.resolve(None, error)
