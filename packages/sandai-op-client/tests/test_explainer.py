"""One last look, shared by the threads that ask at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from sandai.op.client._explainer import Explainer
from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import LOOK_SECONDS, QueueDepth, Transport, TransportError, resolve

WAIT = 10.0


class _Broker:
    punctual = True

    def __init__(self) -> None:
        self.looks = 0
        self.began = threading.Event()
        self.go = threading.Event()
        self.error: BaseException | None = None

    def depths(
        self, queues: Sequence[str], *, acquire_timeout: float, timeout: float
    ) -> list[QueueDepth]:
        assert 0 < acquire_timeout <= LOOK_SECONDS
        assert 0 < timeout <= LOOK_SECONDS
        self.looks += 1
        self.began.set()
        assert self.go.wait(WAIT)
        if self.error is not None:
            raise self.error
        return [QueueDepth(queue, 3) for queue in queues]


class _Transport:
    backend = None

    def __init__(self, broker: _Broker) -> None:
        self.broker = broker


@pytest.fixture
def broker() -> _Broker:
    """Return a broker that answers when it is let go."""
    return _Broker()


@pytest.fixture
def explainer(broker: _Broker) -> Explainer:
    """Return an explainer on that broker."""
    return Explainer(resolve("op", "v1", env={}), cast("Transport", _Transport(broker)))


def states(evidence: Any) -> str:
    """Return what is concluded of any task."""
    return str(evidence.error("t", 1.0, "low.op.v1").state)


def test_one_look(explainer: Explainer, broker: _Broker) -> None:
    """It asks once, and the next who asks has another."""
    broker.go.set()
    assert states(explainer.look(["t"])) == "queued"
    assert states(explainer.look(["t"])) == "queued"
    assert broker.looks == 2


def test_who_comes_meanwhile_shares_the_next(explainer: Explainer, broker: _Broker) -> None:
    """Forty threads have two looks: that which is under way tells nothing of who came later."""
    with ThreadPoolExecutor(40) as pool:
        first = pool.submit(explainer.look, ["t"])
        assert broker.began.wait(WAIT)
        others = [pool.submit(explainer.look, ["t"]) for _ in range(39)]
        deadline = time.monotonic() + WAIT
        while explainer._latest is None or len(explainer._latest.task_ids) < 39:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        broker.go.set()
        assert {states(look.result(WAIT)) for look in (first, *others)} <= {"queued", "unknown"}
        assert states(first.result()) == "queued"
    assert broker.looks <= 2


@pytest.mark.parametrize(
    "error",
    [TransportError("gone"), ClientPoolTimeoutError("broker", 0.1, 1)],
    ids=["gone", "busy"],
)
def test_a_broker_that_fails(explainer: Explainer, broker: _Broker, error: Exception) -> None:
    """Nothing is raised, and nothing concluded."""
    broker.error = error
    broker.go.set()
    assert states(explainer.look(["t"])) == "unknown"


def test_nobody_waits_long(explainer: Explainer, broker: _Broker) -> None:
    """Who comes while a look hangs gives up in time."""
    with ThreadPoolExecutor(3) as pool:
        stuck = pool.submit(explainer.look, ["t"])
        assert broker.began.wait(WAIT)
        began = time.monotonic()
        late = [pool.submit(explainer.look, ["t"]) for _ in range(2)]
        assert {states(look.result(WAIT)) for look in late} == {"unknown"}
        assert time.monotonic() - began < LOOK_SECONDS + 1
        broker.go.set()
        stuck.result(WAIT)
    assert broker.looks == 1


def test_an_interrupted_look(explainer: Explainer, broker: _Broker) -> None:
    """Ctrl-C in the one who looks stops nobody else."""
    broker.error = KeyboardInterrupt()
    broker.go.set()
    with pytest.raises(KeyboardInterrupt):
        explainer.look(["t"])
    broker.error = None
    assert states(explainer.look(["t"])) == "queued"


def test_one_that_never_began(explainer: Explainer, broker: _Broker) -> None:
    """A look whose thread was interrupted before it began holds up others for a moment only."""
    broker.go.set()
    explainer.look(["t"])
    from sandai.op.client._explainer import _Look
    from sandai.op.transport import Evidence

    explainer._latest = _Look([], Evidence(), time.monotonic())
    assert states(explainer.look(["t"])) in ("queued", "unknown")
    assert states(explainer.look(["t"])) == "queued"


def test_a_broker_that_keeps_no_time(explainer: Explainer, broker: _Broker) -> None:
    """It is not asked."""
    broker.punctual = False
    assert states(explainer.look(["t"])) == "unknown"
    assert broker.looks == 0
