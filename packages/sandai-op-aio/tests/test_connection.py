"""One connection: whoever ends it, and however often, its descriptors are closed once."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sandai.op.aio import _redis
from sandai.op.aio._ending import end
from sandai.op.aio._redis import open_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RespServer
    from sandai.op.aio._redis import LoopConnection
    from sandai.op.transport import RedisConnector


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds that has no event."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.002)


class Neighbour:
    """Somebody else's descriptor, which has the number of one that was closed."""

    def __init__(self, number: int) -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        ours = os.open(os.devnull, os.O_RDONLY)
        if ours != number:
            os.dup2(ours, number)
            os.close(ours)
        self._number = number

    def check(self) -> None:
        """Fail where somebody closed it; then close it."""
        assert os.path.samestat(os.fstat(self._number), os.stat(os.devnull))
        os.close(self._number)


def moved_up(connection: LoopConnection) -> int:
    """Give its second descriptor a number that no other thread gets by chance."""
    number = fcntl.fcntl(connection._twin._descriptors[0], fcntl.F_DUPFD_CLOEXEC, 500)
    os.close(connection._twin._descriptors[0])
    connection._twin._descriptors[0] = number
    return number


ENDINGS: dict[str, Callable[[LoopConnection], None]] = {
    "shut": lambda connection: connection.shut(),
    "close": lambda connection: connection.close(),
}


@pytest.mark.parametrize("again", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("first", ENDINGS.values(), ids=ENDINGS)
def test_a_number_that_was_given_away(
    server: RespServer,
    connector: RedisConnector,
    first: Callable[[LoopConnection], None],
    again: Callable[[LoopConnection], None],
) -> None:
    """A descriptor of the number of one that was closed is left alone by every later ending."""

    async def main() -> None:
        connection = await open_connection(connector)
        number = moved_up(connection)
        first(connection)
        neighbour = Neighbour(number)
        again(connection)
        assert not connection.usable
        connection.close()
        await until(lambda: server.connected == 0)
        del connection
        gc.collect()
        neighbour.check()

    asyncio.run(main())


def test_a_dropped_connection(server: RespServer, connector: RedisConnector) -> None:
    """One that nobody closed gives its second descriptor back when it is collected."""

    async def main() -> None:
        connection = await open_connection(connector)
        number = moved_up(connection)
        writer, connection.redis._writer = connection.redis._writer, None
        del connection
        gc.collect()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        writer.transport.abort()

    asyncio.run(main())


def test_shut_in_two_threads(
    server: RespServer, connector: RedisConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread is ending it, another finds nothing left to do."""
    ending, over = threading.Event(), threading.Event()
    used: list[int] = []

    class Slow(socket.socket):
        def __init__(self, *, fileno: int) -> None:
            used.append(fileno)
            super().__init__(fileno=fileno)

        def shutdown(self, how: int) -> None:
            super().shutdown(how)
            ending.set()
            assert over.wait(5)

    names: dict[str, Any] = {name: getattr(socket, name) for name in ("SHUT_RDWR", "MSG_PEEK")}
    slow = SimpleNamespace(socket=Slow, MSG_DONTWAIT=socket.MSG_DONTWAIT, **names)

    async def main() -> None:
        connection = await open_connection(connector)
        number = moved_up(connection)
        monkeypatch.setattr(_redis, "socket", slow)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(connection.shut)
            assert await asyncio.to_thread(ending.wait, 5)
            await asyncio.wrap_future(threads.submit(connection.shut))
            connection.close()
            assert not first.done()
            over.set()
            await asyncio.wrap_future(first)
        assert used == [number]
        Neighbour(number).check()
        await until(lambda: server.connected == 0)

    asyncio.run(main())


def test_ended_from_everywhere_at_once(server: RespServer, connector: RedisConnector) -> None:
    """Two threads and the loop end a hundred connections; nobody's descriptors suffer."""

    async def main() -> None:
        with ThreadPoolExecutor(3) as threads:
            for _ in range(100):
                connection = await open_connection(connector)
                together = threading.Barrier(3)

                def shut(
                    connection: LoopConnection = connection, together: threading.Barrier = together
                ) -> None:
                    together.wait(5)
                    connection.shut()

                def reuse(together: threading.Barrier = together) -> None:
                    together.wait(5)
                    for _ in range(5):
                        ours = os.open(os.devnull, os.O_RDONLY)
                        found = os.fstat(ours)
                        os.close(ours)
                        assert os.path.samestat(found, os.stat(os.devnull))

                works = [threads.submit(shut), threads.submit(shut), threads.submit(reuse)]
                connection.close()
                del connection, shut
                await asyncio.gather(*map(asyncio.wrap_future, works))
        await until(lambda: server.connected == 0)

    asyncio.run(main())


def test_closed_in_the_last_turn_of_a_loop(server: RespServer, connector: RedisConnector) -> None:
    """A loop that is closed before it has freed a transport leaves none unfreed."""
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(open_connection(connector))
    transport = connection.redis._writer.transport
    # As when it comes from a thread in the very turn in which the loop ends.
    loop.call_soon(end, connection, loop)
    loop.call_soon(loop.call_soon, loop.stop)
    loop.run_forever()
    assert not connection.freed
    loop.close()
    deadline = time.monotonic() + 3
    while transport._sock is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    if transport._sock is not None:
        transport._call_connection_lost(None)  # or the next test has the ResourceWarning
        pytest.fail("nobody freed it")
