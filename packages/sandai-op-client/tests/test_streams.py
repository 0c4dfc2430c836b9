"""map(): tasks that come and go, in a window, until the consumer has enough."""

from __future__ import annotations

import gc
import itertools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from sandai.op.client import OperatorClient, create_client
from sandai.op.models import (
    BatchTaskResult,
    ClientClosedError,
    ConfigurationError,
    InvalidPriorityError,
    InvalidTaskError,
    OperatorDescription,
    TaskTimeoutError,
)
from sandai.op.transport.testing import FakeOperator

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from conftest import World

WAIT = 10.0


@pytest.fixture
def client(world: World) -> Iterator[OperatorClient]:
    """Yield a client."""
    with world.client(timeout=WAIT) as client:
        yield client


@pytest.fixture
def unheard(world: World) -> Iterator[OperatorClient]:
    """Yield a client of an operator that there is not."""
    with OperatorClient("nobody", "v1", "memory://", world.backend, timeout=WAIT) as client:
        yield client


class Source:
    """An input without end, that tells how far it was read, and whether it was closed."""

    def __init__(self, options: Any = lambda n: {"n": n}) -> None:
        self.read = 0
        self.closed = False
        self.options = options

    def tasks(self) -> Generator[tuple[list[Any], dict[str, Any]], None, None]:
        """Yield tasks."""
        try:
            for n in itertools.count():
                self.read += 1
                yield [], self.options(n)
        finally:
            self.closed = True


def pending(client: OperatorClient) -> int:
    """Count the tasks that are waited for."""
    return sum(reader.pending for reader in client.statistics()[1].readers)


@contextmanager
def told_of_closing(results: Iterator[BatchTaskResult]) -> Iterator[None]:
    """Wait for the next result in a thread; it is told that the client was closed meanwhile."""

    def wait() -> None:
        with pytest.raises(ClientClosedError):
            next(results)
        told.set()

    told = threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join(WAIT)
    assert told.is_set()


def until(condition: Any) -> None:
    """Wait for what has no event."""
    deadline = threading.Event()
    for _ in range(1000):
        if condition():
            return
        deadline.wait(0.01)
    raise AssertionError("it never came to hold")


@pytest.mark.parametrize("ordered", [False, True])
def test_every_task_has_a_result(client: OperatorClient, ordered: bool) -> None:
    """Each is yielded once, with its place in the input; in order if so asked."""
    results = list(
        client.map((([], {"n": n}) for n in range(30)), max_in_flight=7, ordered=ordered)
    )
    assert all(result.success for result in results)
    assert sorted(result.index for result in results) == list(range(30))
    assert all(result.results == {"n": result.index} for result in results)
    if ordered:
        assert [result.index for result in results] == list(range(30))


def test_nothing_in_nothing_out(client: OperatorClient) -> None:
    """An empty input is an empty stream."""
    assert list(client.map([])) == []
    assert list(client.map(iter(()), ordered=True, max_in_flight=1)) == []


def test_what_is_wrong_is_said_at_the_call(client: OperatorClient) -> None:
    """Arguments are checked before anything is asked for, and nothing is read."""
    source = Source()
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"max_in_flight": 0}, ConfigurationError),
        ({"max_in_flight": "8"}, ConfigurationError),
        ({"timeout": 0}, ConfigurationError),
        ({"timeout": -1}, ConfigurationError),
        ({"priority": "urgent"}, InvalidPriorityError),
        ({"cancel_key": 7}, InvalidTaskError),
    ]
    for controls, error in wrong:
        with pytest.raises(error):
            client.map(source.tasks(), **controls)
    for no_tasks in (None, 7, "text", {"a": 1}):
        with pytest.raises(InvalidTaskError) as caught:
            client.map(no_tasks)  # type: ignore[arg-type]  # what a caller may give
        assert caught.value.path == "tasks"
    assert source.read == 0
    client.close()
    with pytest.raises(ClientClosedError):
        client.map([])


