"""Redis gone, frozen, full, forbidding: what the client says, how soon, and that it recovers."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from kombu.exceptions import KombuError

from conftest import CreateClient
from light_operator import LightOperator
from local_redis import HOST, LocalRedis
from sandai.op.client import OperatorClient
from sandai.op.models import (
    ClientPoolTimeoutError,
    OperatorConnectionError,
    TaskExecutionError,
    TaskTimeoutError,
)
from watching import BACKEND, BROKER, client_threads, eventually, open_redis

ACQUIRE, IO = 1.0, 0.5
LIMITS = {"pool_acquire_timeout": ACQUIRE, "io_timeout": IO}
SLACK = 0.5
"""Seconds that a busy machine may add."""
QUEUE = "normal.bench.v1"
FULL = re.compile("OOM|OutOfMemory|maxmemory")


@pytest.fixture
def server() -> Iterator[LocalRedis]:
    """One Redis for one test, to be broken."""
    with LocalRedis() as server:
        yield server


def bench(create_client: CreateClient, url: str, **kwargs: Any) -> OperatorClient:
    """Make a client of the light operator with short limits."""
    return create_client("bench", "v1", broker_url=url, timeout=20, **{**LIMITS, **kwargs})


@contextmanager
def in_time(seconds: float = ACQUIRE + IO) -> Iterator[None]:
    """Fail what takes longer."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began <= seconds + SLACK


def assert_unavailable(client: OperatorClient, *reasons: str) -> None:
    """Check that every call says in time, twice in a row, that it cannot reach Redis."""
    for _ in range(2):
        calls: list[Callable[[], Any]] = [
            lambda: client.sync([], {}),
            lambda: client.async_call([], {}),
            lambda: client.desc,
            lambda: client.attach("some-task").ready(),
            lambda: client.attach("some-task").state,
            lambda: client.attach("some-task").forget(),
        ]
        for call in calls:
            with in_time(), pytest.raises(OperatorConnectionError) as caught:
                call()
            assert caught.value.operator_name == "bench"
            assert caught.value.operator_version == "v1"
            assert caught.value.task_id is None
            assert isinstance(caught.value, ConnectionError)
            assert any(reason in str(caught.value) for reason in reasons)
        with in_time():
            assert client.ping() is False
        with in_time():
            health = client.probe()
        assert (health.submit_ok, health.retrieval_ok, health.response_ok) == (False, False, False)
        assert any(reason in str(health.error) for reason in reasons)
        with in_time():
            submissions = client.batch_submit([([], {}), ([], {})])
        assert [s.submitted for s in submissions] == [False, False]
        assert all(isinstance(s.error, OperatorConnectionError) for s in submissions)
        assert [s.task_id for s in submissions] == [None, None]
        results = client.batch_collect(submissions)
        assert all(isinstance(r.error, OperatorConnectionError) for r in results)
        with in_time():
            assert client.batch_sync([([], {})]) == [([], {})]


def test_stopped_and_back(server: LocalRedis, create_client: CreateClient) -> None:
    """With Redis stopped every call answers in time; with Redis back, the same client works."""
    with LightOperator(server.url):
        client = bench(create_client, server.url)
        assert client.sync([], {"n": 1}) == ([], {"n": 1})
        server.stop()
        assert_unavailable(client, "Error", "refused", "closed", "reset")
        server.start()
        assert client.ping()
        assert client.sync([], {"n": 2}) == ([], {"n": 2})
        assert client.desc["doc"] == "light"
        assert client.probe().response_ok
        assert client.batch_sync([([], {"n": n}) for n in range(3)])[2] == ([], {"n": 2})


def test_refused_port(server: LocalRedis, create_client: CreateClient) -> None:
    """A port where nobody listens is an OperatorConnectionError at once."""
    server.stop()
    client = bench(create_client, server.url)
    assert_unavailable(client, "refused", "Error")
    with in_time(0.1):
        assert client.ping() is False


@pytest.mark.parametrize("backend", ["rpc://", "redis"])
def test_refused_port_of_another_broker(
    server: LocalRedis, create_client: CreateClient, backend: str
) -> None:
    """A broker that kombu serves, on a port where nobody listens, is told of as soon."""
    result_backend = server.url if backend == "redis" else backend
    url = f"amqp://user:pw@{HOST}:1//"
    client = bench(create_client, url, result_backend=result_backend, io_timeout=0.2)
    for _ in range(2):
        with in_time(0.2), pytest.raises(OperatorConnectionError) as caught:
            client.async_call([], {})
        assert caught.value.task_id is None
        with in_time(0.2):
            assert client.ping() is False
        with in_time(0.2):
            assert not client.probe().submit_ok


