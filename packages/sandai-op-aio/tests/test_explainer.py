"""One last look, shared by the coroutines that ask at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from sandai.op.aio._explainer import Explainer
from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import (
    LOOK_SECONDS,
    Limiter,
    QueueDepth,
    Reader,
    Transport,
    TransportError,
    resolve,
)

WAIT = 10.0


class _Broker:
    punctual = True

    def __init__(self) -> None:
        self.limiter = Limiter("broker", 4)
        self.looks = 0
        self.go = threading.Event()
        self.error: Exception | None = None
        self._senders: dict[int, Reader] = {}

    def sender(self, owner: object, make: Callable[[], Reader]) -> Reader:
        if id(owner) not in self._senders:
            self._senders[id(owner)] = make()
        return self._senders[id(owner)]

    def depths(
        self, queues: Sequence[str], *, acquire_timeout: float, timeout: float
    ) -> list[QueueDepth]:
        assert 0 < timeout <= LOOK_SECONDS
        self.looks += 1
        assert self.go.wait(WAIT)
        if self.error is not None:
            raise self.error
        return [QueueDepth(queue, 3) for queue in queues]

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()


class _Transport:
    backend = None

    def __init__(self, broker: _Broker) -> None:
        self.broker = broker


def run(main: Callable[[Explainer, _Broker], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function with an explainer and its broker."""
    broker = _Broker()
    explainer = Explainer(resolve("op", "v1", env={}), cast("Transport", _Transport(broker)))
    try:
        asyncio.run(main(explainer, broker))
        assert not explainer._latest
    finally:
        broker.go.set()
        broker.close()


def state(evidence: Any) -> str:
    """Return what is concluded of any task."""
    return str(evidence.error("t", 1.0, "low.op.v1").state)


async def until(condition: Callable[[], object]) -> None:
    """Let others run until *condition* holds."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110  # a counter, which tells nobody
            await asyncio.sleep(0.001)


def test_who_comes_in_one_turn_shares_a_look() -> None:
    """A thousand coroutines have one look, and the next has another."""

    async def main(explainer: Explainer, broker: _Broker) -> None:
        broker.go.set()
        found = await asyncio.gather(*(explainer.look(["t"]) for _ in range(1000)))
        assert {state(evidence) for evidence in found} == {"queued"}
        assert broker.looks == 1
        assert state(await explainer.look(["t"])) == "queued"
        assert broker.looks == 2

    run(main)


def test_who_comes_meanwhile_shares_the_next() -> None:
    """A look that is under way tells nothing of who came later."""

    async def main(explainer: Explainer, broker: _Broker) -> None:
        first = asyncio.create_task(explainer.look(["t"]))
        await until(lambda: broker.looks == 1)
        others = [asyncio.create_task(explainer.look(["t"])) for _ in range(50)]
        await asyncio.sleep(0)
        broker.go.set()
        assert state(await first) == "queued"
        assert {state(await other) for other in others} == {"queued"}
        assert broker.looks == 2

    run(main)


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_cancelling(who: str) -> None:
    """Whoever is cancelled, the others get an answer or none, and nobody hangs."""

    async def main(explainer: Explainer, broker: _Broker) -> None:
        looks = [asyncio.create_task(explainer.look(["t"])) for _ in range(5)]
        await until(lambda: broker.looks == 1)
        victim = looks.pop(0 if who == "leader" else 3)
        victim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await victim
        broker.go.set()
        expected = "unknown" if who == "leader" else "queued"
        assert {state(await look) for look in looks} == {expected}
        assert state(await explainer.look(["t"])) == "queued"

    run(main)


@pytest.mark.parametrize(
    "error",
    [TransportError("gone"), ClientPoolTimeoutError("broker", 0.1, 1)],
    ids=["gone", "busy"],
)
def test_a_broker_that_fails(error: Exception) -> None:
    """Nothing is raised, and nothing concluded."""

    async def main(explainer: Explainer, broker: _Broker) -> None:
        broker.error = error
        broker.go.set()
        assert state(await explainer.look(["t"])) == "unknown"

    run(main)


def test_nobody_waits_long() -> None:
    """A look that hangs is given up in time, by who began it and by who came meanwhile."""

    async def main(explainer: Explainer, broker: _Broker) -> None:
        began = time.monotonic()
        first = asyncio.create_task(explainer.look(["t"]))
        await until(lambda: broker.looks == 1)
        others = [explainer.look(["t"]) for _ in range(5)]
        found = await asyncio.gather(first, *others)
        assert {state(evidence) for evidence in found} == {"unknown"}
        assert time.monotonic() - began < 2 * LOOK_SECONDS + 1

    run(main)


def test_a_broker_that_keeps_no_time() -> None:
    """It is not asked."""

    async def main(explainer: Explainer, broker: _Broker) -> None:
        broker.punctual = False
        assert state(await explainer.look(["t"])) == "unknown"
        assert broker.looks == 0

    run(main)
