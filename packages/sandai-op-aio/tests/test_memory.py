"""The client for asyncio on ``memory://``: the same calls, errors and statistics as on Redis."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from sandai.op.aio import AsyncOperatorClient, create_async_client
from sandai.op.models import (
    InvalidTaskError,
    OperatorConnectionError,
    OperatorDescription,
    TaskCancelledError,
    TaskExecutionError,
    TaskResult,
    TaskTimeoutError,
)
from sandai.op.transport import statistics
from sandai.op.transport.testing import FakeOperator, Reply, World, world

WAIT = 10.0


@pytest.fixture
def here() -> World:
    """Give a world of the test's own."""
    return world(f"memory://{uuid4()}")


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    """Have Celery load what it loads at a first task: half a second, where much is going on."""
    with FakeOperator("clipper", "v1", url="memory://warm"):

        async def call() -> None:
            async with create_async_client("clipper", "v1", broker_url="memory://warm") as client:
                await client.sync([], {}, timeout=WAIT)

        asyncio.run(call())


@pytest.fixture
def operator(here: World) -> Iterator[FakeOperator]:
    """Run an operator that echoes."""
    with FakeOperator("clipper", "v1", url=here.url) as operator:
        yield operator


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Give an event for handlers to wait for; it is set in the end."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest_asyncio.fixture
async def client(here: World) -> AsyncIterator[AsyncOperatorClient]:
    """Give a client of the operator."""
    async with create_async_client("clipper", "v1", broker_url=here.url, timeout=WAIT) as client:
        yield client


def quick(here: World, **kwargs: Any) -> AsyncOperatorClient:
    """Return a client that gives up on a server after half a second."""
    return create_async_client("clipper", "v1", broker_url=here.url, io_timeout=0.5, **kwargs)


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds; only for what has no event to wait for."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0.001)


@pytest.mark.asyncio
async def test_every_call(client: AsyncOperatorClient, operator: FakeOperator) -> None:
    """Single calls, handles, batches, description, ping and probe."""
    video = {"uri": "file:///a.mp4", "slot": "video"}
    assert await client.sync([video], {"n": 1}) == ([video], {"n": 1})
    handle = await client.async_call([], {"n": 2}, priority="high")
    assert (await handle.get(timeout=WAIT))["results"] == {"n": 2}
    assert await handle.state() == "SUCCESS"
    await handle.forget()
    batch = await client.batch_sync_detailed([([], {"n": 3})] * 2)
    assert [item.results for item in batch] == [{"n": 3}, {"n": 3}]
    assert (await client.desc())["doc"] == "clipper v1, in memory"
    assert await client.ping() is True
    health = await client.probe()
    assert (health.submit_ok, health.retrieval_ok, health.response_ok) == (True, True, True)
    await until(lambda: not operator.world.size())


@pytest.mark.asyncio
async def test_errors(client: AsyncOperatorClient, operator: FakeOperator) -> None:
    """What a handler raises or scripts comes out as it does from a worker."""
    operator.replies(
        ValueError("broken"),
        Reply.revoked(),
        Reply.lost(),
        Reply.unpublished(TaskResult(results={"n": 1})),
        Reply.twice(TaskResult(results={"n": 2})),
    )
    with pytest.raises(TaskExecutionError, match="broken") as caught:
        await client.sync([], {})
    assert caught.value.error_details["exception_type"] == "ValueError"
    with pytest.raises(TaskCancelledError):
        await client.sync([], {})
    with pytest.raises(TaskTimeoutError):
        await client.sync([], {}, timeout=0.1)
    assert await client.sync([], {}) == ([], {"n": 1})
    assert await client.sync([], {}) == ([], {"n": 2})
    assert await client.sync([], {"n": 3}) == ([], {"n": 3})


@pytest.mark.parametrize(
    ("kind", "said", "in_doubt"),
    [
        ("refused", "Connection refused", False),
        ("stalled", "no answer in time", True),
        ("swallowed", "no answer in time", True),
        ("out-of-memory", "refused: OutOfMemoryError", False),
        ("read-only", "refused: ReadOnlyError", False),
        ("no-auth", r"refused: AuthenticationError: .*check the user", False),
        ("loading", "refused: ServerLoading", False),
    ],
)
@pytest.mark.asyncio
async def test_outages(
    here: World, operator: FakeOperator, kind: Any, said: str, in_doubt: bool
) -> None:
    """A submission fails as it does on a Redis in that state; afterwards all is well."""
    async with quick(here, timeout=WAIT) as client:
        assert await client.sync([], {"n": 1}) == ([], {"n": 1})
        with here.outage(kind):
            with pytest.raises(OperatorConnectionError, match=said) as caught:
                await client.async_call([], {"n": 2})
            assert await client.ping(timeout=0.2) is False
        assert here.url in str(caught.value.reason)
        assert (caught.value.task_id is not None) is in_doubt
        assert await client.sync([], {"n": 3}) == ([], {"n": 3})
        assert await client.ping() is True


@pytest.mark.parametrize("kind", ["refused", "stalled", "swallowed", "no-auth", "loading"])
@pytest.mark.asyncio
async def test_a_wait_survives_an_outage(
    here: World, gate: threading.Event, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    """A wait goes on through an outage of the backend and has its result afterwards."""
    caplog.set_level(logging.CRITICAL, "sandai.op")
    with FakeOperator("clipper", "v1", lambda _: gate.wait(WAIT) and None, url=here.url) as op:
        async with quick(here, timeout=WAIT) as client:
            waiting = asyncio.create_task(client.sync([], {}))
            await until(lambda: op.received)
            with here.outage(kind, "backend"):
                gate.set()
                await until(here.results)
            assert await waiting == ([], {})


@pytest.mark.asyncio
async def test_a_cancelled_call_leaves_nothing(
    client: AsyncOperatorClient, here: World, gate: threading.Event
) -> None:
    """Who is cancelled leaves no channel subscribed to; the operator's answer stays stored."""
    with FakeOperator("clipper", "v1", lambda _: gate.wait(WAIT) and None, url=here.url) as op:
        waiting = asyncio.create_task(client.sync([], {}))
        await until(lambda: here.awaited() and op.received)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: not here.awaited())
        gate.set()
        await until(here.results)


