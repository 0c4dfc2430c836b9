"""The client for threads on ``memory://``: the same calls, errors and statistics as on Redis."""

import gc
import logging
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from sandai.op.client import OperatorClient, create_client
from sandai.op.models import (
    ConfigurationError,
    InvalidTaskError,
    OperatorConnectionError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskRequest,
    TaskResult,
    TaskTimeoutError,
)
from sandai.op.transport import statistics
from sandai.op.transport.testing import FakeOperator, Reply, World, world

WAIT = 10.0


@pytest.fixture
def here() -> World:
    """Give a world of the test's own."""
    return world(f"memory://{uuid4()}")


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    """Have Celery load what it loads at a first task: half a second, where much is going on."""
    with (
        FakeOperator("clipper", "v1", url="memory://warm"),
        create_client("clipper", "v1", broker_url="memory://warm", timeout=WAIT) as client,
    ):
        client.sync([], {})


@pytest.fixture
def operator(here: World) -> Iterator[FakeOperator]:
    """Run an operator that echoes."""
    with FakeOperator("clipper", "v1", url=here.url) as operator:
        yield operator


@pytest.fixture
def client(here: World) -> Iterator[OperatorClient]:
    """Give a client of the operator."""
    with create_client("clipper", "v1", broker_url=here.url, timeout=WAIT) as client:
        yield client


def until_empty(here: World) -> None:
    """Wait until nothing is stored: a deletion is on its way when its result is handed over."""
    deadline = time.monotonic() + WAIT
    while here.size() or here.awaited():
        assert time.monotonic() < deadline, (here.results()[:3], here.awaited()[:3])
        time.sleep(0.002)


def quick(here: World, **kwargs: Any) -> OperatorClient:
    """Return a client that gives up on a server after half a second."""
    return create_client("clipper", "v1", broker_url=here.url, io_timeout=0.5, **kwargs)


def test_every_call(client: OperatorClient, operator: FakeOperator) -> None:
    """Single calls, handles, batches, description, ping and probe."""
    video = {"uri": "file:///a.mp4", "slot": "video"}
    assert client.sync([video], {"n": 1}) == ([video], {"n": 1})
    handle = client.async_call([], {"n": 2}, priority="high")
    assert handle.get(timeout=WAIT)["results"] == {"n": 2}
    assert handle.state == "SUCCESS"
    handle.forget()
    assert [item.results for item in client.batch_sync_detailed([([], {"n": 3})] * 2)] == [
        {"n": 3},
        {"n": 3},
    ]
    assert client.desc["doc"] == "clipper v1, in memory"
    assert client.ping() is True
    health = client.probe()
    assert (health.submit_ok, health.retrieval_ok, health.response_ok) == (True, True, True)
    until_empty(operator.world)


def test_errors(client: OperatorClient, operator: FakeOperator) -> None:
    """What a handler raises or scripts comes out as it does from a worker."""
    operator.replies(ValueError("broken"), Reply.revoked(), Reply.lost())
    with pytest.raises(TaskExecutionError, match="broken") as caught:
        client.sync([], {})
    assert caught.value.error_details["exception_type"] == "ValueError"
    with pytest.raises(TaskCancelledError):
        client.sync([], {})
    with pytest.raises(TaskTimeoutError):
        client.sync([], {}, timeout=0.1)


def test_a_late_operator_skips(client: OperatorClient, here: World) -> None:
    """A task whose deadline passes in its queue is skipped, by the same clock as anywhere."""
    handle = client.async_call([], {}, timeout=0.01)
    deadline = here.queued("normal.clipper.v1")[0].request.deadline
    assert deadline is not None
    while time.time() < deadline:
        time.sleep(0.001)
    with FakeOperator("clipper", "v1", url=here.url):
        reply = handle.get(timeout=WAIT)
    assert reply["error"]["error_type"] == "TaskDeadlineExceededError"
    with pytest.raises(TaskDeadlineExceededError):
        raise_reply(client, reply)


def raise_reply(client: OperatorClient, reply: Any) -> None:
    """Raise what an envelope tells of, as the client's calls do."""
    with FakeOperator("clipper", "v1", lambda _: reply, url=client.broker_url):
        client.sync([], {})


def test_a_sweep_finds_what_is_not_published(
    client: OperatorClient, operator: FakeOperator
) -> None:
    """A result whose PUBLISH is lost is found all the same."""
    operator.replies(Reply.unpublished(TaskResult(results={"n": 1})))
    assert client.sync([], {}) == ([], {"n": 1})


def test_a_duplicate_is_taken_once(client: OperatorClient, operator: FakeOperator) -> None:
    """A result that comes twice is one result, and what comes late disturbs no other call."""
    operator.replies(Reply.twice(TaskResult(results={"n": 1})))
    assert client.sync([], {}) == ([], {"n": 1})
    assert client.sync([], {"n": 2}) == ([], {"n": 2})


