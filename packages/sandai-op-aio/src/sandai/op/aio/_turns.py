"""Small things for living on loops: breathing, tasks of our own, calls from elsewhere."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import ref

K = TypeVar("K")
R = TypeVar("R")

#: Seconds of work after which the loop's other callbacks get their turn.
_BREATH = 0.002
#: Seconds that closing a loop takes at most, by far.
_CLOSING_SECONDS = 0.5


class Breath:
    """``await breath()`` between pieces of long work; it yields when enough time was spent."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether it is time to let others work."""
        return time.perf_counter() - self._since > _BREATH

    async def __call__(self) -> None:
        """Let others work, if it is time."""
        if self.due:
            await asyncio.sleep(0)
            self._since = time.perf_counter()


class PerLoop(Generic[K, R]):
    """
    What *find* finds for the running loop and an owner; the last is kept at hand.

    For what is looked up with every call; *loop* is the running one, where the caller
    knows it (asking asyncio is a system call on Python 3.11). It keeps no loop.
    """

    def __init__(self, find: Callable[[K], R]) -> None:
        self._find = find
        self._last: tuple[ref[asyncio.AbstractEventLoop], K, R] | None = None

    def of(self, owner: K, loop: asyncio.AbstractEventLoop | None = None) -> R:
        """Return it; raises what *find* does."""
        loop, last = loop or asyncio.get_running_loop(), self._last
        if last is not None and last[1] is owner and last[0]() is loop:
            return last[2]
        found = self._find(owner)
        self._last = (ref(loop), owner, found)
        return found


def spawn(
    coroutine: Coroutine[Any, Any, None], name: str, context: Context | None = None
) -> "asyncio.Task[None]":
    """
    Start a task that is ours, not the application's; it begins in the next turn.

    It runs in nobody's context, since it works for all, unless a *context* is given.
    """
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    if factory is not None and _starts_at_once(factory):
        make: Callable[..., asyncio.Task[None]] = partial(asyncio.Task, loop=loop)
    else:
        make = loop.create_task
    task = make(coroutine, name=f"sandai-op-{name}", context=context or Context())
    # A loop that is closed under it: the application meant to, and what the task
    # held is given back all the same. asyncio.gather() silences its own so too.
    with suppress(AttributeError):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # private
    return task


class Closing:
    """
    Tells when a loop that says it is closed has really come to rest.

    uvloop says so while its thread still works through the timers and handles: a
    coroutine that is collected meanwhile, and cancels its timer, crashes the process.
    """

    def __init__(self) -> None:
        self._since: float | None = None

    def is_over(self, now: float) -> bool:
        """Return whether it has been closed for long enough; asked again and again."""
        if self._since is None:
            self._since = now
        return now - self._since >= _CLOSING_SECONDS


def let_go(task: "asyncio.Task[None] | None") -> None:
    """
    End a task of ours whose closed loop will not, and free what it holds.

    Not by the collector, later, in whatever thread: it may be connecting.
    """
    if task is not None and isinstance(coroutine := task.get_coro(), Coroutine):
        with suppress(Exception):  # a clean-up may want its loop
            coroutine.close()


def _starts_at_once(factory: object) -> bool:
    # asyncio's eager_task_factory (3.12), and those that create_eager_task_factory() makes.
    return getattr(factory, "__qualname__", "").startswith("create_eager_task_factory.")


def call_on(loop: asyncio.AbstractEventLoop | None, call: Callable[[], object]) -> bool:
    """Have *loop* make a call soon, from any thread; return ``False`` if it is closed."""
    if loop is None:
        return False
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True
