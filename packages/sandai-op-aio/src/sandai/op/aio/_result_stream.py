"""What a streaming call returns."""

from asyncio import CancelledError
from collections.abc import AsyncIterator
from typing import Protocol

from sandai.op.models import BatchTaskResult


class Work(Protocol):
    """What gives the results; it knows nothing of who wants them."""

    async def next(self) -> BatchTaskResult:
        """Return the next result, or raise :class:`StopAsyncIteration`."""

    async def stop(self, *, cancelled: bool = False) -> None:
        """End it, and wait for that; *cancelled* is how a caller gives up. Repeatable."""

    def abandon(self) -> None:
        """Have it end soon; for finalizers, in any thread."""


class ResultStream(AsyncIterator[BatchTaskResult]):
    """
    An async iterator of :class:`BatchTaskResult`, for one consumer on one loop.

    It ends for good with its last result, with :meth:`aclose`, or when the consumer is
    cancelled while it waits for the next one.
    """

    def __init__(self, work: Work, client: object) -> None:
        self._work = work
        self._client = client  # which is not to be dropped before its stream
        self._waiting = self._over = False

    async def __anext__(self) -> BatchTaskResult:
        """Return the next result."""
        if self._over:
            raise StopAsyncIteration
        if self._waiting:
            raise RuntimeError("the next result of this stream is waited for already")
        self._waiting = True
        try:
            return await self._work.next()
        except GeneratorExit:
            # Collected with its coroutine, which may not await any more.
            self._over = True
            self._work.abandon()
            raise
        except CancelledError:
            self._over = True
            await self._work.stop(cancelled=True)
            raise
        except BaseException:
            self._over = True
            await self._work.stop()
            raise
        finally:
            self._waiting = False

    async def aclose(self) -> None:
        """Take nothing more and wait for nothing more; a second call does nothing."""
        self._over = True
        await self._work.stop()

    def __del__(self) -> None:
        if not self._over:
            self._work.abandon()
