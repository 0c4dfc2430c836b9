"""The hub on a server that speaks RESP3: push, its loss, and doing without."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sandai.op.aio import AsyncOperatorClient, AsyncSubmittedTask, _hub
from sandai.op.aio._hub import LoopHub
from sandai.op.aio._looks import looks_of
from sandai.op.aio._mailbox import Mailbox
from sandai.op.models import InvalidTaskStatusError, OperatorConnectionError
from sandai.op.transport import RedisBackend, ResultDocument, resolve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import RespServer


def backend_of(server: RespServer, **settings: Any) -> RedisBackend:
    """Return a backend on a server."""
    settings = {"io_timeout": 0.5, **settings}
    return RedisBackend(resolve("op", "v1", env={}, broker_url=server.url, **settings).backend_key)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds that has no event."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.002)


@asynccontextmanager
async def hub_of(server: RespServer, **settings: Any) -> AsyncIterator[LoopHub]:
    """Run a hub on the running loop."""
    backend = backend_of(server, **settings)
    hub = LoopHub(backend, asyncio.get_running_loop())
    try:
        yield hub
    finally:
        hub.close()
        await until(lambda: server.connected == 0)
        assert backend.limiter.statistics().in_use == 0
        assert backend.push_limiter.statistics().in_use == 0


def waiting(hub: LoopHub, *task_ids: str, delete: bool = False) -> Mailbox:
    """Wait for tasks."""
    mailbox = Mailbox(asyncio.get_running_loop())
    hub.watch(task_ids, mailbox, delete=delete)
    return mailbox


async def got(mailbox: Mailbox, seconds: float = 5.0) -> str | None:
    """Return the id of the next task that ends."""
    found = await mailbox.get(time.monotonic() + seconds)
    for document in found[1:]:
        mailbox.deliver(document)
    return found[0].task_id if found else None


@pytest.mark.asyncio
async def test_pushed(server: RespServer) -> None:
    """A published result comes at once, and is deleted before it is handed over."""
    async with hub_of(server) as hub:
        mailbox = waiting(hub, "a", delete=True)
        await until(lambda: hub.statistics().pushing)
        server.store("a", publish=True)
        assert await got(mailbox) == "a"
        await until(lambda: not server.stored and not server.channels)
        assert hub.statistics().pending == 0


@pytest.mark.asyncio
async def test_stored_before(server: RespServer) -> None:
    """What was stored before the wait is found by the look that follows the subscription."""
    async with hub_of(server) as hub:
        first = waiting(hub, "a")
        await until(lambda: hub.statistics().pushing)
        server.store("b", publish=False)
        assert await got(waiting(hub, "b")) == "b"
        assert hub.statistics().swept == 0
        server.store("a", publish=True)
        assert await got(first) == "a"


@pytest.mark.asyncio
async def test_changes_of_a_turn_share_commands(server: RespServer) -> None:
    """Many waits that begin together are one SUBSCRIBE, and leave together."""
    async with hub_of(server) as hub:
        waiting(hub, "first")
        await until(lambda: hub.statistics().pushing)
        before = len(server.seen(b"SUBSCRIBE"))
        mailboxes = {f"t{n}": waiting(hub, f"t{n}") for n in range(150)}
        await until(lambda: len(server.channels) == 151)
        assert len(server.seen(b"SUBSCRIBE")) == before + 1
        for task_id, mailbox in mailboxes.items():
            hub.unwatch([task_id], mailbox)
        await until(lambda: len(server.channels) == 1)
        assert len(server.seen(b"UNSUBSCRIBE")) == 1


@pytest.mark.asyncio
async def test_lost_line(server: RespServer) -> None:
    """After a loss it subscribes again and looks at everything."""
    async with hub_of(server) as hub:
        mailbox = waiting(hub, "a", "b")
        await until(lambda: hub.statistics().pushing)
        server.drop()
        server.store("a", publish=False)
        assert await got(mailbox) == "a"
        await until(lambda: hub.statistics().push_connects == 2 and hub.statistics().pushing)
        server.store("b", publish=True)
        assert await got(mailbox) == "b"


@pytest.mark.asyncio
async def test_silent_line(server: RespServer) -> None:
    """A line that does not answer a PING within the I/O timeout is given up."""
    async with hub_of(server) as hub:
        waiting(hub, "a")
        await until(lambda: hub.statistics().pushing)
        server.answer = lambda command: b"" if command[0] == b"PING" else None
        await until(lambda: not hub.statistics().pushing)
        server.answer = lambda _: None
        await until(lambda: hub.statistics().push_connects == 2)


@pytest.mark.asyncio
async def test_refused(server: RespServer, caplog: pytest.LogCaptureFixture) -> None:
    """A server that does not allow SUBSCRIBE is polled, and asked only once."""
    refusal = b"-NOPERM this user has no permissions to run the 'subscribe' command\r\n"
    server.answer = lambda command: refusal if command[0] == b"SUBSCRIBE" else None
    async with hub_of(server) as hub:
        mailbox = waiting(hub, "a", delete=True)
        await until(lambda: hub.statistics().sweeps > 3)
        server.store("a", publish=False)
        assert await got(mailbox) == "a"
        assert not server.stored
        assert len(server.seen(b"SUBSCRIBE")) == 1
    assert "does not allow push" in caplog.text


@pytest.mark.asyncio
async def test_no_permit(server: RespServer) -> None:
    """With a limit of 1, and where others hold the permits, it polls on one connection."""
    async with hub_of(server, backend_pool_limit=1) as hub:
        mailbox = waiting(hub, "a")
        await until(lambda: hub.statistics().sweeps > 2)
        server.store("a", publish=True)
        assert await got(mailbox) == "a"
        assert server.most == 1


@pytest.mark.asyncio
async def test_ends_when_idle(server: RespServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waits the line and the task end; the next wait begins anew."""
    monkeypatch.setattr(_hub, "IDLE_SECONDS", 0.1)
    async with hub_of(server) as hub:
        for task_id in ("a", "b"):
            mailbox = waiting(hub, task_id)
            await until(lambda: hub.statistics().pushing)
            server.store(task_id, publish=True)
            assert await got(mailbox) == task_id
            await until(lambda: not hub.statistics().pushing and hub._task is None)
        assert hub.statistics().push_connects == 2


