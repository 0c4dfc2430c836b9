"""Real servers for every test, and a look at what the client left behind."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

import scripted_operator
from asyncio_world import AsyncioWorld
from celery_worker import CeleryWorker
from fault_rig import Rig
from local_rabbitmq import LocalRabbitMQ, find
from local_redis import LocalRedis
from sandai.op.client import OperatorClient
from sandai.op.transport import statistics
from scenarios import ClientView, World
from thread_world import ThreadWorld
from watching import client_threads, connections, eventually, open_redis

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
DATABASES = 1000
JANITOR = "sandai-op-janitor"
"""The thread that closes idle connections ends at its next round, half a second later."""


class CreateClient(Protocol):
    """Make a client that is closed when the test ends."""

    def __call__(self, operator_name: str, operator_version: str, **kwargs: Any) -> OperatorClient:
        """Make it; the arguments are the client's."""


@pytest.fixture(scope="session")
def redis_server() -> Iterator[LocalRedis]:
    """One Redis for all tests that do not break it."""
    with LocalRedis("--databases", str(DATABASES)) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[LocalRabbitMQ]:
    """One RabbitMQ for all tests that do not break it."""
    if find("rabbitmq-server") is None:
        how = pytest.fail if "CI" in os.environ else pytest.skip
        how("RabbitMQ is not installed")
    with LocalRabbitMQ() as server:
        yield server


@pytest.fixture(scope="session")
def _database_numbers() -> Iterator[int]:
    # The workers live in database 0 and 1.
    return itertools.count(2)


@pytest.fixture
def database(redis_server: LocalRedis, _database_numbers: Iterator[int]) -> str:
    """Give the URL of an empty database that no other test uses."""
    return f"{redis_server.url.removesuffix('/0')}/{next(_database_numbers)}"


@pytest.fixture(scope="session")
def scripted_worker(redis_server: LocalRedis) -> Iterator[CeleryWorker]:
    """Run a real worker of the scripted operator in database 0."""
    with CeleryWorker(
        "scripted_operator",
        scripted_operator.NAME,
        scripted_operator.VERSION,
        environment={"SCRIPTED_OPERATOR_URL": redis_server.url},
    ) as worker:
        yield worker


@pytest.fixture(scope="session")
def clipper_url(redis_server: LocalRedis) -> str:
    """Give the URL where the example operator is."""
    return f"{redis_server.url.removesuffix('/0')}/1"


@pytest.fixture(scope="session")
def clipper_worker(
    clipper_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CeleryWorker]:
    """Run a real worker of the example operator, the video clipper, in database 1."""
    with CeleryWorker(
        "video_clipper.worker",
        "video-clipper",
        "v1",
        environment={
            "SANDAI_OPERATOR_CELERY_BROKER_URL": clipper_url,
            "SANDAI_OPERATOR_CELERY_RESULT_BACKEND": clipper_url,
            "VIDEO_CLIPPER_WORK_DIR": str(tmp_path_factory.mktemp("clips")),
        },
        folders=[EXAMPLES],
    ) as worker:
        yield worker


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a video of three seconds."""
    from imageio_ffmpeg import get_ffmpeg_exe

    path = tmp_path_factory.mktemp("video") / "input.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=duration=3:size=160x90:rate=25"]
    command = [get_ffmpeg_exe(), "-v", "error", *source, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    return path


@pytest.fixture
def create_client() -> Iterator[CreateClient]:
    """Make clients and close them."""
    clients: list[OperatorClient] = []

    def create(operator_name: str, operator_version: str, **kwargs: Any) -> OperatorClient:
        clients.append(OperatorClient(operator_name, operator_version, **kwargs))
        return clients[-1]

    yield create
    for client in clients:
        client.close()


class MakeClient(Protocol):
    """Make a client, blocking whatever its colour, that is closed when the test ends."""

    def __call__(self, url: str, name: str = "bench", **kwargs: Any) -> ClientView:
        """Make it; the further arguments are the client's."""


@pytest.fixture(params=[ThreadWorld, AsyncioWorld], ids=["threads", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Make clients of each colour, for servers of the test's own."""
    with request.param("", None) as world:

        def make(url: str, name: str = "bench", **kwargs: Any) -> ClientView:
            view: ClientView = world.client(name, broker_url=url, **kwargs)
            return view

        yield make


def needed(variable: str) -> str:
    """Return what a variable names: without it the test fails in CI, and is skipped elsewhere."""
    if found := os.environ.get(variable):
        return found
    missing = f"{variable} is not set"
    if "CI" in os.environ:
        pytest.fail(missing)
    pytest.skip(missing)


def redis_binaries(variable: str) -> str:
    """Name the redis-server of a variable: the one all tests have, as a rule 6.2, or version 7."""
    if variable == "REDIS_SERVER":
        return os.environ.get(variable) or "redis-server"
    return needed(variable)


BINARIES = {"params": ["REDIS_SERVER", "REDIS_TLS_SERVER"], "ids": ["given", "system"]}


@pytest.fixture
def tls_binary() -> str:
    """Name a redis-server of version 7 that has TLS."""
    return needed("REDIS_TLS_SERVER")


@pytest.fixture(params=BINARIES["params"], ids=BINARIES["ids"])
def redis_binary(request: pytest.FixtureRequest) -> str:
    """Name each redis-server that there is."""
    return redis_binaries(request.param)


@pytest.fixture(params=[ThreadWorld, AsyncioWorld], ids=["threads", "asyncio"])
def world(
    request: pytest.FixtureRequest, redis_server: LocalRedis, scripted_worker: CeleryWorker
) -> Iterator[World]:
    """Give the scenarios each client, and the scripted operator's database, flushed."""
    with open_redis(redis_server.url) as redis_client:
        redis_client.flushdb()
        with request.param(redis_server.url, redis_client) as world:
            yield world


@pytest.fixture(params=[ThreadWorld, AsyncioWorld], ids=["threads", "asyncio"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Give each client a Redis of its own behind proxies, to be broken."""
    with Rig(request.param) as rig:
        yield rig


@pytest.fixture(autouse=True)
def _nothing_left(redis_server: LocalRedis) -> Iterator[None]:
    """Fail the test that leaves a lease, a thread or a connection of the client behind."""
    yield
    gc.collect()
    left = statistics()
    assert not left.brokers
    assert not left.backends
    eventually(lambda: not client_threads(besides=[JANITOR]), within=2)
    with open_redis(redis_server.url) as redis_client:
        eventually(lambda: not any(connections(redis_client).values()), within=2)


@pytest.fixture(autouse=True, scope="module")
def _janitor_ends() -> Iterator[None]:
    """Fail the module whose janitor does not end."""
    yield
    eventually(lambda: not client_threads(), within=3)
