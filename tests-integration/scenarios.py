"""
What every client of ours must do, whatever its colour: one list of scenarios.

A scenario is a function of a `World`. The client that a world makes blocks: the client for
threads as it is, the one for asyncio behind a loop that runs in a thread of its own (each call
handed to it with ``run_coroutine_threadsafe``). So a scenario may use threads for calls that
meet, and does not know what it tests.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol
from uuid import uuid4

import pytest
from attrs import frozen

import scripted_operator
from queues import Queues
from sandai.op.models import (
    BatchTaskResult,
    ClientClosedError,
    ConfigurationError,
    HealthCheckResult,
    InvalidPriorityError,
    InvalidTaskError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskTimeoutError,
)
from sandai.op.transport import BackendStatistics, BrokerStatistics, Inspection
from watching import eventually

Task = tuple[list[dict[str, Any]], dict[str, Any]]
VIDEO = [{"uri": "file:///tmp/input.mp4", "slot": "video", "meta": {"fps": 25}, "more": [1, None]}]
KEY = "celery-task-meta-"


class Handle(Protocol):
    """A submitted task."""

    @property
    def task_id(self) -> str:
        """The task's id."""

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the raw reply envelope."""

    def ready(self) -> bool:
        """Look once: is it over?"""

    def state(self) -> str:
        """Look once: Celery's state."""

    def forget(self) -> None:
        """Delete the result."""

    def revoke(self, *, terminate: bool = False, signal: str = "SIGTERM") -> None:
        """Tell the workers to skip the task."""


@frozen
class Submission:
    """A task of a batch; `native` is the client's own object."""

    index: int
    handle: Handle | None
    error: Exception | None
    submitted: bool
    task_id: str | None
    native: Any


class Results(Protocol):
    """A stream of results, blocking."""

    def __iter__(self) -> Iterator[BatchTaskResult]:
        """Return itself."""

    def __next__(self) -> BatchTaskResult:
        """Return the next one."""

    def close(self) -> None:
        """Stop."""


class ClientView(Protocol):
    """A client, blocking."""

    def async_call(self, artifacts: Any, options: Any, **controls: Any) -> Handle:
        """Submit a task."""

    def sync(self, artifacts: Any, options: Any, **controls: Any) -> tuple[Any, Any]:
        """Submit a task and wait."""

    def desc(self) -> dict[str, Any]:
        """Ask the operator what it is."""

    def batch_submit(self, tasks: Sequence[Any], **controls: Any) -> list[Submission]:
        """Submit a batch."""

    def batch_collect(
        self, submissions: Sequence[Submission], **controls: Any
    ) -> list[BatchTaskResult]:
        """Wait for a batch."""

    def batch_sync_detailed(self, tasks: Sequence[Any], **controls: Any) -> list[BatchTaskResult]:
        """Submit a batch and wait."""

    def batch_async(self, tasks: Sequence[Any], **controls: Any) -> list[Handle | None]:
        """Submit a batch, the older way."""

    def batch_sync(self, tasks: Sequence[Any], **controls: Any) -> list[tuple[Any, Any]]:
        """Submit a batch and wait, the older way."""

    def map(self, tasks: Any, **controls: Any) -> Results:
        """Stream tasks."""

    def as_completed(self, submissions: Sequence[Any], **controls: Any) -> Results:
        """Stream results, of submissions and of handles."""

    def revoke(self, tasks: Sequence[Any], **how: Any) -> None:
        """Revoke tasks: submissions, handles or ids."""

    def ping(self, timeout: float = 10) -> bool:
        """Ask whether a task could be submitted."""

    def probe(self, timeout: float = 10) -> HealthCheckResult:
        """Send a probe."""

    def get_queue_info(self) -> dict[str, str]:
        """Name the queues."""

    def attach(self, task_id: str) -> Handle:
        """Return a handle on a task."""

    def get_all(self, task_ids: Sequence[str], timeout: float) -> list[Any]:
        """Wait for many tasks at once; return their replies."""

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete many results."""

    def statistics(self) -> tuple[BrokerStatistics, BackendStatistics]:
        """Tell of its connections and of who waits."""

    def inspect(self, timeout: float = 2.0) -> Inspection:
        """Tell what there is to see."""

    def close(self) -> None:
        """Close."""


class World(Protocol):
    """Clients of one colour, the scripted operator, and Redis to look at; its database is empty."""

    @property
    def redis(self) -> Any:
        """A Redis client on the database of the results, which is also the operator's."""

    @property
    def queues(self) -> Queues:
        """The broker's queues."""

    def client(self, name: str = ..., **kwargs: Any) -> ClientView:
        """Make a client; it is closed with the world."""


