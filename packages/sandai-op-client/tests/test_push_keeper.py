"""The hub on a RESP3 server: push, its loss, and doing without."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import pytest

from sandai.op.client import _hub
from sandai.op.client._hub import ResultHub
from sandai.op.client._mailbox import Mailbox
from sandai.op.transport import RedisBackend, SweepSchedule, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import RespServer

WAIT = 10.0


class Pushed:
    """A Redis backend on the server, and its hub."""

    def __init__(self, url: str, limit: int = 8) -> None:
        config = resolve(
            "op", "v1", env={}, broker_url=url, backend_pool_limit=limit, io_timeout=0.3
        )
        self.backend = RedisBackend(config.backend_key)
        self.hub = ResultHub(self.backend)

    def watch(self, task_id: str, *, delete: bool = False) -> Mailbox:
        """Wait for a task."""
        box = Mailbox()
        self.hub.watch([task_id], box, delete=delete)
        return box

    def pushing(self) -> bool:
        """Return whether there is a line."""
        return self.hub.statistics().pushing

    def close(self) -> None:
        """Close both."""
        self.hub.close()
        self.backend.close()


@pytest.fixture
def pushed(server: RespServer) -> Iterator[Pushed]:
    """Yield a hub with push."""
    pushed = Pushed(server.url)
    yield pushed
    pushed.close()


def until(condition: Callable[[], object]) -> None:
    """Wait until the hub's thread has come so far."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def comes(box: Mailbox) -> bool:
    """Return whether a document comes."""
    return box.get(time.monotonic() + WAIT) is not None


def logged(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """Return how many log lines have *text*."""
    return sum(text in record.getMessage() for record in caplog.records)


def refuse(name: bytes, reply: bytes) -> Callable[[list[bytes]], bytes | None]:
    """Return an answer that is the usual one but to one command."""
    return lambda command: reply if command[0] == name else None


def test_a_published_result_is_pushed(pushed: Pushed, server: RespServer) -> None:
    """Push brings it, and reading deletes it and leaves the channel."""
    box = pushed.watch("a", delete=True)
    until(lambda: server.channels)
    server.store("a", publish=True)
    assert comes(box)
    until(lambda: not server.channels and not server.stored)
    assert pushed.hub.statistics().push_connects == 1


def test_a_stored_result_is_swept(pushed: Pushed, server: RespServer) -> None:
    """An operator that does not publish is heard all the same."""
    box = pushed.watch("a")
    until(lambda: server.channels)
    server.store("a", publish=False)
    assert comes(box)
    assert pushed.hub.statistics().swept == 1


def test_the_permit_comes_back_when_idle(
    pushed: Pushed, server: RespServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub without waits has no connection after a while."""
    monkeypatch.setattr(_hub, "IDLE_SECONDS", 0.0)
    server.store("a", publish=False)
    assert comes(pushed.watch("a"))
    until(lambda: not pushed.pushing())
    limiter = pushed.backend.push_limiter
    until(lambda: limiter.statistics().in_use == 0)


def test_an_idle_hub_does_not_spin(
    pushed: Pushed, server: RespServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody waits the thread sleeps, whatever the schedule says is due."""
    server.store("a", publish=False)
    assert comes(pushed.watch("a"))
    turns: list[float] = []
    work = pushed.hub._work

    def count(now: float) -> None:
        turns.append(now)
        work(now)

    monkeypatch.setattr(SweepSchedule, "next_due", lambda *_: 0.0)
    monkeypatch.setattr(pushed.hub, "_work", count)
    time.sleep(0.4)  # nothing is to happen
    assert len(turns) < 10


def test_a_lost_line_is_opened_again(
    pushed: Pushed, server: RespServer, caplog: pytest.LogCaptureFixture
) -> None:
    """After a cut everything is subscribed to and looked at again, without a word."""
    box = pushed.watch("a")
    until(lambda: server.channels)
    with caplog.at_level(logging.WARNING):
        server.cut()
        until(lambda: pushed.hub.statistics().push_connects == 2)
        until(lambda: server.channels)
        server.store("a", publish=True)
        assert comes(box)
    assert logged(caplog, "push of results") == 0


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        (b"SUBSCRIBE", b"-NOPERM no permissions to access a channel\r\n"),
        (b"HELLO", b"-ERR unknown command 'HELLO'\r\n"),
        (b"HELLO", b"-NOPROTO unsupported protocol version\r\n"),
    ],
)
def test_push_that_is_not_allowed_is_not_tried_again(
    pushed: Pushed,
    server: RespServer,
    caplog: pytest.LogCaptureFixture,
    name: bytes,
    reply: bytes,
) -> None:
    """The hub polls instead, and says so once."""
    server.answer = refuse(name, reply)
    with caplog.at_level(logging.WARNING):
        box = pushed.watch("a")
        server.store("a", publish=False)
        assert comes(box)
        box = pushed.watch("b")
        server.store("b", publish=False)
        assert comes(box)
    assert not pushed.pushing()
    assert logged(caplog, "does not allow push") == 1
    assert pushed.backend.push_limiter.statistics().in_use == 0


