"""``memory://`` beside a real Redis: every scenario, and command by command."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import uvloop
from redis.exceptions import RedisError

from asyncio_world import AsyncioWorld
from memory_worlds import memory_world
from sandai.op.aio import create_async_client
from sandai.op.transport import RedisConnector, read_reply
from sandai.op.transport._redis_push import PUSH_ONCE
from sandai.op.transport._url import RedisAddress
from sandai.op.transport.testing import FakeOperator
from scenarios import SCENARIOS, Scenario, World
from stream_scenarios import STREAMS
from thread_world import ThreadWorld


@pytest.fixture(params=[ThreadWorld, AsyncioWorld], ids=["threads", "asyncio"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Give the scenarios each client."""
    with memory_world(request.param) as world:
        yield world


@pytest.mark.parametrize("scenario", [*SCENARIOS, *STREAMS], ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Scenario, world: World) -> None:
    """Each client does in one process what every client must."""
    scenario(world)


def test_on_uvloop() -> None:
    """The asyncio client's connections are uvloop's, too."""
    url = f"memory://{uuid4()}"

    async def main() -> None:
        async with create_async_client("clipper", "v1", broker_url=url, timeout=10) as client:
            for _ in range(3):
                answers = await asyncio.gather(*(client.sync([], {"n": n}) for n in range(100)))
                assert [results["n"] for _, results in answers] == list(range(100))
            assert await client.ping()

    with FakeOperator("clipper", "v1", url=url):
        for _ in range(2):
            uvloop.run(main())


FORKING = """
import asyncio, os, threading
from sandai.op.aio import create_async_client
from sandai.op.client import create_client
from sandai.op.transport.testing import FakeOperator, world

def call(n):
    assert client.sync([], {"n": n}) == ([], {"n": n})

async def acall(n):
    assert await aclient.sync([], {"n": n}) == ([], {"n": n})

client = create_client("clipper", "v1", broker_url="memory://", timeout=10)
aclient = create_async_client("clipper", "v1", broker_url="memory://", timeout=10)
stopped = threading.Event()

def busy():
    while not stopped.is_set():
        call(1)

with FakeOperator("clipper", "v1") as operator:
    call(1)
    asyncio.run(acall(1))
    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(20):
        pid = os.fork()
        if not pid:
            assert not world().operators
            with FakeOperator("clipper", "v1") as own:
                call(2)
                asyncio.run(acall(3))
                assert own.received == 2
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 20
    stopped.set()
    for thread in threads:
        thread.join()
    asyncio.run(acall(4))
client.close()
asyncio.run(aclient.aclose())
"""