Scenario = Callable[[World], None]
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Add a function to the list."""
    SCENARIOS.append(function)
    return function


def sleeping(seconds: float) -> dict[str, Any]:
    """Return options for a task that takes *seconds*."""
    return {"do": "sleep", "seconds": seconds}


def failing(kind: Any, message: Any, details: Any) -> dict[str, Any]:
    """Return options for a task that answers with an error envelope."""
    return {"do": "reply", "reply": scripted_operator.failed(kind, message, details)}


def queued(world: World, queue: str) -> list[dict[str, Any]]:
    """Return the kwargs of the messages in a queue that nobody serves, in order of submission."""
    return [message["kwargs"] for message in world.queues.messages(queue)]


def results_stored(world: World) -> list[bytes]:
    """Return the keys of stored results."""
    keys: list[bytes] = world.redis.keys(f"{KEY}*")
    return keys


@contextmanager
def at_once(count: int, call: Callable[[int], Any]) -> Iterator[list[Future[Any]]]:
    """Start *count* calls, each in a thread, as nearly at the same time as can be."""
    barrier = threading.Barrier(count)

    def start(number: int) -> Any:
        barrier.wait(10)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(start, number) for number in range(count)]


# One task


@scenario
def sync_returns_artifacts_and_results(world: World) -> None:
    """sync() gives plain lists and dicts, and everything of the task has reached the operator."""
    artifacts, results = world.client().sync(VIDEO, {"n": [1, {"ü": 2.5}], "none": None})
    assert artifacts == VIDEO
    assert type(artifacts) is list
    assert type(results) is dict
    kwargs = results["kwargs"]
    assert kwargs["options"] == {"n": [1, {"ü": 2.5}], "none": None}
    assert kwargs["artifacts"] == VIDEO
    assert kwargs["meta"] == {"persistent-output": False}
    assert sorted(kwargs) == ["artifacts", "deadline", "meta", "options"]
    assert results["queue"] == "normal.scripted.v1"
    assert results["root_id"] == results["task_id"]
    assert results["parent_id"] is None


@scenario
def missing_artifacts_and_results_are_empty(world: World) -> None:
    """A success without artifacts, or without results, gives [] and {}."""
    client = world.client()
    for reply in ({"status": "success"}, {"status": "success", "artifacts": None, "results": None}):
        assert client.sync([], {"do": "reply", "reply": reply}) == ([], {})


@scenario
def reading_deletes(world: World) -> None:
    """sync(), desc, probe() and batches leave no result in Redis."""
    client = world.client()
    client.sync([], {})
    client.desc()
    client.probe()
    client.batch_sync([([], {"n": n}) for n in range(3)])
    eventually(lambda: not results_stored(world), within=2)


@scenario
def reading_keeps_without_auto_forget(world: World) -> None:
    """With auto_forget_result off, what sync(), desc, probe() and batches read is kept."""
    client = world.client(auto_forget_result=False)
    client.sync([], {})
    client.desc()
    client.probe()
    client.batch_sync([([], {"n": n}) for n in range(3)])
    assert len(results_stored(world)) == 6


@scenario
def get_leaves_the_result_to_others(world: World) -> None:
    """handle.get() returns the raw envelope and can be asked again; forget() deletes it."""
    client = world.client()
    handle = client.async_call(VIDEO, {"n": 1})
    envelope = handle.get(timeout=10)
    assert envelope["status"] == "success"
    assert envelope["artifacts"] == VIDEO
    assert handle.get() == envelope
    assert client.attach(handle.task_id).get(timeout=0) == envelope
    assert handle.ready()
    assert handle.state() == "SUCCESS"
    assert results_stored(world) == [f"{KEY}{handle.task_id}".encode()]
    handle.forget()
    assert not results_stored(world)


@scenario
def a_handle_tells_how_far_the_task_is(world: World) -> None:
    """ready() and state() look once, at STARTED and at an operator's own states too."""
    client = world.client()
    handle = client.async_call([], {"do": "state", "state": "HALFWAY", "seconds": 0.6})
    eventually(lambda: handle.state() == "HALFWAY", within=5)
    assert not handle.ready()
    with pytest.raises(TaskTimeoutError):
        handle.get(timeout=0)
    assert handle.get(timeout=10)["status"] == "success"
    assert handle.state() == "SUCCESS"
    unknown = client.attach(str(uuid4()))
    assert not unknown.ready()
    assert unknown.state() == "PENDING"


