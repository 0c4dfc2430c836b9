"""Redis behind Sentinels: finding the primary, and a failover in the middle of things."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from conftest import MakeClient
from light_operator import LightOperator
from local_redis import HOST
from sandai.op.models import (
    ClientPoolTimeoutError,
    ConfigurationError,
    OperatorConnectionError,
)
from scenarios import ClientView, Handle
from sentinels import OPTIONS, Sentinels
from watching import eventually, open_redis

QUEUE = "normal.bench.v1"
ACQUIRE, IO = 1.0, 1.0
SLACK = 1.0
WAITS, PAUSE = 50, 0.005
LAG = 4.0
"""Seconds for which a primary may still take what it will lose; it says itself after two."""
MOVED = 6.0


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    """Run two Redis and three Sentinels."""
    with Sentinels(tmp_path) as group:
        yield group


@pytest.fixture(scope="module")
def quiet_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """Run the same, for tests that break nothing."""
    with Sentinels(tmp_path_factory.mktemp("sentinels")) as group:
        yield group


def behind(make_client: MakeClient, group: Sentinels, **kwargs: Any) -> ClientView:
    """Make a client that knows the Sentinels."""
    settings: dict[str, Any] = {
        "broker_transport_options": OPTIONS,
        "result_backend_transport_options": OPTIONS,
        "pool_acquire_timeout": ACQUIRE,
        "io_timeout": IO,
        "timeout": 40,
        **kwargs,
    }
    return make_client(group.url, **settings)


def test_finds_the_primary(quiet_sentinels: Sentinels, make_client: MakeClient) -> None:
    """The primary is found by any Sentinel that answers, the first of the URL is down."""
    with LightOperator(quiet_sentinels.first.url):
        client = behind(make_client, quiet_sentinels)
        assert client.ping()
        assert client.sync([], {"n": 1}) == ([], {"n": 1})
        assert client.probe().response_ok
    for port in quiet_sentinels.ports:
        with redis.Redis(HOST, port) as asked:
            names = [connection["name"] for connection in asked.client_list()]
        assert not [name for name in names if "sandai" in name]


def test_a_sentinel_as_redis(quiet_sentinels: Sentinels, make_client: MakeClient) -> None:
    """A ``redis://`` URL that leads to a Sentinel is told how to be written."""
    client = make_client(f"redis://{HOST}:{quiet_sentinels.ports[0]}/0")
    with pytest.raises(OperatorConnectionError, match="is a Sentinel; write sentinel://"):
        client.async_call([], {})


def test_no_such_master(quiet_sentinels: Sentinels, make_client: MakeClient) -> None:
    """A master that no Sentinel knows is an error that names it, and nothing was queued."""
    nobody = {"master_name": "nobody"}
    client = behind(make_client, quiet_sentinels, broker_transport_options=nobody)
    with pytest.raises(OperatorConnectionError, match="nobody") as caught:
        client.async_call([], {})
    assert caught.value.task_id is None


def test_needs_a_master_name(make_client: MakeClient) -> None:
    """Without ``master_name`` the error names the option."""
    with pytest.raises(ConfigurationError, match="master_name"):
        make_client("sentinel://localhost:26379")


class Traffic:
    """Four threads that submit without a pause, and wait for all that was accepted."""

    def __init__(self, client: ClientView, pool: ThreadPoolExecutor) -> None:
        self._client = client
        self._pool = pool
        self._stopped = threading.Event()
        self.waits: dict[str, Future[Any]] = {}
        self.accepted: dict[str, float] = {}
        self.doubtful: set[str] = set()
        self.longest = 0.0
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Submit no more."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            handle: Handle | None = None
            try:
                handle = self._client.async_call([], {})
            except OperatorConnectionError as error:
                if error.task_id is not None:
                    self.doubtful.add(error.task_id)
            except ClientPoolTimeoutError:
                pass
            self.longest = max(self.longest, time.monotonic() - began)
            if handle is not None:
                self.accepted[handle.task_id] = time.monotonic()
                if len(self.waits) < WAITS:
                    self.waits[handle.task_id] = self._pool.submit(handle.get)
            time.sleep(PAUSE)


@pytest.mark.parametrize("how", ["killed", "demoted"])
def test_failover(sentinels: Sentinels, make_client: MakeClient, how: str) -> None:
    """Submissions and waits go on with the new primary by themselves; nothing comes twice."""
    client = behind(make_client, sentinels)
    with open_redis(sentinels.first.url) as primary:
        # A primary that has lost its replica to another takes nothing any more.
        primary.config_set("min-replicas-max-lag", "1")
        primary.config_set("min-replicas-to-write", "1")
    with ThreadPoolExecutor(WAITS) as pool, closing(client):  # which ends the waits
        traffic = Traffic(client, pool)
        traffic.start()
        try:
            eventually(lambda: len(traffic.accepted) >= 2 * WAITS, within=10)
            began = time.monotonic()
            if how == "killed":
                sentinels.first.kill()
            else:
                sentinels.fail_over()
            eventually(lambda: sentinels.primary is sentinels.second, within=10)
            with open_redis(sentinels.second.url) as primary:
                eventually(lambda: primary.role()[0] == b"master", within=10)
                there = primary.llen(QUEUE)
                # The old one is told only after eight seconds, so that nobody waits for that.
                eventually(lambda: primary.llen(QUEUE) >= there + 100, within=MOVED)
        finally:
            traffic.stop()
        with open_redis(sentinels.second.url) as primary:
            queued = [json.loads(m)["headers"]["id"] for m in primary.lrange(QUEUE, 0, -1)]
        assert max(Counter(queued).values()) == 1
        lost = traffic.accepted.keys() - set(queued)
        assert set(queued) <= traffic.accepted.keys() | traffic.doubtful
        # What was accepted and not replicated is lost with the primary: Redis's own promise.
        assert all(-0.1 < traffic.accepted[task_id] - began < LAG for task_id in lost)
        assert len(lost) <= (4 if how == "killed" else 4 * LAG / PAUSE)
        assert not lost & traffic.waits.keys()
        assert traffic.longest <= ACQUIRE + 5 * IO + SLACK
        with LightOperator(sentinels.second.url):
            for wait in traffic.waits.values():
                assert wait.result(30)["status"] == "success"
            last = list(traffic.accepted)[-1]
            assert client.attach(last).get(timeout=5)["status"] == "success"
            assert client.sync([], {"n": 1}) == ([], {"n": 1})
