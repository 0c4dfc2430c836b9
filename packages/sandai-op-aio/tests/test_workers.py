"""Brokers and backends that block: Celery's in-memory broker, results in files."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging

from sandai.op.aio import AsyncOperatorClient, TaskTimeoutError
from sandai.op.aio._workers import Workers
from sandai.op.models import VALID_PRIORITIES, ClientPoolTimeoutError, queue_name, task_name
from sandai.op.transport import Limiter


def _no_logging(**_: object) -> None:
    """Set nothing up."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run an operator; give the folder of its results."""
    folder = tmp_path_factory.mktemp("results")
    app = Celery("op", broker="memory://", backend=f"file://{folder}", set_as_current=False)
    app.conf.update(
        accept_content=["json", "msgpack"], broker_transport_options={"polling_interval": 0.005}
    )

    def process(**kwargs: Any) -> Any:
        if kwargs.get("task_type") == "desc":
            return {"status": "success", "doc": "d"}
        return {"status": "success", "artifacts": [], "results": kwargs["options"]}

    app.task(name=task_name("mem", "v1"))(process)
    queues = [queue_name(each, "mem", "v1") for each in VALID_PRIORITIES]
    for queue in queues:
        app.amqp.queues.add(queue)
    logging.getLogger("celery").setLevel(logging.CRITICAL + 1)
    setup_logging.connect(_no_logging)
    with start_worker(app, perform_ping_check=False, pool="threads", concurrency=2, queues=queues):
        yield folder


def test_every_call(folder: Path) -> None:
    """They work through worker threads of our own, which end with the client."""

    async def main() -> None:
        async with AsyncOperatorClient(
            "mem", "v1", "memory://", f"file://{folder}", timeout=20
        ) as client:
            assert await client.ping()
            assert (await client.probe()).response_ok
            assert (await client.desc())["doc"] == "d"
            replies = await asyncio.gather(*(client.sync([], {"n": n}) for n in range(40)))
            assert [results for _, results in replies] == [{"n": n} for n in range(40)]
            results = await client.batch_sync_detailed([([], {"n": n}) for n in range(20)])
            assert [result.results for result in results] == [{"n": n} for n in range(20)]
            handle = await client.async_call([], {})
            assert (await handle.get())["status"] == "success"
            assert await handle.state() == "SUCCESS"
            await handle.forget()
            assert await handle.state() == "PENDING"
            with pytest.raises(TaskTimeoutError):
                await (await client.attach("nothing")).get(timeout=0.2)
            names = [thread.name for thread in threading.enumerate()]
            assert any(name.startswith("sandai-op-worker") for name in names)
            assert not any(name.startswith("asyncio_") for name in names)

    asyncio.run(main())
    eventually_no_worker()


def test_patience() -> None:
    """Who finds every worker busy waits as long as its patience; a cancelled call is not made."""

    async def main() -> None:
        limiter = Limiter("broker", 1)
        workers = Workers(limiter)
        go, made = threading.Event(), []

        def slow(acquire_timeout: float) -> int:
            made.append(acquire_timeout)
            go.wait(10)
            return 5

        first = asyncio.create_task(workers.run(slow, 1.0))
        while not made:  # noqa: ASYNC110  # a thread tells
            await asyncio.sleep(0.001)
        with pytest.raises(ClientPoolTimeoutError) as caught:
            await workers.run(slow, 0.2)
        assert (caught.value.limit, caught.value.timeout) == (1, 0.2)
        cancelled = asyncio.create_task(workers.run(slow, 5.0))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        go.set()
        assert await first == 5
        assert len(made) == 1
        workers.close()

    asyncio.run(main())
    eventually_no_worker()


def test_who_only_submits() -> None:
    """With replies as messages a client that waits for nothing leaves no worker thread either."""

    async def main() -> AsyncOperatorClient:
        async with AsyncOperatorClient("alone", "v1", "memory://", "rpc://") as client:
            await client.async_call([], {})
        return client

    client = asyncio.run(main())
    eventually_no_worker()  # without the help of the collector
    del client


def eventually_no_worker() -> None:
    """Wait until the worker threads have ended."""
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("sandai-op-worker") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
