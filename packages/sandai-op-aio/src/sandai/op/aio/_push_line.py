"""One push connection on a loop: what changed is written once a turn, one task reads."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from weakref import ref

from redis.exceptions import RedisError

from sandai.op.transport import (
    Changes,
    Command,
    Health,
    PushRefused,
    PushSession,
    RedisBackend,
    ResultDocument,
    TransportError,
    WaiterTable,
    ready_responses,
)

from ._pool import Lease
from ._redis import LoopConnection
from ._turns import Breath, let_go, spawn

logger = logging.getLogger("sandai.op.aio")

#: Tasks to a command: so many results, found at once, are decoded in a millisecond or two.
_MOST_IDS = 200
#: Responses that are read before others get their turn.
_MOST_RESPONSES = 50
#: Bytes that may wait for a server which does not take them.
_MOST_UNWRITTEN = 1024 * 1024

OnDocuments = Callable[[Sequence[ResultDocument], bool], None]


class PushLine:
    """
    A subscribed connection and its bookkeeping; for the hub, in the loop's thread.

    *on_documents* is told of documents and whether they were pushed, *on_end* that
    the line broke: :attr:`broken` says why.
    """

    def __init__(
        self,
        backend: RedisBackend,
        table: WaiterTable,
        lease: Lease,
        connection: LoopConnection,
        on_documents: OnDocuments,
        on_end: Callable[[], None],
    ) -> None:
        # Weakly: who waits on a closed loop must not keep it.
        self._loop = ref(asyncio.get_running_loop())
        self._backend = backend
        self._table = table
        self._lease = lease
        self._connection = connection
        self._on_documents = on_documents
        self._on_end = on_end
        self._session = PushSession(backend, time.monotonic())
        self._session.prepare_async(connection.redis)
        self._pieces: deque[Changes] = deque()
        self._flush_comes = False
        self._acknowledged = asyncio.Event()
        self._open = False
        self.broken: TransportError | PushRefused | None = None
        self._reading = spawn(self._read(), "push")
        self._reading.add_done_callback(self._read_ended)

    async def subscribe(self) -> None:
        """
        Subscribe to everything that is waited for, and wait until that holds.

        Raises :class:`TransportError` and :class:`PushRefused`. Whatever was stored
        before is to be looked for.
        """
        self._table.rejoin_all()
        self._pieces.extend(_pieces(self._table.changes()))
        breath = Breath()
        while self._pieces:
            self._write(self._session.commands(self._pieces[0], look=False))
            self._pieces.popleft()
            await breath()
        self._write([self._session.ping()])
        self._acknowledged.clear()
        while self._session.awaiting and self.broken is None:
            # Wakes at the acknowledgement, or to see whether the line is still alive.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._backend.connector.io_timeout / 4):
                    await self._acknowledged.wait()
            self._check_health()
        self._raise_if_broken()
        self._open = True
        self.flush_soon()

    def flush_soon(self) -> None:
        """Write what has changed in the table, together with what changes in this turn."""
        loop = self._loop()
        # A coroutine that is collected with its loop may come by here, in any thread.
        if not self._flush_comes and loop is not None and not loop.is_closed():
            self._flush_comes = True
            loop.call_soon(self._flush)

    def flush_deletions(self) -> None:
        """Write deletions at once, and the rest of the changes if they are few."""
        if self._open and self._table.changed:
            self._pieces.extend(_pieces(self._table.changes()))
            deletions = [piece for piece in self._pieces if piece.delete]
            if len(self._pieces) == len(deletions) == 1:
                self._write_pieces()
                return
            for piece in deletions:
                self._write(self._session.commands(Changes([], piece.delete, [])))
                piece.delete.clear()
            self.flush_soon()

    def check(self) -> None:
        """
        Ask for a sign of life when one is due, and see to what could not be written.

        Raises :class:`TransportError` and :class:`PushRefused` when the line broke.
        """
        self._raise_if_broken()
        self._check_health()
        self._raise_if_broken()
        if self._pieces or self._table.changed:
            self.flush_soon()

    def close(self) -> None:
        """Close the connection; what was not deleted yet stays to be."""
        self._open = False
        self._break(TransportError("the push connection was closed"))
        self._reading.cancel()
        self._lease.give_back(keep=False)
        for piece in self._pieces:
            self._table.delete(piece.delete)
        self._pieces.clear()
        self._table.delete_again(self._session.deleting())

    def let_go(self) -> None:
        """Forget a closed loop's reader."""
        let_go(self._reading)

    def _check_health(self) -> None:
        health = self._session.health(time.monotonic())
        if health is Health.LOST:
            self._break(TransportError("the push connection has fallen silent"))
        elif health is Health.ASK and self.broken is None:
            self._write([self._session.ping()])

    def _raise_if_broken(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _break(self, error: TransportError | PushRefused) -> None:
        if self.broken is None:
            self.broken = error
            self._acknowledged.set()

    def _flush(self) -> None:
        self._flush_comes = False
        if not self._open or self.broken is not None:
            return
        if self._table.changed:
            self._pieces.extend(_pieces(self._table.changes()))
        self._write_pieces()
        if self._pieces and self._connection.unwritten < _MOST_UNWRITTEN:
            # The rest in the next turn; what the server does not take waits for check().
            self.flush_soon()

    def _write_pieces(self) -> None:
        breath = Breath()
        while self._pieces and self.broken is None and not breath.due:
            if self._connection.unwritten >= _MOST_UNWRITTEN:
                return
            self._write(self._session.commands(self._pieces[0]))
            if self.broken is None:
                self._pieces.popleft()

    def _write(self, commands: Sequence[Command]) -> None:
        if not commands or self.broken is not None:
            return
        self._session.sent(time.monotonic())
        try:
            self._connection.write(commands)
        except (RedisError, OSError) as error:
            self._break(self._backend.connector.failure(error, maybe_done=False))
            self._on_end()

    async def _read(self) -> None:
        try:
            while True:
                self._receive(await self._connection.read())
                while ready := ready_responses(self._connection.redis, _MOST_RESPONSES):
                    for response in ready:
                        self._receive(response)
                    await asyncio.sleep(0)
        except (RedisError, OSError) as error:
            self._break(self._backend.connector.failure(error, maybe_done=False))
        except (TransportError, PushRefused) as error:
            self._break(error)
        except Exception as error:
            logger.exception("reading pushed results failed unexpectedly")
            self._break(TransportError(f"{type(error).__name__}: {error}"))
        # Not in a finally: a coroutine that is collected has no loop to tell.
        self._on_end()

    def _read_ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # perhaps before its first step
            self._break(TransportError("reading the push connection was interrupted"))
            self._on_end()

    def _receive(self, response: object) -> None:
        documents, pushed = self._session.receive(response, time.monotonic())
        if documents:
            self._on_documents(documents, pushed)
        if not self._open and not self._session.awaiting:
            self._acknowledged.set()


def _pieces(changes: Changes) -> Iterator[Changes]:
    """Yield changes in pieces that are written in no time; deletions first."""
    if len(changes.leave) + len(changes.delete) + len(changes.join) <= _MOST_IDS:
        if changes:
            yield changes
        return
    for start in range(0, len(changes.delete), _MOST_IDS):
        yield Changes([], changes.delete[start : start + _MOST_IDS], [])
    for start in range(0, len(changes.leave), _MOST_IDS):
        yield Changes(changes.leave[start : start + _MOST_IDS], [], [])
    for start in range(0, len(changes.join), _MOST_IDS):
        yield Changes([], [], changes.join[start : start + _MOST_IDS])
