"""Results of tasks that were submitted before, as they come."""

import asyncio
import math
from collections import deque

from sandai.op.models import BatchTaskResult, stream
from sandai.op.transport import Evidence, Revoker

from ._hub import LoopHub
from ._mailbox import Inbox
from ._results import ResultReader, chunks
from ._turns import Breath, call_on


class Arriving:
    """Wait for many tasks, and give each result when it is there."""

    def __init__(
        self,
        reader: ResultReader,
        revoker: Revoker,
        arrivals: stream.Arrivals,
        limit: float | None,
        deadline: float,
        *,
        delete: bool,
    ) -> None:
        self._reader = reader
        self._revoker = revoker
        self._arrivals = arrivals
        self._limit = limit
        self._deadline = deadline
        self._delete = delete
        self._ready: deque[BatchTaskResult] = arrivals.failed
        self._hub: LoopHub | None = None
        self._inbox: Inbox | None = None
        self._stopped = False
        self._breath = Breath()

    async def next(self) -> BatchTaskResult:
        """Return the next result."""
        while True:
            self._reader.check_open()
            if self._breath.due:
                await self._breath()
            if self._ready:
                return self._ready.popleft()
            if not self._arrivals or self._stopped:
                raise StopAsyncIteration
            await self._receive()

    async def _receive(self) -> None:
        if self._limit == 0:
            found = await self._reader.look_once(list(self._arrivals), delete=self._delete)
        else:
            inbox = self._inbox or await self._begin()
            found = await inbox.get(self._deadline)
            if self._reader.steps is not None:
                for document in found:
                    self._reader.steps.arrived(document, deleted=self._delete)
        for document in found:
            self._ready += self._arrivals.accept_reply(document.task_id, document.reply)
        if not self._stopped and (not found or self._limit == 0):
            await self._expire()

    async def _begin(self) -> Inbox:
        self._hub = self._reader.hub
        self._inbox = Inbox(asyncio.get_running_loop())
        self._reader.open_mailbox(self._inbox)
        for chunk in chunks(list(self._arrivals)):
            self._hub.watch(chunk, self._inbox, delete=self._delete)
            if self._reader.steps is not None:
                self._reader.steps.watching(chunk, self._limit)
            await self._breath()
        return self._inbox

    async def _expire(self) -> None:
        # At the end of the budget. What was settled at the last moment has been taken for
        # us and is on its way: nobody else will be told of it, however long that takes.
        open_ids = list(self._arrivals)
        if self._hub is not None and self._inbox is not None:
            given_up = self._hub.unwatch(open_ids, self._inbox)
        else:
            given_up = set(open_ids)
        evidence = Evidence()
        try:
            if self._limit and given_up:
                evidence = await self._reader.evidence(list(given_up))
        finally:
            if self._limit:  # a look gives nothing up
                self._revoker.give_up(given_up)
            for task_id in open_ids:
                if task_id in given_up:
                    error = self._reader.too_late(evidence, task_id, self._limit)
                    self._ready += self._arrivals.accept(task_id, error)
            self._deadline = math.inf

    async def stop(self, *, cancelled: bool = False) -> None:
        """Wait for nothing more; who is cancelled has given up on the tasks, too."""
        if cancelled:
            self._revoker.give_up(list(self._arrivals))
        self._unwatch()

    def abandon(self) -> None:
        """Wait for nothing more, soon."""
        if self._inbox is not None:
            call_on(self._inbox.loop, self._unwatch)

    def _unwatch(self) -> None:
        self._stopped = True
        hub, inbox = self._hub, self._inbox
        self._hub = self._inbox = None
        if hub is not None and inbox is not None:
            hub.unwatch(list(self._arrivals), inbox)
            inbox.poke()
            self._reader.close_mailbox(inbox)
