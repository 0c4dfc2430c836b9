"""A reply may take longer than the limit on silence, as long as something comes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from sandai.op.aio._redis import open_connection
from sandai.op.aio._silence import Silence
from sandai.op.transport import TransportError

if TYPE_CHECKING:
    from conftest import RespServer
    from sandai.op.transport import RedisConnector

LIMIT = 0.1


@pytest.mark.asyncio
async def test_silence_ends_in_time() -> None:
    """Where nothing comes the block ends when the limit is over, not before and not much later."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with Silence(LIMIT, lambda: 0):
            await asyncio.sleep(5)
    assert LIMIT <= time.monotonic() - began < 1.5 * LIMIT


@pytest.mark.asyncio
async def test_silence_after_a_while() -> None:
    """Whatever came before, silence is as long as without it, give or take a tenth."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with Silence(LIMIT, lambda: time.monotonic() - began < 2.5 * LIMIT and object()):
            await asyncio.sleep(5)
    assert 3.4 * LIMIT <= time.monotonic() - began < 4.2 * LIMIT


@pytest.mark.asyncio
async def test_something_comes() -> None:
    """Where something comes, time and again, the block may take any time."""
    received = 0
    async with Silence(LIMIT, lambda: received):
        for _ in range(10):
            await asyncio.sleep(LIMIT / 2)
            received += 1


@pytest.mark.asyncio
async def test_a_cancel_is_a_cancel() -> None:
    """A task that is cancelled in the block is cancelled, not timed out."""

    async def wait() -> None:
        async with Silence(LIMIT, lambda: 0):
            await asyncio.sleep(5)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def pieces(server: RespServer, *parts: bytes) -> list[tuple[str]]:
    """Have the server send parts of replies, one after the other; return what asks for them."""
    coming = iter(parts)

    def answer(command: list[bytes]) -> bytes | None:
        if command[0] != b"MORE":
            return None
        time.sleep(0.2)  # the limit is 0.5
        return next(coming)

    server.answer = answer
    return [("MORE",)] * len(parts)


@pytest.mark.asyncio
async def test_a_reply_in_pieces(server: RespServer, connector: RedisConnector) -> None:
    """A reply that takes longer than the I/O timeout is read, for it comes."""
    connection = await open_connection(connector)
    commands = pieces(server, b"$6\r\nab", b"cd", b"e", b"f\r\n+1\r\n+2\r\n+3\r\n")
    assert await connection.execute(commands) == [b"abcdef", b"1", b"2", b"3"]
    connection.close()


@pytest.mark.asyncio
async def test_a_reply_that_ceases(server: RespServer, connector: RedisConnector) -> None:
    """A reply that ceases in the middle is given up, and the connection with it."""
    connection = await open_connection(connector)
    began = time.monotonic()
    with pytest.raises(TransportError, match="no answer in time") as caught:
        await connection.execute(pieces(server, b"$6\r\nab", b"cd", b"", b""))
    assert caught.value.maybe_done
    assert 0.9 <= time.monotonic() - began < 1.3
    assert not connection.usable
