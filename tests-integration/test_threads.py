"""Many threads, threads that do not last, collectors, interrupts, and the end of the program."""

from __future__ import annotations

import gc
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from light_operator import LightOperator
from sandai.op.client import create_client
from sandai.op.models import ClientClosedError
from sandai.op.transport import statistics
from watching import connections, eventually, open_redis

SECONDS = 4.0


def test_everything_at_a_time(database: str) -> None:
    """64 threads make, use, share, look at and close clients: nobody hears but of closing."""
    descriptors = len(os.listdir("/proc/self/fd"))
    shared = [create_client("bench", "v1", broker_url=database, timeout=20) for _ in range(4)]
    until = time.monotonic() + SECONDS
    most: list[int] = []
    swapping = threading.Lock()

    def work(seed: int) -> None:
        choice = random.Random(seed)
        while time.monotonic() < until:
            place = choice.randrange(len(shared))
            client = shared[place]
            try:
                match choice.randrange(8):
                    case 0:
                        with swapping:
                            client = shared[place]
                            shared[place] = create_client("bench", "v1", broker_url=database)
                        client.close()
                    case 1:
                        assert len(client.batch_sync_detailed([([], {"n": 1})] * 20)) == 20
                    case 2:
                        assert client.async_call([], {"n": seed}).get(timeout=10)["status"]
                    case 3:
                        [reader] = client.statistics()[1].readers or [None]
                        assert reader is None or reader.pending >= 0
                        statistics()
                    case 4:
                        with create_client("bench", "v1", broker_url=database, timeout=20) as own:
                            assert own.sync([], {"n": seed}) == ([], {"n": seed})
                    case _:
                        assert client.sync([], {"n": seed}) == ([], {"n": seed})
            except ClientClosedError:
                continue

    def watch() -> None:
        with open_redis(database) as looking:
            while time.monotonic() < until:
                found = connections(looking)
                most.append(max(found.values()))

    with LightOperator(database, concurrency=256), ThreadPoolExecutor(65) as threads:
        for each in [threads.submit(watch), *(threads.submit(work, seed) for seed in range(64))]:
            each.result()
        for client in shared:
            client.close()
    assert 0 < max(most) <= 8
    assert not statistics().brokers
    gc.collect()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, within=5)


def test_threads_that_do_not_last(database: str) -> None:
    """Five hundred threads that make one call each share the connections, and leave none."""
    with (
        LightOperator(database, concurrency=256),
        create_client("bench", "v1", broker_url=database, timeout=20) as client,
        open_redis(database) as looking,
    ):
        numbers, seen = itertools.count(), []

        def call() -> None:
            number = next(numbers)
            assert client.sync([], {"n": number}) == ([], {"n": number})

        for _ in range(20):
            threads = [threading.Thread(target=call) for _ in range(25)]
            for thread in threads:
                thread.start()
            seen.append(connections(looking))
            for thread in threads:
                thread.join()
        assert next(numbers) == 500
        assert max(found["broker"] for found in seen) <= 8
        assert max(found["backend"] for found in seen) <= 2


def test_a_collector_that_never_rests(database: str) -> None:
    """Finalizers run everywhere, in the middle of anything: nothing waits for itself."""
    threshold = gc.get_threshold()
    until = time.monotonic() + SECONDS / 2

    def work(seed: int) -> int:
        calls = 0
        while time.monotonic() < until:
            with create_client("bench", "v1", broker_url=database, timeout=20) as client:
                # In a cycle, so that the collector finds it.
                handle = client.async_call([], {"n": seed})
                cycle: list[object] = [handle]
                cycle.append(cycle)
                del cycle
                assert handle.get(timeout=10)["results"] == {"n": seed}
                handle.forget()
            calls += 1
        return calls

    with LightOperator(database, concurrency=256), ThreadPoolExecutor(8) as threads:
        gc.set_threshold(1, 1, 1)
        try:
            done = [threads.submit(work, seed) for seed in range(8)]
            assert min(each.result(timeout=30) for each in done) > 0
        finally:
            gc.set_threshold(*threshold)


CALLS = {
    "sync": "client.sync([], {})",
    "get": "client.async_call([], {}).get()",
    "batch": "client.batch_sync_detailed([([], {})] * 2000)",
    "desc": "client.desc",
}
INTERRUPTED = """
import os, signal, sys, threading, time
from sandai.op.client import create_client
from sandai.op.transport import statistics

# A background job of a shell is started with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
client = create_client("nobody", "v1", broker_url=sys.argv[1])
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
try:
    {call}
except KeyboardInterrupt:
    assert 0.4 < time.monotonic() - began < 1.5, time.monotonic() - began
[reader] = client.statistics()[1].readers
assert reader.pending == 0, reader
deadline = time.monotonic() + 5
while client.statistics()[0].connections.in_use or client.statistics()[1].commands.in_use:
    assert time.monotonic() < deadline, client.statistics()
assert client.ping()
client.close()
assert not statistics().brokers
"""


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_interrupted(database: str, call: str) -> None:
    """Ctrl-C ends a wait at once; what it held comes back, and the client goes on."""
    program = INTERRUPTED.format(call=call)
    assert run(program, database) == (0, "", "")


ENDING = """
import asyncio, sys, threading, time
from sandai.op.client import create_client
from sandai.op.aio import create_async_client

client = create_client("nobody", "v1", broker_url=sys.argv[1])
{how}
print("ending", flush=True)
"""
WAITING = """
def wait():
    try:
        client.sync([], {})
    except Exception as error:
        print(type(error).__name__, flush=True)

threads = [threading.Thread(target=wait, daemon=True) for _ in range(20)]
for thread in threads:
    thread.start()
while not client.statistics()[1].readers or client.statistics()[1].readers[0].pending < 20:
    time.sleep(0.01)
"""
ENDINGS = {
    "threads that wait": WAITING,
    "an exit": WAITING + "print('ending', flush=True)\nsys.exit(0)",
    "a loop that is over": """
async def main():
    own = create_async_client("nobody", "v1", broker_url=sys.argv[1])
    waits = [asyncio.create_task(own.sync([], {})) for _ in range(20)]
    await asyncio.sleep(0.3)
    await own.aclose()
    await asyncio.wait(waits)
    assert all(type(wait.exception()).__name__ == "ClientClosedError" for wait in waits)

asyncio.run(main())
""",
}


@pytest.mark.parametrize("how", ENDINGS.values(), ids=ENDINGS)
def test_the_end_of_the_program(database: str, how: str) -> None:
    """With waits outstanding it ends at once, and says nothing."""
    began = time.monotonic()
    assert run(ENDING.format(how=how), database) == (0, "ending\n", "")
    assert time.monotonic() - began < 10


def run(program: str, url: str) -> tuple[int, str, str]:
    """Run a program; return its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", program, url],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