def test_a_handler_may_wait_for_the_test(client: OperatorClient, here: World) -> None:
    """No sleep: the test sees the task come, and lets it go on."""
    gate = threading.Event()

    def handler(request: TaskRequest) -> TaskResult:
        assert gate.wait(WAIT)
        return TaskResult(results={"n": 1})

    with FakeOperator("clipper", "v1", handler, url=here.url) as operator:
        handle = client.async_call([], {})
        [task] = operator.wait_for(1)
        assert task.task_id == handle.task_id
        assert not handle.ready()
        gate.set()
        assert handle.get(timeout=WAIT)["results"] == {"n": 1}


def test_revoke(client: OperatorClient, here: World) -> None:
    """A handle's revoke() reaches the operator: what is queued is cancelled."""
    gate = threading.Event()
    with FakeOperator(
        "clipper", "v1", lambda _: gate.wait(WAIT) and None, url=here.url, concurrency=1
    ) as operator:
        running = client.async_call([], {})
        operator.wait_for(1)
        queued = client.async_call([], {})
        queued.revoke()
        with pytest.raises(TaskCancelledError):
            queued.get(timeout=WAIT)
        running.revoke(terminate=True)
        with pytest.raises(TaskCancelledError):
            running.get(timeout=WAIT)
        gate.set()


def test_revoke_where_nobody_can_be_reached(client: OperatorClient, here: World) -> None:
    """A broker that is away is an OperatorConnectionError of revoke(), too."""
    handle = client.async_call([], {})
    with here.outage("refused"), pytest.raises(OperatorConnectionError, match="refused"):
        handle.revoke()


def test_celerys_own_messages_are_refused(client: OperatorClient) -> None:
    """What Celery would publish itself reaches nobody here, and says so."""
    with pytest.raises(OperatorConnectionError, match="memory:// carries"):
        client.celery_app.send_task("some.task")


# Outages


@pytest.mark.parametrize(
    ("kind", "said", "in_doubt"),
    [
        ("refused", "Connection refused", False),
        ("stalled", "Timeout", True),
        ("swallowed", "Timeout", True),
        ("out-of-memory", "refused: OutOfMemoryError", False),
        ("read-only", "refused: ReadOnlyError", False),
        ("no-auth", r"refused: AuthenticationError: .*check the user", False),
        ("loading", "refused: ServerLoading", False),
    ],
)
def test_outages(here: World, operator: FakeOperator, kind: Any, said: str, in_doubt: bool) -> None:
    """A submission fails as it does on a Redis in that state; afterwards all is well."""
    with quick(here, timeout=WAIT) as client:
        assert client.sync([], {"n": 1}) == ([], {"n": 1})
        with here.outage(kind):
            with pytest.raises(OperatorConnectionError, match=said) as caught:
                client.async_call([], {"n": 2})
            assert client.ping(timeout=0.2) is False
        assert here.url in str(caught.value.reason)
        assert (caught.value.task_id is not None) is in_doubt
        assert client.sync([], {"n": 3}) == ([], {"n": 3})
        assert client.ping() is True


@pytest.mark.parametrize("kind", ["stalled", "swallowed"])
def test_in_doubt_may_mean_done(here: World, operator: FakeOperator, kind: Any) -> None:
    """A submission in doubt has its id: the task was queued, and can be attached to."""
    with quick(here, timeout=WAIT) as client:
        client.sync([], {})  # so that a connection is open
        with here.outage(kind, "broker"), pytest.raises(OperatorConnectionError) as caught:
            client.async_call([], {"n": 1})
        assert caught.value.task_id is not None
        reply = client.attach(caught.value.task_id).get(timeout=WAIT)
        assert reply["results"] == {"n": 1}


def test_retries_queue_a_task_once(here: World, operator: FakeOperator) -> None:
    """With submit_retries a swallowed reply is tried again, and the task comes once."""
    with quick(here, timeout=WAIT, submit_retries=3) as client:
        client.sync([], {})
        began = threading.Event()

        def submit() -> Any:
            began.set()
            return client.async_call([], {"n": 1})

        with ThreadPoolExecutor(1) as pool:
            with here.outage("swallowed", "broker"):
                submitting = pool.submit(submit)
                operator.wait_for(2)
            handle = submitting.result(WAIT)
        assert handle.get(timeout=WAIT)["results"] == {"n": 1}
        assert operator.received == 2


