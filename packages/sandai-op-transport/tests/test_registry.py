"""The registry: counted leases, one builder, closing outside the lock, and forks."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import (
    Config,
    TaskBuilder,
    TaskControls,
    Transport,
    _janitor,
    _registry,
    resolve,
    statistics,
)
from sandai.op.transport._registry import Lease, Registry


class Resource:
    """Notes how often it is closed."""

    def __init__(self, on_close: Callable[[], None] = lambda: None) -> None:
        self.closed = 0
        self._on_close = on_close

    def close(self) -> None:
        self.closed += 1
        self._on_close()

    def statistics(self) -> Any:
        return None


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Return a registry of this test's own, which leases use."""
    registry = Registry()
    monkeypatch.setattr(_registry, "registry", registry)
    return registry


def memory(**settings: Any) -> Config:
    """Return a configuration that needs no server."""
    settings |= {"broker_url": "memory://", "result_backend": "cache+memory://"}
    return resolve("clipper", "v1", env={}, **settings)


def until_nothing_is_leased() -> None:
    """Return when what was abandoned is given back, by the janitor's thread or by us."""
    give_up = time.monotonic() + 10
    while statistics().brokers or statistics().backends:
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_last_release_closes(registry: Registry) -> None:
    """A resource is built once and closed with its last lease, however often that is released."""
    built: list[Resource] = []

    def build() -> Resource:
        built.append(Resource())
        return built[-1]

    one, other = Lease("key", build), Lease("key", build)
    assert one.resource is other.resource is built[0]
    one.release()
    one.release()
    assert built[0].closed == 0
    other.release()
    assert [resource.closed for resource in built] == [1]
    Lease("key", build).release()
    assert [resource.closed for resource in built] == [1, 1]


def test_keys_are_apart(registry: Registry) -> None:
    """Different keys have different resources."""
    one, other = Lease("one", Resource), Lease("other", Resource)
    assert one.resource is not other.resource
    assert [key for key, _ in registry.resources()] == ["one", "other"]
    one.release()
    assert [key for key, _ in registry.resources()] == ["other"]


def test_closing_happens_outside_the_lock(registry: Registry) -> None:
    """While a resource is being closed, other threads lease."""
    leased: list[Lease[Resource]] = []

    def lease_elsewhere() -> None:
        thread = threading.Thread(target=lambda: leased.append(Lease("other", Resource)))
        thread.start()
        thread.join(10)

    lease = Lease("key", lambda: Resource(lease_elsewhere))
    lease.release()
    assert len(leased) == 1


def test_failing_build_leaves_nothing(registry: Registry) -> None:
    """A resource that cannot be built is not counted."""

    def fail() -> Resource:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Lease("key", fail)
    assert registry.resources() == []


def test_failing_backend_gives_the_broker_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gets no backend keeps no broker."""

    def fail(key: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_registry, "open_backend", fail)
    with pytest.raises(KeyboardInterrupt):
        Transport(memory())
    assert statistics().brokers == {}


def test_failing_close_gives_the_other_lease_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that cannot be closed does not keep the broker."""
    transport = Transport(memory())

    def fail() -> None:
        raise OSError("no")

    monkeypatch.setattr(transport.backend, "close", fail)
    with pytest.raises(OSError, match="no"):
        transport.release()
    assert (statistics().brokers, statistics().backends) == ({}, {})


def test_many_threads_share_one(registry: Registry) -> None:
    """Threads that lease and release at once see one resource at a time, closed once."""
    built: list[Resource] = []
    together = threading.Barrier(8)

    def build() -> Resource:
        built.append(Resource())
        return built[-1]

    def work() -> None:
        together.wait()
        for _ in range(100):
            lease = Lease("key", build)
            assert lease.resource.closed == 0
            lease.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {resource.closed for resource in built} == {1}
    assert registry.resources() == []


