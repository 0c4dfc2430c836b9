"""Whose context what runs in: the submitter's for Celery's signals, nobody's for our tasks."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest
from celery import signals

from sandai.op.aio import AsyncOperatorClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RespServer

_request: ContextVar[str] = ContextVar("request")

Told = dict[tuple[str, str], tuple[str, int]]


@contextmanager
def told() -> Iterator[Told]:
    """Listen; give (signal, task id) -> (the context's request, the thread)."""
    heard: Told = {}

    def note(signal: str, task_id: str) -> None:
        assert (signal, task_id) not in heard
        heard[signal, task_id] = (_request.get("nobody's"), threading.get_ident())

    def before(headers: Any, **_: Any) -> None:
        note("before", headers["id"])

    def after(headers: Any, **_: Any) -> None:
        note("after", headers["id"])

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        yield heard
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)


async def submit_for(client: AsyncOperatorClient, request: str) -> dict[str, str]:
    """Submit on behalf of a request; return task id -> request."""
    _request.set(request)
    handle = await client.async_call([], {})
    submissions = await client.batch_submit([([], {}), ([], {})])
    assert _request.get() == request
    return dict.fromkeys([handle.task_id, *(str(s.task_id) for s in submissions)], request)


async def submit_for_many(client: AsyncOperatorClient) -> dict[str, str]:
    """Submit on behalf of five requests at once; return task id -> request."""
    requests = (submit_for(client, f"request {number}") for number in range(5))
    return {
        task_id: request
        for found in await asyncio.gather(*requests)
        for task_id, request in found.items()
    }


def test_signals_of_a_shared_write(server: RespServer) -> None:
    """What goes out in one write is told of in the context of whoever submitted each task."""

    async def main() -> dict[str, str]:
        async with AsyncOperatorClient("op", "v1", server.url) as client:
            return await submit_for_many(client)

    with told() as heard:
        expected = asyncio.run(main())
    assert len(server.seen(b"LPUSH")) < 5
    for signal in ("before", "after"):
        found = {task_id: told[0] for (kind, task_id), told in heard.items() if kind == signal}
        assert found == expected


def test_signals_in_a_worker_thread() -> None:
    """A broker that blocks is published to elsewhere, in the submitter's context all the same."""

    async def main() -> dict[str, str]:
        async with AsyncOperatorClient("op", "v1", "memory://", "cache+memory://") as client:
            return await submit_for_many(client)

    with told() as heard:
        expected = asyncio.run(main())
    for signal in ("before", "after"):
        found = {task_id: told[0] for (kind, task_id), told in heard.items() if kind == signal}
        assert found == expected
    assert threading.get_ident() not in {thread for _, thread in heard.values()}


def test_receivers_share_a_context_of_the_submitter_s(server: RespServer) -> None:
    """What one sets before the publishing is there after it, and nowhere else."""
    seen = []

    def before(**_: Any) -> None:
        seen.append(_request.get("nobody's"))
        _request.set("the receiver's")

    def after(**_: Any) -> None:
        seen.append(_request.get("nobody's"))

    async def main() -> None:
        async with AsyncOperatorClient("op", "v1", server.url) as client:
            for _ in range(2):
                await client.async_call([], {})
            with pytest.raises(LookupError):
                _request.get()

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        asyncio.run(main())
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    assert seen == ["nobody's", "the receiver's"] * 2


def test_our_tasks_run_in_nobody_s_context(server: RespServer) -> None:
    """The tasks that work for all carry nothing of the caller that happened to start them."""
    ours: list[tuple[asyncio.Task[Any], Context | None]] = []

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **kwargs)
        ours.append((task, kwargs.get("context")))
        return task

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(make)
        _request.set("the caller's")
        async with AsyncOperatorClient("op", "v1", server.url, timeout=10) as client:
            handle = await client.async_call([], {})
            waiting = asyncio.create_task(handle.get())
            while handle.task_id not in b"".join(server.channels).decode():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            server.store(handle.task_id, publish=True)
            await waiting
            assert await handle.ready()

    asyncio.run(main())
    contexts = {
        task.get_name(): context
        for task, context in ours
        if task.get_name().startswith("sandai-op-")
    }
    assert set(contexts) == {
        f"sandai-op-{n}" for n in ("submit", "look", "results", "push", "idle")
    }
    for name, context in contexts.items():
        assert context is not None, name
        assert _request not in context, name


class Held:
    """What a context holds, to see whether it is kept."""


def test_what_goes_on_keeps_no_caller_s_context(server: RespServer) -> None:
    """The hub and the idle connections outlive a call; the call's context is let go with it."""
    held: ContextVar[Held] = ContextVar("held")

    async def call(client: AsyncOperatorClient) -> ref[Held]:
        value = Held()
        held.set(value)
        handle = await client.async_call([], {})
        server.store(handle.task_id, publish=True)
        await handle.get()
        return ref(value)

    async def main() -> None:
        # Without a timeout: asyncio keeps a timer that was cancelled until it is due.
        async with AsyncOperatorClient("op", "v1", server.url, timeout=None) as client:
            # In a context of its own, which ends with the task.
            value = await asyncio.create_task(call(client))
            await asyncio.sleep(0.01)  # the handles that the call left are run
            gc.collect()
            assert value() is None
            # And those that would have kept it are there.
            broker, backend = client.statistics()
            assert broker.connections.idle == 1
            [reader] = backend.readers
            assert reader.pushed + reader.swept == 1

    asyncio.run(main())
