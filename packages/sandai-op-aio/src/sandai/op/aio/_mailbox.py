"""Where a waiting coroutine gets its documents from."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from sandai.op.models import ClientClosedError, OperatorError
from sandai.op.transport import ResultDocument

from ._turns import call_on

#: Seconds; a timer is set for at most so long, and then again.
_LONGEST = 3600.0
#: Waits that are ended before others get their turn.
_ENDED = 50


class Mailbox:
    """
    A waiter of the table for one coroutine and any number of tasks.

    The hub of its loop delivers; :meth:`fail` ends the wait with an error. All in
    the loop's thread.
    """

    __slots__ = ("__weakref__", "_documents", "_error", "_overdue", "_waiting", "loop", "unsettled")

    #: Whether :meth:`get` is to return though nothing has come; see :class:`Inbox`.
    poked = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._documents: list[ResultDocument] = []
        self._error: Exception | None = None
        #: Whether the task is on its way into its queue: then the wait goes on until it is
        #: known what became of that.
        self.unsettled = False
        self._overdue = False
        self._waiting: asyncio.Future[None] | None = None

    def deliver(self, document: ResultDocument) -> None:
        """Hand over a document."""
        self._documents.append(document)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the wait with *error*."""
        self._error = error
        self._wake()

    def settled(self, error: OperatorError | None) -> None:
        """Note that the task is queued, or end the wait with why it is not."""
        self.unsettled = False
        if error is not None:
            self.fail(error)
        elif self._overdue:
            self._wake()

    def queued_after_all(self) -> None:
        """Wait on, whatever was said of the submission: the result is on its way."""
        self.unsettled = False
        if not isinstance(self._error, ClientClosedError):
            self._error = None

    async def get(self, deadline: float) -> list[ResultDocument]:
        """
        Return the documents that have come; none at *deadline* (``time.monotonic()``).

        Raises what :meth:`fail` was given, once, when what had come is taken.
        """
        while not self._documents:
            error, self._error = self._error, None
            if error is not None:
                try:
                    raise error
                finally:
                    # Else its traceback, with the hub in it, stays until the collector comes.
                    del error
            if self.poked:
                self.poked = False  # type: ignore[misc]  # an Inbox, which has no slots
                break
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                if not self.unsettled:
                    break
                self._overdue, remaining = True, math.inf
            waiting = self._waiting = self.loop.create_future()
            timer = None
            if remaining < math.inf:
                timer = self.loop.call_later(min(remaining, _LONGEST), self._wake)
            try:
                await waiting
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        documents, self._documents = self._documents, []
        return documents

    def strand(self) -> None:
        """Let go of who waits: its loop is closed, and nothing else holds it."""
        self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Inbox(Mailbox):
    """A mailbox whose owner may be woken for other reasons, too."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.poked = False

    def poke(self) -> None:
        """Have :meth:`get` return, once, though nothing has come."""
        self.poked = True
        self._wake()


def fail_all(mailboxes: Iterable[Mailbox], error: Callable[[], Exception]) -> None:
    """End waits, each on its loop and not all in one turn; for any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, deque[Mailbox]] = {}
    for mailbox in mailboxes:
        by_loop.setdefault(mailbox.loop, deque()).append(mailbox)
    for loop, own in by_loop.items():
        call_on(loop, partial(_fail_some, loop, own, error))


def _fail_some(
    loop: asyncio.AbstractEventLoop, mailboxes: deque[Mailbox], error: Callable[[], Exception]
) -> None:
    for _ in range(min(_ENDED, len(mailboxes))):
        mailboxes.popleft().fail(error())
    if mailboxes:
        loop.call_soon(_fail_some, loop, mailboxes, error)


def deadline_after(timeout: float | None) -> float:
    """Return the ``time.monotonic()`` of a timeout in seconds; infinite for ``None``."""
    return math.inf if timeout is None else time.monotonic() + timeout
