"""A program that gevent has patched: the client for threads works in its greenlets."""

from __future__ import annotations

import subprocess
import sys

from light_operator import LightOperator

PROGRAM = """
from gevent import monkey
monkey.patch_all()

import sys
import time
import gevent
from sandai.op.client import OperatorClient, TaskTimeoutError

url = sys.argv[1]
with OperatorClient("bench", "v1", url, timeout=20, broker_pool_limit=2) as client:
    assert client.ping()
    assert client.probe(timeout=5).response_ok
    assert client.desc["doc"]
    assert client.sync([], {"n": 1}) == ([], {"n": 1})
    batch = client.batch_sync_detailed([([], {"n": n}) for n in range(1200)])
    assert [item.results for item in batch] == [{"n": n} for n in range(1200)]

    calls = [gevent.spawn(client.sync, [], {"n": n}) for n in range(50)]
    gevent.joinall(calls, timeout=20, raise_error=True)
    assert [call.value for call in calls] == [([], {"n": n}) for n in range(50)]

    handles = [client.async_call([], {"n": n}) for n in range(5)]
    assert [handle.get(timeout=10)["results"]["n"] for handle in handles] == list(range(5))

with OperatorClient("nobody", "v1", url) as client:
    # A wait lets the other greenlets run, and ends in time.
    ticks = []
    ticking = gevent.spawn(lambda: [ticks.append(gevent.sleep(0.01)) for _ in range(100)])
    began = time.monotonic()
    try:
        client.sync([], {}, timeout=0.5)
    except TaskTimeoutError:
        assert 0.5 <= time.monotonic() - began < 2
    else:
        raise AssertionError("nobody answers")
    assert len(ticks) > 5
    ticking.kill()

    # A greenlet that is killed in the middle of a wait leaves nothing behind.
    waiting = gevent.spawn(client.sync, [], {}, timeout=20)
    gevent.sleep(0.2)
    waiting.kill(timeout=2)
    assert waiting.dead
    [reader] = client.statistics()[1].readers
    assert reader.pending == 0

OperatorClient("nobody", "v1", url).ping()  # left open as the program ends
"""


def test_calls_in_greenlets(database: str) -> None:
    """Every call works, fifty at a time too; nothing blocks the hub, and the end is silent."""
    with LightOperator(database, concurrency=256):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, database],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
