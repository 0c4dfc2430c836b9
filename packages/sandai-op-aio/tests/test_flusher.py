"""What goes out together on a loop: with the others, but not behind one that is stuck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from sandai.op.aio._flusher import Entry, Flusher
from sandai.op.aio._redis import LoopConnection
from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import Limiter, RedisConnector, TransportError

if TYPE_CHECKING:
    from conftest import RespServer


class Works:
    """Work that lasts until it is let go; it resolves entries with their item."""

    def __init__(self) -> None:
        self.taken: list[list[str]] = []
        self._begun = asyncio.Condition()
        self._gates: list[asyncio.Event] = []
        self.error: Exception | None = None

    async def __call__(self, connection: LoopConnection, entries: Sequence[Entry]) -> None:
        """Work, for once."""
        gate = asyncio.Event()
        async with self._begun:
            self.taken.append([entry.item for entry in entries])
            self._gates.append(gate)
            self._begun.notify_all()
        await gate.wait()
        if self.error is not None:
            raise self.error
        for entry in entries:
            entry.resolve(entry.item)

    async def begun(self, count: int) -> None:
        """Wait until so many have begun."""
        async with asyncio.timeout(5), self._begun:
            await self._begun.wait_for(lambda: len(self.taken) >= count)

    def end(self, number: int) -> None:
        """Let one of them end."""
        self._gates[number].set()


@asynccontextmanager
async def flusher(connector: RedisConnector, works: Works, limit: int) -> AsyncIterator[Flusher]:
    """Make one."""
    loop = asyncio.get_running_loop()
    flusher = Flusher(Limiter("p", limit), connector, loop, works, "test", most=100)
    try:
        yield flusher
    finally:
        flusher.pool.close(busy=True)


def put(flusher: Flusher, item: str, patience: float = 5.0) -> asyncio.Task[str]:
    """Hand in an entry."""
    return asyncio.create_task(flusher.put(item, 1, patience))


@pytest.mark.usefixtures("server")
def test_what_comes_while_it_works_goes_out_together(connector: RedisConnector) -> None:
    """One write at a time, while none is stuck: the busier, the fewer there are."""

    async def main() -> None:
        works = Works()
        async with flusher(connector, works, 8) as to:
            first = put(to, "first")
            await works.begun(1)
            others = [put(to, str(number)) for number in range(20)]
            for _ in range(3):
                await asyncio.sleep(0)
            works.end(0)
            await works.begun(2)
            works.end(1)
            assert await asyncio.gather(first, *others) == ["first", *map(str, range(20))]
            assert [len(taken) for taken in works.taken] == [1, 20]

    asyncio.run(main())


@pytest.mark.usefixtures("server")
def test_nothing_waits_for_what_is_stuck(connector: RedisConnector) -> None:
    """While one write hangs, what came after it goes out on another connection, again and again."""

    async def main() -> None:
        works = Works()
        async with flusher(connector, works, 2) as to:
            stuck = put(to, "stuck")
            await works.begun(1)
            loop = asyncio.get_running_loop()
            for number in range(1, 6):
                began = loop.time()
                later = put(to, str(number))
                await works.begun(number + 1)
                works.end(number)
                assert await later == str(number)
                assert loop.time() - began < 0.5
            assert not stuck.done()
            works.end(0)
            assert await stuck == "stuck"

    asyncio.run(main())


@pytest.mark.usefixtures("server")
def test_who_has_no_patience_is_not_held(connector: RedisConnector) -> None:
    """With patience 0 a free connection is used at once; if there is none, that is said."""

    async def main() -> None:
        works = Works()
        async with flusher(connector, works, 2) as to:
            tasks = [put(to, "first")]
            await works.begun(1)
            tasks.append(put(to, "second", patience=0.0))
            await works.begun(2)
            with pytest.raises(ClientPoolTimeoutError):
                await put(to, "third", patience=0.0)
            works.end(0)
            works.end(1)
            assert list(await asyncio.gather(*tasks)) == ["first", "second"]

    asyncio.run(main())


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_what_was_held_goes_out_after_a_failure(connector: RedisConnector, how: str) -> None:
    """A write that fails, or whose task somebody cancels, does not keep the others."""

    async def main() -> None:
        works = Works()
        async with flusher(connector, works, 1) as to:
            first = put(to, "first")
            await works.begun(1)
            second = put(to, "second")
            await asyncio.sleep(0)
            if how == "fails":
                works.error = TransportError("it broke", True)
                works.end(0)
            else:
                [task] = to._tasks
                task.cancel()
            with pytest.raises(TransportError):
                await first
            works.error = None
            await works.begun(2)
            works.end(1)
            assert await second == "second"

    asyncio.run(main())


def test_who_is_held_may_leave(server: RespServer, connector: RedisConnector) -> None:
    """A caller that is cancelled while held takes its entry back, and nothing goes out for it."""

    async def main() -> None:
        works = Works()
        async with flusher(connector, works, 8) as to:
            first = put(to, "first")
            await works.begun(1)
            held = [put(to, "left"), put(to, "stays")]
            await asyncio.sleep(0)
            held[0].cancel()
            await asyncio.sleep(0)
            works.end(0)
            await works.begun(2)
            works.end(1)
            assert [await first, await held[1]] == ["first", "stays"]
            assert works.taken == [["first"], ["stays"]]
        assert server.most == 1

    asyncio.run(main())
