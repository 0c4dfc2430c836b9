"""Where a waiting thread gets its documents from."""

import math
import threading
import time
from queue import Empty, SimpleQueue

from sandai.op.transport import ResultDocument


class Mailbox:
    """
    A waiter of the table for one thread and any number of tasks.

    The reader delivers; :meth:`fail` ends the wait with an error.
    """

    def __init__(self) -> None:
        self._items: SimpleQueue[ResultDocument | Exception | None] = SimpleQueue()

    def deliver(self, document: ResultDocument) -> None:
        """Hand over a document; never blocks."""
        self._items.put(document)

    def fail(self, error: Exception) -> None:
        """End the wait with *error*."""
        self._items.put(error)

    def poke(self) -> None:
        """Have :meth:`get` return, once, though nothing has come."""
        self._items.put(None)

    def get(self, deadline: float) -> ResultDocument | None:
        """
        Return the next document, or ``None`` at *deadline* (``time.monotonic()``).

        Raises what :meth:`fail` was given.
        """
        try:
            item = self._items.get(timeout=_until(deadline))
        except Empty:
            return None
        if isinstance(item, Exception):
            try:
                raise item
            finally:
                # Else its traceback, with the hub in it, stays until the collector comes.
                del item
        return item

    def get_all(self, deadline: float) -> list[ResultDocument]:
        """Return what has come, without any before *deadline* nothing; raises as :meth:`get`."""
        found = self.get(deadline)
        if found is None:
            return []
        documents = [found]
        while not self._items.empty() and (found := self.get(0.0)) is not None:
            documents.append(found)
        return documents


def deadline_after(timeout: float | None) -> float:
    """Return the ``time.monotonic()`` of a timeout in seconds; infinite for ``None``."""
    return math.inf if timeout is None else time.monotonic() + timeout


def _until(deadline: float) -> float:
    return min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
