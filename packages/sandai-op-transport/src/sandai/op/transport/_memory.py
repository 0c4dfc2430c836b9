"""
``memory://``: broker and result backend in this process, for tests and first steps.

Our Redis code serves it. A connection is one end of a socket pair; at the other end is
:mod:`sandai.op.transport.testing`, which is imported when such a URL is first read.
"""

import re
import socket
from importlib import import_module
from typing import Any

import redis

from sandai.op.models import ConfigurationError

from ._url_parts import scheme_of

_SCHEME = "memory"
_WORLD = re.compile(r"[\w.\-]+(/[\w.\-]+)*")
_Setting = tuple[str, str]


def is_memory(url: str) -> bool:
    """Return whether a URL's scheme is ``memory``: as a broker's it may be kombu's, too."""
    return scheme_of(url) == _SCHEME


def in_process(broker: _Setting, backend: _Setting) -> bool:
    """
    Return whether both are in this process; each is what holds the URL, and the URL.

    ``memory://`` as a broker alone is kombu's transport of that name. Raises
    :class:`ConfigurationError` where results alone are in memory, or elsewhere in it.
    """
    if not is_memory(backend[1]):
        return False
    if not is_memory(broker[1]):
        reason = (
            f"results are in memory only where tasks are: write {backend[1]} for the broker, "
            "too, or another result backend"
        )
        raise ConfigurationError(*backend, reason)
    # A child that is forked in the middle of an import would wait for it for good: now, not
    # with the first connection.
    for name in ("_server", "_control"):
        import_module(f"{__package__}.testing.{name}")
    if world_of(*broker) != world_of(*backend):
        raise ConfigurationError(*backend, f"must be the broker's, which is {broker[1]}")
    return True


def world_of(setting: str, url: str) -> str:
    """Return the name of the world that a URL names, ``""`` for that of all who name none."""
    name = url.partition("://")[2].strip("/")
    if name and not _WORLD.fullmatch(name):
        reason = "takes a name and no more, as in memory://tests: no user, no options"
        raise ConfigurationError(setting, url, reason)
    return name


def open_socket(world: str, client_name: str) -> socket.socket:
    """Return a socket that is connected to a world; raises ``OSError``."""
    from .testing._server import dial

    return dial(world, client_name)


class InProcessConnection(redis.UnixDomainSocketConnection):
    """redis-py's connection for threads, whose other end is in this process."""

    def __init__(self, world: str, label: str, **kwargs: Any) -> None:
        super().__init__(path=label, **kwargs)  # type: ignore[no-untyped-call]  # redis-py's
        self._world = world
        self._own_name = str(self.client_name)

    def _connect(self) -> socket.socket:
        sock = open_socket(self._world, self._own_name)
        sock.settimeout(self.socket_timeout)
        return sock