def test_the_controls_hold_for_each_task(world: World, client: OperatorClient) -> None:
    """Deadline, cancel key and persistent output go along."""
    tasks: list[Any] = [([], {}), ([], {})]
    assert all(client.map(tasks, timeout=5, cancel_key="k", persistent_output=True))
    for request in world.requests:
        assert request.deadline is not None
        assert request.cancel_key == "k"
        assert request.persistent_output


@pytest.mark.parametrize("ordered", [False, True])
def test_the_input_is_read_as_far_as_there_is_room(client: OperatorClient, ordered: bool) -> None:
    """At most so many are out or not yet yielded; nothing is read before the first is wanted."""
    source = Source()
    results = client.map(source.tasks(), max_in_flight=4, ordered=ordered)
    assert source.read == 0
    for yielded in range(1, 21):
        next(results)
        assert source.read <= yielded - 1 + 4
    results.close()
    assert source.closed


def test_one_slow_task_holds_the_others(world: World, client: OperatorClient) -> None:
    """In order, no more are taken while the first is not done; unordered, the others pass."""
    source = Source(lambda n: {"n": n, "wait": n == 0})
    results = client.map(source.tasks(), max_in_flight=4, ordered=True)
    first: list[BatchTaskResult] = []
    thread = threading.Thread(target=lambda: first.append(next(results)))
    thread.start()
    until(lambda: pending(client) == 1)
    assert source.read == 4
    world.gate.set()
    thread.join(WAIT)
    assert first[0].index == 0
    assert [next(results).index for _ in range(8)] == [*range(1, 9)]
    results.close()
    world.gate.clear()
    unordered = client.map(Source(source.options).tasks(), max_in_flight=4)
    assert 0 not in [next(unordered).index for _ in range(20)]
    world.gate.set()
    unordered.close()


def test_wrong_tasks_fail_alone(client: OperatorClient) -> None:
    """What is no task is an error in its own place, that says which, and the stream goes on."""
    tasks: list[Any] = [
        ([], {"n": 0}),
        "no pair",
        ([], {"n": 2}),
        None,
        ([], "no options"),
        ([], {"n": 5}),
    ]
    found = list(client.map(tasks, max_in_flight=2, ordered=True))
    assert [each.success for each in found] == [True, False, True, False, False, True]
    for index in (1, 3, 4):
        assert isinstance(found[index].error, InvalidTaskError)
        assert not found[index].submitted
        assert found[index].task_id is None
    assert [getattr(found[n].error, "path", None) for n in (1, 3)] == ["tasks[1]", "tasks[3]"]


def test_an_input_that_fails(client: OperatorClient) -> None:
    """What is out is yielded, then the input's own exception is raised, once."""

    def broken() -> Iterator[tuple[list[Any], dict[str, Any]]]:
        for n in range(5):
            yield [], {"n": n}
        raise KeyError("no more")

    seen: list[int] = []
    results = client.map(broken(), max_in_flight=3)
    with pytest.raises(KeyError, match="no more"):
        seen.extend(result.index for result in results)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert next(results, None) is None


def test_late_tasks(world: World, client: OperatorClient) -> None:
    """A task that is late is an error in its own result; the others come."""
    tasks: list[Any] = [([], {"n": n, "wait": n == 1}) for n in range(6)]
    results = client.map(tasks, max_in_flight=3, timeout=0.3)
    found = {result.index: result for result in results}
    assert len(found) == 6
    late = found.pop(1)
    assert isinstance(late.error, TaskTimeoutError)
    assert late.error.task_id == late.task_id
    assert late.error.timeout == 0.3
    assert late.submitted
    assert all(result.success for result in found.values())
    assert pending(client) == 0


@pytest.mark.parametrize("how", ["close", "drop", "break", "throw", "collect"])
def test_a_consumer_that_stops(unheard: OperatorClient, how: str) -> None:
    """Nothing more is read, nothing stays watched, the input is closed; no finalizer locks."""
    source = Source(lambda n: {"n": n} if n else "wrong")  # the first has its result at once
    results = unheard.map(source.tasks(), max_in_flight=6)
    assert not next(results).submitted
    assert pending(unheard) == 5
    match how:
        case "close":
            results.close()
        case "drop":
            del results
        case "break":
            for _ in unheard.map(Source(source.options).tasks(), max_in_flight=2):
                break
            results.close()
        case "throw":
            with pytest.raises(LookupError):
                results.throw(LookupError())
        case "collect":
            cycle: list[Any] = [results]
            cycle.append(cycle)
            # In the middle of a hub's work: a finalizer that locks would not come back.
            hub = unheard._results.hub
            with hub._thread_lock, hub._table._lock:
                del cycle, results
                gc.collect()
    assert source.closed
    assert source.read == 6
    until(lambda: pending(unheard) == 0)


