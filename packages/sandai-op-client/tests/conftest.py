"""The boundaries, faked: a backend in memory, a RESP3 server, an operator in a thread."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging

from sandai.op.client import OperatorClient
from sandai.op.client._hub import ResultHub
from sandai.op.models import (
    VALID_PRIORITIES,
    OperatorDescription,
    TaskRequest,
    TaskResult,
    queue_name,
    task_name,
)
from sandai.op.transport import (
    BackendStatistics,
    Limiter,
    Reader,
    ResultDocument,
)

WAIT = 10.0


def success(task_id: str, results: Any = None) -> ResultDocument:
    """Return the document of a task that answered with *results*."""
    reply = {"status": "success", "results": {} if results is None else results}
    return ResultDocument(task_id, "SUCCESS", {"status": "SUCCESS", "result": reply})


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until *condition* holds; only for what has no event to wait for."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came to hold"
        time.sleep(0.002)


class FakeBackend:
    """Results in a dict; ``on_look`` and ``on_delete`` may raise or block."""

    reply_to = "nobody"

    def __init__(self) -> None:
        self.limiter = Limiter("backend", 1)
        self.stored: dict[str, ResultDocument] = {}
        self.deleted: list[str] = []
        self.looks = 0
        self.on_look: Callable[[Sequence[str]], None] = lambda _: None
        self.on_delete: Callable[[Sequence[str]], None] = lambda _: None
        self._readers: dict[int, Reader] = {}
        self._lock = threading.Lock()

    def store(self, task_id: str, results: Any = None) -> None:
        """Store a success."""
        self.stored[task_id] = success(task_id, results)

    def before_submit(self) -> None:
        """Do nothing."""

    def look(self, task_ids: Sequence[str], *, acquire_timeout: float) -> list[ResultDocument]:
        """Return what is stored."""
        self.looks += 1
        self.on_look(task_ids)
        return [self.stored[task_id] for task_id in task_ids if task_id in self.stored]

    def delete(self, task_ids: Sequence[str], *, acquire_timeout: float) -> None:
        """Delete and remember."""
        self.on_delete(task_ids)
        for task_id in task_ids:
            self.stored.pop(task_id, None)
            self.deleted.append(task_id)

    def reader(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """Return the owner's reader."""
        with self._lock:
            if id(owner) not in self._readers:
                self._readers[id(owner)] = make()
            return self._readers[id(owner)]

    def statistics(self) -> BackendStatistics:
        """Return a snapshot."""
        return BackendStatistics(self.limiter.statistics(), None, ())

    def close(self) -> None:
        """Close the readers."""
        for reader in self._readers.values():
            reader.close()


class RespServer:
    """
    As much of a RESP3 server as a push line and a look need, with faults.

    ``answer`` sees each command first; a string or bytes is the reply as it
    stands, ``None`` is the usual reply, and ``b""`` is silence.
    """

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.commands: list[list[bytes]] = []
        self.answer: Callable[[list[bytes]], bytes | None] = lambda _: None
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
        key, payload = f"celery-task-meta-{task_id}".encode(), self.payload()
        with self._lock:
            self.stored[key] = payload
            if publish:
                self.publish(key, payload)

    @staticmethod
    def payload() -> bytes:
        """Return a document's bytes."""
        return b'{"status": "SUCCESS", "result": {"status": "success"}}'

    def publish(self, key: bytes, payload: bytes) -> None:
        """Push a message to who subscribed."""
        self.push(b">3\r\n" + _bulk(b"message") + _bulk(key) + _bulk(payload), key)

    def push(self, data: bytes, key: bytes) -> None:
        """Push bytes to who subscribed to *key*."""
        with self._lock:
            for client, channels in list(self._clients.items()):
                if key in channels:
                    client.sendall(data)

    def cut(self) -> None:
        """Close every connection."""
        with self._lock:
            for client in list(self._clients):
                with suppress(OSError):  # the other side was faster
                    client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening, and everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(WAIT)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._clients[client] = set()
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        stream = client.makefile("rb")
        try:
            while line := stream.readline():
                command = []
                for _ in range(int(line[1:])):
                    size = int(stream.readline()[1:])
                    command.append(stream.read(size + 2)[:-2])
                with self._lock:
                    self.commands.append(command)
                said = self.answer(command)
                with self._lock:
                    client.sendall(self._reply(client, command) if said is None else said)
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                del self._clients[client]
            stream.close()
            client.close()

    def _reply(self, client: socket.socket, command: list[bytes]) -> bytes:
        name, *keys = command
        match name:
            case b"HELLO":
                return b"%1\r\n" + _bulk(b"proto") + b":3\r\n"
            case b"SUBSCRIBE":
                self._clients[client].update(keys)
                return b"".join(
                    b">3\r\n" + _bulk(b"subscribe") + _bulk(k) + b":1\r\n" for k in keys
                )
            case b"UNSUBSCRIBE":
                self._clients[client].difference_update(keys)
                return b"".join(
                    b">3\r\n" + _bulk(b"unsubscribe") + _bulk(k) + b":0\r\n" for k in keys
                )
            case b"MGET":
                found = [self.stored.get(key) for key in keys]
                replies = [b"$-1\r\n" if value is None else _bulk(value) for value in found]
                return b"*%d\r\n" % len(keys) + b"".join(replies)
            case b"DEL":
                return b":%d\r\n" % sum(self.stored.pop(k, None) is not None for k in keys)
            case b"PING":
                return b"+PONG\r\n"
        return b"+OK\r\n"


