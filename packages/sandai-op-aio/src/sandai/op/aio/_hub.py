"""
The hub: one for each result backend and loop, for every client on that loop.

It keeps the push connection, sweeps for what push may have missed, and ends
when nobody has waited for a few seconds. A wait costs a future and an entry in
a table: no task, no connection.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from weakref import ref

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
    watch,
)

from ._looks import looks_of
from ._mailbox import Mailbox
from ._push_keeper import PushKeeper
from ._turns import Closing, call_on, let_go, spawn

logger = logging.getLogger("sandai.op.aio")

#: Seconds that a sweep waits for a connection: the next sweep comes anyway.
_PATIENCE = 1.0
#: Results that are handed over before others get their turn.
_TOLD = 50
#: Deletions kept for later while they fail; what is beyond that expires by itself.
_MOST_DELETIONS = 10_000


class LoopHub:
    """Tell waiters of results: pushed ones at once, the others by sweeping."""

    def __init__(self, backend: Backend, loop: asyncio.AbstractEventLoop) -> None:
        # Weakly: hubs are kept by loop, and must not keep it.
        self._loop = ref(loop)
        self.looks = looks_of(backend, loop)
        self._table = WaiterTable()
        self._schedule = SweepSchedule()
        self._outage = Outage("reading results", logger)
        # Of its own: who may read but not delete gets results all the same.
        self._deletions = Outage("deleting results", logger)
        self._push = PushKeeper(
            backend, loop, self._table, self._outage, self._received, self._wake
        )
        self._task: asyncio.Task[None] | None = None
        self._deleting: asyncio.Task[None] | None = None
        self._closed_loop = Closing()
        self._woken = asyncio.Event()
        self._asleep_until = 0.0
        self._closing = False
        self._settled: list[tuple[ResultDocument, list[Waiter]]] = []
        self._telling = False
        self._pushed = self._swept = self._sweeps = 0

    # For the loop.

    def watch(self, task_ids: Iterable[str], waiter: Waiter, *, delete: bool) -> None:
        """
        Have *waiter* told of each task once, by the hub.

        *delete* has the results deleted when they are read.
        """
        self._table.add(task_ids, waiter, delete=delete)
        self._ensure_running()
        line = self._push.line
        if line is not None:
            line.flush_soon()
        if line is None or self._asleep_until > time.monotonic() + SHORTEST:
            self._wake()

    def unwatch(self, task_ids: Iterable[str], waiter: Waiter) -> set[str]:
        """Stop waiting; return the tasks still waited for, the others are being told."""
        given_up = self._table.discard(task_ids, waiter)
        if self._push.line is not None and not self._closing:
            self._push.line.flush_soon()
        return given_up

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

    # For any thread.

    def close(self) -> None:
        """Close its connections at once, and have its task end."""
        self._closing = True
        self._push.shut()
        self.looks.close()
        call_on(self._loop(), self._stop)

    def tend(self, now: float) -> bool:
        """Let go of a closed loop's tasks; the janitor calls it."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            if not self._closed_loop.is_over(now):
                return True
            for task in (self._task, self._deleting):
                let_go(task)
            if self._push.line is not None:
                self._push.line.let_go()
            self._task = self._deleting = self._push.line = None
            self._woken = asyncio.Event()
            self._settled.clear()
            for waiter in self._table.clear():
                if isinstance(waiter, Mailbox):
                    waiter.strand()
        return self._task is not None

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # The task.

    def _wake(self) -> None:
        self._woken.set()

    def _ensure_running(self) -> None:
        if self._task is None and len(self._table) and not self._closing:
            self._task = spawn(self._run(), "results")
            # In nobody's context: it would be kept for as long as the task lives.
            self._task.add_done_callback(self._ended, context=Context())
            watch(self)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if self._task is task:
            # The event, once waited for, holds the loop.
            self._task, self._woken = None, asyncio.Event()
        self._push.close()
        # Cancelled by whomever while others wait: it starts again. As asyncio.run()
        # ends they are cancelled too, and leave the table in this turn.
        loop = self._loop()
        if loop is not None and not loop.is_closed():
            loop.call_soon(self._ensure_running)

    async def _run(self) -> None:
        idle_since = time.monotonic()
        while not self._closing:
            now = time.monotonic()
            if len(self._table):
                idle_since = now
            if now - idle_since >= IDLE_SECONDS:
                self._push.close()
                await self._apply_changes(_PATIENCE)
                if not len(self._table):
                    return
                continue
            try:
                await self._work(now)
                await self._sleep(now)
            except Exception as error:
                # The reader outlives everything: all the waits depend on it.
                if self._outage.error is None:
                    logger.exception("reading results failed unexpectedly; going on")
                said = f"{type(error).__name__}: {error}"
                self._outage.failed(TransportError(said), time.monotonic())
                await asyncio.sleep(SHORTEST)

    async def _sleep(self, now: float) -> None:
        pushing = self._push.line is not None
        timeout = self._schedule.pause(self._table, now, pushing=pushing)
        self._asleep_until = now + timeout
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._woken.wait()
        self._woken.clear()
        self._asleep_until = 0.0

    async def _work(self, now: float) -> None:
        self._push.check()
        if (
            self._push.line is None
            and len(self._table)
            and await self._push.open_when_possible(now)
        ):
            self._schedule.reset(time.monotonic())
        if self._push.line is None:
            await self._apply_changes()
        if len(self._table) and self._outage.try_now(now):
            pushing = self._push.line is not None
            await self._look(self._schedule.due(self._table, now, pushing=pushing))

    async def _look(self, task_ids: Sequence[str]) -> None:
        began = time.monotonic()
        for piece in self._schedule.pieces(task_ids):
            try:
                found = await self.looks.look(piece, patience=_PATIENCE)
            except (TransportError, ClientPoolTimeoutError) as error:
                if self._closing:
                    return  # it is ours that the connection ended
                if isinstance(error, TransportError) and error.maybe_done:
                    self._schedule.unanswered(piece)
                self._outage.failed(error, time.monotonic())
                return
            self._outage.worked()
            self._sweeps += 1
            self._schedule.looked(piece, found, time.monotonic())
            for document in found:
                document.how = "found by a sweep"
            for start in range(0, len(found), _TOLD):
                self._swept += await self._tell(found[start : start + _TOLD])
        self._schedule.took(time.monotonic() - began)

    # What was found.

    def _received(self, documents: Sequence[ResultDocument], pushed: bool) -> None:
        self._outage.worked()
        for document in documents:
            if pushed:
                document.how = "pushed"
                self._schedule.pushed(document.task_id)
            self._pushed += self._settle(document)

    def _settle(self, document: ResultDocument) -> bool:
        waiters = self._table.settle(document)
        if waiters:
            self._settled.append((document, waiters))
            if not self._telling:
                # One turn later: what else comes until then is deleted in one command.
                self._telling = True
                asyncio.get_running_loop().call_soon(self._hand_over)
        return bool(waiters)

    async def _tell(self, documents: Sequence[ResultDocument]) -> int:
        if self._push.line is not None:
            told = sum(self._settle(document) for document in documents)
            await asyncio.sleep(0)
            return told
        settled = [(document, self._table.settle(document)) for document in documents]
        try:
            # Deletions go out before anybody is told: who has the result finds no key. But
            # nobody waits long for a server that is slow to delete.
            await self._apply_changes(SHORTEST)
        finally:
            # Whatever happens: nobody else will tell them.
            _deliver(settled)
        await asyncio.sleep(0)
        return sum(bool(waiters) for _, waiters in settled)

    def _hand_over(self) -> None:
        self._telling = False
        settled, self._settled = self._settled, []
        try:
            if self._push.line is not None:
                self._push.line.flush_deletions()
        finally:
            _deliver(settled)

    async def _apply_changes(self, patience: float = 0.0) -> None:
        """
        Without a line: have deleted what is to be deleted.

        Waits *patience* seconds for it, no longer: results go on, however slowly a
        server deletes.
        """
        changes = self._table.changes()
        if changes.join:
            self._schedule.look_soon()
        if changes.delete:
            if self._deleting is None and self._deletions.try_now(time.monotonic()):
                self._deleting = spawn(self._delete(changes.delete), "delete")
                self._deleting.add_done_callback(partial(self._deleted, changes.delete))
            else:
                self._table.delete(changes.delete[-_MOST_DELETIONS:])
        if self._deleting is not None and patience:
            await asyncio.wait([self._deleting], timeout=patience)

    async def _delete(self, task_ids: Sequence[str]) -> None:
        try:
            await self.looks.delete(task_ids, patience=_PATIENCE)
            self._deletions.worked()
        except (TransportError, ClientPoolTimeoutError) as error:
            self._deletions.failed(error, time.monotonic())
            self._table.delete(task_ids[-_MOST_DELETIONS:])

    def _deleted(self, task_ids: Sequence[str], task: "asyncio.Task[None]") -> None:
        if self._deleting is task:
            self._deleting = None
        if task.cancelled():
            self._table.delete(task_ids[-_MOST_DELETIONS:])


def _deliver(settled: Sequence[tuple[ResultDocument, list[Waiter]]]) -> None:
    for document, waiters in settled:
        for waiter in waiters:
            waiter.deliver(document)


def hub_of(backend: Backend) -> LoopHub:
    """Return the running loop's hub for a backend; raises :class:`TransportError` when closed."""
    loop = asyncio.get_running_loop()
    hub = backend.reader(loop, lambda: LoopHub(backend, loop))
    assert isinstance(hub, LoopHub)
    return hub
