"""The handle: Celery's AsyncResult, whose every accessor is ours."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
from celery.result import AsyncResult, ResultSet

from sandai.op.client import OperatorAsyncResult, SubmittedTask
from sandai.op.client._handle import celery_meta
from sandai.op.models import (
    ClientClosedError,
    ConfigurationError,
    InvalidTaskError,
    OperatorConnectionError,
    TaskExecutionError,
    TaskTimeoutError,
)
from sandai.op.transport import ResultDocument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import World
    from sandai.op.client import OperatorClient

WAIT = 10.0


@pytest.fixture
def client(world: World) -> Iterator[OperatorClient]:
    """Yield a client."""
    with world.client(timeout=WAIT) as client:
        yield client


def test_get_returns_the_raw_reply_and_leaves_it(client: OperatorClient) -> None:
    """The envelope as the operator returned it, for whoever asks next as well."""
    handle = client.async_call([{"uri": "u", "slot": "s"}], {"n": 1})
    assert isinstance(handle, AsyncResult)
    expected = {
        "status": "success",
        "artifacts": [{"uri": "u", "slot": "s"}],
        "results": {"n": 1},
    }
    assert handle.get() == expected
    assert handle.get(timeout=0) == expected
    assert client.attach(handle.id).get(timeout=WAIT) == expected
    assert handle.task_id == handle.id
    assert handle.wait(WAIT) == expected


def test_a_failed_task_raises_ours(client: OperatorClient) -> None:
    """The Celery task failed: a typed error, or its instance when not propagated."""
    handle = client.async_call([], {"boom": True})
    with pytest.raises(TaskExecutionError, match="boom") as caught:
        handle.get()
    assert caught.value.error_details["exception_type"] == "RuntimeError"
    again = client.attach(handle.id)
    error = again.get(WAIT, False)
    assert isinstance(error, TaskExecutionError)
    assert isinstance(client.attach(handle.id).get(propagate=False), TaskExecutionError)
    assert again.failed()


def test_every_accessor_stays_on_our_road(client: OperatorClient) -> None:
    """State, readiness, result, and what Celery derives from them."""
    handle = client.async_call([], {"n": 1})
    handle.get()
    fresh = client.attach(handle.id)
    assert fresh.ready()
    assert fresh.successful()
    assert not fresh.failed()
    assert fresh.state == fresh.status == "SUCCESS"
    assert fresh.result["results"] == fresh.info["results"] == {"n": 1}
    assert fresh.traceback is None
    assert fresh.children == []
    assert fresh.date_done is not None
    assert next(iter(fresh.collect()))[0] is fresh
    assert fresh.backend.task_result_exists(handle.id)
    assert fresh.backend.as_uri() == "sandai-op"
    fresh.forget()
    assert client.attach(handle.id).state == "PENDING"
    assert not fresh.backend.task_result_exists(handle.id)


def test_get_runs_out(world: World, client: OperatorClient) -> None:
    """A wait that ran out names the task and the caller's timeout."""
    handle = client.async_call([], {"wait": True})
    for timeout in (0, 0.05):
        with pytest.raises(TaskTimeoutError) as caught:
            handle.get(timeout=timeout)
        assert (caught.value.task_id, caught.value.timeout) == (handle.id, timeout)
    assert not handle.ready()
    world.gate.set()
    assert handle.get()["status"] == "success"


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_get_refuses_what_is_no_timeout(client: OperatorClient, timeout: float) -> None:
    """A timeout is a number of at least 0."""
    with pytest.raises(ConfigurationError, match="timeout"):
        client.attach("a").get(timeout=timeout)


@pytest.mark.parametrize("task_id", ["", None])
def test_attach_refuses_what_is_no_id(client: OperatorClient, task_id: Any) -> None:
    """An empty id is nobody's."""
    with pytest.raises(InvalidTaskError, match="task_id"):
        client.attach(task_id)


def test_sets_of_results(client: OperatorClient) -> None:
    """ResultSet joins, iterates and gets through our backend."""
    handles = [client.async_call([], {"n": n}) for n in range(5)]
    together = ResultSet(handles, app=client.celery_app)
    expected = list(range(5))
    for replies in (together.get(timeout=WAIT), together.join(timeout=WAIT)):
        assert [reply["results"]["n"] for reply in replies] == expected
    assert together.successful()
    assert together.ready()
    assert together.completed_count() == 5
    assert len(dict(together.iter_native(timeout=WAIT))) == 5


def test_a_set_that_runs_out_names_the_callers_timeout(
    world: World, client: OperatorClient
) -> None:
    """The late task of a set is a TaskTimeoutError of that timeout."""
    late = client.async_call([], {"wait": True})
    together = ResultSet([client.async_call([], {}), late], app=client.celery_app)
    with pytest.raises(TaskTimeoutError) as caught:
        together.join_native(timeout=0.5)
    assert (caught.value.task_id, caught.value.timeout) == (late.id, 0.5)
    world.gate.set()


def test_a_failure_in_a_set_is_raised(client: OperatorClient) -> None:
    """A set raises what its member would."""
    together = ResultSet([client.async_call([], {"boom": True})], app=client.celery_app)
    with pytest.raises(TaskExecutionError):
        together.join_native(timeout=WAIT)


def test_then_is_called_once(world: World, client: OperatorClient) -> None:
    """Before, after and besides reading the result, each callback is called once."""
    handle = client.async_call([], {"wait": True})
    called: list[str] = []
    first, second = threading.Event(), threading.Event()

    def callback(result: Any) -> None:
        called.append(result.id)
        first.set()

    handle.then(callback)
    world.gate.set()
    assert first.wait(WAIT)
    handle.get()
    handle.then(lambda _: second.set())
    assert second.is_set()
    other = client.async_call([], {})
    other.get()
    other.then(callback)
    assert called == [handle.id, other.id]
    handle.get()
    assert called == [handle.id, other.id]


