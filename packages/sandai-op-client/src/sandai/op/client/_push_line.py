"""One push connection for threads: anybody writes, the hub's thread reads."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis.exceptions import RedisError

from sandai.op.transport import (
    Command,
    Health,
    PushSession,
    RedisBackend,
    RedisConnection,
    ResultDocument,
    TransportError,
    WaiterTable,
    close_in_child,
    read_reply,
    ready_responses,
)

#: Of one call: responses over TLS, and reads and their bytes without.
_MOST_RESPONSES = 1000
_MOST_READS, _READ_SIZE = 16, 65536
_MOST_LOOKED_AT = 200


class PushLine:
    """
    A subscribed connection and its bookkeeping.

    Writers never wait, neither for each other (who finds the line busy leaves the
    changes in the table, and whoever is writing takes them along) nor for the
    server: what the socket does not take at once the hub's thread writes later.
    Over TLS, whose sockets are not for two threads, it writes everything.
    """

    def __init__(self, backend: RedisBackend, table: WaiterTable) -> None:
        self._backend = backend
        self._table = table
        self._session = PushSession(backend, time.monotonic())
        self._connection: RedisConnection = backend.connector.open(protocol=3)
        self._session.prepare(self._connection)
        self._parser: Any = self._connection._parser._reader  # type: ignore[attr-defined]  # no public way
        sock: socket.socket = self._connection._sock  # type: ignore[attr-defined]  # no public way
        self._socket = sock
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        # redis-py closes its socket, or opens another, when a call on it fails. The
        # writers have a descriptor of their own, which only close() takes away.
        self._sender = socket.socket(fileno=os.dup(sock.fileno()))
        self._sender.setblocking(False)
        close_in_child(self._sender, socket.socket.close)
        self._writing = threading.Lock()
        self._unsent = bytearray()
        #: Why nothing more can be written; the reader closes the line then.
        self.broken: TransportError | None = None
        #: Whether tasks were joined that are to be looked at by a sweep.
        self.look_wanted = False

    def fileno(self) -> int:
        """Return a descriptor of the connection, for a selector."""
        return self._sender.fileno()

    @property
    def unsent(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return bool(self._unsent)

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
            self._session.sent(time.monotonic())
            self._socket.sendall(self._packed([*commands, self._session.ping()]))
            while self._session.awaiting:
                documents += self._next()[0]
            for response in ready_responses(self._connection):
                documents += self._session.receive(response, time.monotonic())[0]
        except BaseException as error:
            self._table.delete(changes.delete)
            if isinstance(error, OSError) and not isinstance(error, TransportError):
                raise self._failure(error) from error
            raise
        return documents

    def flush(self) -> bool:
        """
        Write what has changed in the table; never waits, a failure shows in :attr:`broken`.

        Returns whether the hub's thread has to go on with it.
        """
        while self._table.changed and self.broken is None:
            if not self._writing.acquire(blocking=False):
                break
            try:
                if self.broken is None:
                    self._take_changes()
                    if not self._is_tls:
                        self._send()
            finally:
                self._writing.release()
        return self.unsent or self.look_wanted

    def pump(self) -> None:
        """Write what is left, as far as the socket takes it; for the hub's thread."""
        with self._writing:
            self._send()

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
        with self._writing:
            if health is Health.ASK:
                self._session.sent(time.monotonic())
                self._unsent += self._packed([self._session.ping()])
            self._send()

    def receive(self, on_pushed: Callable[[str], None]) -> list[ResultDocument]:
        """
        Return the documents in what has arrived; never waits for a first byte.

        Raises :class:`TransportError` and :class:`PushRefused`.
        """
        if self.broken is not None:
            raise self.broken
        documents: list[ResultDocument] = []
        try:
            for response in self._arrived():
                found, pushed = self._session.receive(response, time.monotonic())
                documents += found
                if pushed:
                    for document in found:
                        document.how = "pushed"
                        on_pushed(document.task_id)
        except (RedisError, OSError) as error:
            if isinstance(error, TransportError):
                raise
            raise self._failure(error) from error
        return documents

    def _arrived(self) -> Iterator[Any]:
        """Yield what has arrived; asks the socket once, as a rule."""
        if self._is_tls:
            for _ in range(_MOST_RESPONSES):
                if not self._connection.can_read(timeout=0):
                    return
                yield read_reply(self._connection, push_request=True)
            return
        for _ in range(_MOST_READS):
            try:
                data = self._sender.recv(_READ_SIZE)
            except BlockingIOError:
                return
            if not data:
                raise ConnectionResetError("Connection closed by server.")
            self._parser.feed(data)
            yield from ready_responses(self._connection)
            if len(data) < _READ_SIZE:
                return

    def close(self, linger: float = 0.0) -> None:
        """
        Close the connection; deletions that were not acknowledged go back to the table.

        First reads the outstanding replies, for at most *linger* seconds:
        closing with unread ones may discard what was sent.
        """
        deadline = time.monotonic() + linger
        try:
            if linger:
                self.pump()
            while linger and self._session.awaiting:
                if not self._connection.can_read(timeout=max(0.0, deadline - time.monotonic())):
                    break
                self._next()
        except Exception:
            return  # broken, refused: it is closed all the same
        finally:
            # Nobody is in the middle of writing then, and nobody begins.
            with self._writing:
                self.broken = self.broken or TransportError("the push connection is closed")
                self._connection.disconnect()
                self._sender.close()
                self._table.delete_again(self._session.deleting())

    def _next(self) -> tuple[list[ResultDocument], bool]:
        try:
            response = read_reply(self._connection, push_request=True)
        except (RedisError, OSError) as error:
            raise self._failure(error) from error
        return self._session.receive(response, time.monotonic())

    def _take_changes(self) -> None:
        changes = self._table.changes()
        # Many at once are looked at by a sweep, in pieces of a fitting size, elsewhere:
        # Redis drops a subscriber to whom too much is to be sent.
        look = len(changes.join) <= _MOST_LOOKED_AT
        try:
            self._session.sent(time.monotonic())
            self._unsent += self._packed(self._session.commands(changes, look=look))
        except BaseException:
            # Interrupted (Ctrl-C): which commands were noted, and which will be written?
            self.broken = TransportError("writing to the push connection was interrupted")
            self._table.delete(changes.delete)
            raise
        if not look:
            self.look_wanted = True

    def _send(self) -> None:
        if not self._unsent or self.broken is not None:
            return
        try:
            if self._is_tls:
                self._socket.sendall(self._unsent)
                sent = len(self._unsent)
            else:
                sent = self._sender.send(self._unsent)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self.broken = self._failure(error)
            return
        del self._unsent[:sent]

    def _packed(self, commands: Sequence[Command]) -> bytes:
        return b"".join(self._connection.pack_commands(commands)) if commands else b""

    def _failure(self, error: BaseException) -> TransportError:
        return self._backend.connector.failure(error, maybe_done=False)
