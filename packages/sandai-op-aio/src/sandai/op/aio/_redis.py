"""
Redis connections of one loop: open, ask, close from anywhere.

On ``redis.asyncio``'s ``Connection``, without its pools and its retry. It reads
and writes on it directly: redis-py's own clean-up awaits, which a collected
coroutine cannot.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import ref

import redis
from hiredis import pack_command
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from sandai.op.transport import Command, RedisConnector, close_in_child, last_reply

from ._silence import Silence

#: A forked child's references to its parent's streams: their finalizers would have the parent's
#: selector forget the socket.
_inherited: list[Any] = []


class Twin:
    """
    A second descriptor of a socket, to end its connection with.

    :meth:`shut` works in any thread, at any time, and never on a descriptor that
    meanwhile is somebody else's.
    """

    def __init__(self, connection: Any) -> None:
        described = connection._writer.get_extra_info("socket")
        self._descriptors = [os.dup(described.fileno())]

    def shut(self) -> None:
        """End the connection at the socket."""
        try:
            descriptor = self._descriptors.pop()
        except IndexError:
            return
        with socket.socket(fileno=descriptor) as twin, suppress(OSError):
            twin.shutdown(socket.SHUT_RDWR)

    def peek(self) -> bytes:
        """Return a byte that has arrived, ``b""`` at the end; raises ``OSError``."""
        try:
            twin = socket.socket(fileno=self._descriptors[0])
        except IndexError:
            return b""
        try:
            return twin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        finally:
            twin.detach()

    def close(self) -> None:
        """Close the descriptor, and leave the connection."""
        descriptors = getattr(self, "_descriptors", [])
        while descriptors:
            os.close(descriptors.pop())

    __del__ = close


class LoopConnection:
    """One open connection; :meth:`shut` ends it from any thread."""

    def __init__(
        self, connection: Any, connector: RedisConnector, twin: Twin, *, push: bool
    ) -> None:
        self.redis = connection
        self._connector = connector
        self._push = push
        self._tls = connector.address.tls is not None
        self._twin = twin
        self._loop = ref(asyncio.get_running_loop())
        self._closing: asyncio.BaseTransport | None = None
        # From here on we keep the time.
        connection.socket_timeout = None
        close_in_child(self, LoopConnection._close_descriptors)

    @property
    def freed(self) -> bool:
        """Whether :meth:`close` was called and the loop has done its part."""
        if self.redis._writer is not None:
            return False
        # Of another's transport (uvloop's) nothing can be known, and nothing done.
        return getattr(self._closing, "_sock", None) is None

    @property
    def usable(self) -> bool:
        """Whether an idle connection is still open and in step."""
        reader, writer = self.redis._reader, self.redis._writer
        if writer is None or writer.transport.is_closing():
            return False
        if reader.at_eof() or getattr(reader, "_buffer", b""):
            return False
        return self._silent()

    def _silent(self) -> bool:
        # The loop may not have got round to the end that a server made meanwhile.
        try:
            return bool(self._twin.peek()) and self._tls
        except BlockingIOError:
            return True
        except OSError:
            return False

    def write(self, commands: Sequence[Command]) -> None:
        """Write commands into the transport's buffer; raises ``redis.ConnectionError``."""
        writer = self.redis._writer
        if writer is None or writer.transport.is_closing():
            raise redis.ConnectionError("the connection is closed")
        # As redis-py does for threads; its asyncio connections pack in Python.
        packed = [pack_command(command) for command in commands]  # type: ignore[arg-type]  # its stub says a tuple of one
        writer.write(b"".join(packed))

    @property
    def unwritten(self) -> int:
        """How many bytes the server has not taken yet."""
        writer = self.redis._writer
        return 0 if writer is None else int(writer.transport.get_write_buffer_size())

    async def read(self) -> Any:
        """Return the next response, however long it takes; an error reply is not raised."""
        try:
            return await self.redis.read_response(
                disconnect_on_error=False, push_request=self._push
            )
        except ResponseError as error:
            return error

    async def execute(
        self, commands: Sequence[Command], *, replies: list[Any] | None = None
    ) -> list[Any]:
        """
        Send commands in one write and return their replies, in order.

        An error reply stands in the list as a ``ResponseError``. When the connection
        breaks, or nothing comes within the I/O timeout, raises
        :class:`TransportError` with ``maybe_done``; *replies* then holds those that
        came before. Whatever is raised, the connection is closed.
        """
        replies = [] if replies is None else replies
        parsed = self.redis._parser._reader

        def received() -> tuple[int, int]:
            return len(replies), 0 if parsed is None else parsed.len()

        try:
            async with Silence(self._connector.io_timeout, received) as silence:
                self.write(commands)
                await self.redis._writer.drain()
                silence.broken()
                for _ in commands:
                    replies.append(await self.read())
        except (RedisError, OSError) as error:
            self.close()
            replies += last_reply(error)
            told = redis.TimeoutError("no answer in time") if _timed_out(error) else error
            raise self._connector.failure(told, maybe_done=True) from error
        except BaseException:
            self.close()
            raise
        return replies

    def close(self) -> None:
        """Close at once, in the loop's thread or, when the loop is closed, in any; never waits."""
        self.shut()
        connection, writer = self.redis, self.redis._writer
        with suppress(Exception):
            connection._parser.on_disconnect()
        connection._writer = connection._reader = None
        if writer is not None:
            self._closing = writer.transport
        if self._closing is not None and _abort(self._closing, self._loop()):
            self._closing = None

    def shut(self) -> None:
        """End the connection at the socket; for any thread."""
        self._twin.shut()

    def _close_descriptors(self) -> None:
        """In a forked child: close what it inherited, and leave the loop, its parent's, alone."""
        self._twin.close()
        connection, writer = self.redis, self.redis._writer
        connection._writer = connection._reader = None
        if writer is not None:
            _inherited.append(writer)
            transport = writer.transport
            protocol = getattr(transport, "_ssl_protocol", None)
            if protocol is not None:
                transport = protocol._transport
            if (sock := getattr(transport, "_sock", None)) is not None:
                sock.close()


