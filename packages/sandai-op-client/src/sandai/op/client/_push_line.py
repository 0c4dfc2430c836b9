"""One push connection for threads: anybody writes, the hub's thread reads."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from sandai.op.transport import (
    Command,
    Health,
    PushSession,
    RedisBackend,
    RedisConnection,
    ResultDocument,
    TransportError,
    WaiterTable,
)

_MOST_RESPONSES = 1000


class PushLine:
    """
    A subscribed connection and its bookkeeping.

    Writers never wait for each other: who finds the line busy leaves the
    changes in the table, and whoever is writing takes them along.
    """

    def __init__(self, backend: RedisBackend, table: WaiterTable) -> None:
        self._backend = backend
        self._table = table
        self._session = PushSession(backend, time.monotonic())
        self._connection: RedisConnection = backend.connector.open(protocol=3)
        self._session.prepare(self._connection)
        sock: socket.socket = self._connection._sock  # type: ignore[attr-defined]  # no public way
        self._descriptor = sock.fileno()
        self._writing = threading.Lock()
        #: Why a write failed; the reader closes the line then.
        self.broken: TransportError | None = None

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector; also after closing."""
        return self._descriptor

    def resubscribe(self) -> list[ResultDocument]:
        """
        Subscribe to everything that is waited for, and wait until that holds.

        Returns what was pushed meanwhile. Raises :class:`TransportError` and
        :class:`PushRefused`. Whatever was stored before is to be looked for.
        """
        self._table.rejoin_all()
        changes = self._table.changes()
        documents: list[ResultDocument] = []
        try:
            commands = self._session.commands(changes, look=False)
            self._write([*commands, self._session.ping()])
            while self._session.awaiting:
                documents += self._next()[0]
        except BaseException:
            self._table.delete(changes.delete)
            raise
        return documents

    def flush(self) -> None:
        """Write what has changed in the table. A failure shows in :attr:`broken`."""
        while self._table.changed and self.broken is None:
            if not self._writing.acquire(blocking=False):
                return
            try:
                if self.broken is None:
                    self._write_changes()
            finally:
                self._writing.release()

    def check(self) -> None:
        """
        Ask for a sign of life when one is due.

        Raises :class:`TransportError` when the line broke or fell silent.
        """
        if self.broken is not None:
            raise self.broken
        health = self._session.health(time.monotonic())
        if health is Health.LOST:
            raise TransportError("the push connection has fallen silent")
        if health is Health.ASK:
            with self._writing:
                self._write([self._session.ping()])

    def receive(self, on_pushed: Callable[[str], None]) -> list[ResultDocument]:
        """
        Return the documents in what has arrived; never waits for a first byte.

        Raises :class:`TransportError` and :class:`PushRefused`.
        """
        documents: list[ResultDocument] = []
        for _ in range(_MOST_RESPONSES):
            if self.broken is not None:
                raise self.broken  # redis-py would connect anew
            if not self._readable(0):
                break
            found, pushed = self._next()
            documents += found
            if pushed:
                for document in found:
                    on_pushed(document.task_id)
        return documents

    def close(self, linger: float = 0.0) -> None:
        """
        Close the connection.

        First reads the outstanding replies, for at most *linger* seconds:
        closing with unread ones may discard what was sent.
        """
        deadline = time.monotonic() + linger
        try:
            while linger and self._session.awaiting:
                if not self._readable(max(0.0, deadline - time.monotonic())):
                    break
                self._next()
        except Exception:
            return  # broken, refused: it is closed all the same
        finally:
            self._connection.disconnect()

    def _readable(self, timeout: float) -> bool:
        try:
            return self._connection.can_read(timeout=timeout)
        except (RedisError, OSError) as error:
            raise self._failure(error) from error

    def _next(self) -> tuple[list[ResultDocument], bool]:
        response: Any
        try:
            response = self._connection.read_response(push_request=True)
        except ResponseError as error:
            response = error
        except (RedisError, OSError) as error:
            raise self._failure(error) from error
        return self._session.receive(response, time.monotonic())

    def _write_changes(self) -> None:
        changes = self._table.changes()
        try:
            self._write(self._session.commands(changes))
        except BaseException as error:
            # Interrupted (Ctrl-C) it may have written half a command.
            interrupted = TransportError("writing to the push connection was interrupted")
            self.broken = error if isinstance(error, TransportError) else interrupted
            self._table.delete(changes.delete)
            if error is not self.broken:
                raise

    def _write(self, commands: Sequence[Command]) -> None:
        if not commands:
            return
        self._session.sent(time.monotonic())
        try:
            self._connection.send_packed_command(
                self._connection.pack_commands(commands), check_health=False
            )
        except (RedisError, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> TransportError:
        return self._backend.connector.failure(error, maybe_done=False)