def test_then_is_told_of_a_failure_too(client: OperatorClient) -> None:
    """The callback gets the handle, ready and failed."""
    done = threading.Event()
    handle = client.async_call([], {"boom": True})
    handle.then(lambda result: done.set() if result.failed() else None)
    assert done.wait(WAIT)


def test_a_handle_of_a_closed_client(world: World) -> None:
    """Whatever is asked after closing is refused; what was read stays."""
    with world.client() as client:
        read, unread = client.async_call([], {}), client.async_call([], {})
        read.get(WAIT)
    assert read.get()["status"] == "success"
    for ask in (unread.get, unread.ready, unread.forget, lambda: unread.state):
        with pytest.raises(ClientClosedError):
            ask()


def test_dropping_a_handle_does_nothing(
    client: OperatorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its finalizer asks neither the backend nor anything else."""
    asked: list[str] = []
    handle = client.async_call([], {})
    monkeypatch.setattr(
        type(handle.backend), "remove_pending_result", lambda *_: asked.append("asked")
    )
    del handle
    assert asked == []


def test_a_task_may_wait_for_another(world: World, client: OperatorClient) -> None:
    """Inside a task ``get()`` waits, and the outer task remembers its child."""

    def inner() -> Any:
        return client.async_call([], {"n": 2}).get(timeout=WAIT)["results"]

    world.inner = inner
    outer = client.async_call([], {"inner": True})
    assert outer.get(timeout=WAIT)["results"] == {"n": 2}
    [child] = client.attach(outer.id).children
    assert child.get(timeout=WAIT)["results"] == {"n": 2}


def test_a_single_look_tells_of_a_backend_that_is_down() -> None:
    """``ready()`` and ``state`` raise, at once."""
    import sandai.op.client

    url = "redis://127.0.0.1:1/0"
    with sandai.op.client.OperatorClient("op", "v1", url, pool_acquire_timeout=0.1) as client:
        handle = client.attach("a")
        for ask in (handle.ready, lambda: handle.state):
            with pytest.raises(OperatorConnectionError):
                ask()
        with pytest.raises(TaskTimeoutError) as caught:
            handle.get(timeout=0.3)
        assert caught.value.__cause__ is not None


def test_what_a_submission_says() -> None:
    """Submitted means certainly queued; the id is told where there is one."""
    unknown = SubmittedTask(1, error=OperatorConnectionError("op", "v1", "lost", "an id"))
    assert (unknown.submitted, unknown.task_id) == (False, "an id")
    refused = SubmittedTask(2, error=InvalidTaskError("options", "no"))
    assert (refused.submitted, refused.task_id) == (False, None)
    sure = SubmittedTask(3, OperatorAsyncResult("id", backend=object()))
    assert (sure.submitted, sure.task_id) == (True, "id")


def test_then_of_a_set(client: OperatorClient) -> None:
    """A ResultSet calls back when all its members are ready, without anybody who waits."""
    done = threading.Event()
    together = ResultSet([client.async_call([], {"n": n}) for n in range(3)])
    together.then(lambda _: done.set())
    assert done.wait(WAIT)
    assert together.successful()


def test_a_set_that_is_dropped_waits_for_nothing(world: World, client: OperatorClient) -> None:
    """Making a ResultSet watches its members for as long as it is kept."""
    together = ResultSet([client.async_call([], {"wait": True}) for _ in range(3)])
    [reader] = client.statistics()[1].readers
    assert reader.pending == 3
    del together
    gc.collect()
    with pytest.raises(TaskTimeoutError):
        client.attach("nothing").get(timeout=0.1)  # the hub has been round since
    [reader] = client.statistics()[1].readers
    assert reader.pending == 0
    world.gate.set()


def test_a_handle_is_copied_and_not_pickled(client: OperatorClient) -> None:
    """A copy asks the same client; a pickle could not, and says what to do instead."""
    handle = client.async_call([], {"n": 1})
    for copied in (copy.copy(handle), copy.deepcopy(handle)):
        assert copied == handle
        assert copied.get(timeout=WAIT) == handle.get(timeout=WAIT)
    with pytest.raises(TypeError, match="attach"):
        pickle.dumps(handle)


def test_get_takes_what_celerys_takes(client: OperatorClient) -> None:
    """Celery's positional arguments after the timeout are accepted."""
    assert client.async_call([], {"n": 1}).get(WAIT, True, 0.1)["results"] == {"n": 1}


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"result": None},
        {"children": 5},
        {"children": "x"},
        {"children": [5]},
        {"children": {"a": 1}},
        {"date_done": 5},
        {"date_done": "zzz"},
    ],
)
def test_a_malformed_document(client: OperatorClient, parts: dict[str, Any]) -> None:
    """Parts of a document that Celery would stumble over are as if they were not there."""
    document = ResultDocument("id", "SUCCESS", {"status": "SUCCESS", **parts})
    meta = celery_meta(document, client.celery_app)
    handle = client.attach("id")
    handle._maybe_set_cache(meta)
    assert handle.get(timeout=WAIT) is None
    assert (handle.children, handle.date_done, handle.state) == (None, None, "SUCCESS")


def test_nothing_of_a_closed_client_reaches_the_broker(world: World) -> None:
    """Neither revoke() nor its Celery app sends anything once the client is closed."""
    with world.client(timeout=WAIT) as client:
        handle = client.async_call([], {})
        app = client.celery_app
    calls: list[Callable[[], object]] = [
        handle.revoke,
        lambda: client.revoke([handle]),
        lambda: app.send_task("name", queue="queue"),
    ]
    for call in calls:
        with pytest.raises(ClientClosedError):
            call()
