"""The asyncio client, cancelled at every point at which a call of it, or a task of ours, waits."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import pytest

from light_operator import LightOperator
from loops import LOOPS, eventually, run
from sandai.op.aio import AsyncOperatorClient, AsyncSubmittedTask, AsyncTaskHandle
from sandai.op.models import ClientClosedError, OperatorConnectionError, TaskTimeoutError
from sandai.op.transport import statistics
from stepping import Cut, every_cut
from watching import connections, open_redis
from watching import eventually as in_time

MakeLoop = Callable[[], asyncio.AbstractEventLoop]
Call = Callable[[], Coroutine[Any, Any, None]]
Tasks = list[tuple[list[Any], dict[str, int]]]

PROMPT = 3.0
"""Seconds in which a call is answered when nothing is wrong, on a busy machine too."""
TASKS = 5
"""Tasks of a batch; see `_small_pieces`."""

_numbers = itertools.count()


@pytest.fixture(scope="module")
def operated(redis_server: Any, _database_numbers: Iterator[int]) -> Iterator[str]:
    """Run an operator; give its database's URL."""
    url = f"{redis_server.url.removesuffix('/0')}/{next(_database_numbers)}"
    with LightOperator(url, delay=0.002, concurrency=64):
        yield url


class _EveryTime:
    """A breath that is always due."""

    due = True

    async def __call__(self) -> None:
        await asyncio.sleep(0)


class _WhenAsked(_EveryTime):
    """A breath that is taken, but is no reason to stop writing."""

    due = False


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a handful of tasks go in several pieces, and others get their turn after each."""
    for module in (
        "_batches",
        "_submitter",
        "_results",
        "_sender",
        "_looks",
        "_arrivals",
        "_streaming",
    ):
        monkeypatch.setattr(f"sandai.op.aio.{module}.Breath", _EveryTime)
    monkeypatch.setattr("sandai.op.aio._push_line.Breath", _WhenAsked)
    # Where there is no push: the tests look at thousands of waits.
    monkeypatch.setattr("sandai.op.transport._sweeping.SHORTEST", 0.01)
    monkeypatch.setattr("sandai.op.transport._push_policy.SHORTEST", 0.01)
    for name in (
        "aio._results._LOOK_KEYS",
        "aio._push_line._MOST_IDS",
        "aio._hub._TOLD",
        "aio._looks._DECODED",
        "aio._batches._EXPIRED",
        "transport._redis_push.MESSAGES_PER_WRITE",
        "transport._batch_submission.CHUNK",
        "models.stream.MOST",
    ):
        monkeypatch.setattr(f"sandai.op.{name}", 2)


def client_of(url: str, limit: int) -> AsyncOperatorClient:
    """Make a client with a budget of so many connections to broker and backend each."""
    return AsyncOperatorClient(
        "bench", "v1", url, timeout=20, broker_pool_limit=limit, backend_pool_limit=limit
    )


def fresh() -> dict[str, int]:
    """Return options that no other task has; the operator's results are its options."""
    return {"number": next(_numbers)}


async def one_sync(client: AsyncOperatorClient) -> None:
    """Submit, wait, and get one's own reply."""
    options = fresh()
    assert (await client.sync([], options))[1] == options


async def warm(client: AsyncOperatorClient) -> None:
    """Have connections open, and push up where it can be had."""
    # Two at once: a budget of one keeps one open, not two.
    await asyncio.gather(one_sync(client), one_sync(client))
    budget = client.statistics()[1].push
    assert budget is not None
    if budget.limit:
        await eventually(
            lambda: any(hub.pushing for hub in client.statistics()[1].readers), within=5
        )


async def submitted(client: AsyncOperatorClient) -> tuple[AsyncTaskHandle, dict[str, int]]:
    """Return a handle, and what its results will be."""
    options = fresh()
    return await client.async_call([], options), options


# What is cancelled: each prepares, and returns the call.


async def async_call(client: AsyncOperatorClient) -> Call:
    """Submit a task, connecting for that."""

    async def call() -> None:
        handle = await client.async_call([], fresh())
        assert handle.task_id

    return call


async def sync(client: AsyncOperatorClient) -> Call:
    """Submit and wait."""
    await warm(client)
    return lambda: one_sync(client)


async def sync_before_push(client: AsyncOperatorClient) -> Call:
    """Submit and wait, the very first."""
    return lambda: one_sync(client)


async def batch_submit(client: AsyncOperatorClient) -> Call:
    """Submit many."""

    async def call() -> None:
        submissions = await client.batch_submit([([], fresh()) for _ in range(TASKS)])
        assert all(submission.submitted for submission in submissions)

    return call


