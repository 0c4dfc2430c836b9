"""The janitor: one thread while something is idle, whatever it meets."""

import logging
import threading
from collections.abc import Iterator

import pytest

from sandai.op.transport import _janitor


class Tended:
    """Says for a number of times that something is idle."""

    def __init__(self, times: int) -> None:
        self.left = times

    def tend(self, now: float) -> bool:
        self.left -= 1
        return self.left > 0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_janitor, "_INTERVAL", 0.01)
    yield
    if _janitor._thread is not None:
        _janitor._thread.join(10)


def running() -> threading.Thread:
    """Return the janitor's thread."""
    assert _janitor._thread is not None
    return _janitor._thread


def test_ends_with_the_last_idle_one() -> None:
    """The thread ends when nothing is idle, and a new one begins when there is again."""
    for times in (3, 5):
        tended = Tended(times)
        _janitor.watch(tended)
        thread = running()
        thread.join(10)
        assert _janitor._thread is None
        assert tended.left <= 0
        assert not list(_janitor._tended)


def test_one_thread_for_all() -> None:
    """However many are watched, one thread tends them."""
    everything = [Tended(3) for _ in range(20)]
    threads = set()
    for tended in everything:
        _janitor.watch(tended)
        threads.add(running())
    assert len(threads) == 1
    threads.pop().join(10)
    assert all(tended.left <= 0 for tended in everything)


def test_abandoned_leases_are_drained_by_the_thread() -> None:
    """What a finalizer left is called from the janitor's thread."""
    called = threading.Event()
    _janitor.abandon(called.set)
    _janitor.watch(Tended(2))
    assert called.wait(10)


def test_release_now() -> None:
    """Who may not block has a release made at once, in the one thread, also as that ends."""
    for _ in range(50):
        called = threading.Event()
        names: list[str] = []

        def release(called: threading.Event = called, names: list[str] = names) -> None:
            names.append(threading.current_thread().name)
            called.set()

        _janitor.release_now(release)
        assert called.wait(10)
        assert names == ["sandai-op-janitor"]


def test_release_now_wakes_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait until the thread comes round again."""
    monkeypatch.setattr(_janitor, "_INTERVAL", 30.0)
    tended = Tended(100)
    _janitor.watch(tended)
    thread = running()
    while tended.left > 0:
        called = threading.Event()
        _janitor.release_now(called.set)
        assert called.wait(10)
    thread.join(10)
    assert not thread.is_alive()


def test_failing_release(caplog: pytest.LogCaptureFixture) -> None:
    """An abandoned lease that cannot be given back hinders nobody, and says no secret."""
    called = []

    def fail() -> None:
        raise RuntimeError("redis://:canary@host/0")

    _janitor.abandon(fail)
    _janitor.abandon(lambda: called.append(1))
    with caplog.at_level(logging.DEBUG):
        _janitor.drain()
    assert called == [1]
    assert "RuntimeError" in caplog.text
    assert "canary" not in caplog.text


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started (the interpreter is leaving) nothing fails."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    called: list[int] = []
    tended = Tended(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        _janitor.watch(tended)
        _janitor.release_now(lambda: called.append(1))
    assert called == [1]
    assert _janitor._thread is None
    _janitor.watch(tended)
    running().join(10)
    assert tended.left <= 0
