"""kombu's connections, kept to the I/O timeout; kombu alone may wait for good."""

from collections.abc import Mapping
from typing import Any

from kombu.connection import Connection

from sandai.op.models import redact

from ._amqp_line import AmqpLine
from ._amqp_url import is_amqp, tls_options
from ._config import BrokerKey
from ._errors import TransportError
from ._freeze import thaw
from ._kombu_line import Line
from ._url import is_redis
from ._url_parts import scheme_of

#: Seconds of a hundred years.
_NEVER = 100 * 365 * 86_400


def bounded_options(url: str, options: Mapping[str, Any], io_timeout: float) -> dict[str, Any]:
    """Return transport options that bound each operation and verify who is at the other end."""
    bounds: dict[str, Any] = {}
    if is_amqp(url):
        bounds = {"confirm_publish": True, "read_timeout": io_timeout, "write_timeout": io_timeout}
    elif is_redis(url):
        bounds = {"socket_timeout": io_timeout, "socket_connect_timeout": io_timeout}
    bounds |= options
    if is_redis(url):
        # Whoever waits for workers' answers gives the tasks back to their queues that any worker
        # has held for longer than this. That is the workers' affair, whose timeout we do not know.
        bounds["visibility_timeout"] = _NEVER
    if scheme_of(url) == "amqps":
        given = bounds.get("ssl")
        bounds["ssl"] = tls_options(url, given if isinstance(given, Mapping) else {})
    return bounds


def connect(connection: Connection, timeout: float) -> None:
    """Connect within *timeout* seconds, trying each server of a failover list once."""
    # Connection.connect() sleeps for two seconds before it tries a second time.
    tries = max(1, len(connection.alt))
    connection.ensure_connection(max_retries=tries, interval_start=0, timeout=timeout)
    # kombu's Redis channel says PING over one socket and publishes over another: that would
    # be two for one permit.
    if connection.transport.driver_type == "redis":
        channel: Any = connection.default_channel
        channel.async_pool.disconnect()


def failure(url: str, error: Exception, *, maybe_done: bool) -> TransportError:
    """
    Return the error that tells of *error* at a broker.

    That may be any: not every transport of kombu's lists what its server's
    library raises.
    """
    said = str(error) or type(error).__name__
    return TransportError(f"broker {redact(url)} failed: {said}", maybe_done)


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
        # A line waits for its confirms itself.
        confirms = bool(options.pop("confirm_publish", True)) if self._is_amqp else False
        connection = Connection(url, connect_timeout=limit, transport_options=options)
        try:
            connect(connection, limit)
            return AmqpLine(connection, limit, confirms) if self._is_amqp else Line(connection)
        except BaseException as error:
            # AMQP says goodbye, and waits for the answer.
            connection.collect() if self._is_amqp else connection.release()
            if isinstance(error, Exception):
                raise self.failure(error, maybe_done=False) from error
            raise

    def usable(self, line: Line) -> bool:
        """Return whether the connection is still open."""
        return line.usable()

    def close(self, line: Line) -> None:
        """Close a connection and its channels."""
        line.close()

    def failure(self, error: Exception, *, maybe_done: bool) -> TransportError:
        """Return the error that tells of *error* at this broker."""
        return failure(self._key.broker_url, error, maybe_done=maybe_done)