@scenario
def states_in_between_do_not_end_a_wait(world: World) -> None:
    """STARTED, RETRY and states of an operator's own are waited through."""
    client = world.client()
    for state in ("HALFWAY", "PENDING", "RECEIVED"):
        _, results = client.sync([], {"do": "state", "state": state, "seconds": 0.15})
        assert results["kwargs"]["options"]["state"] == state
    _, results = client.sync([], {"do": "retry"})
    assert results["kwargs"]["options"] == {"do": "retry"}


@scenario
def attach_reaches_a_task_of_another_client(world: World) -> None:
    """attach() gives a handle on a task that another client submitted."""
    task_id = world.client().async_call([], {"n": 5}).task_id
    handle = world.client(shared_transport_scope="process").attach(task_id)
    assert handle.task_id == task_id
    assert handle.get(timeout=10)["results"]["kwargs"]["options"] == {"n": 5}


@scenario
def several_wait_for_one_task(world: World) -> None:
    """Ten waits for one task all end, and so do those that come later or give up."""
    client = world.client()
    task_id = client.async_call([], sleeping(0.5)).task_id

    def wait(number: int) -> Any:
        return client.attach(task_id).get(timeout=10 if number else 0.1)

    with at_once(10, wait) as waits:
        assert isinstance(waits[0].exception(), TaskTimeoutError)
        assert {future.result()["status"] for future in waits[1:]} == {"success"}


@scenario
def a_large_result_arrives_whole(world: World) -> None:
    """A result of some megabytes comes through push as it was."""
    _, results = world.client().sync([], {"do": "large", "size": 2_000_000})
    assert results == {"text": "é" * 2_000_000}


# Controls


@scenario
def priorities_are_queues(world: World) -> None:
    """Each priority is a queue, the call's before the client's; any other is an error."""
    client = world.client(priority="low")
    for priority in ("high", "normal", "low", "very_low"):
        _, results = client.sync([], {}, priority=priority)
        assert results["queue"] == f"{priority}.scripted.v1"
    _, results = client.sync([], {})
    assert results["queue"] == "low.scripted.v1"
    for wrong in ("urgent", "HIGH", 3):
        for call in (client.sync, client.async_call):
            with pytest.raises(InvalidPriorityError) as caught:
                call([], {}, priority=wrong)
            assert caught.value.priority == wrong
            assert caught.value.valid_priorities == ("high", "normal", "low", "very_low")
        with pytest.raises(InvalidPriorityError):
            client.batch_submit([([], {})], priority=wrong)


