"""A value that many coroutines, on any loops, ask for and one fetches."""

import asyncio
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from ._turns import call_on

V = TypeVar("V")

#: Seconds after which it is seen that the loop of whoever fetches does not run.
_CHECK_INTERVAL = 1.0


class SharedFetch(Generic[V]):
    """
    Fetch once, however many ask at a time; keep the value.

    Those who came while a fetch was under way share its outcome. A failure is
    not kept; when the one who fetches is cancelled, or its loop stops, another
    takes over.
    """

    def __init__(self) -> None:
        self._value: V | None = None
        self._reset()

    def _reset(self) -> None:
        # Re-entrant: a coroutine that is collected lands its flight in a finalizer.
        self._lock = threading.RLock()
        self._flight: _Flight | None = None
        self._process = os.getpid()

    async def get(self, fetch: Callable[[], Awaitable[V]], deadline: float = math.inf) -> V:
        """
        Return the value, or raise what *fetch* raised.

        At *deadline* (``time.monotonic()``) it waits no longer for another's fetch, and
        raises :class:`TimeoutError`.
        """
        if self._process != os.getpid():
            # A forked child: whoever fetched, or held the lock, stayed behind.
            self._reset()
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if self._value is not None:
                    return self._value
                flight = self._flight
                if flight is None or flight.stranded:
                    own = self._flight = _Flight(loop)
                    break
                landed = flight.follow(loop)
            await _either(landed, deadline)
            if flight.error is not None:
                raise flight.error
            if not flight.over and time.monotonic() >= deadline:
                raise TimeoutError
        try:
            self._value = value = await fetch()
        except Exception as error:
            own.error = error
            raise
        finally:
            with self._lock:
                if self._flight is own:
                    self._flight = None
                own.land()
        return value


class _Flight:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._followers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.error: Exception | None = None
        self.over = False

    @property
    def stranded(self) -> bool:
        """Whether it may not land: its loop does not run, for now or for good."""
        return not self._loop.is_running()

    def follow(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
        """Return a future that ends with the flight; under the lock."""
        landed: asyncio.Future[None] = loop.create_future()
        self._followers = [(on, f) for on, f in self._followers if not f.done()]
        self._followers.append((loop, landed))
        return landed

    def land(self) -> None:
        """Tell the followers, each on its loop; under the lock."""
        self.over = True
        for loop, landed in self._followers:
            call_on(loop, partial(_end, landed))
        self._followers.clear()


def _end(landed: "asyncio.Future[None]") -> None:
    if not landed.done():
        landed.set_result(None)


async def _either(landed: "asyncio.Future[None]", deadline: float) -> None:
    """Wait until it has landed, but not so long that a stopped loop goes unnoticed."""
    try:
        async with asyncio.timeout(min(_CHECK_INTERVAL, max(0.0, deadline - time.monotonic()))):
            await landed
    except TimeoutError:
        return