@pytest.mark.asyncio
async def test_revoke_reaches_the_operator(
    client: AsyncOperatorClient, here: World, gate: threading.Event
) -> None:
    """``celery_app.control.revoke()`` cancels what is queued; workers answer ping."""
    with FakeOperator(
        "clipper", "v1", lambda _: gate.wait(WAIT) and None, url=here.url, concurrency=1
    ) as op:
        await client.async_call([], {})
        await until(lambda: op.received)
        queued = await client.async_call([], {})
        control = client.celery_app.control
        assert control.ping() == [{op.hostname: {"ok": "pong"}}]
        control.revoke([queued.task_id])
        with pytest.raises(TaskCancelledError):
            await queued.get(timeout=WAIT)
        gate.set()


def test_loops_come_and_go(here: World, operator: FakeOperator) -> None:
    """One client, one asyncio.run() after another, on one budget."""
    client = create_async_client(
        "clipper", "v1", broker_url=here.url, timeout=WAIT, broker_pool_limit=1
    )

    async def call() -> None:
        assert await client.sync([], {"n": 1}) == ([], {"n": 1})

    for _ in range(3):
        asyncio.run(call())
    asyncio.run(client.aclose())
    assert not statistics().brokers


@pytest.mark.asyncio
async def test_ten_thousand_at_once(here: World, operator: FakeOperator) -> None:
    """Many coroutines wait at once on a few connections; nothing of them is left."""
    async with create_async_client("clipper", "v1", broker_url=here.url, timeout=50) as client:
        answers = await asyncio.gather(*(client.sync([], {"n": n}) for n in range(10_000)))
        assert [results["n"] for _, results in answers] == list(range(10_000))
        with here.lock:
            sides = [peer.session.side for peer in here.peers]
        assert sides.count("broker") <= 8
        assert sides.count("backend") <= 8
        await until(lambda: not here.size() and not here.awaited())


@pytest.mark.asyncio
@pytest.mark.parametrize("call", ["map", "as_completed"])
async def test_a_late_task_says_what_is_known(call: str, here: World) -> None:
    """A stream's timeouts are explained as any call's: the task is in a queue, among others."""
    async with create_async_client("nobody", "v1", broker_url=here.url) as client:
        if call == "map":
            stream = client.map([([], {}), ([], {})], timeout=0.1, priority="low")
            expected: tuple[str | None, int] = ("low.nobody.v1", 2)
        else:
            submitted = await client.batch_submit([([], {}), ([], {})])
            stream, expected = client.as_completed(submitted, timeout=0.1), (None, 2)
        errors = [result.error async for result in stream]
        assert len(errors) == 2
        for error in errors:
            assert isinstance(error, TaskTimeoutError)
            assert (error.state, error.queue, error.queue_depth) == ("queued", *expected)


@pytest.mark.asyncio
async def test_whoever_leaves_a_stream_during_the_last_look(here: World) -> None:
    """A consumer that is cancelled while its late tasks are looked at ends the stream."""
    async with create_async_client("nobody", "v1", broker_url=here.url, io_timeout=1) as client:
        stream = client.map([([], {})], timeout=0.2)
        waiting = asyncio.create_task(anext(stream))
        await until(here.awaited)
        with here.outage("stalled"):
            await asyncio.sleep(0.3)  # the look is under way, and takes a quarter of a second
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    await until(lambda: not here.awaited())


@pytest.mark.asyncio
async def test_a_stream_checks_options(here: World) -> None:
    """What the operator's schema does not take is that task's error; the others go."""
    said = OperatorDescription("counts", {"properties": {"n": {"type": "integer"}}}, {})
    with FakeOperator("counter", "v1", url=here.url, description=said) as operator:
        async with create_async_client(
            "counter", "v1", broker_url=here.url, validate_options=True
        ) as client:
            tasks: list[Any] = [([], {"n": 1}), ([], {"n": "one"})]
            good, bad = [r async for r in client.map(tasks, ordered=True, timeout=WAIT)]
            assert good.results == {"n": 1}
            assert isinstance(bad.error, InvalidTaskError)
            assert [task.request.options for task in operator.tasks[1:]] == [{"n": 1}]
    async with create_async_client(
        "nobody", "v1", broker_url=here.url, validate_options=True
    ) as client:
        with pytest.raises(TaskTimeoutError):
            await anext(client.map([([], {})], timeout=0.1))


@pytest.mark.asyncio
async def test_one_alone_is_no_list(client: AsyncOperatorClient, operator: FakeOperator) -> None:
    """A task's id is no list of the ids that its letters are; nor is a handle a list."""
    handle = await client.async_call([], {})
    await handle.get(timeout=WAIT)
    alone: Any
    for alone in (handle.task_id, handle, None):
        for call in (client.revoke, client.forget, client.batch_collect):
            with pytest.raises(InvalidTaskError, match=r"a list of .* was expected"):
                await call(alone)
        with pytest.raises(InvalidTaskError, match=r"a list of .* was expected"):
            client.as_completed(alone)
    assert operator.world.results() == [handle.task_id]
    await client.forget([handle.task_id])
    await until(lambda: not operator.world.size())
