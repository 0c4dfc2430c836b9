"""A forked child starts from an empty world, whatever its parent was doing."""

import os
import signal
import threading
import time
from collections.abc import Callable
from uuid import uuid4

import pytest

from sandai.op.transport import RedisBackend, Transport, resolve
from sandai.op.transport.testing import FakeOperator, world

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


def test_a_child_has_a_world_of_its_own() -> None:
    """Nothing of the parent's world is in the child's, and nothing of the child's comes back."""
    url = f"memory://{uuid4()}"
    transport = Transport(resolve("op", "v1", env={}, broker_url=url))
    backend = transport.backend
    assert isinstance(backend, RedisBackend)
    world(url).store.set(backend.key("parents").encode(), b'{"status": "SUCCESS"}')
    assert len(backend.look(["parents"], acquire_timeout=WAIT)) == 1

    def child() -> None:
        assert transport.backend is not backend
        assert transport.backend.look(["parents"], acquire_timeout=WAIT) == []
        assert world(url).peers
        world(url).store.set(backend.key("childs").encode(), b'{"status": "SUCCESS"}')
        assert len(transport.backend.look(["childs"], acquire_timeout=WAIT)) == 1
        transport.release()

    assert in_child(child)
    assert backend.look(["childs"], acquire_timeout=WAIT) == []
    assert len(backend.look(["parents"], acquire_timeout=WAIT)) == 1
    transport.release()


def test_a_child_forked_in_the_middle_of_everything() -> None:
    """With every lock of the parent's held, a child opens connections and runs operators."""
    url = f"memory://{uuid4()}"
    held, go_on = threading.Event(), threading.Event()
    here = world(url)

    def hold() -> None:
        from sandai.op.transport.testing import _server, _world

        with here.lock, _server.current._lock, _world._worlds._lock:
            held.set()
            go_on.wait(WAIT)

    operator = FakeOperator("op", "v1", url=url).start()
    transport = Transport(resolve("op", "v1", env={}, broker_url=url))
    transport.backend.look(["id"], acquire_timeout=WAIT)
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(WAIT)

    def child() -> None:
        operator.close()  # which has no threads here, and waits for none
        with FakeOperator("op", "v1", url=url) as own:
            assert world(url).operators == [own]
            assert transport.backend.look(["id"], acquire_timeout=WAIT) == []
        transport.release()

    fine = in_child(child)
    go_on.set()
    thread.join(WAIT)
    transport.release()
    operator.close()
    assert fine


def test_a_child_keeps_no_socket_of_its_parents() -> None:
    """A parent's connection ends with the parent's closing it, though a child lives on."""
    url = f"memory://{uuid4()}"
    transport = Transport(resolve("op", "v1", env={}, broker_url=url))
    transport.backend.look(["id"], acquire_timeout=WAIT)
    mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in _sockets()}
    assert mine

    def child() -> None:
        left = {os.readlink(f"/proc/self/fd/{fd}") for fd in _sockets()}
        assert not left & mine

    try:
        assert in_child(child)
    finally:
        transport.release()


def _sockets() -> list[str]:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc here")
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                found.append(fd)
        except OSError:
            continue
    return found