@pytest.mark.timeout(20)
@pytest.mark.parametrize("how", ["stop", "pause"])
def test_revoke_is_bounded(server: LocalRedis, create_client: CreateClient, how: str) -> None:
    """revoke(), which Celery's own code sends, fails in time where Redis is gone or frozen."""
    client = bench(create_client, server.url)
    result = client.async_call([], {})
    (server.stop if how == "stop" else server.pause)()
    with in_time(), pytest.raises((OperatorConnectionError, OSError, KombuError)):
        result.revoke()


def test_accepting_and_silent(create_client: CreateClient) -> None:
    """A listener that accepts and never answers is an OperatorConnectionError in time."""
    with socket.create_server((HOST, 0)) as listener:
        url = f"redis://{HOST}:{listener.getsockname()[1]}/0"
        client = bench(create_client, url, io_timeout=0.2)
        assert_unavailable(client, "imeout", "imed out")


def test_unresolvable_host(create_client: CreateClient) -> None:
    """A host that does not exist is an OperatorConnectionError."""
    client = bench(create_client, "redis://no-such-host.invalid:6379/0")
    with pytest.raises(OperatorConnectionError):
        client.sync([], {})
    assert client.ping() is False


def test_frozen_before_the_first_call(server: LocalRedis, create_client: CreateClient) -> None:
    """A frozen Redis to which nothing is connected gets no task, and every call says so in time."""
    client = bench(create_client, server.url, io_timeout=0.2)
    server.pause()
    assert_unavailable(client, "imeout", "imed out")
    server.resume()
    with open_redis(server.url) as redis_client:
        assert redis_client.dbsize() == 0
    assert client.ping()


def test_frozen_with_a_waiting_pool(server: LocalRedis, create_client: CreateClient) -> None:
    """With one connection and a frozen Redis, twenty callers all hear of it in time."""
    client = bench(create_client, server.url, broker_pool_limit=1, backend_pool_limit=2)
    assert client.ping()
    server.pause()

    def call(_: int) -> Exception | None:
        try:
            with in_time():
                client.async_call([], {})
        except (OperatorConnectionError, ClientPoolTimeoutError) as error:
            return error
        return None

    with ThreadPoolExecutor(20) as pool:
        errors = list(pool.map(call, range(20)))
    server.resume()
    assert None not in errors
    for error in errors:
        if isinstance(error, ClientPoolTimeoutError):
            assert error.pool_name == "broker"
            assert error.limit == 1
            assert error.timeout == ACQUIRE
            assert isinstance(error, TimeoutError)
    assert any(isinstance(error, ClientPoolTimeoutError) for error in errors)
    uncertain = [e for e in errors if isinstance(e, OperatorConnectionError) and e.task_id]
    with open_redis(server.url) as redis_client:
        eventually(lambda: redis_client.llen(QUEUE) == len(uncertain) == 1, within=2)


def test_no_submission_is_doubled(server: LocalRedis, create_client: CreateClient) -> None:
    """A Redis frozen for 2 s gets each task once; its id is told, and attach() has its result."""
    client = bench(create_client, server.url)
    client.ping()
    server.pause()
    thaw = threading.Timer(2.0, server.resume)
    thaw.start()
    with in_time(IO), pytest.raises(OperatorConnectionError) as caught:
        client.async_call([], {"n": 1})
    task_id = caught.value.task_id
    assert task_id is not None
    assert task_id in str(caught.value)
    thaw.join()
    with open_redis(server.url) as redis_client:
        eventually(lambda: redis_client.llen(QUEUE) == 1, within=2)
        with LightOperator(server.url):
            assert client.attach(task_id).get(timeout=10)["results"] == {"n": 1}
        assert redis_client.llen(QUEUE) == 0


