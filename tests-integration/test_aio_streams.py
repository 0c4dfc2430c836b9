"""Streams on event loops: async inputs, consumers that stop in every way, and loops that end."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import gc
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import msgpack
import pytest

from light_operator import LightOperator
from loops import LOOPS, LagMeter, eventually, nothing_blocks, run
from sandai.op.aio import AsyncOperatorClient, ResultStream, create_async_client
from sandai.op.models import ClientClosedError, TaskTimeoutError
from watching import open_redis

MakeLoop = Callable[[], asyncio.AbstractEventLoop]
AsyncTasks = AsyncIterator[tuple[list[Any], dict[str, Any]]]


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def make_loop(request: pytest.FixtureRequest) -> MakeLoop:
    """Give each kind of loop."""
    made: MakeLoop = request.param
    return made


@pytest.fixture
def operated(database: str) -> Iterator[str]:
    """Run an operator; give its URL."""
    with LightOperator(database, concurrency=256):
        yield database


@pytest.fixture(autouse=True)
def _nobody_complains(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test in which asyncio or we log an error."""
    yield
    gc.collect()
    said = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in said] == []


def client_of(url: str, **settings: Any) -> AsyncOperatorClient:
    """Make a client."""
    return create_async_client("bench", "v1", broker_url=url, timeout=20, **settings)


def numbered() -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Yield tasks without end."""
    return (([], {"n": n}) for n in itertools.count())


def pending(client: AsyncOperatorClient) -> int:
    """Count the tasks that are waited for."""
    return sum(reader.pending for reader in client.statistics()[1].readers)


def ours() -> list[str]:
    """Return the tasks of streams on this loop."""
    names = (task.get_name() for task in asyncio.all_tasks())
    return [name for name in names if name.startswith("sandai-op-map")]


class Source:
    """An async input without end; *pause* seconds lie before each task but the first."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.read = 0
        self.closed = 0

    async def tasks(self) -> AsyncTasks:
        """Yield tasks."""
        try:
            for n in itertools.count():
                if n and self.pause:
                    await asyncio.sleep(self.pause)
                self.read += 1
                yield [], {"n": n}
        finally:
            await asyncio.sleep(0)
            self.closed += 1


def test_a_slow_input_holds_nothing_back(operated: str, make_loop: MakeLoop) -> None:
    """A result is given as soon as it is there, whenever the next task will be."""

    async def main() -> None:
        source = Source(pause=30)
        async with client_of(operated) as client, aclosing(client.map(source.tasks())) as results:
            async with asyncio.timeout(5):
                assert (await anext(results)).results == {"n": 0}
            assert source.read == 1
        assert source.closed == 1

    run(main(), make_loop)


@pytest.mark.parametrize("ordered", [False, True])
def test_an_async_input(operated: str, make_loop: MakeLoop, ordered: bool) -> None:
    """It is read as far as there is room, and submitted many at a time all the same."""

    async def main() -> None:
        source = Source()
        async with client_of(operated) as client:
            taken = []
            async with aclosing(
                client.map(source.tasks(), max_in_flight=100, ordered=ordered)
            ) as results:
                async for result in results:
                    taken.append(result.results["n"])
                    assert source.read <= len(taken) + 100
                    if len(taken) == 1000:
                        break
            assert source.closed == 1
            assert len(set(taken)) == 1000
            if ordered:
                assert taken == list(range(1000))
            await eventually(lambda: not pending(client), within=3)
            assert not ours()

    with open_redis(operated) as looking:

        def pushes() -> int:
            # Of the whole server, which other tests have used.
            stats = looking.info("commandstats")
            return int(stats.get("cmdstat_lpush", {"calls": 0})["calls"])

        before = pushes()
        run(main(), make_loop)
        assert pushes() - before < 500