def test_two_threads_release_one_lease_once(registry: Registry) -> None:
    """Two threads that close one client take nothing from another client."""
    for _ in range(50):
        kept, lease = Lease("key", Resource), Lease("key", Resource)
        together = threading.Barrier(2)

        def close(lease: Lease[Resource] = lease, together: threading.Barrier = together) -> None:
            together.wait()
            lease.release()

        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kept.resource.closed == 0
        kept.release()
        assert registry.resources() == []


def test_new_generation(registry: Registry) -> None:
    """After a fork a lease takes hold of a new resource, once, and leaves the old one alone."""
    found: list[Resource] = []
    others: list[threading.Thread] = []

    def build() -> Resource:
        if registry.generation is not first:
            # Another thread asks while this one builds: it waits for the same one.
            others.append(threading.Thread(target=lambda: found.append(lease.resource)))
            others[-1].start()
            others[-1].join(0.1)
        return Resource()

    first = registry.generation
    lease: Lease[Resource] = Lease("key", build)
    old = lease.resource
    registry.reset_after_fork()
    found.append(lease.resource)
    for thread in others:
        thread.join()
    assert len(found) == 2
    assert found[0] is found[1] is not old
    lease.release()
    assert (found[0].closed, old.closed) == (1, 0)
    assert registry.resources() == []


def test_release_of_an_old_generation(registry: Registry) -> None:
    """A lease of the parent's is not counted in the child."""
    lease: Lease[Resource] = Lease("key", Resource)
    registry.reset_after_fork()
    own: Lease[Resource] = Lease("key", Resource)
    lease.release()
    assert own.resource.closed == 0
    own.release()
    assert own.resource.closed == 1


def test_abandoned_client_is_closed() -> None:
    """What a finalizer left is given back soon."""
    transport = Transport(memory())
    broker = transport.broker
    assert len(_registry.registry.resources()) == 2
    transport.abandon()
    until_nothing_is_leased()
    other = Transport(memory())
    assert other.broker is not broker
    other.release()


def test_abandon_in_a_finalizer_with_the_lock_held() -> None:
    """A finalizer that runs while its own thread holds every lock does not hang."""

    class Client:
        def __init__(self) -> None:
            self.transport = Transport(memory())

        def __del__(self) -> None:
            self.transport.abandon()

    client: Client | None = Client()
    with _registry.registry.lock, _janitor._lock:
        client = None
        gc.collect()
    assert client is None
    until_nothing_is_leased()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork() -> None:
    """A forked child works on its own resources whatever was held; the parent goes on."""
    config = memory(io_timeout=3.0)
    transport = Transport(config)
    broker, builder = transport.broker, TaskBuilder(config)
    message = builder.task(broker.messages, "", [], {}, TaskControls())
    assert broker.send([message], acquire_timeout=1) == [None]
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with _registry.registry.lock, _janitor._lock, broker.limiter._lock:
            held.set()
            forked.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        works = False
        try:
            signal.alarm(20)
            own = transport.broker
            again = builder.task(own.messages, "", [], {}, TaskControls())
            works = own is not broker and own.send([again], acquire_timeout=1) == [None]
            works = works and len(statistics().brokers) == 1
            transport.release()
            works = works and statistics().brokers == {}
        finally:
            os._exit(0 if works else 1)
    forked.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert transport.broker is broker
    assert broker.send([message], acquire_timeout=1) == [None]
    assert broker.statistics().sent == 2
    transport.release()
    assert statistics().brokers == {}


def test_a_budget_outlives_its_resource() -> None:
    """What a closed broker still has under way counts against the next one of its key."""
    config = memory(broker_pool_limit=1)
    first = Transport(config)
    with first.broker.permit(1):
        first.release()
        second = Transport(config)
        assert second.broker is not first.broker
        with pytest.raises(ClientPoolTimeoutError), second.broker.permit(0):
            pass
    with second.broker.permit(0):
        assert second.broker.statistics().connections.in_use == 1
    second.release()
