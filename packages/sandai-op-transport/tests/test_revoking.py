"""Revoking: for who asks, and in the background for who has given up."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from sandai.op.models import ConfigurationError, InvalidTaskError, OperatorConnectionError
from sandai.op.transport import Revoker

WAIT = 10.0
logger = logging.getLogger("test")


class Control:
    """Stands for a Celery app's ``control``; ``fail`` is what it raises."""

    def __init__(self) -> None:
        self.sent: Queue[tuple[list[str], dict[str, Any]]] = Queue()
        self.gate = threading.Event()
        self.gate.set()
        self.fail: Exception | None = None

    def revoke(self, task_ids: list[str], **options: Any) -> None:
        """Remember."""
        self.sent.put((task_ids, options))
        self.gate.wait(WAIT)
        if self.fail is not None:
            raise self.fail


@pytest.fixture
def control() -> Control:
    """Return where broadcasts go."""
    return Control()


@pytest.fixture
def revoker(control: Control) -> Revoker:
    """Return a revoker that revokes what is given up."""
    return revoker_of(control)


def revoker_of(control: Control, *, given_up: bool = True) -> Revoker:
    """Return a revoker."""
    app: Any = SimpleNamespace(control=control)
    return Revoker(lambda: app, given_up=given_up, logger=logger)


def threads() -> list[threading.Thread]:
    """Return the threads that revoke."""
    return [each for each in threading.enumerate() if each.name == "sandai-op-revoke"]


def until(condition: Callable[[], object]) -> None:
    """Wait for what has no event."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_many_in_one_broadcast(control: Control, revoker: Revoker) -> None:
    """However many ids, each once; more than a worker remembers go in pieces."""
    revoker.revoke(iter(["a", "b", "a"]))
    assert control.sent.get() == (["a", "b"], {"terminate": False, "signal": "SIGTERM"})
    revoker.revoke(["c"], terminate=True, signal="SIGKILL")
    assert control.sent.get() == (["c"], {"terminate": True, "signal": "SIGKILL"})
    revoker.revoke([str(n) for n in range(10_001)])
    assert [len(control.sent.get()[0]) for _ in range(2)] == [10_000, 1]
    revoker.revoke([])
    assert control.sent.empty()
    assert not threads()


def test_what_cannot_be_revoked(control: Control, revoker: Revoker) -> None:
    """An id that is none, and a signal that there is not, are refused before anything is sent."""
    wrong: list[Any] = [None, 7, "", ["a"]]
    for task_id in wrong:
        with pytest.raises(InvalidTaskError):
            revoker.revoke(["a", task_id])
    signals: list[Any] = ["KILL", "", None, 9, ["SIGTERM"]]
    for signal in signals:
        with pytest.raises(ConfigurationError) as caught:
            revoker.revoke(["a"], terminate=True, signal=signal)
        assert caught.value.setting == "signal"
    assert control.sent.empty()


def test_who_gives_up_does_not_wait(control: Control, revoker: Revoker) -> None:
    """It goes on in a thread that ends; those who come meanwhile go together, next."""
    control.gate.clear()
    revoker.give_up(["a"])
    assert control.sent.get(timeout=WAIT)[0] == ["a"]
    for task_id in "bcd":
        revoker.give_up(iter([task_id]))
    control.gate.set()
    assert control.sent.get(timeout=WAIT)[0] == ["b", "c", "d"]
    until(lambda: not threads())
    revoker.give_up(["e"])
    assert control.sent.get(timeout=WAIT)[0] == ["e"]
    until(lambda: not threads())


def test_those_who_give_up_at_the_same_time_go_together(control: Control, revoker: Revoker) -> None:
    """Fifty callers that time out in one moment are few broadcasts."""
    barrier = threading.Barrier(50)

    def give_up(number: int) -> None:
        barrier.wait(WAIT)
        revoker.give_up([str(number)])

    callers = [threading.Thread(target=give_up, args=(n,)) for n in range(50)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT)
    until(lambda: not threads())
    sent = [control.sent.get()[0] for _ in range(control.sent.qsize())]
    assert sorted(int(each) for ids in sent for each in ids) == list(range(50))
    assert len(sent) < 25


def test_who_asks_in_a_loop(control: Control, revoker: Revoker) -> None:
    """post() tells when it is done; those who come together, and want the same, share."""
    control.gate.clear()
    first = revoker.post(["a"])
    control.sent.get(timeout=WAIT)
    posted = [revoker.post([task_id]) for task_id in "bcb"]
    hard = revoker.post(["d"], terminate=True, signal="SIGKILL")
    cancelled = revoker.post(["e"])
    revoker.give_up(["f"])
    assert cancelled is not None
    assert cancelled.cancel()
    control.gate.set()
    for each in [first, *posted, hard]:
        assert each is not None
        assert each.result(WAIT) is None
    assert control.sent.get()[0] == ["b", "c", "f"]
    assert control.sent.get() == (["d"], {"terminate": True, "signal": "SIGKILL"})
    until(lambda: not threads())
    assert control.sent.empty()
    with pytest.raises(InvalidTaskError):
        revoker.post([""])
    assert not threads()


def test_who_asks_is_told_of_a_failure(
    control: Control, revoker: Revoker, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has an error of its own, and nothing is logged of it."""
    control.fail = OperatorConnectionError("op", "v1", "away")
    posted = [revoker.post([task_id]) for task_id in "ab"]
    errors = [each.exception(WAIT) for each in posted if each is not None]
    assert [str(error) for error in errors] == ["operator op v1: away"] * 2
    assert errors[0] is not errors[1]
    until(lambda: not threads())
    assert not caplog.records
    revoker.drain()
    assert revoker.post(["c"]) is None