@pytest.mark.parametrize("how", ["break", "cancel", "timeout", "raise", "aclose", "drop"])
def test_a_consumer_that_stops(operated: str, make_loop: MakeLoop, how: str) -> None:
    """Nothing more is read, nothing stays watched, no task is left, the input is closed."""

    async def consume(client: AsyncOperatorClient, source: Source) -> None:
        results = client.map(source.tasks(), max_in_flight=5)
        async for result in results:
            if result.index >= 20:
                match how:
                    case "break":
                        break
                    case "aclose":
                        await results.aclose()
                        await results.aclose()
                        assert not ours()
                    case "raise":
                        raise LookupError
                    case "drop":
                        del results
                        gc.collect()
                        return
                    case _:
                        await asyncio.sleep(60)

    async def main() -> None:
        async with client_of(operated) as client:
            source = Source()
            consumer = asyncio.create_task(consume(client, source))
            match how:
                case "cancel":
                    await eventually(lambda: source.read > 20, within=5)
                    consumer.cancel()
                    await asyncio.wait([consumer])
                case "timeout":
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await consumer
                case "raise":
                    with pytest.raises(LookupError):
                        await consumer
                case _:
                    await consumer
            del consumer
            await eventually(lambda: source.closed, within=3)
            read = source.read
            await eventually(lambda: not pending(client) and not ours(), within=3)
            assert source.read == read
            assert source.closed == 1

    run(main(), make_loop)


def test_a_loop_that_ends_in_the_middle(operated: str, make_loop: MakeLoop) -> None:
    """asyncio.run() ends while a stream is under way: in silence, and the input is closed."""
    source = Source()
    kept: list[ResultStream] = []

    async def main() -> None:
        client = client_of(operated)
        kept.append(client.map(source.tasks(), max_in_flight=5))
        await anext(kept[0])
        await client.aclose()

    run(main(), make_loop)
    assert source.closed == 1
    kept.clear()
    gc.collect()


def test_a_loop_that_is_closed_under_a_stream(operated: str) -> None:
    """Nobody ends it, nobody waits for it: it says nothing, and the client can be closed."""
    client = client_of(operated)
    loop = asyncio.new_event_loop()

    async def begin() -> ResultStream:
        results = client.map(numbered(), max_in_flight=5)
        await anext(results)
        return results

    results = loop.run_until_complete(begin())
    loop.close()
    del results
    gc.collect()
    asyncio.run(client.aclose())


def test_an_input_that_is_cancelled(operated: str, make_loop: MakeLoop) -> None:
    """It ends the stream as an exception does: no stream is shorter than its input unsaid."""

    async def source() -> AsyncTasks:
        yield [], {"n": 0}
        raise asyncio.CancelledError

    async def main() -> None:
        async with client_of(operated) as client:
            results = client.map(source())
            assert (await anext(results)).success
            with pytest.raises(asyncio.CancelledError):
                await anext(results)
            assert await anext(results, None) is None
            # By somebody who cancels whatever tasks there are.
            results = client.map(Source(pause=60).tasks())
            assert (await anext(results)).success
            for task in asyncio.all_tasks():
                if task.get_name() == "sandai-op-map-input":
                    task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await anext(results)
            assert not ours()

    run(main(), make_loop)


def test_an_input_that_fails_to_close(operated: str, make_loop: MakeLoop) -> None:
    """Who stops the stream is told."""

    async def source() -> AsyncTasks:
        try:
            while True:
                yield [], {}
        finally:
            raise LookupError("no way")

    async def main() -> None:
        async with client_of(operated) as client:
            results = client.map(source(), max_in_flight=2)
            await anext(results)
            with pytest.raises(LookupError, match="no way"):
                await results.aclose()
            assert await anext(results, None) is None

    run(main(), make_loop)


def test_the_input_runs_in_the_consumers_context(operated: str, make_loop: MakeLoop) -> None:
    """What it looks up there is the consumer's."""
    who = contextvars.ContextVar("who", default="nobody")
    seen: list[str] = []

    async def source() -> AsyncTasks:
        for n in range(3):
            seen.append(who.get())
            yield [], {"n": n}

    async def main() -> None:
        who.set("me")
        async with client_of(operated) as client:
            assert len([result async for result in client.map(source(), max_in_flight=1)]) == 3

    run(main(), make_loop)
    assert seen == ["me"] * 3


def test_a_stream_keeps_its_client(operated: str, make_loop: MakeLoop) -> None:
    """Who has nothing but the stream has its client, too; dropped together, that is told."""

    async def main() -> None:
        stream = client_of(operated).map([([], {"n": n}) for n in range(3)])
        gc.collect()
        assert len([result async for result in stream]) == 3
        kept = [stream]
        del stream
        with pytest.warns(ResourceWarning, match="never closed"):
            kept.clear()

    run(main(), make_loop)


