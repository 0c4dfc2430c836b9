"""What must hold under load and afterwards, seen from outside: times, connections, leftovers."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest

from celery_worker import CeleryWorker
from conftest import EXAMPLES, JANITOR, CreateClient
from light_operator import LightOperator
from sandai.op.client import OperatorClient
from sandai.op.models import TaskExecutionError
from watching import (
    ConnectionSampler,
    best_of,
    client_threads,
    connections,
    eventually,
    open_redis,
)

REQUESTS, THREADS, DELAY = 240, 24, 0.15
SETTLED = 6.0
"""Seconds after which an idle client holds no connection."""


def pressure(client: OperatorClient, requests: int = REQUESTS, threads: int = THREADS) -> float:
    """Call sync() from many threads; return the seconds that it took."""

    def call(number: int) -> None:
        _, results = client.sync([], {"number": number}, timeout=40)
        assert results == {"number": number}

    with ThreadPoolExecutor(threads) as pool:
        began = time.monotonic()
        list(pool.map(call, range(requests)))
        return time.monotonic() - began


def test_pressure(database: str, create_client: CreateClient) -> None:
    """The reference page's pressure test takes 2.0 s at most, on eight connections a side."""
    with LightOperator(database, delay=DELAY, concurrency=32), open_redis(database) as redis_client:
        client = create_client("bench", "v1", broker_url=database)
        with ConnectionSampler(database) as sampler:
            took = best_of(3, lambda: pressure(client), limit=2.0)
        assert took <= 2.0
        assert took >= REQUESTS / THREADS * DELAY
        assert sampler.samples > 20
        assert 1 <= sampler.peak["broker"] <= 8
        assert 1 <= sampler.peak["backend"] <= 8
        eventually(lambda: not any(connections(redis_client).values()), within=SETTLED)
        eventually(lambda: not client_threads(), within=2)
        # The same client goes on.
        client.sync([], {"n": 1}, timeout=10)
        assert any(connections(redis_client).values())
        client.close()
        eventually(lambda: not any(connections(redis_client).values()), within=0.5)
        assert not client_threads(besides=[JANITOR])
        assert not redis_client.keys("celery-task-meta-*")


@pytest.mark.parametrize(
    ("broker", "backend", "polls", "publish"),
    [(1, 1, 1, True), (2, 2, 2, True), (2, 2, 4, False), (3, 4, 2, True), (8, 8, 8, True)],
)
def test_limits(
    database: str,
    create_client: CreateClient,
    broker: int,
    backend: int,
    polls: int,
    publish: bool,
) -> None:
    """No limit is exceeded by any number of threads and clients, and everything is answered."""
    limits = {
        "broker_pool_limit": broker,
        "backend_pool_limit": backend,
        "backend_poll_concurrency": polls,
    }
    with LightOperator(database, delay=0.05, concurrency=64, publish=publish):
        clients = [create_client("bench", "v1", broker_url=database, **limits) for _ in range(3)]
        looking = threading.Event()

        def look() -> None:
            # Single looks take commands' connections besides those who wait.
            while not looking.wait(0.002):
                clients[0].attach("nothing").ready()

        with ConnectionSampler(database, interval=0.005) as sampler, ThreadPoolExecutor(38) as pool:
            lookers = [pool.submit(look) for _ in range(8)]
            works = [pool.submit(pressure, clients[n % 3], 40, 8) for n in range(3)]
            for work in works:
                assert work.result() < 20
            looking.set()
            for looker in lookers:
                looker.result()
        assert 1 <= sampler.peak["broker"] <= broker
        assert 1 <= sampler.peak["backend"] <= backend


def test_different_scopes_share_as_told(database: str, create_client: CreateClient) -> None:
    """Two operators have a budget each; with the scope "process" they have one together."""
    with LightOperator(database, delay=0.01), LightOperator(database, name="other", delay=0.01):
        for scope, most in (("operator", 2), ("process", 1)):
            settings: dict[str, Any] = {"shared_transport_scope": scope, "broker_pool_limit": 1}
            clients = [
                create_client(name, "v1", broker_url=database, **settings)
                for name in ("bench", "other")
            ]
            with (
                ConnectionSampler(database, interval=0.005) as sampler,
                ThreadPoolExecutor(2) as pool,
            ):
                works = [pool.submit(pressure, client, 200, 8) for client in clients]
                for work in works:
                    work.result()
            assert sampler.peak["broker"] == most
            for client in clients:
                client.close()