@pytest.mark.parametrize("reply", [b"", b"-MASTERDOWN link is down\r\n"])
def test_push_that_fails_does_not_keep_from_polling(
    pushed: Pushed, server: RespServer, caplog: pytest.LogCaptureFixture, reply: bytes
) -> None:
    """Subscribing is answered by silence or an error: looks bring the results."""
    server.answer = refuse(b"SUBSCRIBE", reply)
    if not reply:
        server.answer = lambda command: (
            b"" if server.seen(b"SUBSCRIBE") and (command[0] in (b"SUBSCRIBE", b"PING")) else None
        )
    with caplog.at_level(logging.WARNING):
        for task_id in "abc":
            box = pushed.watch(task_id)
            server.store(task_id, publish=False)
            assert comes(box)
        assert not pushed.pushing()
    assert logged(caplog, "reading results") == 0


def test_push_that_keeps_failing_is_told_of_once(
    pushed: Pushed, server: RespServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its beginning and its end are logged, and the hub pushes again."""
    server.answer = refuse(b"SUBSCRIBE", b"-MASTERDOWN link is down\r\n")
    with caplog.at_level(logging.WARNING):
        box = pushed.watch("a")
        until(lambda: len(server.seen(b"SUBSCRIBE")) >= 4)
        server.answer = lambda _: None
        until(pushed.pushing)
        server.store("a", publish=True)
        assert comes(box)
    assert logged(caplog, "polling meanwhile") == 1
    assert logged(caplog, "push of results: well again") == 1


def test_an_outage_of_everything_is_logged_once(
    pushed: Pushed, server: RespServer, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server refuses everything one line tells of it, and one of the end."""
    server.answer = lambda _: b"-LOADING the dataset\r\n"
    with caplog.at_level(logging.WARNING):
        box = pushed.watch("a")
        until(lambda: len(server.commands) > 5)
        assert pushed.hub.failure is not None
        server.answer = lambda _: None
        server.store("a", publish=False)
        assert comes(box)
    assert logged(caplog, "trying on") == 1
    assert logged(caplog, "reading results: well again") == 1


def test_a_limit_of_one_polls(server: RespServer) -> None:
    """Without a permit for push no wait fails."""
    pushed = Pushed(server.url, limit=1)
    try:
        box = pushed.watch("a")
        server.store("a", publish=False)
        assert comes(box)
        assert not pushed.pushing()
        assert server.seen(b"SUBSCRIBE") == []
    finally:
        pushed.close()


def test_a_stray_error_reply_costs_the_line_not_the_waits(
    pushed: Pushed, server: RespServer
) -> None:
    """An error on the line closes it; another is opened."""
    box = pushed.watch("a")
    until(pushed.pushing)
    server.push(b"-ERR something\r\n", b"celery-task-meta-a")
    until(lambda: pushed.hub.statistics().push_connects == 2)
    server.store("a", publish=True)
    assert comes(box)
