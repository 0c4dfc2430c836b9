"""A forked child starts from nothing and works."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import World

from sandai.op.client._shared_fetch import SharedFetch

WAIT = 10.0

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    # What Python 3.12 says of every fork beside threads; they are the point here.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def in_child(work: Callable[[], object]) -> bool:
    """Return whether *work* came to a good end in a forked child."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + WAIT
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status == 0
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.002)


def test_a_child_has_its_own_hub(world: World) -> None:
    """A wait of the parent's goes on; the child reads results with a thread of its own."""
    with world.client(timeout=WAIT) as client:
        handle = client.async_call([], {})
        reply = handle.get()
        hub = client._results.hub
        waiting = client.async_call([], {"wait": True})
        got: list[object] = []
        thread = threading.Thread(target=lambda: got.append(waiting.get()))
        thread.start()

        def work() -> None:
            assert client._results.hub is not hub
            assert client.attach(handle.id).get(timeout=5) == reply
            client.close()

        assert in_child(work)
        assert client._results.hub is hub
        world.gate.set()
        thread.join(WAIT)
        assert len(got) == 1


def test_a_fetch_under_way_stays_with_the_parent() -> None:
    """The child fetches for itself, though a thread that is not there was fetching."""
    shared: SharedFetch[str] = SharedFetch()
    began, go = threading.Event(), threading.Event()

    def fetch() -> str:
        began.set()
        assert go.wait(WAIT)
        return "parent"

    thread = threading.Thread(target=shared.get, args=(fetch,))
    thread.start()
    assert began.wait(WAIT)

    def work() -> None:
        assert shared.get(lambda: "child") == "child"

    assert in_child(work)
    go.set()
    thread.join(WAIT)
    assert shared.get(lambda: "late") == "parent"


def test_a_fetch_whose_lock_was_held_stays_with_the_parent() -> None:
    """A lock that nobody in the child can give back is not waited for."""
    shared: SharedFetch[str] = SharedFetch()
    with shared._lock:
        assert in_child(lambda: shared.get(lambda: "child"))