def test_nothing_at_all_when_off(control: Control) -> None:
    """Without the setting giving up is nothing; revoking is what it was."""
    off = revoker_of(control, given_up=False)
    off.give_up(["a"])
    assert not off.hold()
    assert off.drain() is None
    assert not threads()
    assert control.sent.empty()
    off.revoke(["a"])
    assert control.sent.get()[0] == ["a"]


def test_a_failure_is_logged(
    control: Control, revoker: Revoker, caplog: pytest.LogCaptureFixture
) -> None:
    """It is nobody's error; the next who gives up is served."""
    control.fail = OperatorConnectionError("op", "v1", "away")
    revoker.give_up(["a", "b"])
    until(lambda: not threads())
    assert "revoking 2 tasks given up: operator op v1: away" in caplog.text
    control.fail = None
    revoker.give_up(["c"])
    until(lambda: control.sent.qsize() == 2)
    until(lambda: not threads())


def test_closing_waits_for_what_was_given_up(control: Control, revoker: Revoker) -> None:
    """drain() is done once that is sent; then nothing is taken any more, and the thread ends."""
    control.gate.clear()
    revoker.give_up(["a"])
    control.sent.get(timeout=WAIT)
    revoker.give_up(["b"])
    drained = revoker.drain()
    assert drained is not None
    assert not wait([drained], 0.02).done
    control.gate.set()
    drained.result(WAIT)
    assert control.sent.get(timeout=WAIT)[0] == ["b"]
    revoker.give_up(["c"])
    until(lambda: not threads())
    assert control.sent.empty()


def test_nobody_waits_for_what_comes_after_the_end(
    revoker: Revoker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks comes before whoever closes in another thread, or is told that it is too late."""
    put = revoker._jobs.put
    held: list[bool] = []

    class Jobs:
        def put(self, item: object) -> None:
            held.append(revoker._lock.locked())
            put(item)  # type: ignore[arg-type]  # as it came

        def __getattr__(self, name: str) -> object:
            return getattr(jobs, name)

    jobs = revoker._jobs
    monkeypatch.setattr(revoker, "_jobs", Jobs())
    told = revoker.post(["a"])
    assert told is not None
    told.result(WAIT)
    revoker.drain()
    assert all(held)


def test_a_drain_that_nobody_waits_for(control: Control, revoker: Revoker) -> None:
    """One that is cancelled, as on a loop, does not harm the thread."""
    control.gate.clear()
    revoker.give_up(["a"])
    drained = revoker.drain()
    assert drained is not None
    assert drained.cancel()
    control.gate.set()
    until(lambda: not threads())


def test_a_finalizer_may_give_up(control: Control, revoker: Revoker) -> None:
    """let_go() takes no lock: who dropped what it held may be anywhere."""
    assert revoker.hold()

    class Holder:
        def __del__(self) -> None:
            revoker.let_go(["a"])

    cycle: list[Any] = [Holder()]
    cycle.append(cycle)
    with revoker._lock:
        del cycle
        gc.collect()
    assert control.sent.get(timeout=WAIT)[0] == ["a"]
    until(lambda: not threads())


def test_what_is_held_keeps_the_thread(control: Control, revoker: Revoker) -> None:
    """Others give up meanwhile; what is let go without tasks is not told to anybody."""
    assert revoker.hold()
    revoker.give_up(["a"])
    assert control.sent.get(timeout=WAIT)[0] == ["a"]
    [thread] = threads()
    revoker.let_go([])
    thread.join(WAIT)
    assert not threads()
    assert control.sent.empty()


def test_an_abandoned_revoker_ends(control: Control, revoker: Revoker) -> None:
    """Of a client that was dropped: the thread ends, whatever is held."""
    assert revoker.hold()
    revoker.abandon()
    until(lambda: not threads())
    assert not revoker.hold()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_a_thread_of_its_own(control: Control, revoker: Revoker) -> None:
    """Whatever the parent held: the child revokes what it gives up itself."""
    assert revoker.hold()
    parent = os.getpid()
    with revoker._lock:
        child = os.fork()
        if not child:
            try:
                revoker.give_up(["a"])
                told = control.sent.get(timeout=WAIT)[0] == ["a"]
                revoker.let_go(["the parent's"], parent)
                revoker.give_up(["b"])
                told &= control.sent.get(timeout=WAIT)[0] == ["b"]
                os._exit(0 if told else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    revoker.let_go([])
    until(lambda: not threads())