def test_a_stream_that_was_never_begun(client: OperatorClient) -> None:
    """It reads nothing, and nothing is left of it."""
    source = Source()
    results = client.map(source.tasks())
    results.close()
    assert list(results) == []
    assert source.read == 0


def test_closing_the_client_ends_a_stream(unheard: OperatorClient) -> None:
    """Whoever waits for the next result, and whoever asks for it later, is told."""
    waiting = unheard.map(Source().tasks(), max_in_flight=2)
    resting = unheard.map(Source(lambda n: {"n": n} if n else 0).tasks(), max_in_flight=2)
    next(resting)
    with told_of_closing(waiting):
        until(lambda: pending(unheard) == 3)
        unheard.close()
    with pytest.raises(ClientClosedError):
        next(resting)


def test_a_stream_keeps_its_client(world: World) -> None:
    """Who has nothing but the stream has its client, too; dropped together, that is told."""

    def results(count: int) -> Iterator[BatchTaskResult]:
        client = world.client(timeout=WAIT)
        return client.map(([], {"n": n}) for n in range(count))

    stream = results(3)
    gc.collect()
    assert next(stream).success
    assert next(stream).success
    kept = [stream]
    del stream
    with pytest.warns(ResourceWarning, match="never closed"):
        kept.clear()


def test_two_streams_of_one_client(client: OperatorClient) -> None:
    """They do not get in each other's way, the one being the input of the other."""
    inner = client.map((([], {"n": n}) for n in range(20)), max_in_flight=3)
    outer = client.map(
        (([], {"n": result.results["n"] + 100}) for result in inner), max_in_flight=5, ordered=True
    )
    assert sorted(result.results["n"] for result in outer) == list(range(100, 120))


def test_inside_a_task(world: World, client: OperatorClient) -> None:
    """A task of another operator may stream."""
    found: list[int] = []

    def inner() -> dict[str, Any]:
        with world.client(timeout=WAIT) as own:
            for result in own.map((([], {"n": n}) for n in range(5)), max_in_flight=2):
                found.append(result.results["n"])
        return {"found": sorted(found)}

    world.inner = inner
    assert client.sync([], {"inner": True})[1] == {"found": [0, 1, 2, 3, 4]}


# as_completed()


def test_submissions_and_handles_alike(client: OperatorClient) -> None:
    """Whatever was submitted how: each result comes, and says whose it is."""
    bad: Any = [([], {"n": 0}), "no pair", ([], {"n": 2})]
    submitted = client.batch_submit(bad)
    single = client.async_call([], {"n": 3})
    again = client.attach(single.task_id)
    found = list(client.as_completed([*submitted[::-1], single, again, submitted[0]]))
    assert sorted(
        (each.index, each.results.get("n"), each.submitted, each.success) for each in found
    ) == [
        (0, 0, True, True),
        (0, 0, True, True),
        (1, None, False, False),
        (2, 2, True, True),
        (3, 3, True, True),
        (4, 3, True, True),
    ]
    assert found[0].error is submitted[1].error
    assert list(client.as_completed([])) == []


def test_as_they_come(world: World, client: OperatorClient) -> None:
    """The one that takes longer is yielded later; reading deletes."""
    submitted = client.batch_submit([([], {"wait": True}), ([], {"n": 1})])
    results = client.as_completed(submitted)
    assert next(results).results == {"n": 1}
    world.gate.set()
    assert next(results).index == 0
    assert next(results, None) is None
    for each in submitted:
        assert each.async_result is not None
        until(lambda handle=each.async_result: handle.state == "PENDING")


