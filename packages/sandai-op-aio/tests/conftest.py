"""The boundary, faked: as much of a Redis server as a pool's connections need."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from sandai.op.transport import Limiter, RedisConnector, resolve
from sandai.op.transport._url import RedisAddress


class OkServer(socketserver.ThreadingTCPServer):
    """Answers ``+OK`` to every command, and counts the connections that are open."""

    allow_reuse_address = True
    daemon_threads = True
    # A connection's thread ends with the connection, which the test's end closes.
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.open: set[socket.socket] = set()
        self.changed = threading.Condition()

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"redis://127.0.0.1:{self.server_address[1]}/0"

    def wait_for(self, count: int) -> None:
        """Wait until so many connections are open."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.open) == count, 10), len(self.open)


class _Answer(socketserver.StreamRequestHandler):
    server: OkServer

    def handle(self) -> None:
        server, sock = self.server, self.connection
        with server.changed:
            server.open.add(sock)
            server.changed.notify_all()
        try:
            while line := self.rfile.readline():
                for _ in range(int(line[1:])):
                    self.rfile.read(int(self.rfile.readline()[1:]) + 2)
                self.wfile.write(b"+OK\r\n")
        except (OSError, ValueError):
            return
        finally:
            with server.changed:
                server.open.discard(sock)
                server.changed.notify_all()


@pytest.fixture
def server() -> Iterator[OkServer]:
    """Yield a server on a free port."""
    with OkServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)
        for sock in list(server.open):
            sock.close()


@pytest.fixture
def connector(server: OkServer) -> RedisConnector:
    """Return what opens connections to the server."""
    config = resolve("op", "v1", env={}, broker_url=server.url)
    address = RedisAddress.parse("broker_url", config.broker_url, {})
    return RedisConnector(address, 2.0, "test")


@pytest.fixture
def limiter() -> Limiter:
    """Return a budget of two."""
    return Limiter("pool", 2)
