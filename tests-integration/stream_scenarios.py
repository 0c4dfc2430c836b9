"""What streams and revocations of every client must do; more scenarios, as in `scenarios`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandai.op.models import (
    BatchTaskResult,
    ClientClosedError,
    ConfigurationError,
    InvalidPriorityError,
    InvalidTaskError,
    OperatorError,
    TaskCancelledError,
    TaskTimeoutError,
)
from scenarios import VIDEO, ClientView, Handle, Scenario, Task, World, at_once, sleeping
from watching import eventually

STREAMS: list[Scenario] = []
WORKERS = 8
"""The tasks that the scripted operator does at once."""


def stream(function: Scenario) -> Scenario:
    """Add a function to the list."""
    STREAMS.append(function)
    return function


class Source:
    """An input without end; it knows how far it was read, and whether it was closed."""

    def __init__(self, options: Callable[[int], Any] = lambda n: {"n": n}) -> None:
        self.read = 0
        self.closed = False
        self._options = options

    def __iter__(self) -> Iterator[Task]:
        try:
            for n in itertools.count():
                self.read += 1
                yield [], self._options(n)
        finally:
            self.closed = True


def pending(client: ClientView) -> int:
    """Count the tasks that are waited for."""
    return sum(reader.pending for reader in client.statistics()[1].readers)


def number(result: BatchTaskResult) -> int:
    """Return the option ``n`` of an echo."""
    assert result.success, result.error
    found: int = result.results["kwargs"]["options"]["n"]
    return found


@contextmanager
def busy(world: World, seconds: float) -> Iterator[None]:
    """Have the operator take nothing more for a while, and then be done with what it has."""
    client = world.client()
    held = [client.async_call([], sleeping(seconds)) for _ in range(WORKERS)]
    eventually(lambda: all(handle.state() == "STARTED" for handle in held), within=5)
    if world.queues.prefetched:
        # As many are taken already, to be next, and cannot be revoked any more.
        held += [client.async_call([], {}) for _ in range(WORKERS)]
        eventually(lambda: world.queues.count("normal.scripted.v1") == 0, within=5)
    yield
    for handle in held:
        reply = handle.get(timeout=20)
        assert reply["status"] == "success", reply


# map()


@stream
def a_stream_has_a_result_of_every_task(world: World) -> None:
    """Each comes once, and says its place in the input; reading deletes."""
    client = world.client()
    tasks: list[Task] = [(VIDEO, {"n": n}) for n in range(50)]
    found = list(client.map(iter(tasks), max_in_flight=7))
    assert sorted(result.index for result in found) == list(range(50))
    assert all(number(result) == result.index for result in found)
    assert all(result.artifacts == VIDEO for result in found)
    assert len({result.task_id for result in found}) == 50
    eventually(lambda: not world.redis.keys("celery-task-meta-*"), within=2)


@stream
def a_stream_may_keep_the_order(world: World) -> None:
    """In order, whatever is done first."""
    client = world.client()
    tasks: list[Task] = [([], {"n": n, **sleeping(0.02 * (4 - n % 5))}) for n in range(30)]
    found = list(client.map(tasks, max_in_flight=6, ordered=True))
    assert [number(result) for result in found] == list(range(30))


@stream
def an_empty_stream_is_empty(world: World) -> None:
    """Nothing in, nothing out, and nobody is asked."""
    client = world.client("nobody")
    assert list(client.map([])) == []
    assert list(client.map(iter(()), ordered=True)) == []
    assert list(client.as_completed([])) == []
    assert world.queues.count("normal.nobody.v1") == 0


@stream
def a_stream_reads_as_far_as_there_is_room(world: World) -> None:
    """At most so many are out, or done and not yet taken; an input may have no end."""
    client = world.client()
    for ordered in (False, True):
        source = Source()
        results = client.map(source, max_in_flight=5, ordered=ordered)
        assert source.read == 0
        for taken in range(1, 31):
            next(results)
            assert source.read <= taken - 1 + 5 + 1  # one may be on its way already
        results.close()
        read = source.read
        eventually(lambda: pending(client) == 0, within=3)
        assert source.read == read


@stream
def one_slow_task_holds_an_ordered_stream(world: World) -> None:
    """Behind it no more are read than the window takes; unordered, the others pass."""
    client = world.client()
    source = Source(lambda n: {"n": n, **sleeping(0 if n else 0.6)})
    results = client.map(source, max_in_flight=4, ordered=True)
    assert number(next(results)) == 0
    assert source.read <= 5
    assert [number(next(results)) for _ in range(7)] == list(range(1, 8))
    results.close()
    source = Source(lambda n: {"n": n, **sleeping(0 if n else 0.6)})
    results = client.map(source, max_in_flight=4)
    assert 0 not in [number(next(results)) for _ in range(10)]
    results.close()


@stream
def wrong_tasks_of_a_stream_fail_alone(world: World) -> None:
    """What is no task is an error in its own result; wrong arguments are refused at the call."""
    client = world.client()
    tasks: list[Any] = [([], {"n": 0}), "no pair", ([], {"n": 2}), None, ([], {5: 6}), [[], {}]]
    found = list(client.map(tasks, max_in_flight=2, ordered=True))
    assert [result.success for result in found] == [True, False, True, False, False, True]
    for index in (1, 3, 4):
        assert isinstance(found[index].error, InvalidTaskError)
        assert not found[index].submitted
        assert found[index].task_id is None
    assert getattr(found[3].error, "path", None) == "tasks[3]"
    wrong: list[tuple[dict[str, Any], type[OperatorError]]] = [
        ({"max_in_flight": 0}, ConfigurationError),
        ({"max_in_flight": 2.5}, ConfigurationError),
        ({"timeout": 0}, ConfigurationError),
        ({"timeout": "1"}, ConfigurationError),
        ({"priority": "urgent"}, InvalidPriorityError),
        ({"cancel_key": 7}, InvalidTaskError),
    ]
    for controls, error in wrong:
        with pytest.raises(error):
            client.map([], **controls)
    for no_tasks in (None, 7, "text", {"a": 1}):
        with pytest.raises(InvalidTaskError):
            client.map(no_tasks)


@stream
def the_controls_of_a_stream_hold_for_each_task(world: World) -> None:
    """Priority, deadline, cancel key and persistent output go along."""
    client = world.client()
    controls = {"cancel_key": "k", "persistent_output": True, "priority": "high", "timeout": 15}
    before = time.time()
    for result in client.map([([], {"n": n}) for n in range(3)], **controls):
        assert result.results["queue"] == "high.scripted.v1"
        kwargs = result.results["kwargs"]
        assert kwargs["cancel_key"] == "k"
        assert kwargs["meta"] == {"persistent-output": True}
        assert before + 15 <= kwargs["deadline"] <= time.time() + 15


@stream
def an_input_that_raises(world: World) -> None:
    """What is out is given first; then the input's own exception, once."""

    def broken() -> Iterator[Task]:
        for n in range(5):
            yield [], {"n": n, **sleeping(0.05)}
        raise LookupError("no more")

    for ordered in (False, True):
        seen: list[int] = []
        results = world.client().map(broken(), max_in_flight=3, ordered=ordered)
        with pytest.raises(LookupError, match="no more"):
            seen.extend(map(number, results))
        assert sorted(seen) == [0, 1, 2, 3, 4]
        assert list(results) == []