async def batch_collect(client: AsyncOperatorClient) -> Call:
    """Wait for many."""
    tasks: Tasks = [([], fresh()) for _ in range(TASKS)]
    submissions = await client.batch_submit(tasks)

    async def call() -> None:
        found = await client.batch_collect(submissions)
        assert [result.results for result in found] == [options for _, options in tasks]

    return call


async def batch_collect_once(client: AsyncOperatorClient) -> Call:
    """Look at many, once."""
    tasks: Tasks = [([], fresh()) for _ in range(TASKS)]
    submissions = await client.batch_submit(tasks)
    for submission in submissions:
        assert submission.handle is not None
        await submission.handle.get()

    async def call() -> None:
        found = await client.batch_collect(submissions, timeout=0)
        assert [result.results for result in found] == [options for _, options in tasks]

    return call


async def batch_sync_detailed(client: AsyncOperatorClient) -> Call:
    """Submit many and wait."""
    await warm(client)

    async def call() -> None:
        tasks: Tasks = [([], fresh()) for _ in range(TASKS)]
        found = await client.batch_sync_detailed(tasks)
        assert [result.results for result in found] == [options for _, options in tasks]

    return call


async def batch_in_vain(client: AsyncOperatorClient) -> Call:
    """Wait for many that nobody answers, and give up."""
    handles = [await client.attach(str(uuid4())) for _ in range(TASKS)]

    async def call() -> None:
        submissions = [AsyncSubmittedTask(*pair) for pair in enumerate(handles)]
        found = await client.batch_collect(submissions, timeout=0.02)
        assert [type(result.error) for result in found] == [TaskTimeoutError] * TASKS

    return call


async def get_in_vain(client: AsyncOperatorClient) -> Call:
    """Wait for a reply that does not come, and give up."""
    handle = await client.attach(str(uuid4()))

    async def call() -> None:
        with pytest.raises(TaskTimeoutError):
            await handle.get(timeout=0.02)

    return call


async def get(client: AsyncOperatorClient) -> Call:
    """Wait for a reply."""
    handle, options = await submitted(client)

    async def call() -> None:
        assert (await handle.get())["results"] == options

    return call


async def map_(client: AsyncOperatorClient) -> Call:
    """Stream."""
    await warm(client)

    async def call() -> None:
        tasks: Tasks = [([], fresh()) for _ in range(TASKS)]
        found = [result async for result in client.map(iter(tasks), max_in_flight=3, ordered=True)]
        assert [result.results for result in found] == [options for _, options in tasks]

    return call


async def map_of_an_async_input(client: AsyncOperatorClient) -> Call:
    """Stream what comes by and by, the very first; the input is closed however it ends."""

    async def call() -> None:
        closed: list[bool] = []
        tasks: Tasks = [([], fresh()) for _ in range(TASKS)]

        async def source() -> AsyncIterator[tuple[list[Any], dict[str, int]]]:
            try:
                for task in tasks:
                    await asyncio.sleep(0)
                    yield task
            finally:
                await asyncio.sleep(0)
                closed.append(True)

        try:
            found = [result async for result in client.map(source(), max_in_flight=2)]
        finally:
            # Cancelled before it began, or in the middle of closing: soon.
            given_up = asyncio.current_task().cancelling()  # type: ignore[union-attr]
        assert given_up or closed
        assert sorted(result.index for result in found) == list(range(TASKS))

    return call


async def map_in_vain(client: AsyncOperatorClient) -> Call:
    """Stream what nobody answers, and give up on each."""

    async def call() -> None:
        tasks: list[Any] = [([], {"delay": 0.1}) for _ in range(TASKS)]
        found = [result async for result in client.map(tasks, max_in_flight=3, timeout=0.02)]
        assert [type(result.error) for result in found] == [TaskTimeoutError] * TASKS

    return call


async def map_that_is_closed(client: AsyncOperatorClient) -> Call:
    """Stop a stream in the middle."""
    await warm(client)

    async def call() -> None:
        tasks: Iterator[tuple[list[Any], dict[str, int]]]
        tasks = (([], fresh()) for _ in itertools.count())
        async with aclosing(client.map(tasks, max_in_flight=3)) as results:
            async for result in results:
                assert result.success
                if result.index >= 3:
                    break

    return call