def test_one_consumer_at_a_time(operated: str, make_loop: MakeLoop) -> None:
    """The second is refused, and the first not disturbed."""

    async def main() -> None:
        async with client_of(operated) as client:
            results = client.map([([], {"delay": 0.2})])
            first = asyncio.create_task(anext(results))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already"):
                await anext(results)
            assert (await first).success

    run(main(), make_loop)


def test_closing_in_another_task(operated: str, make_loop: MakeLoop) -> None:
    """aclose() ends a stream whose next result somebody waits for."""

    async def main() -> None:
        async with client_of(operated) as client:
            for results in (
                client.map([([], {"delay": 60})]),
                client.as_completed([await client.attach("nothing")]),
            ):
                waiting = asyncio.create_task(anext(results, None))
                await eventually(lambda: pending(client), within=3)
                await results.aclose()
                async with asyncio.timeout(3):
                    assert await waiting is None
                await eventually(lambda: not pending(client), within=3)

    run(main(), make_loop)


def test_others_get_their_turn(operated: str) -> None:
    """A large window and a fast input do not keep the loop to themselves."""

    async def main() -> float:
        async with client_of(operated) as client:
            tasks: Iterator[Any] = (([], {"n": n}) for n in range(20_000))
            meter = LagMeter()
            async with meter:
                count = 0
                async for result in client.map(tasks, max_in_flight=10_000):
                    count += result.success
            assert count == 20_000
            return meter.worst

    assert min(run(main()) for _ in range(2)) < 0.25


def test_nothing_blocks_the_loop(
    operated: str, make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a stream nor revoking, nor giving up."""

    async def main() -> None:
        async with client_of(operated, cancel_on_timeout=True) as client:
            with nothing_blocks(monkeypatch):
                async for result in client.map([([], {"n": n}) for n in range(20)]):
                    assert result.success
                handle = await client.async_call([], {"delay": 60})
                await handle.revoke()
                await asyncio.gather(*(client.revoke([handle]) for _ in range(20)))
                with pytest.raises(TaskTimeoutError):
                    await client.sync([], {"delay": 60}, timeout=0.05)

    run(main(), make_loop)


@pytest.mark.parametrize(
    "call", ["sync", "batch", "map", "as_completed", "desc", "submit", "handle"]
)
def test_a_cancelled_call_has_given_up(database: str, make_loop: MakeLoop, call: str) -> None:
    """With cancel_on_timeout its tasks are revoked, but not what a handle waits for."""

    async def main() -> None:
        async with client_of(database, cancel_on_timeout=True) as client:
            handle = await client.async_call([], {})
            submitted = await client.batch_submit([([], {})] * 2)

            async def consume(results: ResultStream) -> None:
                async for _ in results:
                    pass

            calls: dict[str, Callable[[], Any]] = {
                "sync": lambda: client.sync([], {}),
                "batch": lambda: client.batch_sync_detailed([([], {})] * 3),
                "map": lambda: consume(client.map([([], {})] * 9, max_in_flight=4)),
                "as_completed": lambda: consume(client.as_completed(submitted)),
                "desc": client.desc,
                "submit": lambda: client.batch_collect(submitted),
                "handle": handle.get,
            }
            counts = {"batch": 3, "map": 4, "as_completed": 2, "submit": 2, "handle": 0}
            with open_redis(database) as looking, looking.pubsub() as listening:
                listening.psubscribe("*celery.pidbox*")
                assert listening.get_message(timeout=5)["type"] == "psubscribe"
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.4):
                        await calls[call]()
                revoked: list[str] = []
                while (message := listening.get_message(timeout=0.5)) is not None:
                    body = msgpack.unpackb(base64.b64decode(json.loads(message["data"])["body"]))
                    assert body["method"] == "revoke"
                    revoked += body["arguments"]["task_id"]
                assert len(set(revoked)) == len(revoked) == counts.get(call, 1)

    run(main(), make_loop)


def test_closing_the_client_in_the_middle(operated: str, make_loop: MakeLoop) -> None:
    """Whoever asks for the next result is told, and nothing is left."""

    async def main() -> None:
        source = Source()
        client = client_of(operated)
        results = client.map(source.tasks(), max_in_flight=5)
        await anext(results)
        await client.aclose()
        with pytest.raises(ClientClosedError):
            await anext(results)
        assert source.closed == 1
        assert not ours()

    run(main(), make_loop)
