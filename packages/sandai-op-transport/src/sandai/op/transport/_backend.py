"""What every result backend offers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from attrs import frozen

from ._documents import ResultDocument
from ._limiter import Limiter, LimiterStatistics


@frozen
class BackendStatistics:
    """
    A result backend at one moment.

    ``commands`` is the budget for commands, ``push`` the one for push
    connections (``None`` where the backend has no push); ``readers`` are the
    statistics of those who wait: a thread's reader, each loop's hub.
    """

    commands: LimiterStatistics
    push: LimiterStatistics | None
    readers: tuple[Any, ...]


class Reader(Protocol):
    """Something that waits for results on a backend's behalf until it is closed."""

    def close(self) -> None: ...
    def statistics(self) -> Any: ...


class Backend(Protocol):
    """A shared, bounded view of stored results; for threads."""

    limiter: Limiter
    #: The reply queue that tasks name (``rpc://`` reads it, others ignore it).
    reply_to: str

    def before_submit(self) -> None:
        """Do what must be done before a task is sent; cheap after the first time."""

    def look(self, task_ids: Sequence[str], *, acquire_timeout: float) -> list[ResultDocument]:
        """
        Return the documents that are stored now, in no particular order.

        Raises :class:`ClientPoolTimeoutError` or :class:`TransportError`.
        """

    def delete(self, task_ids: Sequence[str], *, acquire_timeout: float) -> None:
        """Delete results; raises as :meth:`look` does."""

    def reader(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """
        Return the one reader of *owner*, made once.

        *owner* is an event loop, or an object that stands for all threads.
        """

    def statistics(self) -> BackendStatistics:
        """Return a snapshot."""

    def close(self) -> None:
        """Close readers and connections; called once, at the last release."""


def chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    """Yield *items* in pieces of at most *size*."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