async def as_completed(client: AsyncOperatorClient) -> Call:
    """Take many as they come."""
    tasks: Tasks = [([], fresh()) for _ in range(TASKS)]
    submissions = await client.batch_submit(tasks)

    async def call() -> None:
        found = [result async for result in client.as_completed(submissions)]
        assert sorted(result.index for result in found) == list(range(TASKS))
        assert all(result.success for result in found)

    return call


async def as_completed_in_vain(client: AsyncOperatorClient) -> Call:
    """Wait for many that nobody answers, and give up."""
    handles = [await client.attach(str(uuid4())) for _ in range(TASKS)]

    async def call() -> None:
        found = [result async for result in client.as_completed(handles, timeout=0.02)]
        assert [type(result.error) for result in found] == [TaskTimeoutError] * TASKS

    return call


async def revoke(client: AsyncOperatorClient) -> Call:
    """Revoke a task."""
    handle = await client.attach(str(uuid4()))
    return handle.revoke


async def ready(client: AsyncOperatorClient) -> Call:
    """Look once."""
    handle, _ = await submitted(client)

    async def call() -> None:
        assert await handle.ready() in (True, False)

    return call


async def state(client: AsyncOperatorClient) -> Call:
    """Look once, with a connection open."""
    handle, _ = await submitted(client)
    await handle.get()
    await handle.ready()

    async def call() -> None:
        assert await handle.state() == "SUCCESS"

    return call


async def forget(client: AsyncOperatorClient) -> Call:
    """Delete a result."""
    handle, _ = await submitted(client)
    return handle.forget


async def ping(client: AsyncOperatorClient) -> Call:
    """Ping."""

    async def call() -> None:
        assert await client.ping()

    return call


async def quick_ping(client: AsyncOperatorClient) -> Call:
    """Ping on a connection of its own, beside an open one."""
    await warm(client)

    async def call() -> None:
        assert await client.ping(timeout=PROMPT)

    return call


async def probe(client: AsyncOperatorClient) -> Call:
    """Probe."""

    async def call() -> None:
        assert (await client.probe()).response_ok

    return call


async def desc(client: AsyncOperatorClient) -> Call:
    """Ask for the description, alone."""

    async def call() -> None:
        assert (await client.desc())["doc"] == "light"

    return call


SCENARIOS: list[Callable[[AsyncOperatorClient], Awaitable[Call]]] = [
    async_call,
    sync,
    sync_before_push,
    batch_submit,
    batch_collect,
    batch_collect_once,
    batch_sync_detailed,
    batch_in_vain,
    map_,
    map_of_an_async_input,
    map_in_vain,
    map_that_is_closed,
    as_completed,
    as_completed_in_vain,
    revoke,
    get,
    get_in_vain,
    ready,
    state,
    forget,
    ping,
    quick_ping,
    probe,
    desc,
]


# What holds after each


async def neighbour(client: AsyncOperatorClient) -> None:
    """Call on the same loop all the while, and get one's own replies."""
    for _ in range(3):
        await one_sync(client)


def in_order(client: AsyncOperatorClient) -> bool:
    """Return whether nobody holds or awaits a permit, nor waits for a result."""
    broker, backend = client.statistics()
    assert backend.push is not None
    assert backend.push.in_use <= 1
    budgets = (broker.connections, backend.commands)
    return not (
        any(budget.in_use or budget.waiting for budget in budgets)
        or any(hub.pending for hub in backend.readers)
    )


async def nothing_held(client: AsyncOperatorClient) -> None:
    """Fail when a permit or a wait is left, or the next call is not answered promptly."""
    await eventually(lambda: in_order(client), within=PROMPT)
    async with asyncio.timeout(PROMPT):
        await one_sync(client)


def nothing_open(url: str) -> None:
    """Fail when a subscription or a connection is left."""
    with open_redis(url) as server:
        in_time(lambda: not server.pubsub_channels(), within=PROMPT)
        in_time(lambda: not any(connections(server).values()), within=PROMPT)


