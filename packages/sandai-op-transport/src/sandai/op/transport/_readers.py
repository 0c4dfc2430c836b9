"""The readers of one backend: at most one per thread world and per event loop."""

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from attrs import frozen

from ._backend import Reader
from ._errors import TransportError


@frozen
class HubStatistics:
    """
    A reader at one moment; the counts are since it was made.

    ``outage`` says why results cannot be read now, ``push_outage`` why they are not
    pushed; ``None`` while all is well.
    """

    pending: int
    pushing: bool
    pushed: int
    swept: int
    sweeps: int
    push_connects: int
    outage: str | None = None
    push_outage: str | None = None


class Readers:
    """Keep a backend's readers; each is made once and closed with the backend."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_owner: WeakKeyDictionary[Any, Reader] = WeakKeyDictionary()
        self._closed = False

    def get(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """
        Return the reader of *owner*, made by *make* the first time.

        *owner* is held weakly: an event loop, or a module's own object. Raises
        :class:`TransportError` after :meth:`close`.
        """
        with self._lock:
            if self._closed:
                raise TransportError("its last client was closed")
            reader = self._by_owner.get(owner)
            if reader is None:
                reader = self._by_owner[owner] = make()
            return reader

    def statistics(self) -> tuple[Any, ...]:
        """Return each reader's statistics."""
        with self._lock:
            readers = list(self._by_owner.values())
        return tuple(reader.statistics() for reader in readers)

    def close(self) -> None:
        """Close every reader; from now on there are none."""
        with self._lock:
            self._closed = True
            readers = list(self._by_owner.values())
            self._by_owner.clear()
        for reader in readers:
            reader.close()
