"""Keeping one push connection up, or doing without."""

import logging
import time
from collections.abc import Callable

from sandai.op.transport import (
    Backend,
    Outage,
    PushPolicy,
    PushRefused,
    RedisBackend,
    ResultDocument,
    TransportError,
    WaiterTable,
)

from ._push_line import PushLine

logger = logging.getLogger("sandai.op.client")


class PushKeeper:
    """
    Open, watch and close the hub's push line; used by the hub's thread alone.

    Where push is not to be had (another kind of backend, no permit, an ACL that
    forbids it) :attr:`line` stays ``None`` and the hub polls. *reading* is the
    outage of looking.
    """

    def __init__(self, backend: Backend, table: WaiterTable, reading: Outage) -> None:
        self._backend = backend if isinstance(backend, RedisBackend) else None
        self._table = table
        self._policy = PushPolicy(reading, logger, possible=self._backend is not None)
        self.line: PushLine | None = None

    @property
    def problem(self) -> str | None:
        """Why there is no line; ``None`` while there is one, or none is wanted."""
        return self._policy.problem

    @property
    def opened(self) -> int:
        """How many lines have been opened."""
        return self._policy.opens

    def open_when_possible(self, now: float) -> list[ResultDocument] | None:
        """
        Open the line; return what was pushed while subscribing, ``None`` if not opened.

        Whatever was stored before that is to be looked for.
        """
        backend = self._backend
        if backend is None or not self._policy.due(now):
            return None
        granted, _ = backend.push_limiter.try_acquire(self)
        if not granted:
            self._policy.no_permit(now)
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
            ended = time.monotonic()
            self._policy.failed(error, ended, took=ended - began)
            return None
        self.line = line
        self._policy.opened()
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
        self._policy.lost(error, time.monotonic())