async def open_connection(
    connector: RedisConnector,
    *,
    protocol: int = 2,
    timeout: float | None = None,
    opening: Callable[[Twin], object] = lambda _: None,
) -> LoopConnection:
    """
    Connect, authenticate and select the database.

    *timeout* (seconds) shortens the I/O timeout, which bounds each step. *opening* is
    given what ends the connection before it is open. Raises :class:`TransportError`,
    which says what the server said.
    """
    limit = connector.io_timeout if timeout is None else min(connector.io_timeout, timeout)
    host, port = connector.address.host, connector.address.port
    loop = asyncio.get_running_loop()
    try:
        if connector.address.sentinels:
            host, port = await _master(connector, limit)
        connection = _build(connector, host, port, protocol, limit)
        try:
            twin = await _connect(connection, limit, opening)
            try:
                if questions := connector.questions():
                    await connection.send_packed_command(connection.pack_commands(questions))
                    async with asyncio.timeout(limit):
                        connector.check([await _reply(connection) for _ in questions])
                return LoopConnection(connection, connector, twin, push=protocol == 3)
            except BaseException:
                twin.shut()
                raise
        except (TypeError, AttributeError, LookupError) as error:
            _drop(connection, loop)
            raise redis.ConnectionError("it does not answer as a Redis does") from error
        except BaseException:
            _drop(connection, loop)
            raise
    except (RedisError, OSError) as error:
        raise connector.failure(error, maybe_done=False) from error


def _build(connector: RedisConnector, host: str, port: int, protocol: int, timeout: float) -> Any:
    kwargs = connector.connection_kwargs(protocol, timeout)
    kwargs["retry"] = Retry(NoBackoff(), 0)
    if connector.address.world is not None:
        return _InProcessConnection(connector, **kwargs)
    if connector.address.path is not None:
        return UnixDomainSocketConnection(path=connector.address.path, **kwargs)
    build = Connection if connector.address.tls is None else SSLConnection
    return build(host=host, port=port, **kwargs)


class _InProcessConnection(UnixDomainSocketConnection):
    """redis-py's connection, whose other end is in this process."""

    def __init__(self, connector: RedisConnector, **kwargs: Any) -> None:
        super().__init__(path=connector.address.label, **kwargs)
        self._connector = connector

    async def _connect(self) -> None:
        sock = self._connector.in_process()
        try:
            self._reader, self._writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            if sock is not None:
                sock.close()
            raise


async def _connect(connection: Any, limit: float, opening: Callable[[Twin], object]) -> Twin:
    """Connect and shake hands within *limit* seconds."""
    connect: Callable[[], Awaitable[None]] = connection._connect
    twins: list[Twin] = []

    async def connect_and_tell() -> None:
        await connect()
        twins.append(Twin(connection))
        opening(twins[0])

    connection._connect = connect_and_tell
    # Our own timeout: redis-py's asyncio.wait_for() drops a cancel on Python 3.11.
    connection.socket_timeout = None
    # And its clean-up, which awaits, would fail in a coroutine that is collected.
    connection.disconnect = _leave
    try:
        async with asyncio.timeout(limit):
            await connection.connect()
        return twins[0]
    except BaseException as error:
        for twin in twins:
            twin.shut()
        if _timed_out(error) and not isinstance(error, redis.TimeoutError):
            raise redis.TimeoutError("Timeout connecting to server") from error
        raise
    finally:
        del connection._connect


async def _leave(*_: object, **__: object) -> None:
    """Leave a connection as it is."""


def _drop(connection: Any, loop: asyncio.AbstractEventLoop) -> None:
    writer = connection._writer
    connection._writer = connection._reader = None
    if writer is not None:
        _abort(writer.transport, loop)


def _abort(transport: Any, loop: asyncio.AbstractEventLoop | None) -> bool:
    """End a transport; return whether it is freed, which else its loop does in a turn."""
    if loop is not None and not loop.is_closed():
        with suppress(RuntimeError):
            transport.abort()
        return False
    if type(transport).__module__.startswith("asyncio."):
        # Its loop will not do the rest. Another's transport (uvloop's) must not be
        # touched: the loop may be in the middle of closing, in its own thread.
        with suppress(RuntimeError):
            transport.abort()
        with suppress(Exception):
            transport._call_connection_lost(None)
    return True


async def _master(connector: RedisConnector, timeout: float) -> tuple[str, int]:
    said = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        **connector.address.sentinel_kwargs,
    }
    loop = asyncio.get_running_loop()
    sentinel = Sentinel(list(connector.address.sentinels), sentinel_kwargs=said)
    try:
        host, port = await sentinel.discover_master(str(connector.address.master_name))
        return str(host), int(port)
    finally:
        for client in sentinel.sentinels:
            for connection in _connections(client.connection_pool):
                _drop(connection, loop)


def _connections(pool: Any) -> list[Any]:
    # Closed at once and without awaiting: a lookup may have been cancelled.
    return [*pool._available_connections, *pool._in_use_connections]


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response(disconnect_on_error=False)
    except ResponseError as error:
        return error


def _timed_out(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) and not str(error)
