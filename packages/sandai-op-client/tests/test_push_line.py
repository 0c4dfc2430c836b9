"""The push line against a RESP3 server with faults."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sandai.op.client._push_line import PushLine
from sandai.op.transport import (
    PushRefused,
    RedisBackend,
    ResultDocument,
    TransportError,
    WaiterTable,
    resolve,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import RespServer

WAIT = 10.0
KEY = b"celery-task-meta-"


class Waiter:
    """Takes documents."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def deliver(self, document: ResultDocument) -> None:
        """Take one."""
        self.told.append(document.task_id)


class Line:
    """A backend, its table and lines on it."""

    def __init__(self, url: str) -> None:
        config = resolve("op", "v1", env={}, broker_url=url, io_timeout=0.3)
        self.backend = RedisBackend(config.backend_key)
        self.table = WaiterTable()
        self.waiter = Waiter()
        self.lines: list[PushLine] = []
        self.pushed: list[str] = []

    def open(self) -> PushLine:
        """Open a line."""
        self.lines.append(PushLine(self.backend, self.table))
        return self.lines[-1]

    def wait(self, *task_ids: str, delete: bool = False) -> None:
        """Wait for tasks."""
        self.table.add(task_ids, self.waiter, delete=delete)

    def receive(self, line: PushLine, count: int = 1) -> list[str]:
        """Return the ids of documents once *count* have come."""
        found: list[str] = []
        deadline = time.monotonic() + WAIT
        while len(found) < count:
            assert time.monotonic() < deadline
            documents = line.receive(self.pushed.append)
            found += [document.task_id for document in documents]
        return found


@pytest.fixture
def line(server: RespServer) -> Iterator[Line]:
    """Yield what lines are made of."""
    line = Line(server.url)
    yield line
    for each in line.lines:
        each.close()
    line.backend.close()


def until(condition: Callable[[], object]) -> None:
    """Wait until the server's thread has come so far."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_resubscribing_waits_for_the_acknowledgement(line: Line, server: RespServer) -> None:
    """After it, what is published is pushed."""
    line.wait("a", "b")
    push = line.open()
    assert push.resubscribe() == []
    assert server.channels == {KEY + b"a", KEY + b"b"}
    server.store("a", publish=True)
    assert line.receive(push) == ["a"]
    assert line.pushed == ["a"]


def test_what_is_pushed_while_subscribing_is_returned(line: Line, server: RespServer) -> None:
    """A result that comes between SUBSCRIBE and the acknowledged PING is not dropped."""

    def answer(command: list[bytes]) -> bytes | None:
        if command[0] == b"PING":
            server.store("a", publish=True)
        return None

    server.answer = answer
    line.wait("a")
    assert [document.task_id for document in line.open().resubscribe()] == ["a"]


def test_a_new_wait_subscribes_and_looks_at_once(line: Line, server: RespServer) -> None:
    """What was stored before the subscription is found by the look after it."""
    push = line.open()
    push.resubscribe()
    server.store("a", publish=False)
    line.wait("a")
    push.flush()
    assert line.receive(push) == ["a"]
    assert line.pushed == []
    names = [command[0] for command in server.commands]
    assert names.index(b"SUBSCRIBE") < names.index(b"MGET")


def test_a_result_between_subscribe_and_look_comes_twice(line: Line, server: RespServer) -> None:
    """It is pushed and found; the table tells its waiter once."""

    def answer(command: list[bytes]) -> bytes | None:
        if command[0] == b"MGET":
            server.store("a", publish=True)
        return None

    push = line.open()
    push.resubscribe()
    server.answer = answer
    line.wait("a")
    push.flush()
    assert line.receive(push, 2) == ["a", "a"]


def test_settled_and_given_up_tasks_are_left(line: Line, server: RespServer) -> None:
    """Nobody stays subscribed to what nobody waits for, and read results are deleted."""
    line.wait("a", delete=True)
    line.wait("b")
    push = line.open()
    push.resubscribe()
    server.store("a", publish=True)
    line.receive(push)
    line.table.settle(ResultDocument("a", "SUCCESS"))
    line.table.discard(["b"], line.waiter)
    push.flush()
    until(lambda: not server.channels and not server.stored)


def test_an_acl_that_forbids_push_is_for_good(line: Line, server: RespServer) -> None:
    """NOPERM on SUBSCRIBE is told apart from a failure."""
    server.answer = lambda command: (
        b"-NOPERM no permissions\r\n" if command[0] == b"SUBSCRIBE" else None
    )
    line.wait("a")
    with pytest.raises(PushRefused) as caught:
        line.open().resubscribe()
    assert caught.value.for_good


def test_a_server_without_resp3_is_told_of(line: Line, server: RespServer) -> None:
    """HELLO is refused: the error keeps the server's words."""
    server.answer = lambda command: (
        b"-ERR unknown command 'HELLO'\r\n" if command[0] == b"HELLO" else None
    )
    with pytest.raises(TransportError, match="unknown command"):
        line.open()