@stream
def a_late_task_of_a_stream(world: World) -> None:
    """It is a TaskTimeoutError in its own result, counted from its submission; the others come."""
    client = world.client()
    tasks: list[Task] = [([], {"n": n, **sleeping(1.5 if n == 1 else 0.15)}) for n in range(12)]
    began = time.monotonic()
    found = list(client.map(tasks, max_in_flight=3, timeout=0.7, ordered=True))
    assert time.monotonic() - began < 5
    assert [result.success for result in found] == [n != 1 for n in range(12)]
    error = found[1].error
    assert isinstance(error, TaskTimeoutError)
    assert (error.task_id, error.timeout) == (found[1].task_id, 0.7)
    assert found[1].submitted
    assert pending(client) == 0
    assert client.attach(str(found[1].task_id)).get(timeout=10)["status"] == "success"


@stream
def a_stream_that_is_stopped(world: World) -> None:
    """Nothing more is read, nothing stays watched, a generator is closed."""
    client = world.client("nobody")
    source = Source(lambda n: {} if n else "wrong")  # the first has its result at once
    results = client.map(iter(source), max_in_flight=6)
    assert not next(results).submitted
    eventually(lambda: pending(client) >= 5, within=5)
    results.close()
    assert source.closed
    read = source.read
    assert read <= 7
    eventually(lambda: pending(client) == 0, within=3)
    results.close()
    assert next(results, None) is None
    unbegun = client.map(iter(Source()))
    unbegun.close()
    assert list(unbegun) == []


