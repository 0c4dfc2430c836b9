"""Batches: many in, many out, in order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from sandai.op.client import SubmittedTask
from sandai.op.models import (
    ClientClosedError,
    ClientPoolTimeoutError,
    ConfigurationError,
    InvalidPriorityError,
    InvalidTaskError,
    OperatorConnectionError,
    TaskExecutionError,
    TaskTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import World
    from sandai.op.client import OperatorClient

WAIT = 10.0


@pytest.fixture
def client(world: World) -> Iterator[OperatorClient]:
    """Yield a client."""
    with world.client(timeout=WAIT) as client:
        yield client


def numbered(count: int) -> list[tuple[list[Any], dict[str, Any]]]:
    """Return *count* tasks."""
    return [([], {"n": n}) for n in range(count)]


def test_nothing_in_nothing_out(client: OperatorClient) -> None:
    """An empty batch is a batch."""
    assert client.batch_submit([]) == []
    assert client.batch_collect([]) == []
    assert client.batch_sync_detailed([]) == []
    assert client.batch_async([]) == []
    assert client.batch_sync(()) == []


def test_results_come_in_order(client: OperatorClient) -> None:
    """Whatever finishes first, each result stands in its task's place."""
    submitted = client.batch_submit(numbered(20), cancel_key="k", persistent_output=True)
    assert [each.index for each in submitted] == list(range(20))
    assert all(each.submitted and each.error is None for each in submitted)
    results = client.batch_collect(submitted[::-1])
    assert [result.results for result in results] == [{"n": n} for n in range(19, -1, -1)]
    assert [result.index for result in results] == list(range(19, -1, -1))
    assert [result.task_id for result in results] == [each.task_id for each in submitted[::-1]]
    assert all(result.success for result in results)


def test_collecting_deletes(world: World, client: OperatorClient) -> None:
    """A read result is not left behind, unless the client was told so."""
    [submitted] = client.batch_submit(numbered(1))
    client.batch_collect([submitted])
    assert client.attach(str(submitted.task_id)).state == "PENDING"
    with world.client(auto_forget_result=False, timeout=WAIT) as keeping:
        [submitted] = keeping.batch_submit(numbered(1))
        keeping.batch_collect([submitted])
        assert keeping.attach(str(submitted.task_id)).state == "SUCCESS"


def test_a_bad_item_does_not_cost_the_others(client: OperatorClient) -> None:
    """Each bad item has its own error, and no id; the good ones are done."""
    bad: Any = [
        ([], {"n": 0}),
        "no pair",
        ([], "no options"),
        ("no list", {}),
        ([], {"object": object()}),
        ([{"uri": 5}], {}),
        ([], {"n": 6}),
    ]
    results = client.batch_sync_detailed(bad)
    assert [result.success for result in results] == [True, *[False] * 5, True]
    assert [result.submitted for result in results] == [True, *[False] * 5, True]
    for result in results[1:6]:
        assert isinstance(result.error, InvalidTaskError)
        assert result.task_id is None
    assert "tasks[1]" in str(results[1].error)
    legacy = client.batch_sync(bad)
    assert legacy == [([], {"n": 0}), *[([], {})] * 5, ([], {"n": 6})]
    handles = client.batch_async(bad)
    assert [handle is None for handle in handles] == [False, *[True] * 5, False]


@pytest.mark.parametrize("tasks", ["text", {"a": 1}, 5, None])
def test_what_is_no_batch_is_refused(client: OperatorClient, tasks: Any) -> None:
    """The whole call fails when there are no tasks to tell apart."""
    with pytest.raises(InvalidTaskError, match="tasks"):
        client.batch_submit(tasks)


def test_bad_controls_fail_the_call(client: OperatorClient) -> None:
    """What is wrong for every task is raised, before anything is queued."""
    with pytest.raises(InvalidPriorityError):
        client.batch_submit(numbered(1), priority="urgent")
    for timeout in (-1, float("nan")):
        with pytest.raises(ConfigurationError):
            client.batch_submit(numbered(1), timeout=timeout)
        with pytest.raises(ConfigurationError):
            client.batch_collect([], timeout=timeout)
    assert client.statistics()[0].sent == 0


