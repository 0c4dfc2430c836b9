"""One last look at tasks that were waited for in vain, shared by who asks at a time."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from weakref import WeakKeyDictionary

from sandai.op.models import OperatorError
from sandai.op.transport import (
    LOOK_SECONDS,
    MOST_LOOKED_AT,
    Config,
    Evidence,
    RedisBackend,
    RedisBroker,
    Transport,
)

from ._hub import hub_of
from ._sender import sender_of

#: Seconds that one step may take of asking a broker in a thread.
_STEP = LOOK_SECONDS / 3


class Explainer:
    """
    Look at queues and documents for coroutines whose waits ran out; never raises for a server.

    Who asks while a look is under way on its loop goes along with the next, so that a
    thousand coroutines whose time is over at once cost a few round trips.
    """

    def __init__(self, config: Config, transport: Transport) -> None:
        self._queues = tuple(config.queue_names.values())
        self._transport = transport
        self._latest: WeakKeyDictionary[asyncio.AbstractEventLoop, _Look] = WeakKeyDictionary()

    async def look(self, task_ids: Sequence[str]) -> Evidence:
        """Return what is to be seen within :data:`LOOK_SECONDS`; perhaps nothing."""
        loop = asyncio.get_running_loop()
        ahead = self._latest.get(loop)
        if ahead is not None and not ahead.begun:
            ahead.task_ids += task_ids
            await ahead.over(loop)
            return ahead.evidence
        own = self._latest[loop] = _Look(list(task_ids), Evidence(self._queues))
        try:
            # A turn later: who times out in this one comes along. That may be thousands, so
            # the time that their turn takes is not the servers'.
            await asyncio.sleep(0)
            if ahead is not None:
                await ahead.over(loop)
            own.begun = True
            # Nor is a server asked again at once that has just taken too long.
            if ahead is None or not ahead.in_vain:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._gather(own)
        except TimeoutError:
            own.in_vain = True
        finally:
            own.begun = True
            if self._latest.get(loop) is own:
                del self._latest[loop]
            own.end()
        return own.evidence

    async def _gather(self, look: "_Look") -> None:
        broker, backend = self._transport.broker, self._transport.backend
        if broker.punctual:
            # A fresh connection is bounded by itself; one to Redis is used as it is.
            step = None if isinstance(broker, RedisBroker) else _STEP
            with suppress(OperatorError, TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS / 2):
                    depths = await sender_of(broker).depths(
                        self._queues, patience=LOOK_SECONDS, timeout=step
                    )
                look.evidence.note_depths(depths)
        # Others are asked again and again by who waits, and some of them take their time.
        if isinstance(backend, RedisBackend):
            with suppress(OperatorError):
                asked = look.task_ids[:MOST_LOOKED_AT]
                documents = await hub_of(backend).looks.look(asked, patience=LOOK_SECONDS)
                look.evidence.note_documents(documents)


class _Look:
    def __init__(self, task_ids: list[str], evidence: Evidence) -> None:
        self.task_ids = task_ids
        self.evidence = evidence
        self.begun = False
        self.in_vain = False
        self._ended = False
        self._waiting: list[asyncio.Future[None]] = []

    async def over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until it has ended, as it does whatever becomes of who looks."""
        if not self._ended:
            self._waiting.append(waiting := loop.create_future())
            await waiting

    def end(self) -> None:
        """Tell who waits."""
        self._ended = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                with suppress(RuntimeError):  # its loop is closed
                    each.set_result(None)
