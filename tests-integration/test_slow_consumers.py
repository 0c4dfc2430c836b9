"""Large replies: memory stays bounded, and the small ones of others do not wait behind them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from local_redis import LocalRedis

MB = 2**20
COMMON = """
import asyncio, json, resource, sys, threading, time
from uuid import uuid4
import redis

url, publish = sys.argv[1], sys.argv[2] == "pushed"
MB = 2**20
server = redis.Redis.from_url(url)

def store(task_id, size):
    reply = {"status": "success", "artifacts": [], "results": {"n": size, "text": "x" * size}}
    document = json.dumps({"status": "SUCCESS", "result": reply, "task_id": task_id})
    key = f"celery-task-meta-{task_id}"
    server.set(key, document)
    if publish:
        server.publish(key, document)

def store_all(ids, size):
    for task_id in ids:
        store(task_id, size)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

store(str(uuid4()), 50 * MB)  # what making one costs is not the client's
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
from sandai.op.client import create_client

with (
    create_client("bench", "v1", broker_url=url) as client,
    ThreadPoolExecutor(8) as threads,
    ThreadPoolExecutor(3) as others,
):
    def take(task_id):
        handle = client.attach(task_id)
        size = handle.get(timeout=40)["results"]["n"]
        handle.forget()
        return size

    def small():
        worst, until = 0.0, time.monotonic() + 4
        while time.monotonic() < until or not done.is_set():
            task_id = str(uuid4())
            waiting = others.submit(take, task_id)
            began = time.monotonic()
            store(task_id, 10)
            assert waiting.result() == 10
            worst = max(worst, time.monotonic() - began)
            time.sleep(0.005)
        return worst

    before, done = peak(), threading.Event()
    smalls = others.submit(small)
    ids = [str(uuid4()) for _ in range(COUNT)]
    storing = others.submit(store_all, ids, SIZE)
    for taken in threads.map(take, ids):
        assert taken == SIZE
    storing.result()
    done.set()
    print(json.dumps({"worst": smalls.result(), "grown": peak() - before}))
"""
ASYNCIO = """
from sandai.op.aio import create_async_client

async def main():
    async with create_async_client("bench", "v1", broker_url=url) as client:
        async def take(task_id):
            handle = await client.attach(task_id)
            size = (await handle.get(timeout=40))["results"]["n"]
            await handle.forget()
            return size

        async def small():
            worst, until = 0.0, time.monotonic() + 4
            while time.monotonic() < until or not done:
                task_id = str(uuid4())
                waiting = asyncio.create_task(take(task_id))
                began = time.monotonic()
                await asyncio.to_thread(store, task_id, 10)
                assert await waiting == 10
                worst = max(worst, time.monotonic() - began)
                await asyncio.sleep(0.005)
            return worst

        before, done = peak(), []
        smalls = asyncio.create_task(small())
        ids = [str(uuid4()) for _ in range(COUNT)]
        storing = asyncio.create_task(asyncio.to_thread(store_all, ids, SIZE))
        for each in range(0, COUNT, 8):
            assert set(await asyncio.gather(*map(take, ids[each : each + 8]))) == {SIZE}
        await storing
        done.append(True)
        print(json.dumps({"worst": await smalls, "grown": peak() - before}))

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["pushed", "swept"])
@pytest.mark.parametrize("program", [THREADS, ASYNCIO], ids=["threads", "asyncio"])
@pytest.mark.parametrize(
    ("count", "size"), [(2, 50 * MB), (1000, MB)], ids=["50 MB", "1,000 x 1 MB"]
)
def test_large_replies(how: str, program: str, count: int, size: int) -> None:
    """
    A few documents' worth of memory is all that they cost, however many there are.

    And the small results of others come meanwhile, none of them seconds late.
    """
    sizes = f"COUNT, SIZE = {count}, {size}\n"
    with LocalRedis() as server:
        done = subprocess.run(
            [sys.executable, "-c", COMMON + sizes + textwrap.dedent(program), server.url, how],
            capture_output=True,
            text=True,
            timeout=55,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    # A document as bytes, as text and as what is in it, in a read buffer besides; for the
    # eight that are waited for at a time.
    assert found["grown"] < 8 * min(count, 8) * size + 64 * MB
    assert found["worst"] < 3.0