def test_one_budget_for_all(world: World, client: OperatorClient) -> None:
    """What finished is returned; what did not is late in its own place."""
    tasks: Any = [([], {"n": 0}), ([], {"wait": True}), ([], {"n": 2})]
    began = time.monotonic()
    results = client.batch_collect(client.batch_submit(tasks), timeout=0.5)
    assert time.monotonic() - began < 5
    assert [result.success for result in results] == [True, False, True]
    late = results[1].error
    assert isinstance(late, TaskTimeoutError)
    assert (late.task_id, late.timeout) == (results[1].task_id, 0.5)
    assert results[1].submitted
    world.gate.set()


def test_collecting_with_zero_looks_once(world: World, client: OperatorClient) -> None:
    """What is there is returned, what is not is late, without a wait."""
    submitted = client.batch_submit([([], {}), ([], {"wait": True})])
    assert submitted[0].async_result is not None
    submitted[0].async_result.get(WAIT)
    results = client.batch_collect(submitted, timeout=0)
    assert [result.success for result in results] == [True, False]
    assert isinstance(results[1].error, TaskTimeoutError)
    world.gate.set()


def test_the_same_submission_twice(client: OperatorClient) -> None:
    """A task handed in twice fills both places."""
    [submitted] = client.batch_submit(numbered(1))
    results = client.batch_collect([submitted, submitted])
    assert [result.results for result in results] == [{"n": 0}, {"n": 0}]


def test_what_is_of_unknown_fate_is_not_waited_for(client: OperatorClient) -> None:
    """It keeps its error and its id."""
    error = OperatorConnectionError("mem", "v1", "lost", "some id")
    began = time.monotonic()
    [result] = client.batch_collect([SubmittedTask(7, error=error)])
    assert time.monotonic() - began < 1
    assert (result.index, result.submitted, result.error) == (7, False, error)
    assert result.task_id == "some id"


def test_failures_stand_in_their_places(client: OperatorClient) -> None:
    """An operator's error, a failed task and a malformed reply are errors of one place."""
    tasks: Any = [
        ([], {"reply": {"status": "error", "error": {"error_message": "bad"}}}),
        ([], {"boom": True}),
        ([], {"reply": {"status": "odd"}}),
        ([], {"reply": 5}),
        ([], {"n": 4}),
    ]
    results = client.batch_sync_detailed(tasks)
    names = [type(result.error).__name__ for result in results]
    assert names == [
        "TaskExecutionError",
        "TaskExecutionError",
        "InvalidTaskStatusError",
        "InvalidResultFormatError",
        "NoneType",
    ]
    assert isinstance(results[0].error, TaskExecutionError)
    assert results[0].error.error_message == "bad"
    assert results[0].to_legacy_tuple() == ([], {})


def test_a_budget_that_is_full_is_told_per_task(
    client: OperatorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No slot, even for what must be done before, is each task's error."""

    def full() -> None:
        raise ClientPoolTimeoutError("backend", 0.1, 1)

    monkeypatch.setattr(client._transport.backend, "before_submit", full)
    submitted = client.batch_submit(numbered(2))
    assert all(isinstance(each.error, ClientPoolTimeoutError) for each in submitted)


def test_a_broker_that_is_down_is_told_per_task() -> None:
    """Nothing is raised for what may be another task's luck."""
    import sandai.op.client

    url = "redis://127.0.0.1:1/0"
    with sandai.op.client.OperatorClient("op", "v1", url, pool_acquire_timeout=0.1) as client:
        results = client.batch_sync_detailed(numbered(2))
    assert all(isinstance(result.error, OperatorConnectionError) for result in results)
    assert [result.task_id for result in results] == [None, None]


def test_a_closed_client_takes_no_batch(world: World) -> None:
    """Every batch call is refused."""
    client = world.client()
    client.close()
    for call in (
        client.batch_submit,
        client.batch_collect,
        client.batch_sync,
        client.batch_async,
        client.batch_sync_detailed,
    ):
        with pytest.raises(ClientClosedError):
            call([])