@pytest.mark.parametrize("kind", ["refused", "stalled", "swallowed", "no-auth", "loading"])
def test_a_wait_survives_an_outage(
    here: World, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    """A wait goes on through an outage of the backend and has its result afterwards."""
    caplog.set_level(logging.CRITICAL, "sandai.op")
    gate = threading.Event()
    with (
        FakeOperator("clipper", "v1", lambda _: gate.wait(WAIT) and None, url=here.url) as operator,
        quick(here, timeout=WAIT) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.sync, [], {})
        operator.wait_for(1)
        with here.outage(kind, "backend"):
            gate.set()
            while here.results() == []:
                time.sleep(0.001)
        assert waiting.result(WAIT) == ([], {})


def test_a_cut_is_survived(here: World) -> None:
    """Connections that are cut under a wait are opened anew."""
    gate = threading.Event()
    with (
        FakeOperator("clipper", "v1", lambda _: gate.wait(WAIT) and None, url=here.url) as operator,
        quick(here, timeout=WAIT) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.sync, [], {})
        operator.wait_for(1)
        here.cut()
        gate.set()
        assert waiting.result(WAIT) == ([], {})


def test_a_timeout_has_the_outage_as_its_cause(here: World, operator: FakeOperator) -> None:
    """A wait that runs out in an outage says why nothing came."""
    operator.replies(Reply.late(0.1))
    with quick(here) as client:
        handle = client.async_call([], {})
        with here.outage("refused", "backend"), pytest.raises(TaskTimeoutError) as caught:
            handle.get(timeout=1)
        assert "refused" in str(caught.value.__cause__)


@pytest.mark.parametrize("side", ["broker", "backend"])
def test_one_side_fails_alone(here: World, operator: FakeOperator, side: Any) -> None:
    """An outage of the broker leaves results alone, and one of the backend submissions."""
    with quick(here, timeout=WAIT) as client:
        handle = client.async_call([], {"n": 1})
        operator.wait_for(1)
        with here.outage("refused", side):
            if side == "broker":
                assert handle.get(timeout=WAIT)["results"] == {"n": 1}
                assert not client.ping()
            else:
                assert client.ping()
                with pytest.raises(OperatorConnectionError):
                    handle.ready()


def test_no_such_outage(here: World) -> None:
    """A misspelt outage is refused, with those that there are."""
    with pytest.raises(ValueError, match="there are refused, stalled"), here.outage("broken"):  # type: ignore[arg-type]  # the point
        pass
    with pytest.raises(ValueError, match="there are broker, backend"), here.outage("refused", "x"):  # type: ignore[arg-type]  # the point
        pass


# Budgets and memory


def test_budgets_are_kept(here: World, operator: FakeOperator) -> None:
    """Never more connections than the limits, as statistics() and the world count them."""
    most = {"broker": 0, "backend": 0}
    limits: dict[str, Any] = {"broker_pool_limit": 2, "backend_pool_limit": 3}
    with create_client("clipper", "v1", broker_url=here.url, timeout=WAIT, **limits) as client:

        def call(number: int) -> None:
            assert client.sync([], {"n": number}) == ([], {"n": number})
            with here.lock:
                sides = [peer.session.side for peer in here.peers if not peer.cut]
            for side, seen in most.items():
                most[side] = max(seen, sides.count(side))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(call, range(200)))
        now = statistics()
        [broker] = now.brokers.values()
        assert broker.sent == 200
        assert broker.connections.limit == 2
    assert 1 <= most["broker"] <= 2
    # One that is being replaced may not be gone yet.
    assert 1 <= most["backend"] <= 3


@pytest.mark.timeout(180)
def test_nothing_of_fifty_thousand_tasks_is_left(here: World) -> None:
    """Tasks that were submitted and read leave nothing in store, queues, channels or memory."""
    with (
        FakeOperator("clipper", "v1", lambda request: None, url=here.url) as operator,
        create_client("clipper", "v1", broker_url=here.url, timeout=60) as client,
    ):

        def thousand() -> None:
            results = client.batch_sync([([], {"n": n}) for n in range(1000)])
            assert len(results) == 1000

        held: list[int] = []
        tracemalloc.start()
        for _ in range(2):  # by then as many are remembered as ever are
            for _ in range(2):
                thousand()
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        for _ in range(46):
            thousand()
        assert operator.received == 50_000
        until_empty(here)
        assert not operator.running()
        assert held[1] - held[0] < 200_000
    assert not here.operators


def test_one_alone_is_no_list(client: OperatorClient, operator: FakeOperator) -> None:
    """A task's id is no list of the ids that its letters are; nor is a handle a list."""
    handle = client.async_call([], {})
    handle.get(timeout=WAIT)
    alone: Any
    for alone in (handle.task_id, handle, None, b"id", {"id": 1}):
        for call in (client.revoke, client.forget, client.batch_collect, client.as_completed):
            with pytest.raises(InvalidTaskError, match=r"a list of .* was expected"):
                call(alone)
    assert operator.world.results() == [handle.task_id]
    client.forget([handle.task_id])
    until_empty(operator.world)
    with pytest.raises(ConfigurationError, match="signal"):
        handle.revoke(terminate=True, signal="TERM")
