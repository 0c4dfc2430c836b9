"""Clients that are dropped, and interpreters that leave."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING

import pytest

from sandai.op.client import OperatorClient
from sandai.op.models import ClientClosedError
from sandai.op.transport import statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import World

WAIT = 10.0


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Keep the cyclic collector out."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_gc")
def test_a_dropped_client_warns_and_gives_its_leases_back(world: World) -> None:
    """At once, without the cyclic collector, whatever it was used for."""
    before = len(statistics().brokers)
    client = world.client(timeout=WAIT)
    client.sync([], {})
    assert client.desc
    handle = client.async_call([], {})
    handle.get()
    handle.then(lambda _: None)
    unread = client.async_call([], {})
    assert len(statistics().brokers) == before + 1
    dropped = weakref.ref(client)
    with pytest.warns(ResourceWarning, match="was never closed"):
        del client
    assert dropped() is None
    assert len(statistics().brokers) == before
    with pytest.raises(ClientClosedError):
        unread.ready()


def test_a_dropped_client_ends_waits_on_its_handles(world: World) -> None:
    """Who waits on a handle is told, not left alone."""
    client = OperatorClient("nobody", "v1", "memory://", world.backend)
    handle = client.async_call([], {})
    hub = client._results.hub
    errors: list[Exception] = []

    def wait() -> None:
        try:
            handle.get()
        except ClientClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + WAIT
    while hub.statistics().pending == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with pytest.warns(ResourceWarning):
        del client
    thread.join(WAIT)
    assert len(errors) == 1
    statistics()


def test_leases_come_back_though_the_warning_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer that may not warn has done its work by then."""
    heard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    before = len(statistics().brokers)
    client = world.client()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del client
    assert len(heard) == 1
    assert len(statistics().brokers) == before


def test_a_closed_client_is_dropped_in_silence(world: World) -> None:
    """No warning, and nothing is left of it."""
    client = world.client()
    client.close()
    dropped = weakref.ref(client)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del client
    assert dropped() is None


def test_a_finalizer_takes_no_lock(world: World) -> None:
    """Dropping a client while this very thread holds every lock does not hang."""
    client = world.client()
    results, backend = client._results, client._transport.backend
    hub = results.hub
    with hub._thread_lock, hub._table._lock, results._app._lock, pytest.warns(ResourceWarning):
        del client
    assert backend is not None
    statistics()


@pytest.mark.parametrize("options", [["-W", "default"], ["-W", "error", "-X", "dev"]])
def test_leaving_the_interpreter_is_silent(options: list[str]) -> None:
    """With an open client, its threads running and a wait under way."""
    code = (
        "import sys, threading, sandai.op.client as c\n"
        "client = c.create_client('op', 'v1', broker_url='memory://',\n"
        "    result_backend='file://' + sys.argv[1])\n"
        "handle = client.async_call([], {})\n"
        "threading.Thread(target=handle.get, daemon=True).start()\n"
        "while not client._results.hub.statistics().pending: pass\n"
        "print('leaving')\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *options, "-c", code, folder],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
