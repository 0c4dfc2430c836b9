"""kombu's connections, kept to the I/O timeout; kombu alone may wait for good."""

from collections.abc import Mapping
from typing import Any

from attrs import define, field
from kombu.connection import Connection
from kombu.messaging import Producer

from sandai.op.models import redact

from ._config import BrokerKey
from ._errors import TransportError
from ._freeze import thaw
from ._url import is_redis, scheme_of

_AMQP = frozenset({"amqp", "amqps", "pyamqp"})


def is_amqp(url: str) -> bool:
    """Return whether the broker speaks AMQP."""
    return scheme_of(url) in _AMQP


def bounded_options(url: str, options: Mapping[str, Any], io_timeout: float) -> dict[str, Any]:
    """Return transport options that bound each operation, under those that are given."""
    bounds: dict[str, Any] = {}
    if is_amqp(url):
        bounds = {"confirm_publish": True, "read_timeout": io_timeout, "write_timeout": io_timeout}
    elif is_redis(url):
        bounds = {"socket_timeout": io_timeout, "socket_connect_timeout": io_timeout}
    return {**bounds, **options}


def connect(connection: Connection, timeout: float) -> None:
    """Connect within *timeout* seconds, trying each server of a failover list once."""
    # Connection.connect() sleeps for two seconds before it tries a second time.
    tries = max(1, len(connection.alt))
    connection.ensure_connection(max_retries=tries, interval_start=0, timeout=timeout)
    # kombu's Redis channel says PING over one socket and publishes over another: that would
    # be two for one permit.
    greeting = getattr(connection.default_channel, "async_pool", None)
    if greeting is not None:
        greeting.disconnect()


def failure(url: str, error: Exception, *, maybe_done: bool) -> TransportError:
    """
    Return the error that tells of *error* at a broker.

    That may be any: not every transport of kombu's lists what its server's
    library raises.
    """
    said = str(error) or type(error).__name__
    return TransportError(f"broker {redact(url)} failed: {said}", maybe_done)


@define(eq=False)
class Line:
    """One connection, its producer, and the queues seen to exist over it."""

    connection: Connection
    producer: Producer = field(default=None, init=False)
    known_queues: set[str] = field(factory=set, init=False)
    #: Messages that no queue took, as AMQP gives them back.
    returned: list[Any] = field(factory=list, init=False)


class LineOpener:
    """Opens, checks and closes the pool's connections."""

    def __init__(self, key: BrokerKey) -> None:
        self._key = key
        self._is_amqp = is_amqp(key.broker_url)

    def open(self, timeout: float | None) -> Line:
        """Connect within the I/O timeout, or *timeout* seconds if that is shorter."""
        limit = self._key.io_timeout if timeout is None else min(timeout, self._key.io_timeout)
        url = self._key.broker_url
        options = bounded_options(url, thaw(self._key.transport_options), limit)
        line = Line(Connection(url, connect_timeout=limit, transport_options=options))
        try:
            connect(line.connection, limit)
            channel: Any = line.connection.default_channel
            line.producer = Producer(channel, auto_declare=False)
            if self._is_amqp:
                channel.events["basic_return"].add(lambda *args: line.returned.append(args))
        except Exception as error:
            line.connection.release()
            raise self.failure(error, maybe_done=False) from error
        except BaseException:
            line.connection.release()
            raise
        return line

    def usable(self, line: Line) -> bool:
        """Return whether kombu holds the connection for open."""
        return bool(line.connection.connected)

    def close(self, line: Line) -> None:
        """Close a connection and its channels."""
        line.connection.release()

    def failure(self, error: Exception, *, maybe_done: bool) -> TransportError:
        """Return the error that tells of *error* at this broker."""
        return failure(self._key.broker_url, error, maybe_done=maybe_done)
