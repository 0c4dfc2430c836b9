"""kombu's connections, kept to the I/O timeout; kombu alone may wait for good."""

from collections.abc import Mapping
from typing import Any

from kombu.connection import Connection

from sandai.op.models import redact

from ._errors import TransportError
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


def failure(url: str, error: Exception, *, maybe_done: bool) -> TransportError:
    """
    Return the error that tells of *error* at a broker.

    That may be any: not every transport of kombu's lists what its server's
    library raises.
    """
    said = str(error) or type(error).__name__
    return TransportError(f"broker {redact(url)} failed: {said}", maybe_done)
