"""A health check that runs all day: it ends in time and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from conftest import MakeClient
from light_operator import LightOperator
from watching import eventually, open_redis


def test_a_thousand_probes(database: str, make_client: MakeClient) -> None:
    """After a thousand probes and pings there is no key, and no channel."""
    client = make_client(database)
    with LightOperator(database), ThreadPoolExecutor(8) as pool, open_redis(database) as server:
        healths = list(pool.map(lambda _: client.probe(), range(1000)))
        assert all(pool.map(lambda _: client.ping(), range(100)))
        assert all(health.response_ok for health in healths)
        eventually(lambda: server.dbsize() == 0, within=2)
        eventually(lambda: not server.pubsub_channels("*celery-task-meta*"), within=2)


def test_a_frozen_operator(database: str, make_client: MakeClient) -> None:
    """Of an operator that is stopped a probe says in time that it does not answer."""
    client = make_client(database)
    with LightOperator(database) as operator, open_redis(database) as server:
        assert client.probe().response_ok
        os.kill(operator.pid, signal.SIGSTOP)
        for _ in range(3):
            began = time.monotonic()
            health = client.probe(timeout=0.3)
            assert 0.3 <= time.monotonic() - began < 1.0
            assert health.submit_ok
            assert not health.response_ok
            assert client.ping()
        os.kill(operator.pid, signal.SIGCONT)
        assert client.probe().response_ok
        eventually(lambda: server.llen("low.bench.v1") == 0, within=2)
        # What was answered too late nobody reads; it expires.
        for key in server.keys("*"):
            assert 0 < server.ttl(key) <= 86_400
