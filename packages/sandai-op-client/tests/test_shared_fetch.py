"""A value that many ask for and one fetches."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandai.op.client._shared_fetch import SharedFetch

WAIT = 10.0


class Fetch:
    """A fetch that waits until it is let go, and then does as told."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls = 0
        self.began = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> str:
        self.calls += 1
        self.began.set()
        assert self.go.wait(WAIT)
        if self.error is not None:
            raise self.error
        return "value"


def test_32_threads_fetch_once() -> None:
    """However many ask, one fetches, and the value is kept."""
    shared, fetch = SharedFetch[str](), Fetch()
    with ThreadPoolExecutor(32) as pool:
        futures = [pool.submit(shared.get, fetch) for _ in range(32)]
        assert fetch.began.wait(WAIT)
        fetch.go.set()
        assert {future.result(WAIT) for future in futures} == {"value"}
    assert shared.get(fetch) == "value"
    assert fetch.calls == 1


def test_a_failure_is_shared_but_not_kept() -> None:
    """Those who wait get the failure; who comes later fetches again."""
    shared, fetch = SharedFetch[str](), Fetch(LookupError("no"))
    waiting = threading.Barrier(3)

    def ask() -> str:
        waiting.wait(WAIT)
        return shared.get(fetch)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(shared.get, fetch)
        assert fetch.began.wait(WAIT)
        others = [pool.submit(ask) for _ in range(2)]
        waiting.wait(WAIT)
        fetch.go.set()
        for future in (first, *others):
            with pytest.raises(LookupError):
                future.result(WAIT)
    fetch.error = None
    assert shared.get(fetch) == "value"


def test_nobody_waits_for_anothers_fetch_longer_than_it_may() -> None:
    """At its deadline a follower goes, and the fetch goes on for the others."""
    shared, fetch = SharedFetch[str](), Fetch()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shared.get, fetch)
        assert fetch.began.wait(WAIT)
        with pytest.raises(TimeoutError):
            shared.get(fetch, time.monotonic() + 0.05)
        with pytest.raises(TimeoutError):
            shared.get(fetch, time.monotonic() - 1)
        fetch.go.set()
        assert first.result(WAIT) == "value"
    assert shared.get(fetch, time.monotonic() - 1) == "value"
    assert fetch.calls == 1


@pytest.mark.parametrize("repetition", range(50))
def test_an_interrupted_fetch_is_taken_over(repetition: int) -> None:
    """Ctrl-C in the thread that fetches leaves the others a value."""
    shared, interrupted, good = SharedFetch[str](), Fetch(KeyboardInterrupt()), Fetch()
    good.go.set()
    caught = threading.Event()

    def lead() -> None:
        try:
            shared.get(interrupted)
        except KeyboardInterrupt:
            caught.set()

    leader = threading.Thread(target=lead)
    leader.start()
    assert interrupted.began.wait(WAIT)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(shared.get, good) for _ in range(4)]
        interrupted.go.set()
        assert {future.result(WAIT) for future in others} == {"value"}
    leader.join(WAIT)
    assert caught.is_set()
    assert (interrupted.calls, good.calls) == (1, 1)