@scenario
def queues_are_named_after_the_operator(world: World) -> None:
    """get_queue_info() maps each priority to its queue."""
    assert world.client("other").get_queue_info() == {
        priority: f"{priority}.other.v1" for priority in ("high", "normal", "low", "very_low")
    }


@scenario
def the_deadline_follows_the_timeout(world: World) -> None:
    """A positive timeout in force, the call's else the client's, is the deadline; else none."""
    for own, call, expected in (
        (50, None, 50),
        (50, 20, 20),
        (50, 0, None),
        (50, 2.5, 2.5),
        (None, None, None),
        (0, None, None),
        (None, 20, 20),
        (0, 20, 20),
        (None, 0, None),
    ):
        client = world.client("nobody", timeout=own)
        before = time.time()
        client.async_call([], {}, timeout=call)
        client.batch_submit([([], {}), ([], {})], timeout=call)
        after = time.time()
        kwargs = queued(world, "normal.nobody.v1")
        assert len(kwargs) == 3
        for found in kwargs:
            assert ("deadline" in found) == (expected is not None)
            if expected is not None:
                assert isinstance(found["deadline"], float)
                assert before + expected <= found["deadline"] <= after + expected
        world.queues.delete("normal.nobody.v1")


@scenario
def a_late_task_is_skipped_by_its_deadline(world: World) -> None:
    """An operator's TaskDeadlineExceededError is that error, with its fields."""
    client = world.client()
    details = {"deadline": 1.5, "current_time": 2.5}
    with pytest.raises(TaskDeadlineExceededError) as caught:
        client.sync([], failing("TaskDeadlineExceededError", "late", details))
    assert caught.value.deadline == 1.5
    assert caught.value.current_time == 2.5
    with pytest.raises(TaskDeadlineExceededError):
        client.sync([], failing("TaskDeadlineExceededError", "late", None))


@scenario
def the_cancel_key_goes_along(world: World) -> None:
    """A cancel key, the call's before the client's, cancels; an empty one is not sent."""
    world.redis.sadd(scripted_operator.CANCELLED, "mine", "yours")
    with pytest.raises(TaskCancelledError) as caught:
        world.client().sync([], {}, cancel_key="mine")
    assert caught.value.cancel_key == "mine"
    client = world.client(cancel_key="yours")
    with pytest.raises(TaskCancelledError) as caught:
        client.sync([], {})
    assert caught.value.cancel_key == "yours"
    _, results = client.sync([], {}, cancel_key="hers")
    assert results["kwargs"]["cancel_key"] == "hers"
    [result] = client.batch_sync_detailed([([], {})])
    assert isinstance(result.error, TaskCancelledError)
    _, results = world.client().sync([], {}, cancel_key="")
    assert "cancel_key" not in results["kwargs"]


@scenario
def persistent_output_goes_along(world: World) -> None:
    """persistent_output is the boolean meta["persistent-output"], single and in a batch."""
    client = world.client()
    for wanted in (True, False):
        _, results = client.sync([], {}, persistent_output=wanted)
        assert results["kwargs"]["meta"] == {"persistent-output": wanted}
        [(_, results)] = client.batch_sync([([], {})], persistent_output=wanted)
        assert results["kwargs"]["meta"] == {"persistent-output": wanted}


@scenario
def a_wait_that_runs_out_is_a_timeout(world: World) -> None:
    """Only this client's own wait running out is a TaskTimeoutError, after its timeout."""
    client = world.client("nobody", timeout=0.3)
    for call, expected in ((None, 0.3), (0.2, 0.2)):
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError) as caught:
            client.sync([], {}, timeout=call)
        assert expected <= time.monotonic() - began < expected + 0.5
        assert caught.value.timeout == expected
        assert caught.value.task_id
        assert isinstance(caught.value, TimeoutError)
    with pytest.raises(TaskExecutionError) as failed:
        world.client().sync([], failing("TimeoutError", "connection timeout: timed out", {}))
    assert not isinstance(failed.value, TimeoutError)
    assert failed.value.error_type == "TimeoutError"