def test_silence_after_subscribe_ends_within_the_io_timeout(line: Line, server: RespServer) -> None:
    """A half-open connection is a failure, and deletions that went there are kept."""
    server.answer = lambda command: None if command[0] in (b"HELLO", b"CLIENT") else b""
    line.wait("a")
    line.table.delete(["old"])
    began = time.monotonic()
    with pytest.raises(TransportError):
        line.open().resubscribe()
    assert time.monotonic() - began < 5
    assert line.table.changes().delete == ["old"]


def test_silence_later_is_noticed_though_we_keep_writing(line: Line, server: RespServer) -> None:
    """Writing into a dead connection is no sign of its life."""
    push = line.open()
    push.resubscribe()
    server.answer = lambda _: b""
    numbers = iter(range(100_000))

    def write() -> None:
        line.wait(str(next(numbers)))
        push.flush()
        push.check()

    with pytest.raises(TransportError, match="silent"):
        until(write)


def test_an_idle_line_is_asked_for_a_sign_of_life(line: Line, server: RespServer) -> None:
    """A PING goes out after a while, and its reply keeps the line."""
    push = line.open()
    push.resubscribe()

    def asked() -> bool:
        push.check()
        return len(server.seen(b"PING")) == 2

    until(asked)
    until(lambda: push.receive(line.pushed.append) == [] and not push._session.awaiting)
    push.check()


def test_a_cut_in_the_middle_of_a_message(line: Line, server: RespServer) -> None:
    """Half a message is no message."""
    line.wait("a")
    push = line.open()
    push.resubscribe()
    server.push(b">3\r\n$7\r\nmessage\r\n$18\r\ncelery-task", KEY + b"a")
    server.cut()
    with pytest.raises(TransportError):
        until(lambda: push.receive(line.pushed.append))


def test_garbage_is_a_document_with_a_fault(line: Line, server: RespServer) -> None:
    """What cannot be decoded ends the wait of its own task."""
    line.wait("a", "b")
    push = line.open()
    push.resubscribe()
    server.publish(KEY + b"a", b"\x80\x04pickle")
    server.store("b", publish=True)
    assert line.receive(push, 2) == ["a", "b"]


def test_a_write_that_fails_breaks_the_line(line: Line, server: RespServer) -> None:
    """The reader is told, nobody connects anew, and deletions are kept."""
    push = line.open()
    push.resubscribe()
    push._connection._sock.shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]  # no public way
    line.table.delete(["old"])
    push.flush()
    assert push.broken is not None
    for call in (push.check, lambda: push.receive(line.pushed.append)):
        with pytest.raises(TransportError):
            call()
    line.wait("a")
    push.flush()
    push.close()
    assert line.table.changes().delete == ["old"]
    assert server.seen(b"HELLO") == [[b"HELLO", b"3"], [b"HELLO"]]