def test_thread_local_clients(database: str) -> None:
    """A client per thread, made and closed again and again, stays within one budget."""
    with LightOperator(database, delay=0.01), open_redis(database) as redis_client:

        def work(_: int) -> None:
            for _ in range(5):
                with OperatorClient("bench", "v1", database, timeout=20) as client:
                    client.sync([], {})

        with (
            OperatorClient("bench", "v1", database),
            ConnectionSampler(database, interval=0.005) as sampler,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            list(pool.map(work, range(THREADS)))
        assert sampler.peak["broker"] <= 8
        assert sampler.peak["backend"] <= 8
        eventually(lambda: not any(connections(redis_client).values()), within=0.5)


def test_two_thousand_tasks_leave_nothing(database: str, create_client: CreateClient) -> None:
    """After 2,000 tasks there is no key, subscription, connection or thread, the client open."""
    with LightOperator(database, concurrency=256), open_redis(database) as redis_client:
        client = create_client("bench", "v1", broker_url=database, timeout=30)
        results = client.batch_sync_detailed([([], {"n": n}) for n in range(1000)])
        assert [result.results for result in results] == [{"n": n} for n in range(1000)]
        pressure(client, 1000, 16)
        eventually(lambda: redis_client.dbsize() == 0, within=1)
        eventually(lambda: not redis_client.pubsub_channels("celery-task-meta-*"), within=1)
        eventually(lambda: not any(connections(redis_client).values()), within=SETTLED)
        eventually(lambda: not client_threads(), within=2)


def test_celerys_own_calls_keep_to_the_budget(database: str, create_client: CreateClient) -> None:
    """revoke() and send_task() of many threads use one connection where one is allowed."""
    client = create_client("nobody", "v1", broker_url=database, broker_pool_limit=1)
    handle = client.async_call([], {})
    send = client.celery_app.send_task
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        with open_redis(database) as redis_client:
            number = database.rpartition("/")[2]
            while not done.is_set():
                others = [c for c in redis_client.client_list() if c["name"] != "watcher"]
                peak = max(peak, sum(c["db"] == number for c in others))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(handle.revoke) for _ in range(8)]
        calls += [pool.submit(send, "name", queue="q") for _ in range(8)]
        calls += [pool.submit(client.async_call, [], {}) for _ in range(8)]
        for call in calls:
            call.result(20)
    done.set()
    watcher.join()
    assert peak == 1


def test_replies_over_the_broker(
    database: str, create_client: CreateClient, tmp_path: Path
) -> None:
    """With rpc:// many waits share one connection for replies, and nothing is left after close."""
    environment = {
        "SANDAI_OPERATOR_CELERY_BROKER_URL": database,
        "SANDAI_OPERATOR_CELERY_RESULT_BACKEND": "rpc://",
        "VIDEO_CLIPPER_WORK_DIR": str(tmp_path),
    }
    port = urlsplit(database).port

    def sockets() -> int:
        """Count this process's connections to the server."""
        own = psutil.Process().net_connections("tcp")
        return sum(c.status == "ESTABLISHED" and c.raddr.port == port for c in own)

    before = sockets()
    operator = ("video-clipper", "v1")
    worker = CeleryWorker(
        "video_clipper.worker", *operator, environment=environment, folders=[EXAMPLES]
    )
    with worker, ThreadPoolExecutor(12) as pool:
        client = create_client(
            *operator, broker_url=database, result_backend="rpc://", broker_pool_limit=2, timeout=20
        )
        assert client.probe().response_ok
        assert "options_schema" in client.desc
        calls = [pool.submit(client.batch_sync_detailed, [([], {})] * 5) for _ in range(12)]
        peak = 0
        while not all(call.done() for call in calls):
            peak = max(peak, sockets() - before)
        assert all(isinstance(r.error, TaskExecutionError) for c in calls for r in c.result())
        assert 1 <= peak <= 2 + 1
        handles = [client.async_call([], {"test": True}) for _ in range(3)]
        assert [handle.get(timeout=10)["status"] for handle in handles] == ["success"] * 3
        client.close()
        eventually(lambda: sockets() <= before, within=1)


def test_waits_given_up_leave_nothing(database: str, create_client: CreateClient) -> None:
    """Waits that ran out leave no subscription, and nothing of them stays in the client."""
    with open_redis(database) as redis_client:
        client = create_client("nobody", "v1", broker_url=database)
        tasks: list[Any] = [([], {}) for _ in range(300)]
        results = client.batch_sync_detailed(tasks, timeout=0.3)
        assert not any(result.success for result in results)
        eventually(lambda: not redis_client.pubsub_channels("celery-task-meta-*"), within=1)
        _, backend = client.statistics()
        assert sum(reader.pending for reader in backend.readers) == 0