@stream
def two_streams_of_one_client(world: World) -> None:
    """Streams at the same time have each their own results."""
    client = world.client()

    def consume(caller: int) -> list[int]:
        tasks: Iterator[Task] = (([], {"n": 100 * caller + n}) for n in range(40))
        return [number(result) for result in client.map(tasks, max_in_flight=5, ordered=True)]

    with at_once(3, consume) as streams:
        for caller, each in enumerate(streams):
            assert each.result(20) == [100 * caller + n for n in range(40)]


@stream
def closing_the_client_ends_its_streams(world: World) -> None:
    """Whoever waits for the next result, and whoever asks later, gets ClientClosedError."""
    client = world.client("nobody")
    mapped, arriving = (
        client.map(Source(), max_in_flight=2),
        client.as_completed(client.batch_submit([([], {})])),
    )
    resting = client.map(Source(lambda n: {} if n else "wrong"), max_in_flight=2)
    next(resting)
    with at_once(2, lambda n: next((mapped, arriving)[n])) as waits:
        eventually(lambda: pending(client) >= 4, within=5)
        client.close()
        for each in waits:
            assert isinstance(each.exception(timeout=5), ClientClosedError)
    with pytest.raises(ClientClosedError):
        next(resting)
    for call in (
        lambda: client.map([]),
        lambda: client.as_completed([]),
        lambda: client.revoke([]),
    ):
        with pytest.raises(ClientClosedError):
            call()


# as_completed()


@stream
def results_as_they_come(world: World) -> None:
    """Of submissions and handles alike, one for each place; the slow ones come later."""
    client = world.client()
    tasks: list[Any] = [([], {"n": 0, **sleeping(0.6)}), "no pair", ([], {"n": 2})]
    submitted = client.batch_submit(tasks)
    single = client.async_call([], {"n": 3, **sleeping(0.3)})
    given = [*submitted, single, client.attach(single.task_id), submitted[2]]
    found = list(client.as_completed(given))
    assert sorted(result.index for result in found) == [0, 1, 2, 2, 3, 4]
    assert found[0].error is submitted[1].error
    assert number(found[-1]) == 0
    assert [number(result) for result in found[1:-1]] == [2, 2, 3, 3]
    eventually(lambda: not world.redis.keys("celery-task-meta-*"), within=2)


