"""
Plain Redis connections for threads: open, ask, close.

On redis-py's ``Connection``, one socket each, without its pools and without its
transparent retry, which sends a command again whose reply was merely slow.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any, Protocol

import redis
from attrs import field, frozen
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from ._errors import TransportError
from ._inheritance import close_in_child
from ._memory import InProcessConnection, open_socket
from ._redis_refusals import UnfitServer, advice, check_mode, check_role
from ._url import RedisAddress

Command = tuple[str | bytes | int | float, ...]

#: Seconds of silence, between probes, and probes, before the kernel gives up.
_KEEPALIVE = {
    option: value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if (option := getattr(socket, name, None)) is not None
}


#: No CLIENT SETINFO, which is two more round trips to connect (redis-py 7.2
#: renamed the arguments).
_SILENT: dict[str, None] = (
    {"driver_info": None}
    if "driver_info" in signature(redis.connection.AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


class RedisConnection(Protocol):
    """What we use of redis-py's connection."""

    def pack_commands(self, commands: Sequence[Command]) -> list[bytes]: ...
    def send_packed_command(self, command: Any, check_health: bool = ...) -> None: ...
    def read_response(self, *, push_request: bool = ...) -> Any: ...
    def can_read(self, timeout: float = ...) -> bool: ...
    def disconnect(self) -> None: ...


@frozen
class RedisConnector:
    """Opens connections to one address; *io_timeout* seconds for each step."""

    address: RedisAddress
    io_timeout: float
    client_name: str
    #: Holds ``HELLO`` once a server has told what it is: the question costs a trip.
    _answered: set[str] = field(factory=set, init=False, eq=False, repr=False)

    def open(self, *, protocol: int = 2, timeout: float | None = None) -> RedisConnection:
        """
        Connect, authenticate and select the database.

        *timeout* (seconds) shortens the I/O timeout. Raises
        :class:`TransportError`, which says what the server said.
        """
        limit = self.io_timeout if timeout is None else min(self.io_timeout, timeout)
        host, port = (self.address.host, self.address.port)
        try:
            if self.address.sentinels:
                host, port = self._master(limit)
            connection = self._build(host, port, protocol, limit)
            close_in_child(connection, _close_descriptor)
            try:
                connection.connect()
                if questions := self.questions():
                    connection.send_packed_command(connection.pack_commands(questions))
                    self.check([read_reply(connection) for _ in questions])
            except (TypeError, AttributeError, LookupError) as error:
                connection.disconnect()
                raise redis.ConnectionError("it does not answer as a Redis does") from error
            except BaseException:
                connection.disconnect()
                raise
        except (RedisError, OSError) as error:
            raise self.failure(error, maybe_done=False) from error
        opened: RedisConnection = connection
        return opened

    def failure(self, error: BaseException, *, maybe_done: bool) -> TransportError:
        """Return the error that tells of *error* at this address."""
        said = str(error) or type(error).__name__
        if isinstance(error, UnfitServer):
            return TransportError(f"Redis at {self.address.label} {said}", refused=True)
        cause = error.__cause__ or error.__context__
        number = cause.errno or 0 if isinstance(cause, OSError) else 0
        if number > 0 and (why := os.strerror(number)) not in said:
            said += f" {why}."  # asyncio says "Connect call failed", whatever the reason
        if hint := advice(error, self.address.setting):
            said = f"{said} ({hint})"
        if isinstance(error, ResponseError | AuthenticationError):
            said = f"{type(error).__name__}: {said}"  # redis-py strips the code (OOM, NOAUTH)
            return TransportError(f"Redis at {self.address.label} refused: {said}", refused=True)
        return TransportError(f"Redis at {self.address.label} failed: {said}", maybe_done)

    def questions(self) -> list[Command]:
        """
        Return what to ask a server that has just been connected to.

        HELLO needs no permission, and without a version it changes nothing.
        """
        asked: list[Command] = [("ROLE",)] if self.address.sentinels else []
        return asked if self._answered else [*asked, ("HELLO",)]

    def check(self, answers: Sequence[Any]) -> None:
        """Raise for answers to :meth:`questions` that show a server of no use."""
        rest = list(answers)
        if self.address.sentinels:
            role = rest.pop(0)
            if isinstance(role, ResponseError):
                raise role
            check_role(role)
        for mode in rest:
            check_mode(mode)
            self._answered.add("HELLO")

    def connection_kwargs(self, protocol: int, timeout: float) -> dict[str, Any]:
        """Return the arguments that redis-py's connections, of both colours, take."""
        address = self.address
        kwargs: dict[str, Any] = {
            "db": address.db,
            "username": address.username,
            "password": address.password,
            "client_name": self.client_name,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "protocol": protocol,
            **_SILENT,
            "health_check_interval": 0,
        }
        if address.path is None and address.world is None:
            kwargs |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
        for name, value in address.socket_options.items():
            # The I/O timeout holds whatever the options say; they can shorten it.
            kwargs[name] = min(value, timeout) if name.endswith("timeout") else value
        if address.path is not None or address.world is not None:
            kwargs.pop("socket_connect_timeout", None)
            kwargs.pop("socket_keepalive", None)
        return kwargs | dict(address.tls or {})

    def in_process(self) -> socket.socket | None:
        """
        Return a new socket to ``memory://``; ``None`` where the server is elsewhere.

        Raises ``OSError``, as connecting does.
        """
        if self.address.world is None:
            return None
        return open_socket(self.address.world, self.client_name)

    def _build(self, host: str, port: int, protocol: int, timeout: float) -> Any:
        kwargs = self.connection_kwargs(protocol, timeout)
        kwargs["retry"] = Retry(NoBackoff(), 0)
        if self.address.world is not None:
            inside: Any = InProcessConnection  # its types miss a property
            return inside(self.address.world, self.address.label, **kwargs)
        if self.address.path is not None:
            unix: Any = redis.UnixDomainSocketConnection  # its types miss a property
            return unix(path=self.address.path, **kwargs)
        build = redis.SSLConnection if self.address.tls is not None else redis.Connection
        return build(host=host, port=port, **kwargs)

    def _master(self, timeout: float) -> tuple[str, int]:
        said = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            **self.address.sentinel_kwargs,
        }
        sentinel = Sentinel(list(self.address.sentinels), sentinel_kwargs=said)
        try:
            host, port = sentinel.discover_master(self.address.master_name)
            return str(host), int(port)
        finally:
            for client in sentinel.sentinels:
                client.close()


