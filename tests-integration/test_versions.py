"""
Celery workers of the oldest and the newest version that we support, on Redis 6.2 and 7.

``OLDEST_CELERY_PYTHON`` and ``NEWEST_CELERY_PYTHON`` are Pythons of environments with nothing
but that Celery; the session ``tests-integration`` makes them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from importlib.metadata import requires

import pytest
from attrs import frozen
from packaging.requirements import Requirement
from packaging.version import Version

import scripted_operator
from celery_worker import CeleryWorker
from conftest import BINARIES, MakeClient, needed, redis_binaries
from local_redis import LocalRedis
from sandai.op.models import TaskExecutionError
from test_golden import ARTIFACTS, OPTIONS, SENDS_CELERYS, SENDS_OURS, body, compare, run, take
from watching import eventually, open_redis


@pytest.fixture(scope="module", params=["OLDEST", "NEWEST"], ids=["oldest", "newest"])
def celery_python(request: pytest.FixtureRequest) -> str:
    """Name the Python of each Celery."""
    return needed(f"{request.param}_CELERY_PYTHON")


def test_the_oldest_is_the_oldest() -> None:
    """The Celery that is tested is the lowest that our distribution admits."""
    python = needed("OLDEST_CELERY_PYTHON")
    asked = [python, "-c", "import celery; print(celery.__version__)"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    [need] = [
        need
        for need in map(Requirement, requires("sandai-op-transport") or [])
        if need.name == "celery"
    ]
    [lowest] = [s.version for s in need.specifier if s.operator == ">="]
    assert Version(said) == Version(lowest)


@frozen
class Versions:
    """A worker of one Celery on a Redis of one version."""

    url: str
    worker: CeleryWorker


@pytest.fixture(scope="module", params=BINARIES["params"], ids=BINARIES["ids"])
def versions(request: pytest.FixtureRequest, celery_python: str) -> Iterator[Versions]:
    """Run each worker on each Redis."""
    with (
        LocalRedis(server=redis_binaries(request.param)) as server,
        CeleryWorker(
            "scripted_operator",
            scripted_operator.NAME,
            scripted_operator.VERSION,
            environment={"SCRIPTED_OPERATOR_URL": server.url},
            python=celery_python,
        ) as worker,
    ):
        yield Versions(server.url, worker)


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_every_kind_of_task(versions: Versions, make_client: MakeClient, serializer: str) -> None:
    """The worker takes our messages and we read its results, whatever becomes of them."""
    client = make_client(
        versions.url, scripted_operator.NAME, timeout=20, task_serializer=serializer
    )
    assert client.ping()
    assert client.sync(ARTIFACTS, OPTIONS)[1]["kwargs"]["options"] == OPTIONS
    assert client.desc()["doc"] == scripted_operator.DESCRIPTION["doc"]
    assert client.probe().response_ok
    for priority in ("high", "low", "very_low"):
        client.sync([], {}, priority=priority)
    reply = scripted_operator.failed("Kind", "message", {})
    with pytest.raises(TaskExecutionError):
        client.sync([], {"do": "reply", "reply": reply})
    with pytest.raises(TaskExecutionError) as caught:
        client.sync([], {"do": "raise"})
    assert caught.value.error_details["exception_type"]
    results = client.batch_sync_detailed([([], {"n": n}) for n in range(100)])
    assert [result.results["kwargs"]["options"]["n"] for result in results] == list(range(100))
    with open_redis(versions.url) as server:
        eventually(lambda: not server.keys("celery-task-meta-*"), within=2)


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_golden_envelope(database: str, celery_python: str, serializer: str) -> None:
    """Our envelope is the one that this Celery itself would have written."""
    with open_redis(database) as server:
        run(SENDS_OURS, database, serializer, json.dumps([("sync", [ARTIFACTS, OPTIONS], {})]))
        [ours] = take(server, "normal.golden.v1")
        kwargs = json.dumps(body(ours)[1])
        run(SENDS_CELERYS, database, serializer, "normal.golden.v1", kwargs, python=celery_python)
        [celerys] = take(server, "normal.golden.v1")
    compare(ours, celerys)
