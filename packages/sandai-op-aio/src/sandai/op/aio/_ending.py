"""Ending a loop's connections from anywhere, whether or not the loop comes round again."""

import asyncio
from weakref import ref

from sandai.op.transport import watch

from ._redis import LoopConnection
from ._turns import call_on


class _Endings:
    """Connections that are shut, and that their loop is to free; tended by the janitor."""

    def __init__(self) -> None:
        self._connections: dict[LoopConnection, ref[asyncio.AbstractEventLoop]] = {}

    def add(self, connection: LoopConnection, loop: asyncio.AbstractEventLoop) -> None:
        """See that a connection is freed, also if its loop closes first."""
        self._connections[connection] = ref(loop)
        watch(self)

    def tend(self, now: float) -> bool:
        """Free what a closed loop has left."""
        for connection, held in list(self._connections.items()):
            loop = held()
            if loop is None or loop.is_closed():
                connection.close()
            if connection.freed:
                self._connections.pop(connection, None)
        return bool(self._connections)


_endings = _Endings()


def close(connection: LoopConnection, loop: asyncio.AbstractEventLoop | None) -> None:
    """Close a connection, in the loop's thread; what the loop has yet to do is seen to."""
    connection.close()
    if not connection.freed and loop is not None:
        _endings.add(connection, loop)


def end(connection: LoopConnection, loop: asyncio.AbstractEventLoop | None) -> None:
    """End a connection at once, in any thread; its loop frees what there is to free."""
    connection.shut()
    if loop is None or not call_on(loop, connection.close):
        connection.close()
    elif not connection.freed:
        _endings.add(connection, loop)