@stream
def what_does_not_come_in_time_comes_at_the_end(world: World) -> None:
    """One budget for all, from the call on; with a timeout of 0 one look."""
    client = world.client()
    submitted = client.batch_submit([([], {"n": 0, **sleeping(1.2)}), ([], {"n": 1})])
    began = time.monotonic()
    first, last = client.as_completed(submitted, timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 1.1
    assert number(first) == 1
    assert isinstance(last.error, TaskTimeoutError)
    assert (last.error.task_id, last.error.timeout) == (submitted[0].task_id, 0.5)
    [looked] = client.as_completed(submitted[:1], timeout=0)
    assert isinstance(looked.error, TaskTimeoutError)
    [late] = client.as_completed(submitted[:1])
    assert number(late) == 0
    for wrong in (None, 7, "an id"):
        with pytest.raises(InvalidTaskError):
            client.as_completed([submitted[0], wrong])


# revoke(), and what gives up


def cancelled(handle: Handle) -> bool:
    """Wait until a task is over; tell whether it was revoked."""
    try:
        handle.get(timeout=20)
    except TaskCancelledError as error:
        return error.task_id == handle.task_id
    return False


@stream
def a_queued_task_is_revoked(world: World) -> None:
    """By its handle, or many at a time by whatever names them; the others are done."""
    client = world.client()
    with busy(world, 0.8):
        handle, spared, named = (client.async_call([], {"n": n}) for n in range(3))
        submitted = client.batch_submit([([], {"n": n}) for n in range(4)])
        handle.revoke()
        client.revoke([named.task_id, submitted[1], client.attach(str(submitted[3].task_id))])
        client.revoke([])
        results = client.batch_collect(submitted)
        assert [type(result.error) for result in results] == [
            type(None),
            TaskCancelledError,
            type(None),
            TaskCancelledError,
        ]
        assert [cancelled(each) for each in (handle, spared, named)] == [True, False, True]
    for wrong in (None, 7, ""):
        with pytest.raises(InvalidTaskError):
            client.revoke([wrong])
    with pytest.raises(ConfigurationError):
        client.revoke([handle], terminate=True, signal="TERM")


@stream
def what_is_given_up_is_revoked(world: World) -> None:
    """With cancel_on_timeout, whichever call ran out of time; its error comes in time."""
    client = world.client(cancel_on_timeout=True)
    with busy(world, 2.5):
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError) as caught:
            client.sync([], {}, timeout=0.2)
        late = [caught.value.task_id]
        submitted = client.batch_submit([([], {}), ([], {})])
        for found in (
            client.batch_collect(submitted[:1], timeout=0.2),
            client.as_completed(submitted[1:], timeout=0.2),
            client.batch_sync_detailed([([], {}), ([], {})], timeout=0.2),
            client.map([([], {}), ([], {})], timeout=0.2),
        ):
            for result in found:
                assert isinstance(result.error, TaskTimeoutError), result
                late.append(result.error.task_id)
        assert time.monotonic() - began < 2
        before = queued_ids(world)
        keeping = world.client(cancel_on_timeout=True, auto_forget_result=False)
        stopped = keeping.map(Source(lambda n: {} if n else "wrong"), max_in_flight=3)
        next(stopped)
        eventually(lambda: pending(keeping) >= 2, within=5)
        stopped.close()
        dropped = queued_ids(world) - before
        assert len(dropped) >= 2
        looked = client.async_call([], {})
        with pytest.raises(TaskTimeoutError):
            looked.get(timeout=0.1)  # others may wait for it
        [look] = client.batch_collect(client.batch_submit([([], {})]), timeout=0)
    assert len(late) == 7
    patient = world.client()
    assert all(cancelled(patient.attach(task_id)) for task_id in [*late, *dropped])
    assert not cancelled(looked)
    assert not cancelled(patient.attach(str(look.task_id)))


def queued_ids(world: World) -> set[str]:
    """Return the tasks that nobody has taken yet."""
    return {message["id"] for message in world.queues.messages("normal.scripted.v1")}


@stream
def what_is_given_up_just_before_the_end_is_revoked(world: World) -> None:
    """A client that is closed at once revokes all the same."""
    client = world.client(cancel_on_timeout=True)
    with busy(world, 1.2):
        with pytest.raises(TaskTimeoutError) as caught:
            client.sync([], {}, timeout=0.1)
        client.close()
    assert cancelled(world.client().attach(caught.value.task_id))


@stream
def nothing_is_revoked_unasked(world: World) -> None:
    """Without cancel_on_timeout what ran out of time is done all the same."""
    client = world.client()
    with busy(world, 0.8):
        with pytest.raises(TaskTimeoutError) as caught:
            client.sync([], {}, timeout=0.1)
        late = [caught.value.task_id]
        for result in client.map([([], {})], timeout=0.1):
            assert isinstance(result.error, TaskTimeoutError)
            late.append(result.error.task_id)
    # Their deadline has passed: the operator says so.
    for task_id in late:
        reply = client.attach(task_id).get(timeout=10)
        assert reply["error"]["error_type"] == "TaskDeadlineExceededError"
