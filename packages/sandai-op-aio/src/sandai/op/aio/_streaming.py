"""
A stream of tasks under way: what reads the input, what submits, and what gives results.

The first two are tasks of the stream's own, so that neither a slow input nor a slow
broker holds results back. They end with the stream.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from sandai.op.models import BatchTaskResult, stream
from sandai.op.transport import Evidence, Revoker, TaskControls

from ._hub import LoopHub
from ._mailbox import Inbox
from ._results import ResultReader
from ._source import Source
from ._submitter import Submitter
from ._turns import Breath, call_on, spawn

Learn = Callable[[TaskControls, float], Awaitable[TaskControls]]


class Streaming:
    """Submit what the input gives, a window at a time, and give the results."""

    def __init__(
        self,
        submitter: Submitter,
        reader: ResultReader,
        revoker: Revoker,
        source: Source,
        window: stream.Window,
        controls: TaskControls,
        *,
        delete: bool,
        learn: Learn | None = None,
    ) -> None:
        self._submitter = submitter
        self._reader = reader
        self._revoker = revoker
        self._source = source
        self._window = window
        self._controls = controls
        self._delete = delete
        self._learn = learn
        self._limit = reader.wait_limit(controls.timeout)
        self._queue = submitter.queue(controls)
        #: Tasks that have been read and not submitted.
        self._read: list[Any] = []
        self._reading = True
        #: What the input raised.
        self._fault: BaseException | None = None
        #: Tasks that were on their way into the queue when the stream ended.
        self._unsure: list[str] = []
        self._inbox: Inbox | None = None
        self._hub: LoopHub | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._begun = self._held = False
        self._breath = Breath()

    async def next(self) -> BatchTaskResult:
        """Return the next result."""
        inbox = self._inbox or self._begin()
        window = self._window
        while True:
            self._reader.check_open()
            if self._breath.due:
                await self._breath()
            if self._inbox is None:  # somebody else has stopped it
                raise StopAsyncIteration
            await self._expire()
            if (result := window.pop()) is not None:
                self._room.set()
                return result
            if self._submitting.done() and (window.empty or self._failed(self._submitting)):
                raise self._end()
            for document in await inbox.get(window.wake_at(more=False)):
                window.accept_reply(document.task_id, document.reply)
                if self._reader.steps is not None:
                    self._reader.steps.arrived(document, deleted=self._delete)

    def _begin(self) -> Inbox:
        self._hub = self._reader.hub
        self._begun = True
        loop = asyncio.get_running_loop()
        self._inbox = Inbox(loop)
        self._reader.open_mailbox(self._inbox)
        #: Set when more may be read, and when more has been.
        self._room, self._filled = asyncio.Event(), asyncio.Event()
        self._held = self._revoker.hold()
        # The input is the application's: it runs in its context, and not in a submission's span.
        context = copy_context()
        self._submitting = spawn(self._submit_on(), "map", context.copy())
        self._submitting.add_done_callback(partial(_submitted, self._inbox))
        self._tasks = [spawn(self._read_on(), "map-input", context), self._submitting]
        return self._inbox

    def _end(self) -> BaseException:
        # A failure of a task of ours is raised by stop().
        fault, self._fault = self._fault, None
        if self._submitting.cancelled():
            fault = asyncio.CancelledError("a task of the stream was cancelled")
        return fault or StopAsyncIteration()

    @staticmethod
    def _failed(task: "asyncio.Task[None]") -> bool:
        return task.cancelled() or task.exception() is not None

    async def _expire(self) -> None:
        window, evidence = self._window, Evidence()
        if (late := window.overdue(time.monotonic())) and self._hub and self._inbox:
            given_up = self._hub.unwatch(late, self._inbox)
            try:
                if given_up:
                    evidence = await self._reader.evidence(list(given_up))
            finally:
                self._revoker.give_up(given_up)
                error = partial(
                    self._reader.too_late, evidence, timeout=self._limit, queue=self._queue
                )
                window.expire(late, given_up, error)

    # The two tasks.

    async def _read_on(self) -> None:
        window, source, breath = self._window, self._source, Breath()
        try:
            while True:
                for _ in range(await self._when_wanted()):
                    task = await source.next()
                    window.taken += 1
                    self._read.append(task)
                    self._filled.set()
                    if breath.due:
                        await breath()
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            # By whomever: the stream has no end to speak of then.
            self._fault = asyncio.CancelledError("the input of the stream was cancelled")
            raise
        except Exception as error:
            # Without this frame, which holds what holds the error.
            trace = error.__traceback__ and error.__traceback__.tb_next
            self._fault = error.with_traceback(trace)
        finally:
            self._reading = False
            self._filled.set()
            await source.close()

    async def _when_wanted(self) -> int:
        # One look at the clock for both: a pause that ended in between would have no timer.
        while not (wanted := self._window.wanted(now := time.monotonic())):
            pause = self._window.wake_at(more=True) - now
            loop = asyncio.get_running_loop()
            timer = loop.call_later(pause, self._room.set) if 0 < pause < math.inf else None
            try:
                await self._room.wait()
            finally:
                if timer is not None:
                    timer.cancel()
            self._room.clear()
        return wanted

    async def _submit_on(self) -> None:
        learn, self._learn = self._learn, None
        if learn is not None:
            await learn(self._controls, self._reader.deadline(self._controls.timeout))
            learn = None  # which holds the client
        window = self._window
        while self._read or self._reading:
            if not self._read:
                await self._filled.wait()
                self._filled.clear()
                continue
            tasks, self._read = self._read[: stream.MOST], self._read[stream.MOST :]
            deadline = self._reader.deadline(self._controls.timeout)
            queued = await self._submitter.tasks(
                tasks, self._controls, first=window.added, unsure=self._unsure
            )
            del tasks
            ids = window.add(queued, deadline, time.monotonic())
            del queued
            if ids and self._hub and self._inbox:
                self._hub.watch(ids, self._inbox, delete=self._delete)
                if self._reader.steps is not None:
                    self._reader.steps.watching(ids, self._limit)
            if self._inbox:
                self._inbox.poke()
            self._room.set()

    # The end.

    async def stop(self, *, cancelled: bool = False) -> None:
        """Read and wait for nothing more; what was out is given up."""
        tasks, self._tasks = self._tasks, []
        self._let_go(tasks)
        if not tasks:
            if not self._begun:
                await self._source.close()
            return
        try:
            await asyncio.wait(tasks)
        finally:
            self._give_up()
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def abandon(self) -> None:
        """Have it end soon."""
        inbox = self._inbox
        if inbox is not None and not call_on(inbox.loop, self._abandon):
            self._give_up()

    def _abandon(self) -> None:
        tasks, self._tasks = self._tasks, []
        self._let_go(tasks)
        for task in tasks:
            task.add_done_callback(lambda _: self._give_up())

    def _let_go(self, tasks: "list[asyncio.Task[None]]") -> None:
        for task in tasks:
            task.cancel()
        hub, inbox = self._hub, self._inbox
        self._hub = self._inbox = None
        if hub is not None and inbox is not None:
            hub.unwatch(list(self._window), inbox)
            inbox.poke()
            self._reader.close_mailbox(inbox)

    def _give_up(self) -> None:
        held, self._held = self._held, False
        if held:
            self._revoker.let_go([*self._window, *self._unsure])


def _submitted(inbox: Inbox, task: "asyncio.Task[None]") -> None:
    if not task.cancelled():
        task.exception()  # whoever has stopped meanwhile does not ask for it
    inbox.poke()
