"""A world: what ``memory://`` and a name stand for in this process."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sandai.op.models import ConfigurationError

from .._memory import is_memory, world_of
from ._messages import FakeTask, decode
from ._outages import KINDS, SIDES, Kind, Outage, Side
from ._session import Session
from ._store import Store

if TYPE_CHECKING:
    from ._operator import FakeOperator
    from ._server import Peer


class World:
    """
    Queues and results that share a ``memory://`` URL, and the operators that serve them.

    Made by :func:`world`. Nothing of it is shared with another URL or another process.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        #: Held for everything below, and for moments only.
        self.lock = threading.RLock()
        self.store = Store()
        self.peers: set[Peer] = set()
        self.operators: list[FakeOperator] = []
        self._subscribers: dict[bytes, set[Session]] = {}
        self._outages: list[Outage] = []

    @property
    def url(self) -> str:
        """The URL, for a client's ``broker_url`` or the environment."""
        return f"memory://{self.name}"

    def __repr__(self) -> str:
        return f"<World {self.url}>"

    # For tests

    def queued(self, queue: str) -> list[FakeTask]:
        """Return the tasks in a queue, the next one first; they stay there."""
        with self.lock:
            envelopes = self.store.values(queue.encode())
        return [decode(queue, envelope) for envelope in reversed(envelopes)]

    def results(self) -> list[str]:
        """Return the ids of the tasks that have a result (or a state) stored."""
        with self.lock:
            keys = self.store.keys()
        return [key[len(RESULT) :].decode() for key in keys if key.startswith(RESULT)]

    def awaited(self) -> list[str]:
        """Return the ids of the tasks whose results a client has subscribed to."""
        with self.lock:
            channels = list(self._subscribers)
        return [channel[len(RESULT) :].decode() for channel in channels]

    def size(self) -> int:
        """Return how many keys there are: queues that hold tasks, results, and what else is set."""
        with self.lock:
            return len(self.store)

    def clear(self) -> None:
        """Empty every queue and delete every result."""
        with self.lock:
            self.store.clear()

    @contextmanager
    def outage(self, kind: Kind, side: Side | None = None) -> Iterator[None]:
        """
        Fail every client, or only their ``broker`` or ``backend`` connections, for the block.

        - ``refused``: connections end, and none can be opened
        - ``stalled``: nothing is read or answered; what was sent is done when the block ends
        - ``swallowed``: commands are done and their replies lost, so that the client is in doubt
        - ``out-of-memory``, ``read-only``, ``no-auth``, ``loading``: the error replies ``OOM``,
          ``READONLY``, ``NOAUTH`` and ``LOADING``

        Raises ``ValueError`` for any other.
        Operators are not cut off.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no outage; there are {', '.join(KINDS)}")
        if side is not None and side not in SIDES:
            raise ValueError(f"{side!r} is no side; there are {', '.join(SIDES)}")
        outage = Outage(kind, side)
        self._begin(outage)
        try:
            yield
        finally:
            self._end(outage)

    def cut(self, side: Side | None = None) -> None:
        """End the connections that are open; new ones may be opened."""
        with self.lock:
            self._cut([peer for peer in self.peers if side in (None, peer.session.side)])

    def _begin(self, outage: Outage) -> None:
        with self.lock:
            self._outages.append(outage)
            concerned = [peer for peer in self.peers if outage.concerns(peer.session.side)]
            if outage.cuts:
                self._cut(concerned)
            for peer in concerned:
                peer.held = peer.held or outage.kind == "stalled"
                peer.mute = peer.mute or outage.kind == "swallowed"
                peer.wake()

    def _end(self, outage: Outage) -> None:
        with self.lock:
            self._outages.remove(outage)
            for peer in self.peers:
                peer.held = self.fails(peer.session.side, "stalled")
                if peer.mute and not self.fails(peer.session.side, "swallowed"):
                    peer.end()
                peer.wake()

    def _cut(self, peers: Sequence["Peer"]) -> None:
        for peer in peers:
            peer.end()

    # For the server's thread and the operators'

    def fails(self, side: str, kind: Kind) -> bool:
        """Return whether connections of a side are failed in that way now."""
        return any(outage.kind == kind and outage.concerns(side) for outage in self._outages)

    def refusal(self, side: str, command: bytes) -> str | None:
        """Return the error reply to a command, ``None`` where it is executed."""
        for outage in self._outages:
            if outage.concerns(side) and (said := outage.refusal(command)) is not None:
                return said
        return None

    def push(self, key: bytes, values: Sequence[bytes]) -> int:
        """Push to a list, and call the operators that serve it."""
        with self.lock:
            length = self.store.push(key, values)
            for operator in self.operators:
                operator.called(key, len(values))
            return length

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Send to whoever has subscribed; return how many those are."""
        with self.lock:
            subscribers = self._subscribers.get(channel, ())
            for session in subscribers:
                session.publish(channel, payload)
            return len(subscribers)

    def join(self, channel: bytes, session: Session) -> None:
        """Subscribe."""
        self._subscribers.setdefault(channel, set()).add(session)

    def leave(self, channel: bytes, session: Session) -> None:
        """Unsubscribe."""
        sessions = self._subscribers.get(channel)
        if sessions is not None:
            sessions.discard(session)
            if not sessions:
                del self._subscribers[channel]


RESULT = b"celery-task-meta-"


class _Worlds:
    """This process's worlds by name; a forked child begins with none."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._worlds: dict[str, World] = {}

    def get(self, name: str) -> World:
        with self._lock:
            found = self._worlds.get(name)
            if found is None:
                found = self._worlds[name] = World(name)
            return found

    def forget(self, name: str) -> None:
        with self._lock:
            self._worlds.pop(name, None)


_worlds = _Worlds()
world_named = _worlds.get
forget = _worlds.forget

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worlds.reset_after_fork)


def world(url: str = "memory://") -> World:
    """
    Return the world of a URL, such as ``memory://tests``.

    Raises :class:`ConfigurationError` for what is no such URL.
    """
    if not is_memory(url):
        raise ConfigurationError("url", url, "must be memory://, or memory:// and a name")
    return world_named(world_of("url", url))