def test_forks() -> None:
    """Children that are forked in the midst of calls have operators and clients of their own."""
    quiet = "ignore:This process .* is multi-threaded:DeprecationWarning"
    command = [sys.executable, "-W", "error", "-W", quiet, "-c", FORKING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr


def test_the_page_about_testing(tmp_path: Path) -> None:
    """Every piece of docs/testing.md runs as it stands, and its tests pass in pytest."""
    page = (Path(__file__).parents[1] / "docs" / "testing.md").read_text("utf-8")
    pieces = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    program = "\n\n".join(pieces)
    (tmp_path / "test_page.py").write_text(program, "utf-8")
    tests = len(re.findall(r"^def test_", program, re.MULTILINE))
    assert tests > 2
    # Nothing leads to memory:// but what the page says.
    elsewhere = {"SANDAI_OPERATOR_CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    only = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = ["-q", "-W", "error", "-p", "sandai.op.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_page.py"],
        cwd=tmp_path,
        env=os.environ | elsewhere | only,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tests} passed" in done.stdout


# The store beside a Redis


class Line:
    """A connection as our clients open it."""

    def __init__(self, url: str, protocol: int) -> None:
        address = RedisAddress.parse("broker_url", url, {})
        connector = RedisConnector(address, 10, "sandai-op:comparing")
        self.connection: Any = connector.open(protocol=protocol)

    def ask(self, command: tuple[Any, ...], replies: int) -> list[Any]:
        """Send a command and return so many replies; an error as its class and text."""
        self.connection.send_packed_command(self.connection.pack_commands([command]))
        return [self._reply() for _ in range(replies)]

    def _reply(self) -> Any:
        try:
            return told(read_reply(self.connection, push_request=True))
        except RedisError as error:
            return told(error)


def told(reply: Any) -> Any:
    """Return a reply to compare: of an error its class and first words."""
    if isinstance(reply, RedisError):
        return type(reply).__name__, str(reply).split()[:2]
    if isinstance(reply, list):
        return [told(part) for part in reply]
    return reply


@pytest.fixture(params=[2, 3])
def lines(request: pytest.FixtureRequest, database: str) -> Iterator[tuple[Line, Line]]:
    """Give a connection to a world and one to a Redis, in each version of the protocol."""
    both = (
        Line(f"memory://{uuid4()}", request.param),
        Line(database, request.param),
    )
    yield both
    for line in both:
        line.connection.disconnect()


def same(lines: tuple[Line, Line], *command: Any, replies: int = 1) -> None:
    """Compare the answers to a command."""
    memory, redis = (line.ask(command, replies) for line in lines)
    assert memory == redis, command


def test_written_sequences(lines: tuple[Line, Line]) -> None:
    """What our clients and Celery's workers send is answered as Redis does, byte for byte."""
    for command in (
        ("PING",),
        ("PING", "hello"),
        ("ROLE",),
        ("CLIENT", "SETNAME", "me"),
        ("LPUSH", "q", "a", "b"),
        ("LPUSH", "q", "c"),
        ("LLEN", "q"),
        ("LLEN", "none"),
        ("LRANGE", "q", 0, -1),
        ("LRANGE", "q", -2, -1),
        ("LRANGE", "q", -9, 1),
        ("LRANGE", "q", 0, -9),
        ("LREM", "q", 1, "b"),
        ("LREM", "q", 0, "none"),
        ("RPOP", "q"),
        ("RPOP", "q"),
        ("RPOP", "q"),
        ("EXISTS", "q", "q"),
        ("SET", "k", "v"),
        ("SET", "k", "w", "NX"),
        ("SET", "n", "v", "PX", 60_000, "NX"),
        ("SET", "n", "v", "EX", 60),
        ("SETEX", "n", 60, "v"),
        ("SETEX", "n", 0, "v"),
        ("SETEX", "n", "x", "v"),
        ("SET", "n", "v", "EX", 0),
        ("SET", "n", "v", "WHAT"),
        ("GET", "k"),
        ("GET", "none"),
        ("MGET", "k", "none", "q", "n"),
        ("LPUSH", "k", "a"),
        ("LREM", "k", 1, "a"),
        ("LREM", "q", "x", "a"),
        ("LPUSH", "l", "1"),
        ("GET", "l"),
        ("MGET", "l", "k"),
        ("SET", "l", "now a string"),
        ("GET", "l"),
        ("DEL", "k", "none", "l"),
        ("EXISTS", "k"),
        ("DBSIZE",),
        ("LPUSH",),
        ("GET",),
        ("NONSENSE", "x"),
        ("EXEC",),
        ("DISCARD",),
        ("MULTI",),
        ("MULTI",),
        ("LPUSH", "q", "x"),
        ("LREM", "q", 1, "x"),
        ("PUBLISH", "nobody", "x"),
        ("SET", "k", "v"),
        ("LPUSH", "k", "v"),
        ("EXEC",),
        ("MULTI",),
        ("SET", "k2", "v"),
        ("NONSENSE",),
        ("EXEC",),
        ("EXISTS", "k2"),
        ("MULTI",),
        ("SET", "k2", "v"),
        ("DISCARD",),
        ("EXISTS", "k2"),
        ("EVAL", PUSH_ONCE, 3, "pq", "m1", "m2", 60_000, "a", "b"),
        ("EVAL", PUSH_ONCE, 3, "pq", "m2", "m3", 60_000, "b", "c"),
        ("LRANGE", "pq", 0, -1),
        ("EVAL", PUSH_ONCE, 2, "k", "m4", 60_000, "d"),
        ("EXISTS", "m1", "m2", "m3", "m4"),
        ("EVALSHA", "0" * 40, 0),
        ("SCRIPT", "LOAD", PUSH_ONCE),
        ("AUTH", "secret"),
    ):
        same(lines, *command)


def test_push(request: pytest.FixtureRequest, lines: tuple[Line, Line]) -> None:
    """Subscribing, and what comes of it, in both versions of the protocol."""
    same(lines, "SUBSCRIBE", "a", "b", replies=2)
    same(lines, "SUBSCRIBE", "a")
    same(lines, "PING")
    same(lines, "UNSUBSCRIBE", "a", "none", replies=2)
    same(lines, "UNSUBSCRIBE")
    same(lines, "UNSUBSCRIBE")
    same(lines, "GET", "k")


@pytest.mark.parametrize("seed", range(10))
def test_any_sequence(lines: tuple[Line, Line], seed: int) -> None:
    """A thousand commands at random, on few keys so that they meet, are answered alike."""
    chance = random.Random(seed)
    keys, values = ["a", "b", "c"], ["1", "2", "3"]

    def key() -> str:
        return chance.choice(keys)

    def some(of: list[str]) -> list[str]:
        return chance.choices(of, k=chance.randint(1, 4))

    makers: list[Any] = [
        lambda: ("SET", key(), chance.choice(values)),
        lambda: ("SET", key(), chance.choice(values), "NX"),
        lambda: ("SETEX", key(), 1000, chance.choice(values)),
        lambda: ("GET", key()),
        lambda: ("MGET", *some(keys)),
        lambda: ("DEL", *some(keys)),
        lambda: ("EXISTS", *some(keys)),
        lambda: ("LPUSH", key(), *some(values)),
        lambda: ("LPUSH", key(), *some(values)),
        lambda: ("RPOP", key()),
        lambda: ("LLEN", key()),
        lambda: ("LREM", key(), chance.randint(-3, 3), chance.choice(values)),
        lambda: ("LRANGE", key(), chance.randint(-5, 5), chance.randint(-5, 5)),
        lambda: ("DBSIZE",),
        lambda: ("MULTI",),
        lambda: ("EXEC",),
        lambda: ("EVAL", PUSH_ONCE, 3, key(), "m1", "m2", 60_000, *chance.choices(values, k=2)),
        lambda: ("DEL", *chance.choices(["m1", "m2"], k=1)),
    ]
    for _ in range(1000):
        same(lines, *chance.choice(makers)())
