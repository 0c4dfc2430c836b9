"""A limit on a server's silence: a large reply may take its time, as long as it comes."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

#: How often to see whether something came, in the time that silence may last.
_LOOKS = 10


class Silence:
    """
    Raise ``TimeoutError`` in the block when nothing has come for *limit* seconds.

    *received* returns something that differs once something came. It is asked now and
    then: most replies are there before the first time, and cost no more than a timer.
    """

    def __init__(self, limit: float, received: Callable[[], object]) -> None:
        self._limit = limit
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)

    def broken(self) -> None:
        """Begin to count anew."""
        self._since, self._seen = self._loop.time(), self._received()

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        self.broken()
        self._look_by(self._since + self._limit / _LOOKS)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._scope.__aexit__(kind, error, traceback)

    def _look_by(self, when: float) -> None:
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if self._received() != self._seen:
            self.broken()
        until = self._since + self._limit
        if now >= until:
            self._scope.reschedule(now)
        else:
            self._look_by(min(until, now + self._limit / _LOOKS))
