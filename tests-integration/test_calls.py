"""Every call of the contract, against a real worker."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import current_app
from celery.result import AsyncResult, ResultSet

from celery_worker import CeleryWorker
from conftest import CreateClient
from light_operator import LightOperator
from local_redis import LocalRedis
from sandai.op.client import OperatorClient
from sandai.op.models import TaskCancelledError, TaskExecutionError, TaskTimeoutError
from scenarios import SCENARIOS, Scenario, World, sleeping
from stream_scenarios import STREAMS


@pytest.fixture
def client(
    redis_server: LocalRedis, scripted_worker: CeleryWorker, create_client: CreateClient
) -> OperatorClient:
    """Give a client of the scripted operator."""
    return create_client("scripted", "v1", broker_url=redis_server.url, timeout=20)


@pytest.mark.parametrize("scenario", [*SCENARIOS, *STREAMS], ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Scenario, world: World) -> None:
    """Each client does what every client must."""
    scenario(world)


# Celery's own result classes


def test_result_is_celerys(client: OperatorClient) -> None:
    """A submission is an AsyncResult whose accessors tell what Celery's tell."""
    result = client.async_call([], {"n": 1})
    assert isinstance(result, AsyncResult)
    assert result.task_id == result.id == str(result)
    envelope = result.get(timeout=10)
    assert result.result == envelope
    assert result.info == envelope
    assert result.wait(timeout=10) == envelope
    assert (result.state, result.status) == ("SUCCESS", "SUCCESS")
    assert result.ready()
    assert result.successful()
    assert not result.failed()
    assert result.traceback is None
    assert result.children == []
    assert result.date_done is not None
    result.maybe_throw()
    assert current_app.conf.broker_url != client.broker_url


def test_failed_result(client: OperatorClient) -> None:
    """A task that raised is a typed error wherever the AsyncResult tells of it."""
    result = client.async_call([], {"do": "raise"})
    with pytest.raises(TaskExecutionError) as caught:
        result.get(timeout=10)
    assert caught.value.error_details["exception_type"] == "ValueError"
    assert "raised by the operator" in caught.value.error_message
    assert isinstance(result.get(timeout=10, propagate=False), TaskExecutionError)
    assert isinstance(result.result, TaskExecutionError)
    assert result.failed()
    assert not result.successful()
    assert "raised by the operator" in str(result.traceback)
    with pytest.raises(TaskExecutionError):
        result.maybe_throw()


def test_then(client: OperatorClient) -> None:
    """then() calls back once the result is there, without anybody who waits."""
    called = threading.Event()
    seen: list[Any] = []

    def callback(result: AsyncResult) -> None:
        seen.append(result.result)
        called.set()

    client.async_call([], sleeping(0.2)).then(callback)
    gc.collect()
    assert called.wait(10)
    assert seen[0]["status"] == "success"


def test_then_of_a_failure(client: OperatorClient) -> None:
    """then() calls back when the task failed, as Celery does; the result holds the typed error."""
    called = threading.Event()
    seen: list[Any] = []

    def callback(result: AsyncResult) -> None:
        seen.append(result.result)
        called.set()

    client.async_call([], {"do": "raise"}).then(callback)
    assert called.wait(10)
    assert isinstance(seen[0], TaskExecutionError)


@pytest.mark.parametrize("join", ["join", "join_native", "get"])
def test_result_set(client: OperatorClient, join: str) -> None:
    """A ResultSet joins, counts and iterates over our results, in order."""
    results = ResultSet(
        [client.async_call([], {**sleeping(0.1 * (3 - n)), "n": n}) for n in range(4)]
    )
    joined = getattr(results, join)(timeout=10)
    assert [reply["results"]["kwargs"]["options"]["n"] for reply in joined] == [0, 1, 2, 3]
    assert results.completed_count() == 4
    assert results.ready()
    assert results.successful()
    assert not results.failed()
    assert not results.waiting()
    assert [result.get(timeout=0)["status"] for result in results] == ["success"] * 4
    assert len(list(results.iter_native())) == 4
    results.forget()
    assert results.completed_count() == 0


@pytest.mark.parametrize("join", ["join", "join_native", "get"])
def test_result_set_times_out(client: OperatorClient, join: str) -> None:
    """A ResultSet that is not ready in time raises a TimeoutError."""
    results = ResultSet([client.async_call([], sleeping(seconds)) for seconds in (0, 1.5)])
    began = time.monotonic()
    # Celery's own, when its loop counts the time; ours, when our wait does.
    with pytest.raises(Exception) as caught:  # noqa: PT011  # see below
        getattr(results, join)(timeout=0.4)
    assert type(caught.value).__name__ in ("TaskTimeoutError", "TimeoutError")
    assert time.monotonic() - began < 1.4


@pytest.mark.parametrize("join", ["join", "join_native"])
def test_result_set_with_a_failure(client: OperatorClient, join: str) -> None:
    """A ResultSet raises the typed error of a member, or returns it without propagation."""
    results = ResultSet([client.async_call([], {"do": do}) for do in ("echo", "raise")])
    with pytest.raises(TaskExecutionError):
        getattr(results, join)(timeout=10)
    good, bad = getattr(results, join)(timeout=10, propagate=False)
    assert good["status"] == "success"
    assert isinstance(bad, TaskExecutionError)
    assert results.failed()
    assert results.completed_count() == 1


