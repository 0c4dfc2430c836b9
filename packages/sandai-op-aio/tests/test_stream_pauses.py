"""A stream whose submissions fail goes on when its pause is over."""

import asyncio
import itertools
import time
from typing import Any

import pytest

from sandai.op.aio import _streaming, create_async_client
from sandai.op.aio._source import Source
from sandai.op.models import OperatorConnectionError, stream
from sandai.op.transport import TaskControls

AWAY = OperatorConnectionError("op", "v1", "away")


@pytest.mark.asyncio
async def test_a_pause_that_ends_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has just found it not over waits for its end, and not for somebody to say so."""
    async with create_async_client("op", "v1", broker_url="memory://") as client:
        window = stream.Window(4)
        work = _streaming.Streaming(
            client._submitter,
            client._results,
            client._revoker,
            Source([]),
            window,
            TaskControls(),
            delete=True,
        )
        work._room = asyncio.Event()
        window.taken = 1
        now = time.monotonic()
        window.add([AWAY], now, now)
        window.pop()
        over = window.wake_at(more=True)
        moments = itertools.chain([over - 1e-9, over + 1e-9], itertools.repeat(over + 1))

        class Clock:
            def monotonic(self) -> Any:
                return next(moments)

        monkeypatch.setattr(_streaming, "time", Clock())
        async with asyncio.timeout(5):
            assert await work._when_wanted() == 1
