"""Results of tasks that were submitted before, as they come."""

import asyncio
import math
from collections import deque

from sandai.op.models import BatchTaskResult, stream
from sandai.op.transport import Revoker

from ._hub import LoopHub
from ._mailbox import Mailbox
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
        self._mailbox: Mailbox | None = None
        self._breath = Breath()

    async def next(self) -> BatchTaskResult:
        """Return the next result."""
        while True:
            self._reader.check_open()
            if self._breath.due:
                await self._breath()
            if self._ready:
                return self._ready.popleft()
            if not self._arrivals:
                raise StopAsyncIteration
            await self._receive()

    async def _receive(self) -> None:
        if self._limit == 0:
            found = await self._reader.look_once(list(self._arrivals), delete=self._delete)
        else:
            mailbox = self._mailbox or await self._begin()
            found = await mailbox.get(self._deadline)
        for document in found:
            self._ready += self._arrivals.accept_reply(document.task_id, document.reply)
        if not found or self._limit == 0:
            self._expire()

    async def _begin(self) -> Mailbox:
        self._hub = self._reader.hub
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self._reader.open_mailbox(self._mailbox)
        for chunk in chunks(list(self._arrivals)):
            self._hub.watch(chunk, self._mailbox, delete=self._delete)
            await self._breath()
        return self._mailbox

    def _expire(self) -> None:
        # At the end of the budget. What was settled at the last moment has been taken for
        # us and is on its way: nobody else will be told of it, however long that takes.
        open_ids = list(self._arrivals)
        if self._hub is not None and self._mailbox is not None:
            given_up = self._hub.unwatch(open_ids, self._mailbox)
            self._revoker.give_up(given_up)
        else:
            given_up = set(open_ids)
        for task_id in open_ids:
            if task_id in given_up:
                self._ready += self._arrivals.accept(
                    task_id, self._reader.late(task_id, self._limit)
                )
        self._deadline = math.inf

    async def stop(self, *, cancelled: bool = False) -> None:
        """Wait for nothing more; who is cancelled has given up on the tasks, too."""
        if cancelled:
            self._revoker.give_up(list(self._arrivals))
        self._unwatch()

    def abandon(self) -> None:
        """Wait for nothing more, soon."""
        if self._mailbox is not None:
            call_on(self._mailbox.loop, self._unwatch)

    def _unwatch(self) -> None:
        hub, mailbox = self._hub, self._mailbox
        self._hub = self._mailbox = None
        if hub is not None and mailbox is not None:
            hub.unwatch(list(self._arrivals), mailbox)
            self._reader.close_mailbox(mailbox)
