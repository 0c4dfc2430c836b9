"""A value that many threads ask for and one fetches."""

import math
import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class SharedFetch(Generic[V]):
    """
    Fetch once, however many threads ask at a time; keep the value.

    Those who came while a fetch was under way share its outcome. A failure is
    not kept; when the fetching thread is interrupted, another takes over.
    """

    def __init__(self) -> None:
        self._value: V | None = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._flight: _Flight | None = None
        # Last: another thread of the child must not see the parent's lock.
        self._process = os.getpid()

    def get(self, fetch: Callable[[], V], deadline: float = math.inf) -> V:
        """
        Return the value, or raise what *fetch* raised.

        At *deadline* (``time.monotonic()``) it waits no longer for another thread's fetch,
        and raises :class:`TimeoutError`.
        """
        known = self._value
        if known is not None:
            return known
        if self._process != os.getpid():
            # A forked child: whoever fetched, or held the lock, stayed behind.
            self._reset()
        while True:
            own = _Flight()
            try:
                with self._lock:
                    if self._value is not None:
                        return self._value
                    flight = self._flight = self._flight or own
                if flight is own:
                    self._value = value = fetch()
                    return value
            except Exception as error:
                own.error = error
                raise
            finally:
                # Wherever it was interrupted, those who wait are told. No lock:
                # only who leads ends a flight.
                if self._flight is own:
                    self._flight = None
                    own.landed.set()
            if not flight.landed.wait(_until(deadline)):
                raise TimeoutError
            if flight.error is not None:
                raise flight.error


def _until(deadline: float) -> float | None:
    """Return the seconds until then; ``None``: for good."""
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())


class _Flight:
    def __init__(self) -> None:
        self.landed = threading.Event()
        self.error: Exception | None = None