def test_no_batch_is_doubled(server: LocalRedis, create_client: CreateClient) -> None:
    """Every task of a batch whose fate is unknown has its id, is not waited for, and comes once."""
    client = bench(create_client, server.url)
    client.ping()
    server.pause()
    thaw = threading.Timer(2.0, server.resume)
    thaw.start()
    with in_time(IO):
        submissions = client.batch_submit([([], {"n": n}) for n in range(50)])
    assert not any(s.submitted for s in submissions)
    assert len({s.task_id for s in submissions} - {None}) == 50
    with in_time(0.1):
        results = client.batch_collect(submissions)
    assert [r.task_id for r in results] == [s.task_id for s in submissions]
    assert all(isinstance(r.error, OperatorConnectionError) and not r.submitted for r in results)
    thaw.join()
    with open_redis(server.url) as redis_client:
        eventually(lambda: redis_client.llen(QUEUE) == 50, within=2)
        time.sleep(0.3)  # nothing may follow
        assert redis_client.llen(QUEUE) == 50
    with LightOperator(server.url):
        replies = [client.attach(str(s.task_id)).get(timeout=10) for s in submissions]
    assert [reply["results"]["n"] for reply in replies] == list(range(50))


def test_sync_with_a_frozen_broker(server: LocalRedis, create_client: CreateClient) -> None:
    """Whatever its timeout, each of twenty callers hears what became of its submission."""
    client = bench(create_client, server.url, broker_pool_limit=1)
    client.ping()
    server.pause()
    told: list[Exception] = []

    def call(number: int) -> None:
        # Submitting is bounded by its own limits, the wait by the caller's timeout.
        with in_time(), pytest.raises((OperatorConnectionError, ClientPoolTimeoutError)) as caught:
            client.sync([], {"n": number}, timeout=0.1)
        told.append(caught.value)

    with ThreadPoolExecutor(20) as pool:
        for work in [pool.submit(call, number) for number in range(20)]:
            work.result()
    server.resume()
    doubtful = {e.task_id for e in told if isinstance(e, OperatorConnectionError)} - {None}
    with open_redis(server.url) as redis_client:
        eventually(lambda: redis_client.llen(QUEUE) == len(doubtful) > 0, within=2)
        # Nobody waits any more, and everything is there for the next caller.
        eventually(lambda: not redis_client.pubsub_channels(), within=5)
        broker, backend = client.statistics()
        assert broker.connections.in_use == broker.connections.waiting == 0
        assert sum(hub.pending for hub in backend.readers) == 0
        with LightOperator(server.url):
            assert client.sync([], {"n": 1}, timeout=10) == ([], {"n": 1})


def test_sync_without_a_broker_leaves_nothing(
    server: LocalRedis, create_client: CreateClient
) -> None:
    """A submission that fails ends the wait that had begun."""
    client = bench(create_client, "redis://127.0.0.1:1/0", result_backend=server.url)
    for timeout in (10, 0, 0.001):
        with in_time(), pytest.raises(OperatorConnectionError) as caught:
            client.sync([], {}, timeout=timeout)
        assert caught.value.task_id is None
    with open_redis(server.url) as redis_client:
        eventually(lambda: not redis_client.pubsub_channels(), within=2)
    assert sum(hub.pending for hub in client.statistics()[1].readers) == 0


def test_ping_of_a_frozen_redis_leaves_nothing(
    server: LocalRedis, create_client: CreateClient
) -> None:
    """A ping that gave up has left nothing in the queue once Redis goes on."""
    client = bench(create_client, server.url)
    client.ping()
    server.pause()
    with in_time(0.2):
        assert client.ping(timeout=0.2) is False
    server.resume()
    assert client.ping()
    with open_redis(server.url) as redis_client:
        assert redis_client.dbsize() == 0


def test_a_connection_closed_while_idle(server: LocalRedis, create_client: CreateClient) -> None:
    """A connection that the server closed while it was idle costs nobody an error."""
    with LightOperator(server.url), open_redis(server.url) as redis_client:
        client = bench(create_client, server.url)
        for n in range(5):
            assert client.sync([], {"n": n}) == ([], {"n": n})
            assert not client.attach("nothing").ready()
            for connection in redis_client.client_list():
                if connection["name"].startswith((BROKER, BACKEND)):
                    redis_client.client_kill_filter(_id=connection["id"])


# A wait outlives an outage of the backend


def pending(client: OperatorClient) -> int:
    """Count the tasks that are waited for."""
    return sum(reader.pending for reader in client.statistics()[1].readers)


@pytest.fixture
def backend_server() -> Iterator[LocalRedis]:
    """A Redis for results."""
    with LocalRedis() as server:
        yield server


