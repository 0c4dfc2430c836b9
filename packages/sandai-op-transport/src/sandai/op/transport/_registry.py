"""
The registry: one broker and one backend per sharing key in a process.

Built once under one lock, leased, counted, and closed, outside the lock, at the
last release. A forked child starts from nothing.
"""

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from attrs import define, field, frozen

from . import _inheritance, _janitor, _limiter
from ._backend import Backend, BackendStatistics
from ._broker import Broker, BrokerStatistics
from ._choice import open_backend, open_broker
from ._config import BackendKey, BrokerKey, Config


class _Closable(Protocol):
    def close(self) -> None: ...
    def statistics(self) -> Any: ...


R = TypeVar("R", bound=_Closable)


@define(eq=False)
class _Shared:
    resource: Any
    leases: int = 0


class Registry:
    """Build, lease out and close what is shared."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """
        Start from nothing: new locks, no resources.

        The parent's sockets are closed without being shut down: those to Redis at
        once, kombu's with the last reference to them.
        """
        self.lock = threading.RLock()
        self._shared: dict[Hashable, _Shared] = {}
        self.generation = object()

    def acquire(self, key: Hashable, build: Callable[[], R]) -> R:
        """Return the resource of *key*, built the first time, and count a lease."""
        with self.lock:
            shared = self._shared.get(key)
            if shared is None:
                shared = self._shared[key] = _Shared(build())
            shared.leases += 1
            resource: R = shared.resource
            return resource

    def release(self, key: Hashable) -> None:
        """Give one lease back; the last one closes the resource."""
        with self.lock:
            shared = self._shared.get(key)
            if shared is None:
                return
            shared.leases -= 1
            if shared.leases > 0:
                return
            del self._shared[key]
        shared.resource.close()

    def resources(self) -> list[tuple[Hashable, Any]]:
        """Return what is open now."""
        with self.lock:
            return [(key, shared.resource) for key, shared in self._shared.items()]


registry = Registry()


class Lease(Generic[R]):
    """
    One client's hold on a shared resource.

    In a forked child it takes hold of the child's own resource at first use.
    """

    def __init__(self, key: Hashable, build: Callable[[], R]) -> None:
        self._key = key
        self._build = build
        self._released = False
        self._resource = registry.acquire(key, build)
        self._generation = registry.generation

    @property
    def resource(self) -> R:
        """The resource; this process's own."""
        if self._generation is not registry.generation:
            with registry.lock:
                # Under the lock: two threads of a child take one lease between them.
                if self._generation is not registry.generation and not self._released:
                    self._resource = registry.acquire(self._key, self._build)
                    self._generation = registry.generation
        return self._resource

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        with registry.lock:
            released, self._released = self._released, True
        if not released and self._generation is registry.generation:
            registry.release(self._key)


class Transport:
    """One client's leases: its broker and its result backend."""

    def __init__(self, config: Config) -> None:
        _janitor.drain()
        broker_key, backend_key = config.broker_key, config.backend_key
        self._broker: Lease[Broker] = Lease(broker_key, lambda: open_broker(broker_key))
        try:
            self._backend: Lease[Backend] = Lease(backend_key, lambda: open_backend(backend_key))
        except BaseException:
            self._broker.release()
            raise

    @property
    def broker(self) -> Broker:
        """The shared broker."""
        return self._broker.resource

    @property
    def backend(self) -> Backend:
        """The shared result backend."""
        return self._backend.resource

    def release(self) -> None:
        """Give both leases back; does I/O when they were the last."""
        try:
            self._backend.release()
        finally:
            self._broker.release()

    def release_elsewhere(self, done: Callable[[Exception | None], object]) -> None:
        """
        Give both leases back in another thread, the janitor's; for event loops.

        Calls *done* there with the error, if any.
        """

        def release() -> None:
            error = None
            try:
                self.release()
            except Exception as failed:
                error = failed
            done(error)

        _janitor.release_now(release)

    def abandon(self) -> None:
        """Have the leases given back soon; for finalizers: no lock, no I/O."""
        _janitor.abandon(self.release)


@frozen
class TransportStatistics:
    """What this process holds open: statistics by sharing key."""

    brokers: dict[BrokerKey, BrokerStatistics] = field(factory=dict)
    backends: dict[BackendKey, BackendStatistics] = field(factory=dict)


def statistics() -> TransportStatistics:
    """Return a snapshot of every broker and backend that is leased in this process."""
    _janitor.drain()
    result = TransportStatistics()
    for key, resource in registry.resources():
        if isinstance(key, BrokerKey):
            result.brokers[key] = resource.statistics()
        elif isinstance(key, BackendKey):
            result.backends[key] = resource.statistics()
    return result


def _after_fork_in_child() -> None:
    _inheritance.reset_after_fork()
    _janitor.reset_after_fork()
    _limiter.reset_after_fork()
    registry.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
