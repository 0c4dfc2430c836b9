"""A TCP proxy between a client and a server, which a test breaks in the ways that networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from enum import Enum, Flag, auto
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from attrs import define

R = TypeVar("R")

HOST = "127.0.0.1"
CHUNK = 65536
IN_FLIGHT = 64
"""Chunks that are held back on their way before no more are read."""
STEP = 0.02
"""Seconds' worth of bytes that go at once where the rate is limited."""


class Way(Flag):
    """The two directions of a connection."""

    REQUESTS = auto()
    """From the client to the server."""
    REPLIES = auto()
    """From the server to the client."""
    BOTH = REQUESTS | REPLIES


class Cut(Enum):
    """How a connection ends."""

    RESET = "RST"
    FIN = "FIN"
    SILENCE = "silence"
    """It stays open and nothing comes through any more: half-open TCP, a black hole."""


class Entry(Enum):
    """What happens to new connections."""

    OPEN = "open"
    REFUSED = "refused"
    SILENT = "silent"
    """They are accepted, and nothing is read or answered for as long as they last."""


@define
class _Budget:
    """Bytes that may still pass one way before the connection that exceeds it is cut."""

    count: int
    way: Way
    how: Cut


class TcpProxy:
    """
    Forward connections from a free loopback port to a server, until the ``with`` block is left.

    Everything may be switched at any time and from any thread. `entry` decides on new
    connections; `delay`, `rate`, `drop_replies` and `cut_after` hold for all of them; `cut` and
    `black_hole` strike those that are open. `heal` ends whatever was switched on; connections
    that were struck stay so.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.delay = 0.0
        """Seconds that bytes are under way, in each direction."""
        self.rate: float | None = None
        """Bytes a second, for each direction of each connection."""
        self.drop_replies: Cut | None = None
        """Requests get through and replies do not; what a reply does to its connection."""
        self.accepted = 0
        """Connections that were accepted so far."""
        self.ended = 0
        """Those that are over, whoever ended them."""
        self.cuts = 0
        """Those that this proxy cut, in whatever way."""
        self.round_trips = 0
        """How often a client wrote for the first time, or after it was answered."""
        self.target = (target_host, target_port)
        self.budget: _Budget | None = None
        self._entry = Entry.OPEN
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy")
        # Bound and not listening, it refuses; and nobody else gets the port while it does.
        self._reserved = _bound(0)
        self._listener: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port, on the loopback address."""
        port: int = self._reserved.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The URL of database 0 of a Redis behind this."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def open(self) -> int:
        """Connections that are open now, those that are silent included."""
        return self.accepted - self.ended

    @property
    def entry(self) -> Entry:
        """What happens to new connections."""
        return self._entry

    @entry.setter
    def entry(self, entry: Entry) -> None:
        self._entry = entry
        self._run(self._listen())

    def routes(self) -> dict[int, int]:
        """Map the ports that the server sees to those from which clients connected."""
        return self._run(self._routes())

    def cut(self, how: Cut = Cut.RESET) -> int:
        """End every open connection, on both of its sides; return how many there were."""
        return self._run(self._cut(how))

    def black_hole(self, way: Way = Way.BOTH) -> None:
        """Swallow whatever comes on the connections that are open, and close none of them."""
        self._run(self._swallow(way))

    def cut_after(self, count: int, way: Way, how: Cut = Cut.RESET) -> None:
        """Let `count` more bytes pass; cut the connection of the next one, and only that."""
        self.budget = _Budget(count, way, how)

    def heal(self) -> None:
        """Forward everything at once again."""
        self.delay, self.rate, self.drop_replies, self.budget = 0.0, None, None, None
        self.entry = Entry.OPEN

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.entry = Entry.REFUSED
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reserved.close()

    def _run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # On the loop

    async def _listen(self) -> None:
        """Begin to listen, or cease to: whoever is in the backlog then is refused too."""
        if self._entry is Entry.REFUSED:
            if self._listener is not None:
                self._loop.remove_reader(self._listener)
                self._listener.close()
                self._listener = None
        elif self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(1024)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client, address = listener.accept()
            self.accepted += 1
            link = _Link(self, client, address[1])
            self._links.add(link)
            link.task.add_done_callback(partial(self._over, link))

    def _over(self, link: _Link, task: asyncio.Task[None]) -> None:
        link.close()
        self._links.remove(link)
        self.ended += 1

    async def _routes(self) -> dict[int, int]:
        return {link.server_port: link.client_port for link in self._links}

    async def _cut(self, how: Cut) -> int:
        links = list(self._links)
        for link in links:
            link.cut(how)
        if links and how is not Cut.SILENCE:
            await asyncio.wait([link.task for link in links])
        return len(links)

    async def _swallow(self, way: Way) -> None:
        for link in self._links:
            link.swallowed |= way