@pytest.mark.parametrize("how", ["restart", "kill", "pause"])
def test_a_wait_survives_a_backend(
    server: LocalRedis, create_client: CreateClient, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Waits go on through an outage of Redis, which is logged once, and get their results."""
    with LightOperator(server.url, delay=2.0, concurrency=64), ThreadPoolExecutor(9) as pool:
        client = bench(create_client, server.url)
        waits = [pool.submit(client.sync, [], {"n": n}) for n in range(8)]
        batch = pool.submit(client.batch_sync_detailed, [([], {"n": n}) for n in range(20)])
        eventually(lambda: pending(client) == 28, within=5)
        with open_redis(server.url) as redis_client:
            eventually(lambda: redis_client.llen(QUEUE) == 0, within=5)
        if how == "pause":
            server.pause()
            time.sleep(3 * IO)
            server.resume()
        else:
            server.stop() if how == "restart" else server.kill()
            time.sleep(0.7)  # an outage of some length
            server.start()
        assert [wait.result(15) for wait in waits] == [([], {"n": n}) for n in range(8)]
        assert [result.results for result in batch.result(15)] == [{"n": n} for n in range(20)]
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 2  # that it is gone, and that it is back
    assert str(server.port) in said[0]


def test_a_timeout_in_an_outage_has_its_cause(
    server: LocalRedis, backend_server: LocalRedis, create_client: CreateClient
) -> None:
    """A wait that runs out while the backend is gone has the last failure as its cause."""
    client = bench(create_client, server.url, result_backend=backend_server.url)
    backend_server.stop()
    with in_time(1.0), pytest.raises(TaskTimeoutError) as caught:
        client.sync([], {}, timeout=1.0)
    assert str(backend_server.port) in str(caught.value.__cause__)
    with in_time(1.0):
        [result] = client.batch_sync_detailed([([], {})], timeout=1.0)
    assert isinstance(result.error, TaskTimeoutError)
    assert result.error.__cause__ is not None
    handle = client.async_call([], {})
    with in_time(), pytest.raises(OperatorConnectionError):
        handle.ready()
    with in_time(), pytest.raises(OperatorConnectionError):
        handle.get(timeout=0)
    health = client.probe(timeout=0.5)
    assert (health.submit_ok, health.retrieval_ok, health.response_ok) == (True, False, False)
    backend_server.start()
    # The outage is over: a timeout has no old cause.
    with pytest.raises(TaskTimeoutError) as caught:
        client.sync([], {}, timeout=2.5)
    assert caught.value.__cause__ is None


def test_subscriptions_killed(server: LocalRedis, create_client: CreateClient) -> None:
    """With 200 waits pending, killed push connections cost no result and little time."""
    with (
        LightOperator(server.url, delay=1.5, concurrency=256),
        open_redis(server.url) as redis_client,
        ThreadPoolExecutor(1) as pool,
    ):
        client = bench(create_client, server.url)
        began = time.monotonic()
        batch = pool.submit(client.batch_sync_detailed, [([], {"n": n}) for n in range(200)])

        def subscribed() -> bool:
            return len(redis_client.pubsub_channels("celery-task-meta-*")) == 200

        eventually(subscribed, within=2)
        for _ in range(2):
            assert redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
            eventually(subscribed, within=2)
        results = batch.result(20)
        assert [result.results for result in results] == [{"n": n} for n in range(200)]
        assert time.monotonic() - began < 3.5


# A Redis that refuses


@pytest.fixture
def guarded() -> Iterator[LocalRedis]:
    """A Redis that wants a password."""
    with LocalRedis("--requirepass", "open-sesame") as server:
        yield server


def with_user(server: LocalRedis, userinfo: str) -> str:
    """Return the server's URL with a user and a password."""
    return server.url.replace("redis://", f"redis://{userinfo}@")


def test_password(guarded: LocalRedis, create_client: CreateClient) -> None:
    """The right password works; a wrong one and none are told as the server tells them."""
    right = with_user(guarded, ":open-sesame")
    with LightOperator(right):
        assert bench(create_client, right).sync([], {"n": 1}) == ([], {"n": 1})
    assert_unavailable(bench(create_client, with_user(guarded, ":wrong")), "WRONGPASS", "invalid")
    assert_unavailable(bench(create_client, guarded.url), "NOAUTH", "Authentication")


def test_full(server: LocalRedis, create_client: CreateClient) -> None:
    """A full Redis refuses tasks with a typed error, and takes them when there is room."""
    with LightOperator(server.url), open_redis(server.url) as redis_client:
        client = bench(create_client, server.url)
        redis_client.config_set("maxmemory-policy", "noeviction")
        redis_client.config_set("maxmemory", "1")
        for _ in range(2):
            with in_time(), pytest.raises(OperatorConnectionError, match=FULL) as caught:
                client.sync([], {})
            assert caught.value.task_id is None
            submissions = client.batch_submit([([], {})] * 3)
            assert all(FULL.search(str(s.error)) and s.task_id is None for s in submissions)
            assert client.ping() is False
            health = client.probe()
            assert not health.submit_ok
            assert FULL.search(str(health.error))
        redis_client.config_set("maxmemory", "0")
        assert client.sync([], {"n": 1}) == ([], {"n": 1})


def test_read_only(server: LocalRedis, create_client: CreateClient) -> None:
    """A replica refuses tasks with a typed error, and takes them when it has become a master."""
    with LightOperator(server.url), open_redis(server.url) as redis_client:
        client = bench(create_client, server.url)
        assert client.ping()
        redis_client.replicaof(HOST, 1)
        for _ in range(2):
            with (
                in_time(),
                pytest.raises(OperatorConnectionError, match=r"READONLY|read only") as e,
            ):
                client.sync([], {})
            assert e.value.task_id is None
            assert client.ping() is False
            assert not client.probe().submit_ok
        redis_client.replicaof("NO", "ONE")
        assert client.sync([], {"n": 1}) == ([], {"n": 1})


@pytest.mark.parametrize(
    "rules",
    ["~* &* +@all -subscribe -psubscribe", "~* resetchannels +@all", "~* &* +@all -@pubsub"],
)
def test_push_forbidden(
    server: LocalRedis, create_client: CreateClient, caplog: pytest.LogCaptureFixture, rules: str
) -> None:
    """Where pub/sub is forbidden results are polled for, soon enough, which is logged once."""
    with LightOperator(server.url, delay=0.3), open_redis(server.url) as redis_client:
        redis_client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *rules.split())
        client = bench(create_client, with_user(server, "app:pw"))
        for n in range(3):
            began = time.monotonic()
            assert client.sync([], {"n": n}) == ([], {"n": n})
            assert time.monotonic() - began < 0.3 + 0.15 + SLACK
        batch = client.batch_sync([([], {"n": n}) for n in range(40)])
        assert batch == [([], {"n": n}) for n in range(40)]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "does not allow push" in said[0]


