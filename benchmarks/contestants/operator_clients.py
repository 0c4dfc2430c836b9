"""Both operator clients have one API, so one module calls them: `ours` and `older` say which."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any

from .driving import (
    AsyncCall,
    Call,
    call_in_threads,
    call_in_turn,
    call_on_loops,
    stay_pending,
    time_async_batch,
    time_batch,
)
from .job import TIMEOUT, Job, tell

Create = Callable[..., Any]


def shapes(create: Create, create_async: Create) -> dict[str, Callable[[Job], None]]:
    """Return what `serve` takes, for the library that has these two."""

    def settings(job: Job) -> dict[str, Any]:
        return {
            "operator_name": job.operator,
            "operator_version": job.version,
            "broker_url": job.broker_url,
            "result_backend": job.backend_url,
            "timeout": TIMEOUT,
            "broker_pool_limit": job.broker_limit,
            "backend_pool_limit": job.backend_limit,
            "backend_poll_concurrency": job.poll_concurrency,
        }

    @contextmanager
    def threaded(job: Job) -> Iterator[Call]:
        with create(**settings(job)) as client:

            def call(number: int) -> None:
                _check(client.sync([], {"number": number})[1], number)

            yield call

    def on_loop(job: Job) -> AbstractAsyncContextManager[AsyncCall]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[AsyncCall]:
            async with create_async(**settings(job)) as client:

                async def call(number: int) -> None:
                    _check((await client.sync([], {"number": number}))[1], number)

                yield call

        return opened()

    def batch(job: Job) -> None:
        with create(**settings(job)) as client:
            client.sync([], {"number": 0})
            time_batch(lambda: _check_all(client.batch_sync_detailed(_tasks(job)), job))

    def async_batch(job: Job) -> None:
        async def main() -> None:
            async with create_async(**settings(job)) as client:
                await client.sync([], {"number": 0})

                async def work() -> None:
                    _check_all(await client.batch_sync_detailed(_tasks(job)), job)

                await time_async_batch(work)

        asyncio.run(main())

    def pending_batch(job: Job) -> None:
        tasks = _tasks(job)

        def wait() -> None:
            with suppress(Exception):  # the client is closed before any answer comes
                client.batch_sync_detailed(tasks)

        with create(**settings(job)) as client:
            client.ping()
            gc.collect()
            tell("ready")
            thread = threading.Thread(target=wait)
            thread.start()
            stay_pending()
        thread.join()

    def pending_async_batch(job: Job) -> None:
        tasks = _tasks(job)

        async def main() -> None:
            async with create_async(**settings(job)) as client:
                await client.ping()
                gc.collect()
                await asyncio.to_thread(tell, "ready")
                batch = asyncio.create_task(client.batch_sync_detailed(tasks))
                await asyncio.to_thread(stay_pending)
            await asyncio.gather(batch, return_exceptions=True)

        asyncio.run(main())

    def pending_calls(job: Job) -> None:
        async def main() -> None:
            async with create_async(**settings(job)) as client:
                await client.ping()
                gc.collect()
                await asyncio.to_thread(tell, "ready")
                calls = [
                    asyncio.create_task(client.sync([], {"number": number}))
                    for number in range(job.requests)
                ]
                await asyncio.to_thread(stay_pending)
            await asyncio.gather(*calls, return_exceptions=True)

        asyncio.run(main())

    return {
        "sequential": lambda job: call_in_turn(job, threaded(job)),
        "threads": lambda job: call_in_threads(job, lambda: threaded(job), shared=True),
        "client_each": lambda job: call_in_threads(job, lambda: threaded(job), shared=False),
        "loops": lambda job: call_on_loops(job, lambda: on_loop(job)),
        "batch": batch,
        "async_batch": async_batch,
        "pending_batch": pending_batch,
        "pending_async_batch": pending_async_batch,
        "pending_calls": pending_calls,
    }


def _tasks(job: Job) -> list[tuple[list[Any], dict[str, Any]]]:
    return [([], {"number": number}) for number in range(job.requests)]


def _check(results: dict[str, Any], number: int) -> None:
    if results["number"] != number:
        raise AssertionError(f"{results} is not the answer to {number}")


def _check_all(items: list[Any], job: Job) -> None:
    for number in range(job.requests):
        if not items[number].success:
            raise AssertionError(f"no answer to {number}: {items[number].error}")
        _check(items[number].results, number)