@scenario
def a_timeout_of_zero_looks_once(world: World) -> None:
    """Timeout 0 does not wait: it finds what is there, or is a TaskTimeoutError at once."""
    client = world.client()
    began = time.monotonic()
    with pytest.raises(TaskTimeoutError) as caught:
        client.sync([], sleeping(0.3), timeout=0)
    assert time.monotonic() - began < 0.3
    handle = client.attach(caught.value.task_id)
    with pytest.raises(TaskTimeoutError):
        handle.get(timeout=0)
    assert handle.get(timeout=10)["status"] == "success"
    assert handle.get(timeout=0)["status"] == "success"
    submissions = client.batch_submit([([], {}), ([], sleeping(2))])
    first = submissions[0].handle
    assert first is not None
    first.get(timeout=10)
    results = client.batch_collect(submissions, timeout=0)
    assert results[0].success
    assert isinstance(results[1].error, TaskTimeoutError)


@scenario
def a_wrong_timeout_is_refused(world: World) -> None:
    """A negative timeout, NaN or text is a ConfigurationError, and nothing is submitted."""
    client = world.client("nobody")
    for timeout in (-1, float("nan"), "10", True):
        for call in (client.sync, client.async_call):
            with pytest.raises(ConfigurationError, match="timeout"):
                call([], {}, timeout=timeout)
        with pytest.raises(ConfigurationError, match="timeout"):
            client.batch_submit([([], {})], timeout=timeout)
    assert not world.queues.exists("normal.nobody.v1")


# Description


@scenario
def one_task_describes_for_everybody(world: World) -> None:
    """Sixteen callers at once cost one description task, and later ones none."""
    client = world.client()
    expected = {k: v for k, v in scripted_operator.DESCRIPTION.items() if k != "status"}
    with at_once(16, lambda _: client.desc()) as calls:
        assert [call.result() for call in calls] == [expected] * 16
    assert client.desc() == expected
    assert world.redis.get(scripted_operator.DESCRIBED) == b"1"
    other = world.client()
    assert other.desc() == expected
    assert world.redis.get(scripted_operator.DESCRIBED) == b"2"


@scenario
def a_failed_description_is_asked_again(world: World) -> None:
    """A failure reaches all who wait for it and is not cached."""
    world.redis.rpush(
        scripted_operator.DESCRIPTIONS,
        json.dumps(scripted_operator.failed("ValueError", "not now", {"n": 1})),
    )
    client = world.client()
    with at_once(8, lambda _: client.desc()) as calls:
        errors = [call.exception() for call in calls]
    assert all(isinstance(error, TaskExecutionError) for error in errors)
    assert world.redis.get(scripted_operator.DESCRIBED) == b"1"
    assert client.desc()["doc"] == "Does as it is told."
    assert world.redis.get(scripted_operator.DESCRIBED) == b"2"


@scenario
def a_description_goes_to_the_high_queue(world: World) -> None:
    """The description is {"task_type": "desc"} on the high queue, whatever the priority."""
    client = world.client("nobody", timeout=0.1, priority="very_low", cancel_key="key")
    with pytest.raises(TaskTimeoutError):
        client.desc()
    assert queued(world, "high.nobody.v1") == [{"task_type": "desc"}]


@scenario
def a_description_may_lack_parts(world: World) -> None:
    """A description has its three keys, whatever the operator leaves out."""
    world.redis.rpush(scripted_operator.DESCRIPTIONS, json.dumps({"status": "success", "doc": "d"}))
    assert world.client().desc() == {"doc": "d", "options_schema": None, "results_schema": None}


# Batches