def test_a_write_that_is_interrupted_breaks_the_line(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a write may leave half a command: the line is not used again."""
    push = line.open()
    push.resubscribe()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    line.wait("a")
    line.table.delete(["old"])
    with monkeypatch.context() as patch:
        patch.setattr(push._connection, "pack_commands", interrupted)
        with pytest.raises(KeyboardInterrupt):
            push.flush()
    with pytest.raises(TransportError, match="interrupted"):
        push.check()
    push.flush()
    assert line.table.changes().delete == ["old"]


def test_many_write_at_once_and_nothing_is_left(line: Line, server: RespServer) -> None:
    """Who finds the line busy has the other take its changes along, hundreds of times."""
    push = line.open()
    push.resubscribe()
    start = threading.Barrier(4)

    def write(name: str) -> None:
        start.wait(WAIT)
        for number in range(200):
            line.wait(f"{name}{number}")
            push.flush()

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not line.table.changed
    until(lambda: len(server.channels) == 800)


def test_closing_reads_what_is_outstanding(line: Line, server: RespServer) -> None:
    """A deletion that was written is done before the connection goes."""
    server.store("a", publish=False)
    push = line.open()
    push.resubscribe()
    line.table.delete(["a"])
    push.flush()
    push.close(linger=WAIT)
    assert server.stored == {}
    assert not line.table.changed
    push.close()


def test_deletions_without_a_reply_go_back(line: Line, server: RespServer) -> None:
    """What a dying line may not have deleted is deleted again, unless it is waited for again."""
    push = line.open()
    push.resubscribe()
    server.answer = lambda command: b"" if command[0] == b"DEL" else None
    line.table.delete(["a", "b"])
    push.flush()
    line.wait("b")
    server.cut()
    push.close()
    assert line.table.changes().delete == ["a"]


def test_a_full_socket_keeps_nobody_waiting(line: Line, server: RespServer) -> None:
    """What a server that does not read leaves is written later, by the hub's thread."""
    push = line.open()
    push.resubscribe()
    push._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reading = threading.Event()

    def slow(_: list[bytes]) -> None:
        reading.wait(WAIT)

    server.answer = slow
    line.wait("first")
    push.flush()
    began = time.monotonic()
    line.wait(*(f"task-{number}" for number in range(30_000)))
    assert push.flush()
    assert time.monotonic() - began < 2
    assert push.unsent
    reading.set()

    def written() -> bool:
        push.pump()
        push.receive(line.pushed.append)
        return not push.unsent and len(server.seen(b"SUBSCRIBE")) == 2

    until(written)
    assert len(server.channels) == 30_001


def test_many_are_looked_at_elsewhere(line: Line, server: RespServer) -> None:
    """A batch's first look is a sweep's: Redis drops a subscriber whose replies are too large."""
    push = line.open()
    push.resubscribe()
    line.wait(*(f"task-{number}" for number in range(300)))
    assert push.flush()
    assert push.look_wanted
    until(lambda: len(server.channels) == 300)
    assert not server.seen(b"MGET")


def test_closing_under_writers(line: Line) -> None:
    """Threads that write while the line is closed get no error, and open nothing."""
    errors: list[BaseException] = []

    def write(name: str, push: PushLine, start: threading.Barrier) -> None:
        start.wait(WAIT)
        try:
            for number in range(50):
                line.wait(f"{name}{number}")
                push.flush()
        except BaseException as error:
            errors.append(error)

    for turn in range(20):
        push, start = line.open(), threading.Barrier(4)
        push.resubscribe()
        threads = [
            threading.Thread(target=write, args=(f"{turn}{name}", push, start)) for name in "abc"
        ]
        for thread in threads:
            thread.start()
        start.wait(WAIT)
        push.close()
        for thread in threads:
            thread.join(WAIT)
        assert push._connection._sock is None  # type: ignore[attr-defined]  # no public way
    assert errors == []


def test_closing_a_silent_line_does_not_take_long(line: Line, server: RespServer) -> None:
    """Replies that never come are not waited for."""
    push = line.open()
    push.resubscribe()
    server.answer = lambda _: b""
    line.wait("a")
    push.flush()
    began = time.monotonic()
    push.close(linger=0.05)
    assert time.monotonic() - began < 5