def test_results_in_any_order(client: OperatorClient) -> None:
    """iter_native() and join's callback give results as they come."""
    results = ResultSet([client.async_call([], sleeping(seconds)) for seconds in (0.8, 0.05)])
    came = [task_id for task_id, _ in results.iter_native()]
    assert came == [results[1].id, results[0].id]
    seen: dict[str, Any] = {}
    results.join(timeout=10, callback=seen.__setitem__)
    assert set(seen) == set(came)


def test_revoked(client: OperatorClient) -> None:
    """A task that is revoked is a TaskCancelledError for who waits."""
    before = [client.async_call([], sleeping(0.8)) for _ in range(8)]
    victim = client.async_call([], {"n": 1})
    victim.revoke()
    with pytest.raises(TaskCancelledError) as caught:
        victim.get(timeout=10)
    assert caught.value.task_id == victim.id
    assert victim.state == "REVOKED"
    for result in before:
        assert result.get(timeout=10)["status"] == "success"


def test_raised_with_an_odd_init(client: OperatorClient) -> None:
    """An exception that cannot be rebuilt is a TaskExecutionError whose text names it."""
    with pytest.raises(TaskExecutionError) as caught:
        client.sync([], {"do": "raise_odd"})
    assert "OddError" in caught.value.error_message
    assert caught.value.error_details["exception_type"]


def test_unencodable_reply(client: OperatorClient) -> None:
    """A reply that the worker cannot store is a TaskExecutionError, not a lost task."""
    with pytest.raises(TaskExecutionError):
        client.sync([], {"do": "unencodable"}, timeout=10)


def test_ignored(client: OperatorClient) -> None:
    """A task that never answers is a TaskTimeoutError, whatever state it was left in."""
    with pytest.raises(TaskTimeoutError):
        client.sync([], {"do": "ignore"}, timeout=0.5)


def test_inside_a_task(client: OperatorClient) -> None:
    """An operator may call another: no RuntimeError, its ids go along, it knows its children."""
    result = client.async_call([], {"do": "nested"})
    seen = result.get(timeout=30)["results"]
    assert seen["task_id"] == seen["root_id"] == result.id
    assert len({child["task_id"] for child in seen["children"]}) == 4
    for child in seen["children"]:
        assert child["root_id"] == result.id
        assert child["parent_id"] == result.id
    children = result.children
    assert {child.id for child in children} == {child["task_id"] for child in seen["children"]}
    for child in children:
        assert isinstance(child, AsyncResult)
        assert child.backend is result.backend
    # The one that sync() read is deleted: what is left is asked over the same backend.
    statuses = [child.get(timeout=10)["status"] for child in children if child.ready()]
    assert statuses == ["success"] * 3


def test_a_tree_of_tasks(client: OperatorClient) -> None:
    """AsyncResult.iterdeps() walks over a task and its children."""
    result = client.async_call([], {"do": "nested"})
    result.get(timeout=30)
    found = list(result.iterdeps(intermediate=True))
    assert [parent for parent, _ in found] == [None] + [result] * 4
    assert len({node.id for _, node in found}) == 5


# Handles and threads


def test_no_io_in_finalizers(database: str, create_client: CreateClient) -> None:
    """Dropping results, unread, in an odd moment does nothing at all."""
    with LightOperator(database):
        client = create_client("bench", "v1", broker_url=database)
        threshold = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for _ in range(20):
                client.async_call([], {})
                client.sync([], {}, timeout=10)
        finally:
            gc.set_threshold(*threshold)


def test_many_threads_on_one_client(database: str, create_client: CreateClient) -> None:
    """Sixty-four threads that submit and wait on one client get their own answers."""
    with LightOperator(database, delay=0.002, concurrency=64):
        client = create_client("bench", "v1", broker_url=database, timeout=20)
        wrong: list[Any] = []

        def work(number: int) -> None:
            for turn in range(10):
                _, results = client.sync([], {"number": number, "turn": turn})
                if results != {"number": number, "turn": turn}:
                    wrong.append(results)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong


LEAVING: dict[str, str] = {
    "unclosed": "",
    "waiting thread": """
import threading
threading.Thread(target=lambda: client.async_call([], {}).get(), daemon=True).start()
client.ping()
""",
    "closed": "client.close()",
}


@pytest.mark.parametrize("how", LEAVING)
def test_leaving_the_interpreter_is_silent(database: str, how: str) -> None:
    """A script that ends without close() says nothing and ends at once."""
    script = f"""
from sandai.op.client import create_client
client = create_client("nobody", "v1", broker_url={database!r})
client.ping()
client.async_call([], {{}})
{LEAVING[how]}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_dropped_client_warns(database: str) -> None:
    """A client that is dropped unclosed is a ResourceWarning, and its lease comes back."""
    client = OperatorClient("nobody", "v1", broker_url=database)
    client.ping()
    with pytest.warns(ResourceWarning, match="never closed"):
        del client
    gc.collect()


def test_as_a_context_manager(database: str) -> None:
    """A client closes at the end of its with block, at an exception too."""
    with (
        pytest.raises(KeyError),
        OperatorClient("nobody", "v1", broker_url=database) as client,
    ):
        raise KeyError
    call: Callable[[], Any] = client.ping
    with pytest.raises(Exception, match="closed"):
        call()