def _close_descriptor(connection: Any) -> None:
    sock, connection._sock = connection._sock, None
    if sock is not None:
        sock.close()


class RedisOpener:
    """How a pool opens, checks and closes Redis connections."""

    def __init__(self, connector: RedisConnector) -> None:
        self.connector = connector

    def open(self, timeout: float | None) -> RedisConnection:
        """Open a connection within *timeout* seconds (``None``: the I/O timeout)."""
        return self.connector.open(timeout=timeout)

    def usable(self, connection: RedisConnection) -> bool:
        """Return whether an idle connection is still open and in step."""
        try:
            return not connection.can_read(timeout=0)
        except (RedisError, OSError):
            return False

    def close(self, connection: RedisConnection) -> None:
        """Close, whatever state it is in."""
        connection.disconnect()


@contextmanager
def hurried(connection: RedisConnection, timeout: float | None) -> Iterator[None]:
    """Have each step on an open connection take *timeout* seconds at most."""
    sock = getattr(connection, "_sock", None)
    if timeout is None or sock is None:
        yield
        return
    usual = sock.gettimeout()
    sock.settimeout(timeout if usual is None else min(usual, timeout))
    try:
        yield
    finally:
        with suppress(OSError):  # closed meanwhile
            sock.settimeout(usual)


def read_reply(connection: RedisConnection, *, push_request: bool = False) -> Any:
    """
    Return the next reply; an error reply as a ``ResponseError``, not raised.

    With *push_request* what the server pushes is returned, too.
    """
    try:
        return connection.read_response(push_request=push_request)
    except ResponseError as error:
        return error


class ServerLoading(ResponseError):
    """The reply of a server that is loading its data, and executes nothing yet."""


def last_reply(error: Exception) -> list[ResponseError]:
    """
    Return the error reply, if any, for which redis-py ended the connection.

    It belongs to one command; those that were sent with it have no reply.
    """
    return [ServerLoading(str(error))] if isinstance(error, BusyLoadingError) else []


def execute(
    connector: RedisConnector,
    connection: RedisConnection,
    commands: Sequence[Command],
    *,
    replies: list[Any] | None = None,
) -> list[Any]:
    """
    Send commands in one write and return their replies, in order.

    An error reply stands in the list as a ``ResponseError``. When the
    connection breaks, raises
    :class:`TransportError` with ``maybe_done``; *replies* then holds the
    replies that came before.
    """
    replies = [] if replies is None else replies
    try:
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for _ in commands:
            replies.append(read_reply(connection))
    except (RedisError, OSError) as error:
        connection.disconnect()
        replies += last_reply(error)
        raise connector.failure(error, maybe_done=True) from error
    return replies