class _Link:
    """A client's connection and its continuation to the server."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, client_port: int) -> None:
        self.swallowed = Way(0)
        self.client_port = client_port
        self._proxy = proxy
        self._client = client
        self._server = socket.socket()
        for end in (self._client, self._server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._how = Cut.RESET
        self._last: Way | None = None
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run())

    @property
    def server_port(self) -> int:
        """The port from which this is connected to the server; 0 where it is not."""
        try:
            port: int = self._server.getsockname()[1]
        except OSError:
            port = 0
        return port

    def cut(self, how: Cut) -> None:
        """End both connections as the peer of each would, or keep both and carry nothing."""
        self._proxy.cuts += 1
        if how is Cut.SILENCE:
            self.swallowed = Way.BOTH
        else:
            self._how = how
            self.task.cancel()

    def close(self) -> None:
        """Close both connections; the task is done."""
        for end in (self._client, self._server):
            with end, contextlib.suppress(OSError):
                if self._how is Cut.RESET:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    end.shutdown(socket.SHUT_WR)
                    # Closed with something unread it would send an RST.
                    while end.recv(CHUNK):
                        pass

    async def _run(self) -> None:
        """Forward both ways until both are over, or this is cut."""
        if self._proxy.entry is Entry.SILENT:
            await self._loop.create_future()
        with contextlib.suppress(OSError):
            await self._loop.sock_connect(self._server, self._proxy.target)
            await self._carry()
            self._how = Cut.FIN

    async def _carry(self) -> None:
        """Read and write in tasks of their own, so that a delay holds up nothing but the bytes."""
        try:
            async with asyncio.TaskGroup() as group:
                for way, source, sink in (
                    (Way.REQUESTS, self._client, self._server),
                    (Way.REPLIES, self._server, self._client),
                ):
                    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
                    group.create_task(self._read(way, source, under_way))
                    group.create_task(self._write(way, under_way, sink))
        except* OSError as group_of_errors:
            raise group_of_errors.exceptions[0] from None

    async def _read(
        self, way: Way, source: socket.socket, under_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"some"
        while data:
            try:
                data = await self._loop.sock_recv(source, CHUNK)
            except OSError:
                if way not in self.swallowed:
                    raise
                data = b""
            if data and way is not self._last:
                self._last = way
                self._proxy.round_trips += way is Way.REQUESTS
            await under_way.put((self._loop.time() + self._proxy.delay, data))

    async def _write(
        self, way: Way, under_way: asyncio.Queue[tuple[float, bytes]], sink: socket.socket
    ) -> None:
        data = b"some"
        while data:
            due, data = await under_way.get()
            if (early := due - self._loop.time()) > 0:
                await asyncio.sleep(early)
            dropping = self._proxy.drop_replies if way is Way.REPLIES else None
            if data and dropping in (Cut.RESET, Cut.FIN):
                await self._cut_off(dropping)
            elif way in self.swallowed:
                if not data:
                    # Neither side hears that the other one has gone.
                    await self._loop.create_future()
            elif not data:
                sink.shutdown(socket.SHUT_WR)
            elif dropping is None:
                await self._send(way, data, sink)

    async def _send(self, way: Way, data: bytes, sink: socket.socket) -> None:
        budget, rest = self._proxy.budget, b""
        if budget is not None and way in budget.way:
            data, rest = data[: budget.count], data[budget.count :]
            budget.count -= len(data)
        step = len(data)
        if (rate := self._proxy.rate) is not None:
            step = max(1, int(rate * STEP))
        for start in range(0, len(data), max(1, step)):
            piece = data[start : start + step]
            await self._loop.sock_sendall(sink, piece)
            if rate is not None:
                await asyncio.sleep(len(piece) / rate)
        if budget is not None and rest:
            self._proxy.budget = None
            await self._cut_off(budget.how)

    async def _cut_off(self, how: Cut) -> None:
        """Cut this from one of its own tasks, which is cancelled with the others."""
        self.cut(how)
        if how is not Cut.SILENCE:
            await self._loop.create_future()


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setblocking(False)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound
