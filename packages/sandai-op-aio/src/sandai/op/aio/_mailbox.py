"""Where a waiting coroutine gets its documents from."""

import asyncio
import math
import time
from collections import deque

from sandai.op.transport import ResultDocument

from ._turns import call_on

#: Seconds; a timer is set for at most so long, and then again.
_LONGEST = 3600.0


class Mailbox:
    """
    A waiter of the table for one coroutine and any number of tasks.

    The hub of its loop delivers; :meth:`fail` ends the wait with an error, from
    any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[ResultDocument | Exception] = deque()
        self._waiting: asyncio.Future[None] | None = None

    def deliver(self, document: ResultDocument) -> None:
        """Hand over a document, in the loop's thread."""
        self._items.append(document)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the wait with *error*."""
        self._items.append(error)
        call_on(self._loop, self._wake)

    async def get(self, deadline: float) -> ResultDocument | None:
        """
        Return the next document, or ``None`` at *deadline* (``time.monotonic()``).

        Raises what :meth:`fail` was given.
        """
        while not self._items:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            waiting = self._waiting = self._loop.create_future()
            timer = None
            if remaining < math.inf:
                timer = self._loop.call_later(min(remaining, _LONGEST), self._wake)
            try:
                await waiting
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        item = self._items.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def strand(self) -> None:
        """Let go of who waits: its loop is closed, and nothing else holds it."""
        self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def deadline_after(timeout: float | None) -> float:
    """Return the ``time.monotonic()`` of a timeout in seconds; infinite for ``None``."""
    return math.inf if timeout is None else time.monotonic() + timeout