@scenario
def a_batch_comes_back_in_order(world: World) -> None:
    """Results stand in the order of the tasks, whichever ends first."""
    client = world.client()
    tasks: list[Task] = [([], {**sleeping(0.1 * (3 - n)), "n": n}) for n in range(4)]
    submissions = client.batch_submit(tasks)
    assert [s.index for s in submissions] == [0, 1, 2, 3]
    assert all(s.submitted and s.error is None and s.handle is not None for s in submissions)
    assert len({s.task_id for s in submissions}) == 4
    results = client.batch_collect(submissions)
    assert [r.index for r in results] == [0, 1, 2, 3]
    assert [r.task_id for r in results] == [s.task_id for s in submissions]
    assert all(r.success and r.submitted and r.error is None for r in results)
    assert [r.results["kwargs"]["options"]["n"] for r in results] == [0, 1, 2, 3]
    assert results[0].to_legacy_tuple() == (results[0].artifacts, results[0].results)


@scenario
def an_empty_batch_is_empty(world: World) -> None:
    """Every batch call takes an empty list, without waiting."""
    client = world.client()
    assert client.batch_submit([]) == []
    assert client.batch_collect([]) == []
    assert client.batch_sync_detailed([]) == []
    assert client.batch_async([]) == []
    assert client.batch_sync([]) == []
    assert client.batch_sync_detailed(()) == []


@scenario
def a_batch_holds_the_same_task_twice(world: World) -> None:
    """The same task given twice is two tasks; the same submission collected twice is one."""
    client = world.client()
    task: Task = (VIDEO, {"n": 1})
    submissions = client.batch_submit([task, task])
    assert submissions[0].task_id != submissions[1].task_id
    results = client.batch_collect([submissions[0], submissions[1], submissions[0]])
    assert all(result.success for result in results)
    assert [result.index for result in results] == [0, 1, 0]
    assert results[0].results == results[2].results