def _push(kind: bytes, key: bytes) -> bytes:
    return b">3\r\n" + _bulk(kind) + _bulk(key) + b":1\r\n"


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


class World:
    """A real operator on ``memory://`` and files, and clients for it."""

    name, version = "mem", "v1"

    def __init__(self, folder: Path) -> None:
        self.backend = f"file://{folder}"
        self.folder = folder
        self.requests: list[TaskRequest] = []
        self.descriptions = 0
        self.gate = threading.Event()
        self.inner: Callable[[], Any] = dict
        self.app = Celery("op", broker="memory://", backend=self.backend, set_as_current=False)
        self.app.conf.update(
            accept_content=["json", "msgpack"], broker_transport_options={"polling_interval": 0.005}
        )
        self.app.task(name=task_name(self.name, self.version))(self._process)
        self.queues = [queue_name(each, self.name, self.version) for each in VALID_PRIORITIES]
        for queue in self.queues:
            self.app.amqp.queues.add(queue)

    def client(self, **kwargs: Any) -> OperatorClient:
        """Return a client of the operator."""
        return OperatorClient(self.name, self.version, "memory://", self.backend, **kwargs)

    def _process(self, **kwargs: Any) -> Any:
        request = TaskRequest.from_kwargs(kwargs)
        if request.is_description:
            self.descriptions += 1
            return OperatorDescription("doc", {"type": "object"}).to_reply()
        self.requests.append(request)
        if request.options.get("wait"):
            self.gate.wait(WAIT)
        if request.options.get("inner"):
            return TaskResult(results=self.inner()).to_reply()
        if request.options.get("boom"):
            raise RuntimeError("boom")
        if "reply" in request.options:
            return request.options["reply"]
        return {
            "status": "success",
            "artifacts": kwargs["artifacts"],
            "results": dict(request.options),
        }


@pytest.fixture
def backend() -> FakeBackend:
    """Return a backend in memory."""
    return FakeBackend()


@pytest.fixture
def hub(backend: FakeBackend) -> Iterator[ResultHub]:
    """Yield a hub on the backend in memory."""
    hub = ResultHub(backend)
    yield hub
    hub.close()


@pytest.fixture
def server() -> Iterator[RespServer]:
    """Yield a RESP3 server."""
    server = RespServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("results"))
    logging.getLogger("celery").setLevel(logging.CRITICAL + 1)
    # Celery leaves logging alone when somebody else sees to it.
    setup_logging.connect(_no_logging)
    worker = start_worker(
        world.app, perform_ping_check=False, pool="threads", concurrency=2, queues=world.queues
    )
    with worker:
        yield world


def _no_logging(**_: object) -> None:
    """Set nothing up."""


@pytest.fixture
def world(_world: World) -> Iterator[World]:
    """Yield the operator, with nothing remembered."""
    _world.requests.clear()
    _world.descriptions = 0
    _world.gate.clear()
    for file in _world.folder.glob("*meta*"):
        with suppress(FileNotFoundError):
            file.unlink()
    yield _world
    _world.gate.set()
