"""Keeping one push line up on a loop, or doing without."""

import asyncio
import logging
import time
from collections.abc import Callable

from sandai.op.transport import (
    Backend,
    Outage,
    PushPolicy,
    PushRefused,
    RedisBackend,
    TransportError,
    WaiterTable,
)

from ._pool import LoopPool
from ._push_line import OnDocuments, PushLine

logger = logging.getLogger("sandai.op.aio")


class PushKeeper:
    """
    Open, watch and close the hub's push line.

    Where push is not to be had (another kind of backend, no permit, an ACL that
    forbids it) :attr:`line` stays ``None`` and the hub polls. *reading* is the
    outage of looking.
    """

    def __init__(
        self,
        backend: Backend,
        loop: asyncio.AbstractEventLoop,
        table: WaiterTable,
        reading: Outage,
        on_documents: OnDocuments,
        on_end: Callable[[], None],
    ) -> None:
        self._backend = backend if isinstance(backend, RedisBackend) else None
        self._pool: LoopPool | None = None
        if self._backend is not None:
            self._pool = LoopPool(
                self._backend.push_limiter, self._backend.connector, loop, protocol=3
            )
        self._table = table
        self._on_documents = on_documents
        self._on_end = on_end
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

    async def open_when_possible(self, now: float) -> bool:
        """Open the line; whatever was stored before that is to be looked for."""
        backend, pool = self._backend, self._pool
        if backend is None or pool is None or not self._policy.due(now):
            return False
        lease = pool.try_acquire()
        if lease is None:
            self._policy.no_permit(now)
            return False
        began = time.monotonic()
        line = None
        try:
            # Gives the lease back if it fails; from then on the line does.
            connection = await lease.open()
            line = PushLine(
                backend, self._table, lease, connection, self._on_documents, self._on_end
            )
            await line.subscribe()
        except GeneratorExit:
            # Its loop is closed; the janitor ends the connection.
            if line is not None:
                line.let_go()
            raise
        except BaseException as error:
            if line is not None:
                line.close()
            if not isinstance(error, TransportError | PushRefused):
                raise
            ended = time.monotonic()
            self._policy.failed(error, ended, took=ended - began)
            return False
        self.line = line
        self._policy.opened()
        return True

    def check(self) -> None:
        """Close the line if it broke or fell silent."""
        if self.line is not None:
            try:
                self.line.check()
            except (TransportError, PushRefused) as error:
                self.close()
                self._policy.lost(error, time.monotonic())

    def close(self) -> None:
        """Close the line and give its permit back."""
        line, self.line = self.line, None
        if line is not None:
            line.close()

    def shut(self) -> None:
        """End the connection and give its permit back; in any thread, the line follows."""
        if self._pool is not None:
            self._pool.close(busy=True)
