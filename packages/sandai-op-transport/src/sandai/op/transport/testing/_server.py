"""The one thread that serves every connection to ``memory://``, over socket pairs."""

import errno
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import hiredis

from .._inheritance import close_in_child
from ._outages import SIDES
from ._session import Session

if TYPE_CHECKING:
    from ._world import World

_READ = 65536
#: Redis, too, drops a subscriber that does not read what it is sent.
_MOST_UNREAD = 32 * 1024 * 1024


class Peer:
    """The far end of one connection. Its world's lock is held for all but the socket's reads."""

    def __init__(self, world: "World", side: str, sock: socket.socket, server: "Server") -> None:
        self.world = world
        self.sock = sock
        self.session = Session(world, side, self.wake)
        #: Stalled: nothing is read, executed or sent.
        self.held = False
        #: What it is sent is lost; such a connection is out of step and is cut in the end.
        self.mute = False
        self.cut = False
        self.interest = 0
        self._parser = hiredis.Reader()
        self._server = server
        close_in_child(self, Peer.close)

    def close(self) -> None:
        """Close the descriptor."""
        self.sock.close()

    def wake(self) -> None:
        """Have the thread look after this peer."""
        self._server.wake(self)

    def end(self) -> None:
        """End the connection now; the thread does the rest."""
        self.cut = True
        with suppress(OSError):  # it has ended already
            self.sock.shutdown(socket.SHUT_RDWR)
        self.wake()

    def read(self) -> None:
        """Read what has come; sets :attr:`cut` at the end."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        with self.world.lock:
            if data:
                self._parser.feed(data)
            else:
                self.cut = True

    def work(self) -> None:
        """Execute what was read and send what the socket takes now."""
        with self.world.lock:
            try:
                while not (self.held or self.cut) and (command := self._parser.gets()) is not False:
                    self.session.receive(command)
            except hiredis.ProtocolError:
                self.cut = True
            out = self.session.out
            if self.mute:
                out.clear()
            if not out or self.held:
                return
            try:
                sent = self.sock.send(out)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.cut = True
                return
            del out[:sent]
            full = len(out) > _MOST_UNREAD and bool(self.session.subscriptions)
            self.cut = self.cut or full or (self.session.ended and not out)

    @property
    def wanted(self) -> int:
        """What to wait for at the socket."""
        if self.held:
            return 0
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.session.out else 0)


class Server:
    """A thread while there are connections; it never waits for one of them alone."""

    def __init__(self, ended: Callable[["Server"], bool]) -> None:
        self._ended = ended
        self._peers: set[Peer] = set()
        self._calls: deque[Peer] = deque()
        #: Whether the thread will look at the calls without being told again.
        self._roused = False
        self._selector = selectors.DefaultSelector()
        self._waking, self._wakes = socket.socketpair()
        for end in (self._waking, self._wakes):
            end.setblocking(False)
        self._selector.register(self._wakes, selectors.EVENT_READ)
        close_in_child(self, Server.close)
        threading.Thread(target=self._run, name="sandai-op-memory", daemon=True).start()

    def wake(self, peer: Peer) -> None:
        """Look after a peer soon; may be called in any thread."""
        self._calls.append(peer)
        if not self._roused:
            self._roused = True
            # Full, it wakes already; closed, there is nobody to serve.
            with suppress(OSError):
                self._waking.send(b"\0")

    def close(self) -> None:
        """Close the descriptors of its own."""
        self._selector.close()
        self._waking.close()
        self._wakes.close()

    def _run(self) -> None:
        while self._peers or self._calls or not self._ended(self):
            for key, events in self._selector.select():
                peer = key.data
                if peer is None:
                    with suppress(BlockingIOError):
                        self._wakes.recv(_READ)
                    continue
                if events & selectors.EVENT_READ and not peer.held:
                    peer.read()
                self._attend(peer)
            self._roused = False
            called: set[Peer] = set()
            while self._calls:
                called.add(self._calls.popleft())
            for peer in called:
                self._attend(peer)
        self.close()

    def _attend(self, peer: Peer) -> None:
        if peer not in self._peers:
            if peer.sock.fileno() < 0:
                return
            self._peers.add(peer)
        peer.work()
        if peer.cut:
            self._remove(peer)
            return
        wanted = peer.wanted
        if wanted == peer.interest:
            return
        if not peer.interest:
            self._selector.register(peer.sock, wanted, peer)
        elif not wanted:
            self._selector.unregister(peer.sock)
        else:
            self._selector.modify(peer.sock, wanted, peer)
        peer.interest = wanted

    def _remove(self, peer: Peer) -> None:
        if peer.interest:
            self._selector.unregister(peer.sock)
            peer.interest = 0
        self._peers.discard(peer)
        with peer.world.lock:
            peer.session.end()
            peer.world.peers.discard(peer)
            peer.close()


class _Current:
    """The server of this process, if there is one; a forked child has none."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._server: Server | None = None

    def connect(self, world: "World", side: str) -> socket.socket:
        near, far = socket.socketpair()
        try:
            far.setblocking(False)
            self._add(world, side, far)
            return near
        except BaseException:
            near.close()
            far.close()
            raise

    def _add(self, world: "World", side: str, sock: socket.socket) -> None:
        with self._lock, world.lock:
            if world.fails(side, "refused"):
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            if self._server is None:
                self._server = Server(self._ended)
            peer = Peer(world, side, sock, self._server)
            peer.held, peer.mute = world.fails(side, "stalled"), world.fails(side, "swallowed")
            world.peers.add(peer)
            peer.wake()

    def _ended(self, server: Server) -> bool:
        """Let go of a server that has nobody to serve; ``False`` if somebody has come."""
        with self._lock:
            if server._calls:
                return False
            self._server = None
            return True


current = _Current()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=current.reset_after_fork)


def dial(name: str, client_name: str) -> socket.socket:
    """Return a socket connected to a world; raises ``OSError``."""
    from ._world import world_named

    side = next((side for side in SIDES if f":{side}:" in client_name), "")
    return current.connect(world_named(name), side)