def test_nothing_may_be_read(server: LocalRedis, create_client: CreateClient) -> None:
    """A user who may only submit hears so from a look, and from a wait's cause."""
    with open_redis(server.url) as redis_client:
        rules = ["resetkeys", f"~{QUEUE}", "&*", "+@all"]
        redis_client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *rules)
    client = bench(create_client, with_user(server, "app:pw"))
    handle = client.async_call([], {})
    with pytest.raises(OperatorConnectionError, match=r"(?i)noperm|permission"):
        handle.ready()
    with pytest.raises(TaskTimeoutError) as caught:
        handle.get(timeout=0.5)
    assert "permission" in str(caught.value.__cause__).lower()


def test_a_queue_of_another_type(server: LocalRedis, create_client: CreateClient) -> None:
    """A key that stands where the queue's list should be is a typed error."""
    with open_redis(server.url) as redis_client:
        redis_client.set(QUEUE, "no list")
    client = bench(create_client, server.url)
    with pytest.raises(OperatorConnectionError, match=r"WRONGTYPE|wrong kind") as caught:
        client.async_call([], {})
    assert caught.value.task_id is None
    # The other queues are what they should be.
    assert client.batch_submit([([], {})], priority="high")[0].submitted


def test_results_of_another_type(server: LocalRedis, create_client: CreateClient) -> None:
    """A key of another type where a result should be keeps nobody else waiting."""
    with LightOperator(server.url), open_redis(server.url) as redis_client:
        client = bench(create_client, server.url)
        redis_client.lpush("celery-task-meta-strange", "a list")
        with ThreadPoolExecutor(1) as pool:
            strange = pool.submit(client.attach("strange").get, 1.0)
            for n in range(20):
                assert client.sync([], {"n": n}) == ([], {"n": n})
            assert isinstance(strange.exception(10), TaskTimeoutError | TaskExecutionError)


def test_an_idle_client_holds_nothing_after_an_outage(
    server: LocalRedis, create_client: CreateClient
) -> None:
    """After an outage in which waits ran out, no thread is left once they are over."""
    client = bench(create_client, server.url)
    handle = client.async_call([], {})
    server.stop()
    with pytest.raises(TaskTimeoutError):
        handle.get(timeout=0.5)
    eventually(lambda: not client_threads(), within=6)
