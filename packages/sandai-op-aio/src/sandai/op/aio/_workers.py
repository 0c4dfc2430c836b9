"""Worker threads for brokers and backends that block, as many as their connections."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sandai.op.transport import Limiter, TransportError

from ._turns import call_on

R = TypeVar("R")

_lock = threading.Lock()
_workers: "WeakKeyDictionary[Any, Workers]" = WeakKeyDictionary()


class Workers:
    """
    Run a shared resource's blocking calls; never on the loop's default executor.

    One pool of threads a resource, for all loops. It ends when that is closed.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._threads = ThreadPoolExecutor(limiter.limit, "sandai-op-worker")

    @classmethod
    def of(cls, resource: object, limiter: Limiter) -> "Workers":
        """Return the workers of *resource*, which is held weakly."""
        with _lock:
            workers = _workers.get(resource)
            if workers is None:
                workers = _workers[resource] = cls(limiter)
            return workers

    def close(self) -> None:
        """Let the threads end; what is under way is finished, what is queued is not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Callable[..., Any], patience: float) -> Any:
        """
        Return what ``call(acquire_timeout=...)`` does, made in a worker thread.

        Waits *patience* seconds for a thread and a permit, else raises
        :class:`ClientPoolTimeoutError`. A cancelled caller's call is not made, or
        goes on by itself.
        """
        deadline = time.monotonic() + patience

        def work() -> Any:
            return call(acquire_timeout=max(0.0, deadline - time.monotonic()))

        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        try:
            # In the caller's context: receivers of Celery's signals look at it.
            job = self._threads.submit(copy_context().run, work)
        except RuntimeError as error:
            raise TransportError("its last client was closed") from error

        def wake() -> None:
            if not done.done():
                done.set_result(None)

        job.add_done_callback(lambda _: call_on(loop, wake))
        # While the others' calls take long; 0 is for a thread that has to wake first.
        timer = loop.call_later(max(patience, 0.1), job.cancel)
        try:
            await done
        finally:
            timer.cancel()
            job.cancel()
        if job.cancelled():
            if time.monotonic() < deadline:
                raise TransportError("its last client was closed")
            raise self._limiter.timeout_error(patience)
        return job.result()


async def in_own_thread(call: Callable[[], R], name: str) -> R:
    """
    Return what *call* does, or raise what it raises, in a thread made for it.

    For what is asked now and then. A cancelled caller's call goes on by itself.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    outcome: Future[R] = Future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)
        call_on(loop, wake)

    threading.Thread(target=work, name=name, daemon=True).start()
    await done
    return outcome.result()


def _after_fork_in_child() -> None:
    global _lock, _workers
    _lock, _workers = threading.Lock(), WeakKeyDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
