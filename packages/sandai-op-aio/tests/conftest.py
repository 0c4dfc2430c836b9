"""The boundary, faked: a small Redis server in a thread."""

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from sandai.op.transport import RedisBackend, RedisConnector, resolve

Answer = Callable[[list[bytes]], bytes | None]


class RespServer:
    """
    As much of Redis as connecting, looking and a push line need.

    ``answer`` sees each command first; bytes are the reply as it stands (``b""``:
    silence), ``None`` is the usual reply.
    """

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.commands: list[list[bytes]] = []
        self.answer: Answer = lambda _: None
        self.most = 0
        self._clients: dict[socket.socket, set[bytes]] = {}
        self._lock = threading.RLock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    @property
    def connected(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._clients)

    @property
    def channels(self) -> set[bytes]:
        """What is subscribed to."""
        with self._lock:
            return set().union(*self._clients.values())

    def seen(self, name: bytes) -> list[list[bytes]]:
        """Return the commands of that name."""
        with self._lock:
            return [command for command in self.commands if command[0] == name]

    def store(self, task_id: str, *, publish: bool) -> None:
        """Store a success, and publish it."""
        key = f"celery-task-meta-{task_id}".encode()
        payload = b'{"status": "SUCCESS", "result": {"of": "%b"}}' % task_id.encode()
        with self._lock:
            self.stored[key] = payload
            for client, channels in self._clients.items():
                if publish and key in channels:
                    client.sendall(b">3\r\n" + _bulk(b"message") + _bulk(key) + _bulk(payload))

    def drop(self) -> None:
        """End every connection."""
        with self._lock:
            for client in self._clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                with self._lock:
                    self._clients[client] = set()
                    self.most = max(self.most, sum(map(_connected, self._clients)))
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, ValueError), client, client.makefile("rb") as stream:
            while line := stream.readline():
                command = []
                for _ in range(int(line[1:])):
                    length = int(stream.readline()[1:])
                    command.append(stream.read(length + 2)[:-2])
                with self._lock:
                    self.commands.append(command)
                reply = self.answer(command)
                with self._lock:
                    client.sendall(self._reply(client, command) if reply is None else reply)
        with self._lock:
            del self._clients[client]

    def _reply(self, client: socket.socket, command: list[bytes]) -> bytes:
        name, *arguments = command
        if name == b"HELLO":
            return b"%1\r\n" + _bulk(b"proto") + b":3\r\n"
        if name == b"PING":
            return b"+PONG\r\n"
        if name == b"MGET":
            found = [self.stored.get(key) for key in arguments]
            parts = [b"$-1\r\n" if value is None else _bulk(value) for value in found]
            return b"*%d\r\n" % len(parts) + b"".join(parts)
        if name in (b"SUBSCRIBE", b"UNSUBSCRIBE"):
            channels = self._clients[client]
            change = channels.add if name == b"SUBSCRIBE" else channels.discard
            for key in arguments:
                change(key)
            head = b">3\r\n" + _bulk(name.lower())
            return b"".join(head + _bulk(key) + b":1\r\n" for key in arguments)
        if name == b"DEL":
            return b":%d\r\n" % sum(self.stored.pop(key, None) is not None for key in arguments)
        return b"+OK\r\n"


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _connected(client: socket.socket) -> bool:
    """Return whether the other side has not ended it; our thread may not have noticed yet."""
    if client.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(client, getattr(select, "POLLRDHUP", select.POLLHUP))
    return not poll.poll(0)


@pytest.fixture
def server() -> Iterator[RespServer]:
    """Run a server."""
    server = RespServer()
    yield server
    server.close()


@pytest.fixture
def connector(server: RespServer) -> RedisConnector:
    """Give a connector to the server."""
    config = resolve("op", "v1", env={}, broker_url=server.url, io_timeout=0.5)
    return RedisBackend(config.backend_key).connector
