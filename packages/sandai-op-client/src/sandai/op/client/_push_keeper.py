"""Keeping one push connection up, or doing without."""

import logging
import time
from collections.abc import Callable

from sandai.op.transport import (
    SHORTEST,
    Backend,
    Outage,
    PushRefused,
    RedisBackend,
    ResultDocument,
    TransportError,
    WaiterTable,
)

from ._push_line import PushLine

logger = logging.getLogger("sandai.op.client")

_LONGEST_PAUSE = 1.0
#: Trying takes at most one part in this many of the hub's time: it also sweeps.
_SHARE = 10


class PushKeeper:
    """
    Open, watch and close the hub's push line; used by the hub's thread alone.

    Where push is not to be had (another kind of backend, no permit, an ACL that
    forbids it) :attr:`line` stays ``None`` and the hub polls. *reading* is the
    outage of looking: a server that is down is told of there, and not tried here.
    """

    def __init__(self, backend: Backend, table: WaiterTable, reading: Outage) -> None:
        self._backend = backend if isinstance(backend, RedisBackend) else None
        self._table = table
        self._reading = reading
        self._retry_at = 0.0
        self._failures = 0
        self._told = False
        self.line: PushLine | None = None
        self.opened = 0

    def open_when_possible(self, now: float) -> list[ResultDocument] | None:
        """
        Open the line; return what was pushed while subscribing, ``None`` if not opened.

        Whatever was stored before that is to be looked for.
        """
        backend = self._backend
        if backend is None or now < self._retry_at or self._reading.error is not None:
            return None
        granted, _ = backend.push_limiter.try_acquire(self)
        if not granted:
            # The loops of this process hold the permits.
            self._retry_at = now + _LONGEST_PAUSE
            return None
        began = time.monotonic()
        line = None
        try:
            line = PushLine(backend, self._table)
            documents = line.resubscribe()
        except BaseException as error:
            if line is not None:
                line.close()
            backend.push_limiter.release(self)
            if not isinstance(error, TransportError | PushRefused):
                raise
            self._refused_or_failed(error, time.monotonic() - began)
            return None
        self.line = line
        self.opened += 1
        if self._told:
            logger.warning("push of results: well again")
        self._failures, self._told = 0, False
        return documents

    def check(self) -> None:
        """Close the line if it broke or fell silent."""
        if self.line is not None:
            try:
                self.line.check()
            except TransportError as error:
                self._lose(error)

    def receive(self, on_pushed: Callable[[str], None]) -> list[ResultDocument]:
        """Return what has been pushed; closes the line if it broke."""
        if self.line is None:
            return []
        try:
            return self.line.receive(on_pushed)
        except (TransportError, PushRefused) as error:
            self._lose(error)
            return []

    def close(self, linger: float = 0.0) -> None:
        """Close the line and give its permit back."""
        line, self.line = self.line, None
        if line is not None and self._backend is not None:
            line.close(linger)
            self._backend.push_limiter.release(self)

    def evict(self, connection: object, closed: Callable[[], None]) -> None:
        """Never called: the permit is given back without a connection."""
        closed()

    def _lose(self, error: TransportError | PushRefused) -> None:
        self.close()
        self._retry_at = time.monotonic() + SHORTEST
        if isinstance(error, PushRefused):
            self._refused_or_failed(error, 0.0)

    def _refused_or_failed(self, error: TransportError | PushRefused, took: float) -> None:
        refusal = error if isinstance(error, PushRefused) else PushRefused(str(error))
        if refusal.for_good:
            self._backend = None
            logger.warning("the result backend does not allow push, polling instead: %s", error)
            return
        self._failures += 1
        pause = min(_LONGEST_PAUSE, SHORTEST * 2 ** min(self._failures - 1, 10))
        self._retry_at = time.monotonic() + max(pause, took * _SHARE)
        if self._failures > 1 and not self._told:
            # Reading has worked since: it is push alone that fails.
            self._told = True
            logger.warning("push of results: %s; polling meanwhile, trying on", error)