@pytest.fixture(autouse=True)
def _nobody_complains(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test in which asyncio or we log an error."""
    yield
    said = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in said] == []


async def outcome_of(cut: Cut, coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a call that is to be cut; it ends cancelled where it was, else as it should."""
    task = asyncio.create_task(cut.call(coroutine))
    async with asyncio.timeout(PROMPT):
        await asyncio.wait([task])
    assert task.cancelled() == cut.reached
    if not cut.reached:
        task.result()


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("limit", [8, 1])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_call(
    operated: str,
    make_loop: MakeLoop,
    limit: int,
    scenario: Callable[[AsyncOperatorClient], Awaitable[Call]],
) -> None:
    """Wherever a call is cancelled, it ends so, holds nothing, and disturbs nobody."""

    async def main() -> None:
        async for cut in every_cut():
            async with client_of(operated, limit) as client:
                call = await scenario(client)
                beside = asyncio.create_task(neighbour(client))
                await outcome_of(cut, call())
                async with asyncio.timeout(PROMPT):
                    await beside
                await nothing_held(client)

    run(main(), make_loop)
    nothing_open(operated)


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("limit", [8, 1])
@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
def test_desc_for_two(operated: str, make_loop: MakeLoop, limit: int, leads: bool) -> None:
    """Wherever one of two who ask for the description is cancelled, the other gets it."""

    async def main() -> None:
        async def ask() -> None:
            assert (await client.desc())["doc"] == "light"

        async for cut in every_cut():
            async with client_of(operated, limit) as client:
                other = None if leads else asyncio.create_task(ask())
                cancelled = asyncio.create_task(outcome_of(cut, ask()))
                await asyncio.sleep(0)
                other = other or asyncio.create_task(ask())
                async with asyncio.timeout(PROMPT):
                    await asyncio.gather(cancelled, other)
                await nothing_held(client)

    run(main(), make_loop)
    nothing_open(operated)


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("limit", [8, 1])
def test_aclose(operated: str, make_loop: MakeLoop, limit: int) -> None:
    """Wherever closing is cancelled, waits end, and the leases are released all the same."""

    async def main() -> None:
        async for cut in every_cut():
            client = client_of(operated, limit)
            await warm(client)
            nothing = await client.attach("nothing")
            waits = [asyncio.create_task(nothing.get()) for _ in range(3)]
            look = asyncio.create_task(nothing.ready())
            await asyncio.sleep(0)
            await outcome_of(cut, client.aclose())
            async with asyncio.timeout(PROMPT):
                *ends, _ = await asyncio.gather(*waits, look, return_exceptions=True)
            assert [type(end) for end in ends] == [ClientClosedError] * 3
            await eventually(lambda: not statistics().brokers, within=PROMPT)
            assert not statistics().backends
            await client.aclose()
            await asyncio.to_thread(nothing_open, operated)

    run(main(), make_loop)


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        *itertools.product(["submit", "look", "results", "idle"], [8, 1]),
        ("push", 8),  # there is none with a budget of one
    ],
)
def test_a_task_of_ours(
    operated: str, make_loop: MakeLoop, name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a task of ours is cancelled, waits go on, and what it was sending is in doubt."""
    if name == "idle":
        monkeypatch.setattr("sandai.op.aio._pool._TIDY_INTERVAL", 0.01)
        monkeypatch.setattr("sandai.op.aio._pool.IDLE_SECONDS", 0.03)
    may_fail = {"submit": ("sync", "batch", "desc"), "look": ("look",)}.get(name, ())

    async def look(client: AsyncOperatorClient, task_id: str) -> None:
        handle = await client.attach(task_id)
        assert not await handle.ready()
        assert await handle.state() == "PENDING"
        await handle.forget()

    async def batch(client: AsyncOperatorClient) -> None:
        tasks: Tasks = [([], fresh()) for _ in range(TASKS)]
        for task, result in zip(tasks, await client.batch_sync_detailed(tasks), strict=True):
            if result.error is not None:
                raise result.error
            assert result.results == task[1]

    async def describe(client: AsyncOperatorClient) -> None:
        assert (await client.desc())["doc"] == "light"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async for cut in every_cut():
            async with client_of(operated, limit) as client:
                loop.set_task_factory(cut.task_factory(f"sandai-op-{name}"))
                calls: list[tuple[str, Coroutine[Any, Any, None]]] = [
                    ("sync", one_sync(client)),
                    ("sync", one_sync(client)),
                    ("batch", batch(client)),
                    ("desc", describe(client)),
                    ("look", look(client, "nothing")),
                ]
                async with asyncio.timeout(PROMPT):
                    outcomes = await asyncio.gather(
                        *(coroutine for _, coroutine in calls), return_exceptions=True
                    )
                for (kind, _), outcome in zip(calls, outcomes, strict=True):
                    if outcome is not None:
                        assert kind in may_fail, f"{kind}: {outcome!r}"
                        assert isinstance(outcome, OperatorConnectionError)
                        assert "interrupted (CancelledError)" in str(outcome.reason)
                        assert cut.reached
                loop.set_task_factory(None)
                await nothing_held(client)

    run(main(), make_loop)
    nothing_open(operated)