def test_what_is_not_there_in_time_comes_at_the_end(unheard: OperatorClient) -> None:
    """One budget for all, from the call on; a timeout of 0 looks once."""
    submitted = unheard.batch_submit([([], {}), ([], {})])
    for timeout in (0.2, 0):
        found = list(unheard.as_completed(submitted, timeout=timeout))
        assert [each.index for each in found] == [0, 1]
        for each in found:
            assert isinstance(each.error, TaskTimeoutError)
            assert each.error.timeout == timeout
            assert each.submitted
    assert pending(unheard) == 0


def test_what_came_while_nobody_asked_is_there(client: OperatorClient) -> None:
    """A consumer that is slower than the budget gets what was done in time."""
    submitted = client.batch_submit([([], {"n": n}) for n in range(6)])
    results = client.as_completed(submitted, timeout=3)
    first = next(results)
    until(lambda: pending(client) == 0)
    threading.Event().wait(3)
    assert {first.index, *(each.index for each in results if each.success)} == set(range(6))


def test_what_is_no_submission(client: OperatorClient) -> None:
    """It is refused at the call, and named."""
    wrong: list[Any] = [None, "id", [client.attach("id"), 7]]
    for submissions in wrong:
        with pytest.raises(InvalidTaskError) as caught:
            client.as_completed(submissions)
        assert caught.value.path.startswith("submissions")
    with pytest.raises(ConfigurationError):
        client.as_completed([], timeout=-1)
    client.close()
    with pytest.raises(ClientClosedError):
        client.as_completed([])


@pytest.mark.parametrize("how", ["close", "drop"])
def test_who_stops_waiting(unheard: OperatorClient, how: str) -> None:
    """Nothing stays watched."""
    bad: Any = [([], {}), ([], {}), 7]
    results = unheard.as_completed(unheard.batch_submit(bad), timeout=0.4)
    assert next(results).index == 2
    assert next(results).index == 0
    if how == "close":
        results.close()
    else:
        del results
    waiting = unheard.as_completed([unheard.attach("x"), *unheard.batch_submit(bad)[2:]])
    next(waiting)
    with told_of_closing(waiting):
        until(lambda: pending(unheard) == 1)
        unheard.close()


@pytest.mark.parametrize("call", ["map", "as_completed"])
def test_a_late_task_says_what_is_known(call: str) -> None:
    """A stream's timeouts are explained as any call's: the task is in a queue, among others."""
    url = f"memory://{uuid4()}"
    with create_client("nobody", "v1", broker_url=url) as client:
        if call == "map":
            found = list(client.map([([], {}), ([], {})], timeout=0.1, priority="low"))
            expected: tuple[str | None, int] = ("low.nobody.v1", 2)
        else:
            submitted = client.batch_submit([([], {}), ([], {})])
            found, expected = list(client.as_completed(submitted, timeout=0.1)), (None, 2)
        assert len(found) == 2
        for error in (result.error for result in found):
            assert isinstance(error, TaskTimeoutError)
            assert (error.state, error.queue, error.queue_depth) == ("queued", *expected)
        [looked] = client.as_completed(client.batch_submit([([], {})]), timeout=0)
        assert isinstance(looked.error, TaskTimeoutError)
        assert looked.error.state == "unknown"


def test_a_stream_checks_options() -> None:
    """What the operator's schema does not take is that task's error; the others go."""
    url, schema = f"memory://{uuid4()}", {"properties": {"n": {"type": "integer"}}}
    said = OperatorDescription("counts", schema, {})
    with (
        FakeOperator("counter", "v1", url=url, description=said) as operator,
        create_client("counter", "v1", broker_url=url, validate_options=True) as client,
    ):
        tasks: list[Any] = [([], {"n": 1}), ([], {"n": "one"})]
        good, bad = client.map(tasks, ordered=True, timeout=WAIT)
        assert good.results == {"n": 1}
        assert isinstance(bad.error, InvalidTaskError)
        assert bad.error.path == "options.n"
        assert [task.request.options for task in operator.tasks[1:]] == [{"n": 1}]
    with (
        create_client("nobody", "v1", broker_url=url, validate_options=True) as client,
        pytest.raises(TaskTimeoutError),
    ):
        next(client.map([([], {})], timeout=0.1))
