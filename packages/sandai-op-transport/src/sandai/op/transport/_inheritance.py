"""
What a forked child does with its parent's sockets: it closes its descriptors, no more.

It must not write, shut down, or take them from a selector, which is the parent's too.
But while it has them open, a connection of a parent that died stays up at the server.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

C = TypeVar("C")

_open: "WeakKeyDictionary[Any, Callable[[Any], None]]" = WeakKeyDictionary()


def close_in_child(connection: C, close: Callable[[C], None]) -> None:
    """
    Have *close* called with a connection in every child that is forked.

    The connection is held weakly. *close* takes no lock.
    """
    _open[connection] = close


def reset_after_fork() -> None:
    """Close what the parent had open."""
    global _open
    inherited, _open = dict(_open), WeakKeyDictionary()
    for connection, close in inherited.items():
        with suppress(Exception):  # it was in the middle of something
            close(connection)