@scenario
def bad_items_of_a_batch_fail_alone(world: World) -> None:
    """What cannot be submitted, or fails, has its error in its own place; the rest goes on."""
    client = world.client()
    tasks: list[Any] = [
        ([], {"n": 0}),
        ("no list", {}),
        ([], failing("ValueError", "no", {"x": 1})),
        ([], {"object": object()}),
        ([{"uri": 3}], {}),
        "no pair",
        ([], {"do": "raise"}),
        ([], {"n": 7}),
    ]
    submissions = client.batch_submit(tasks)
    assert [s.submitted for s in submissions] == [
        True,
        False,
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    for index, path in (
        (1, "input_artifacts"),
        (3, "options.object"),
        (4, "input_artifacts[0].uri"),
        (5, "tasks[5]"),
    ):
        error = submissions[index].error
        assert isinstance(error, InvalidTaskError)
        assert error.path == path
        assert submissions[index].handle is None
        assert submissions[index].task_id is None
    results = client.batch_collect(submissions)
    assert [r.index for r in results] == list(range(8))
    assert [r.success for r in results] == [True] + [False] * 6 + [True]
    assert [r.submitted for r in results] == [s.submitted for s in submissions]
    assert results[1].error is submissions[1].error
    failure = results[2].error
    assert isinstance(failure, TaskExecutionError)
    assert (failure.error_type, failure.error_message) == ("ValueError", "no")
    assert failure.error_details == {"x": 1}
    assert results[2].to_legacy_tuple() == ([], {})
    raised = results[6].error
    assert isinstance(raised, TaskExecutionError)
    assert raised.error_details["exception_type"] == "ValueError"


@scenario
def a_batch_has_one_budget(world: World) -> None:
    """A batch's timeout is one for all: what finished is there, the rest is a TaskTimeoutError."""
    client = world.client()
    tasks: list[Task] = [([], sleeping(seconds)) for seconds in (0.05, 1.5, 0.05, 1.5, 1.5)]
    began = time.monotonic()
    submissions = client.batch_submit(tasks)
    results = client.batch_collect(submissions, timeout=0.7)
    assert 0.7 <= time.monotonic() - began < 1.4
    assert [result.success for result in results] == [True, False, True, False, False]
    for result in results:
        assert result.submitted
        if not result.success:
            assert isinstance(result.error, TaskTimeoutError)
            assert result.error.task_id == result.task_id
            assert result.error.timeout == 0.7
    again = client.batch_collect([submissions[1], submissions[3]], timeout=10)
    assert all(result.success for result in again)


@scenario
def the_older_batch_calls_keep_their_shapes(world: World) -> None:
    """batch_async() gives a handle or None, batch_sync() a tuple or ([], {})."""
    client = world.client()
    tasks: list[Any] = [(VIDEO, {"n": 0}), ("bad", {}), ([], failing("E", "m", {}))]
    handles = client.batch_async(tasks)
    assert [handle is None for handle in handles] == [False, True, False]
    assert handles[0] is not None
    assert handles[0].get(timeout=10)["artifacts"] == VIDEO
    good, bad, failed = client.batch_sync(tasks)
    assert good[0] == VIDEO
    assert good[1]["kwargs"]["options"] == {"n": 0}
    assert bad == failed == ([], {})


@scenario
def a_batch_takes_any_iterable(world: World) -> None:
    """Tasks and submissions may come from generators."""
    client = world.client()
    tasks: Any = (([], {"n": n}) for n in range(3))
    submissions: Any = iter(client.batch_submit(tasks))
    assert [result.success for result in client.batch_collect(submissions)] == [True] * 3


# Health


@scenario
def ping_leaves_nothing(world: World) -> None:
    """ping() needs no worker and leaves neither message nor result."""
    client = world.client("nobody")
    assert client.ping() is True
    assert client.ping(timeout=0.5) is True
    assert world.redis.dbsize() == 0
    assert not world.queues.exists("normal.nobody.v1")


@scenario
def ping_keeps_what_is_queued(world: World) -> None:
    """ping() takes out its own message alone."""
    client = world.client("nobody", priority="low")
    client.async_call([], {"n": 1})
    before = world.queues.messages("low.nobody.v1")
    assert len(before) == 1
    assert client.ping() is True
    assert world.queues.messages("low.nobody.v1") == before


@scenario
def probe_finds_an_operator_well(world: World) -> None:
    """A probe of a healthy operator is ok in every field and leaves no result."""
    health = world.client().probe()
    assert (health.submit_ok, health.retrieval_ok, health.response_ok) == (True, True, True)
    assert health.error is None
    assert health.task_id
    eventually(lambda: not results_stored(world), within=2)


@scenario
def probe_is_an_ordinary_task(world: World) -> None:
    """A probe goes to the low queue; its deadline is its own timeout."""
    client = world.client("nobody", priority="high", timeout=None)
    before = time.time()
    health = client.probe(timeout=0.3)
    assert (health.submit_ok, health.retrieval_ok, health.response_ok) == (True, False, False)
    assert health.error
    assert health.task_id
    [kwargs] = queued(world, "low.nobody.v1")
    assert before + 0.3 <= kwargs.pop("deadline") <= before + 0.6
    assert kwargs == {
        "artifacts": [],
        "options": {"test": True},
        "meta": {"persistent-output": False},
    }


@scenario
def probe_understands_any_reply(world: World) -> None:
    """A probe never raises: an error reply is a sign of life, a wrong shape is not."""
    client = world.client()
    for reply, response_ok in (
        (scripted_operator.failed("ValueError", "no artifacts", {}), True),
        (scripted_operator.failed(None, None, None), True),
        ({"status": "weird"}, False),
        (["a", "list"], False),
        (None, False),
    ):
        world.redis.rpush(scripted_operator.PROBES, json.dumps(reply))
        health = client.probe()
        assert (health.submit_ok, health.retrieval_ok) == (True, True)
        assert health.response_ok is response_ok
        assert isinstance(health.error, str)


# Errors of an operator


@scenario
def error_envelopes_of_any_shape(world: World) -> None:
    """A wrong error envelope is still a TaskExecutionError that says what came."""
    client = world.client()
    for error, expected in (
        (
            {"error_type": "E", "error_message": "m", "error_details": {"a": 1}},
            ("E", "m", {"a": 1}),
        ),
        ({"error_message": "m"}, ("UnknownError", "m", {})),
        ({"error_type": "E"}, ("E", "Unknown error", {})),
        ({}, ("UnknownError", "Unknown error", {})),
        ("text", ("UnknownError", "text", {})),
        ("", ("UnknownError", "Unknown error", {})),
        (None, ("UnknownError", "Unknown error", {})),
        (["a"], ("UnknownError", "['a']", {})),
        (7, ("UnknownError", "7", {})),
        (
            {"error_type": "E", "error_message": "m", "error_details": "why"},
            ("E", "m", {"raw_error_details": "why"}),
        ),
        (
            {"error_type": "E", "error_message": "m", "error_details": [1]},
            ("E", "m", {"raw_error_details": [1]}),
        ),
        ({"error_type": 5, "error_message": 6, "error_details": {}}, ("5", "6", {})),
    ):
        with pytest.raises(TaskExecutionError) as caught:
            client.sync([], {"do": "reply", "reply": {"status": "error", "error": error}})
        found = caught.value
        assert (found.error_type, found.error_message, found.error_details) == expected
        assert found.task_id
    with pytest.raises(TaskExecutionError):
        client.sync([], {"do": "reply", "reply": {"status": "error"}})


# The end


@scenario
def close_ends_waits_and_later_calls(world: World) -> None:
    """Waits outstanding and every later call get ClientClosedError; close() may be repeated."""
    client = world.client("nobody")
    handle = client.async_call([], {})
    submissions = client.batch_submit([([], {})])

    def wait(number: int) -> Any:
        if number % 3 == 0:
            return client.sync([], {})
        return client.batch_collect(submissions) if number % 3 == 1 else handle.get()

    with at_once(6, wait) as waits:
        eventually(lambda: world.queues.count("normal.nobody.v1") == 4, within=5)
        # Two calls were not yet waiting, perhaps: closed all the same.
        client.close()
        for future in waits:
            assert isinstance(future.exception(timeout=5), ClientClosedError)
    client.close()
    calls: list[Callable[[], Any]] = [
        lambda: client.sync([], {}),
        lambda: client.async_call([], {}),
        client.desc,
        lambda: client.batch_submit([([], {})]),
        lambda: client.batch_submit([]),
        lambda: client.batch_collect(submissions),
        lambda: client.batch_sync_detailed([([], {})]),
        lambda: client.batch_async([([], {})]),
        lambda: client.batch_sync([([], {})]),
        client.ping,
        client.probe,
        lambda: client.attach("id"),
        lambda: handle.get(timeout=1),
        lambda: handle.get(timeout=0),
        handle.ready,
        handle.state,
        handle.forget,
    ]
    for call in calls:
        with pytest.raises(ClientClosedError) as caught:
            call()
        assert caught.value.operator_name == "nobody"
        assert caught.value.operator_version == "v1"


@scenario
def closing_one_client_leaves_the_others(world: World) -> None:
    """Clients that share a transport go on when one of them is closed, in the middle of a wait."""
    first, second = world.client(), world.client()
    with at_once(2, lambda n: (first, second)[n].sync([], sleeping(0.6))) as waits:
        eventually(lambda: len(results_stored(world)) == 2, within=5)
        first.close()
        assert isinstance(waits[0].exception(timeout=5), ClientClosedError)
        assert waits[1].result(timeout=5)[1]["queue"] == "normal.scripted.v1"
    assert second.sync([], {"n": 1})[1]["kwargs"]["options"] == {"n": 1}
