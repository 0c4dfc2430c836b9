"""What threads and event loops attach to a shared broker or backend: one each."""

import threading
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary


class Edge(Protocol):
    """Something of a loop's, or of all the threads', that is closed with the shared resource."""

    @property
    def obsolete(self) -> bool: ...
    def close(self) -> None: ...
    def statistics(self) -> Any: ...


class Edges:
    """Keep a resource's edges; each is made once and closed with the resource."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_owner: WeakKeyDictionary[Any, Edge] = WeakKeyDictionary()

    def get(self, owner: object, make: Callable[[], Any]) -> Any:
        """
        Return the edge of *owner*, made by *make* the first time.

        *owner* is an event loop, or a module's own object. Those of loops that
        were closed are let go of.
        """
        with self._lock:
            edge = self._by_owner.get(owner)
            if edge is None:
                for other in [o for o, e in self._by_owner.items() if e.obsolete]:
                    del self._by_owner[other]
                edge = self._by_owner[owner] = make()
            return edge

    def statistics(self) -> tuple[Any, ...]:
        """Return each edge's statistics."""
        with self._lock:
            edges = list(self._by_owner.values())
        return tuple(edge.statistics() for edge in edges)

    def close(self) -> None:
        """Close every edge."""
        with self._lock:
            edges = list(self._by_owner.values())
            self._by_owner.clear()
        for edge in edges:
            edge.close()