@pytest.mark.asyncio
async def test_cancelled_task_starts_again(server: RespServer) -> None:
    """While somebody waits, a cancelled hub goes on; its permits are not lost."""
    async with hub_of(server, backend_pool_limit=2) as hub:
        mailbox = waiting(hub, "a")
        for connects in range(1, 4):
            await until(lambda n=connects: hub.statistics().push_connects == n)  # type: ignore[misc]
            await until(lambda: hub.statistics().pushing)
            assert hub._task is not None
            hub._task.cancel()
        server.store("a", publish=False)
        assert await got(mailbox) == "a"


@pytest.mark.asyncio
async def test_a_failure_of_ours_ends_no_wait(
    server: RespServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error nobody thought of is logged, and the waits go on."""
    async with hub_of(server) as hub:
        due = hub._schedule.due
        failures: list[int] = []

        def broken(*args: Any, **kwargs: Any) -> Any:
            if len(failures) < 2:
                failures.append(1)
                raise ZeroDivisionError("oops")
            return due(*args[1:], **kwargs)

        monkeypatch.setattr(type(hub._schedule), "due", broken)
        mailbox = waiting(hub, "a")
        await until(lambda: len(failures) == 2)
        server.store("a", publish=False)
        assert await got(mailbox) == "a"
    assert caplog.text.count("failed unexpectedly") == 1


def slow_to_delete(server: RespServer) -> threading.Event:
    """Have a server answer no DEL until the event is set."""
    event = threading.Event()

    def answer(command: list[bytes]) -> bytes | None:
        if command[0] == b"DEL":
            event.wait(10)
        return None

    server.answer = answer
    return event


@pytest.mark.asyncio
async def test_slow_deletions_hold_back_no_result(server: RespServer) -> None:
    """Without push, results are handed over although the server is slow to delete them."""
    slow = slow_to_delete(server)
    try:
        async with hub_of(server, backend_pool_limit=1, io_timeout=5.0) as hub:
            mailbox = waiting(hub, "a", delete=True)
            await until(lambda: hub.statistics().sweeps > 1)
            server.store("a", publish=False)
            began = time.monotonic()
            assert await got(mailbox) == "a"
            assert time.monotonic() - began < 1.5
            assert len(server.seen(b"DEL")) == 1
            slow.set()
            await until(lambda: not server.stored)
    finally:
        slow.set()


@pytest.mark.asyncio
async def test_looking_once_at_a_server_slow_to_delete(server: RespServer) -> None:
    """What was found is returned although the server is slow to delete it."""
    slow = slow_to_delete(server)
    async with AsyncOperatorClient("op", "v1", server.url) as client:
        submissions = []
        for number, task_id in enumerate(["a", "b"]):
            submissions.append(AsyncSubmittedTask(number, await client.attach(task_id)))
            server.store(task_id, publish=False)
        began = time.monotonic()
        try:
            # What these results are matters to nobody here; that they were read does.
            found = await client.batch_collect(submissions, timeout=0)
            took = time.monotonic() - began
        finally:
            slow.set()
        assert [type(result.error) for result in found] == [InvalidTaskStatusError] * 2
        assert took < 2
        await until(lambda: not server.stored)


@pytest.mark.asyncio
async def test_slow_deletions_hold_back_no_later_result(server: RespServer) -> None:
    """Nor are the results that come while a deletion is under way."""
    slow = slow_to_delete(server)
    answer = server.answer
    refusal = b"-NOPERM this user has no permissions to run the 'subscribe' command\r\n"
    server.answer = lambda command: refusal if command[0] == b"SUBSCRIBE" else answer(command)
    try:
        async with hub_of(server, io_timeout=5.0) as hub:
            mailbox = waiting(hub, "a", "b", delete=True)
            await until(lambda: hub.statistics().sweeps > 1)
            for task_id in ("a", "b"):
                server.store(task_id, publish=False)
                began = time.monotonic()
                assert await got(mailbox) == task_id
                assert time.monotonic() - began < 1.5
            slow.set()
            await until(lambda: not server.stored)
    finally:
        slow.set()


# As of every task that was never begun.
@pytest.mark.filterwarnings("ignore:coroutine 'Flusher._flush' was never awaited:RuntimeWarning")
@pytest.mark.asyncio
@pytest.mark.parametrize("told", [True, False])
async def test_a_result_that_comes_with_news_of_the_submission(
    server: RespServer, *, told: bool
) -> None:
    """It was taken for this caller, who gets it whatever is said of the submission."""
    error = OperatorConnectionError("op", "v1", "no answer", "a")

    async def begin(settled: Callable[[Any], object], loop: asyncio.AbstractEventLoop) -> Any:
        document = ResultDocument("a", "SUCCESS", {"status": "SUCCESS", "result": {}})
        [waiter] = client._results.hub._table.settle(document)
        loop.call_later(0.05, waiter.deliver, document)
        if not told:
            raise error
        settled(error)
        return lambda: None

    async with AsyncOperatorClient("op", "v1", server.url, io_timeout=0.5) as client:
        document = await client._results.wait("a", 5, delete=False, submit=begin)
        assert document.task_id == "a"


def test_a_loop_closed_before_a_look_began(server: RespServer) -> None:
    """A look that was asked for in a loop's last turn does not keep the closed loop."""
    loop = asyncio.new_event_loop()
    looks = looks_of(backend_of(server), loop)

    async def main() -> asyncio.Task[object]:
        # It asks in the next turn, which is the last.
        return asyncio.create_task(looks.look(["a"], patience=5.0))

    task = loop.run_until_complete(main())
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # meant to be
    loop.close()
    gone = weakref.ref(loop)
    del task, loop, main
    deadline = time.monotonic() + 3
    while gone() is not None:
        assert time.monotonic() < deadline, "it is held by what it was to do"
        gc.collect()
        time.sleep(0.02)
    looks.close()
