"""What the server tells of the clients: their connections and their commands."""

from __future__ import annotations

import re
import threading
import time
from typing import Any, Self

import redis
from attrs import frozen

WATCHER = "bench-watcher"
NOT_MEASURED = (WATCHER.encode(), b"light-operator")

#: What the light operator does (it takes with BRPOP and RPOP, answers with SET and PUBLISH; no
#: contestant uses these), and what looking from outside costs. CLIENT is also how a connection
#: is given its name, once.
NOT_COUNTED = frozenset({"brpop", "rpop", "set", "publish", "info", "client", "flushall", "llen"})

#: A connection whose last command is one of these has not arrived in its database yet.
_ARRIVING = re.compile(rb" cmd=(NULL|hello|auth|client\S*) ")
_OURS = re.compile(rb" name=sandai-op:(broker|backend):\d+ ")
_NAME = re.compile(rb" name=(\S*) ")


@frozen
class Connections:
    """
    How many there are: to database 0, the broker, and to database 1, the backend.

    *unnamed* are those that have not the name of ours.
    """

    broker: int = 0
    backend: int = 0
    unnamed: int = 0

    def most(self, other: Connections) -> Connections:
        """Return the higher of each number."""
        return Connections(
            max(self.broker, other.broker),
            max(self.backend, other.backend),
            max(self.unnamed, other.unnamed),
        )


def count(client_list: bytes) -> Connections:
    """
    Count the lines of ``CLIENT LIST`` that are a contestant's.

    By the name where it is one of ours, which says what the connection is for before it has
    selected its database; else by the database.
    """
    broker = backend = unnamed = 0
    for line in client_list.splitlines():
        if named := _OURS.search(line):
            broker += named[1] == b"broker"
            backend += named[1] == b"backend"
            continue
        name = _NAME.search(line)
        if (name is not None and name[1] in NOT_MEASURED) or _ARRIVING.search(line):
            continue
        unnamed += 1
        broker += b" db=0 " in line
        backend += b" db=1 " in line
    return Connections(broker, backend, unnamed)


class ServerView:
    """A connection for looking, kept by one thread."""

    def __init__(self, url: str) -> None:
        pool = redis.ConnectionPool.from_url(url, client_name=WATCHER, protocol=2)
        self._connection: Any = pool.make_connection()
        self._connection.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.disconnect()

    def ask(self, *command: str) -> Any:
        """Return the reply to a command, as it is."""
        self._connection.send_command(*command)
        return self._connection.read_response()

    def connections(self) -> Connections:
        """Count the contestant's connections."""
        return count(self.ask("CLIENT", "LIST"))

    def commands(self) -> int:
        """Return how many commands clients have sent so far."""
        stats = re.findall(rb"cmdstat_([^:|]+)[^:]*:calls=(\d+)", self.ask("INFO", "commandstats"))
        return sum(int(calls) for name, calls in stats if name.decode() not in NOT_COUNTED)

    def settled(self, within: float) -> Connections:
        """Wait until no connection is left, for *within* seconds at most; return what is."""
        deadline = time.monotonic() + within
        while (now := self.connections()) != Connections() and time.monotonic() < deadline:
            time.sleep(0.01)
        return now


class PeakSampler:
    """Keep the highest numbers of connections while it is entered."""

    def __init__(self, url: str, *, interval: float = 0.005) -> None:
        self._url = url
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-sampler")
        self.peak = Connections()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with ServerView(self._url) as server:
            while not self._stopped.wait(self._interval):
                self.peak = self.peak.most(server.connections())
