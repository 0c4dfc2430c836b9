"""``global_keyprefix`` on broker and backend, with a real Celery worker that has the same."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import scripted_operator
from celery_worker import CeleryWorker
from conftest import MakeClient
from light_operator import LightOperator
from sandai.op.models import TaskTimeoutError
from watching import open_redis


@pytest.fixture(params=[("p", "p_"), ("p:", "p:")], ids=["p", "p:"])
def prefixes(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Give a prefix, which goes before queues as it is, and what goes before results."""
    given: tuple[str, str] = request.param
    return given


@pytest.fixture
def worker(database: str, prefixes: tuple[str, str]) -> Iterator[CeleryWorker]:
    """Run a worker with the prefix on both sides."""
    with CeleryWorker(
        "scripted_operator",
        scripted_operator.NAME,
        scripted_operator.VERSION,
        environment={
            "SCRIPTED_OPERATOR_URL": database,
            "SCRIPTED_OPERATOR_OPTIONS": json.dumps({"global_keyprefix": prefixes[0]}),
        },
    ) as running:
        yield running


@pytest.mark.usefixtures("worker")
def test_a_worker_with_the_same_prefix(
    database: str, prefixes: tuple[str, str], make_client: MakeClient
) -> None:
    """The worker sees our tasks, and we see its results: pushed, looked for, and deleted."""
    options = {"global_keyprefix": prefixes[0]}
    client = make_client(
        database,
        scripted_operator.NAME,
        broker_transport_options=options,
        result_backend_transport_options=options,
        timeout=20,
    )
    assert client.ping()
    assert client.sync([], {"n": 1})[1]["kwargs"]["options"] == {"n": 1}
    assert client.probe().response_ok
    results = client.batch_sync_detailed([([], {"n": n}) for n in range(20)])
    assert [result.results["kwargs"]["options"]["n"] for result in results] == list(range(20))
    handle = client.async_call([], {})
    handle.get()
    with open_redis(database) as server:
        assert server.keys("*celery-task-meta-*") == [
            f"{prefixes[1]}celery-task-meta-{handle.task_id}".encode()
        ]
        handle.forget()
        assert server.keys("*celery-task-meta-*") == []
    [hub] = client.client.statistics()[1].readers  # type: ignore[attr-defined]  # each view has it
    assert hub.pushed > 0


def test_a_prefix_on_one_side_only(database: str, make_client: MakeClient) -> None:
    """The broker's prefix is not the backend's: each has its own options."""
    client = make_client(database, broker_transport_options={"global_keyprefix": "p"})
    handle = client.async_call([], {})
    with open_redis(database) as server:
        assert server.keys("*") == [b"pnormal.bench.v1"]
        with LightOperator(database), pytest.raises(TaskTimeoutError):
            handle.get(timeout=0.3)  # an operator without the prefix sees nothing
        server.set(
            f"celery-task-meta-{handle.task_id}",
            json.dumps({"status": "SUCCESS", "result": {"n": 1}, "task_id": handle.task_id}),
        )
    assert handle.get(timeout=5) == {"n": 1}