# How soon a result is returned


class Waits:
    """Waits for tasks of which the test itself writes the results."""

    def __init__(self, client: OperatorClient, redis_client: Any) -> None:
        self._client = client
        self._redis = redis_client
        self._ended: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(16)

    def start(self, count: int) -> dict[str, Any]:
        """Start waits in threads; return a future per task id once they are all watched."""
        ids = [str(uuid4()) for _ in range(count)]
        return {task_id: self._pool.submit(self._wait, task_id) for task_id in ids}

    def _wait(self, task_id: str) -> None:
        assert self._client.attach(task_id).get(timeout=20) == {"status": "success"}
        self._ended[task_id] = time.monotonic()

    def store(self, task_id: str, *, publish: bool) -> float:
        """Store a result as an operator does; return when."""
        key = f"celery-task-meta-{task_id}"
        document = json.dumps({"status": "SUCCESS", "result": {"status": "success"}})
        stored = time.monotonic()
        self._redis.set(key, document, ex=60)
        if publish:
            self._redis.publish(key, document)
        return stored

    def latency(
        self, futures: dict[str, Any], *, after: float, every: float, publish: bool
    ) -> float:
        """Store results one by one; return the longest time until a wait returned."""
        began = time.monotonic()
        stored = {}
        for number, task_id in enumerate(futures):
            time.sleep(max(0.0, began + after + number * every - time.monotonic()))
            stored[task_id] = self.store(task_id, publish=publish)
        for future in futures.values():
            future.result(20)
        return max(self._ended[task_id] - stored[task_id] for task_id in futures)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


@pytest.fixture
def waits(database: str, create_client: CreateClient) -> Any:
    """Give waits on a client of its own."""
    with open_redis(database) as redis_client:
        waits = Waits(create_client("manual", "v1", broker_url=database), redis_client)
        yield waits
        waits.close()


def test_a_published_result_waits_for_no_sweep(waits: Waits) -> None:
    """A published result is returned at once, at times when no sweep is near."""

    def measure() -> float:
        return waits.latency(waits.start(8), after=1.5, every=0.17, publish=True)

    assert best_of(2, measure, limit=0.05) <= 0.05


def test_a_result_set_soon_is_found_soon(waits: Waits) -> None:
    """A result written with plain SET within the wait's first second is there in 150 ms."""

    def measure() -> float:
        return waits.latency(waits.start(9), after=0.05, every=0.115, publish=False)

    assert best_of(3, measure, limit=0.15) <= 0.15


def test_a_result_set_while_push_misses_is_found_soon(waits: Waits) -> None:
    """Once push is known to miss results, one written with plain SET is there in 150 ms."""

    def measure() -> float:
        old = waits.start(6)
        # The first shows that push misses results.
        waits.latency(waits.start(1), after=0.1, every=0, publish=False)
        return waits.latency(old, after=2.0, every=0.17, publish=False)

    assert best_of(3, measure, limit=0.15) <= 0.15


def test_a_result_set_late_is_found_by_a_sweep(waits: Waits) -> None:
    """A result written with plain SET while push delivers is there in 2 s."""

    def measure() -> float:
        late = waits.start(1)
        waits.latency(waits.start(2), after=0.2, every=0.2, publish=True)
        return waits.latency(late, after=2.5, every=0, publish=False)

    assert best_of(2, measure, limit=2.15) <= 2.15


def test_a_batch_of_plain_sets(database: str, create_client: CreateClient) -> None:
    """An operator that never publishes serves a batch within the sweeps' pace."""
    with LightOperator(database, delay=0.1, concurrency=500, publish=False):
        client = create_client("bench", "v1", broker_url=database, timeout=20)

        def measure() -> float:
            began = time.monotonic()
            assert all(r.success for r in client.batch_sync_detailed([([], {})] * 500))
            return time.monotonic() - began

        assert best_of(2, measure, limit=0.8) <= 0.8


def test_msgpack_results_of_an_operator(database: str, create_client: CreateClient) -> None:
    """Results that an operator stores as msgpack come through push and sweep alike."""
    for publish in (True, False):
        with LightOperator(database, serializer="msgpack", publish=publish):
            client = create_client("bench", "v1", broker_url=database, timeout=20)
            options = {"n": 2**40, "ü": [1.5, None, True]}
            assert client.sync([], options) == ([], options)
