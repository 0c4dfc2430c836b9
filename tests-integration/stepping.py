"""Cancelling a task at each of its suspensions: at the first, then at the second, and so on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from enum import Enum
from typing import Any, TypeVar

R = TypeVar("R")

MOST_STEPS = 400
"""A call, or what works for it, that suspends more often than this does not end."""


class When(Enum):
    """The two moments at which a cancellation meets a task that waits for something."""

    SUSPENDING = "suspending"
    """It has just begun to wait."""
    RESUMING = "resuming"
    """What it waited for is there, and it has not seen that yet."""


class Cut:
    """
    Cancel a task at its suspension number `step`, counted from 0, and only there.

    `reached` says whether there was such a suspension.
    """

    def __init__(self, step: int, when: When) -> None:
        self.step = step
        self.when = when
        self.reached = False
        self._steps = 0

    async def call(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine in the current task, which is cancelled at the step."""
        return await _Counted(coroutine, self)

    def task_factory(self, name: str) -> Callable[..., asyncio.Task[Any]]:
        """
        Make a loop's task factory that counts the steps of all tasks of that name.

        A task's beginning is one of its steps: cancelled there, it never runs.
        """

        async def counted(coroutine: Coroutine[Any, Any, Any]) -> Any:
            task = asyncio.current_task()
            # Named after it was made, before it runs.
            if task is None or task.get_name() != name:
                return await coroutine
            if self._is_next():
                coroutine.close()
                raise asyncio.CancelledError
            return await self.call(coroutine)

        def make(
            loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **kwargs: Any
        ) -> asyncio.Task[Any]:
            return asyncio.Task(counted(coroutine), loop=loop, **kwargs)

        return make

    def suspended(self, awaited: asyncio.Future[Any] | None) -> None:
        """Count a suspension of the current task; *awaited* is ``None`` for a bare turn."""
        if not self._is_next():
            return
        task = asyncio.current_task()
        assert task is not None
        if awaited is None or self.when is When.SUSPENDING:
            task.cancel()
        else:
            # Before the task's own callback, which is added once this is over.
            awaited.add_done_callback(lambda _: task.cancel())

    def _is_next(self) -> bool:
        step, self._steps = self._steps, self._steps + 1
        if step != self.step:
            return False
        self.reached = True
        return True


class _Counted(Awaitable[R]):
    """Forward to a coroutine, and tell of each suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, R], cut: Cut) -> None:
        self._coroutine = coroutine
        self._cut = cut

    def __await__(self) -> Generator[Any, Any, R]:
        resume: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                awaited = resume(value)
            except StopIteration as over:
                result: R = over.value
                return result
            self._cut.suspended(awaited)
            try:
                value = yield awaited
                resume = self._coroutine.send
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:
                value = error
                resume = self._coroutine.throw


async def every_cut() -> AsyncIterator[Cut]:
    """Yield a cut at each step and moment, until there is no such step; at least one there is."""
    for when in When:
        for step in range(MOST_STEPS):
            cut = Cut(step, when)
            yield cut
            if not cut.reached:
                break
        else:
            raise AssertionError(f"more than {MOST_STEPS} steps")
        assert step > 0, "it never suspended"
