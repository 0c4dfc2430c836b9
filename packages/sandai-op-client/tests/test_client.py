"""The client's calls, on a real road within the process."""

from __future__ import annotations

import inspect
import math
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, current_app

from sandai.op.client import OperatorClient, create_client
from sandai.op.models import (
    ClientClosedError,
    ConfigurationError,
    HealthCheckResult,
    InvalidPriorityError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorConnectionError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskTimeoutError,
)
from sandai.op.transport import TaskMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import World

WAIT = 10.0
DOWN = "redis://:canary@127.0.0.1:1/0"


@pytest.fixture
def client(world: World) -> Iterator[OperatorClient]:
    """Yield a client."""
    with world.client(timeout=WAIT) as client:
        yield client


@pytest.fixture
def down() -> Iterator[OperatorClient]:
    """Yield a client of a server that is not there."""
    with OperatorClient("op", "v1", DOWN, pool_acquire_timeout=0.2) as client:
        yield client


def test_the_constructor_is_the_contracts() -> None:
    """Names, order, kinds and defaults."""
    optional = dict.fromkeys(
        (
            "task_serializer",
            "result_serializer",
            "accept_content",
            "broker_pool_limit",
            "backend_pool_limit",
            "backend_poll_concurrency",
            "pool_acquire_timeout",
        )
    )
    positional = {
        "operator_name": inspect.Parameter.empty,
        "operator_version": inspect.Parameter.empty,
        "broker_url": None,
        "result_backend": None,
        "timeout": 28800,
        "debug": False,
        "priority": "normal",
        "cancel_key": None,
        "auto_forget_result": None,
    }
    keywords = optional | {
        "io_timeout": 5.0,
        "shared_transport_scope": None,
        "broker_transport_options": None,
        "result_backend_transport_options": None,
        "submit_retries": None,
        "cancel_on_timeout": None,
        "validate_options": None,
        "tracing": None,
        "metrics": None,
    }
    parameters = list(inspect.signature(OperatorClient).parameters.values())
    defaults = [(each.name, each.default) for each in parameters]
    assert defaults == [*positional.items(), *keywords.items()]
    kinds = [each.kind for each in parameters]
    assert set(kinds[: len(positional)]) == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert set(kinds[len(positional) :]) == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ("async_call", "input_artifacts options priority timeout cancel_key persistent_output"),
        ("sync", "input_artifacts options priority timeout cancel_key persistent_output"),
        ("batch_submit", "tasks priority timeout cancel_key persistent_output"),
        ("batch_collect", "submissions timeout"),
        ("batch_sync_detailed", "tasks priority timeout cancel_key persistent_output"),
        ("batch_async", "tasks priority timeout cancel_key persistent_output"),
        ("batch_sync", "tasks priority timeout cancel_key persistent_output"),
        ("ping", "timeout"),
        ("probe", "timeout"),
        ("get_queue_info", ""),
        ("attach", "task_id"),
        ("close", ""),
    ],
)
def test_the_calls_take_what_the_contract_says(call: str, names: str) -> None:
    """The arguments' names, in order."""
    parameters = inspect.signature(getattr(OperatorClient, call)).parameters
    assert list(parameters) == ["self", *names.split()]


def test_everything_readable_is_readable(world: World) -> None:
    """The contract's attributes, and that the app is nobody's current one."""
    with create_client(
        "mem",
        "v1",
        broker_url="memory://",
        result_backend=world.backend,
        timeout=5,
        debug=True,
        priority="high",
        cancel_key="k",
        auto_forget_result=False,
    ) as client:
        assert (client.operator_name, client.operator_version) == ("mem", "v1")
        assert (client.timeout, client.debug, client.priority) == (5, True, "high")
        assert (client.cancel_key, client.auto_forget_result) == ("k", False)
        assert client.task_name == "sandai_operator.mem.v1.process_task"
        assert client.queue_names == client.get_queue_info()
        assert client.queue_names["very_low"] == "very_low.mem.v1"
        assert (client.broker_url, client.result_backend) == ("memory://", world.backend)
        assert client.config.operator_name == "mem"
        assert isinstance(client.celery_app, Celery)
        assert client.celery_app is client.celery_app
        assert current_app._get_current_object() is not client.celery_app
        assert repr(client) == "<OperatorClient mem v1>"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"timeout": -1}, ConfigurationError),
        ({"timeout": math.nan}, ConfigurationError),
        ({"priority": "urgent"}, InvalidPriorityError),
        ({"broker_pool_limit": 0}, ConfigurationError),
        ({"broker_url": "nowhere"}, ConfigurationError),
        ({"io_timeout": 0}, ConfigurationError),
    ],
)
def test_a_constructor_that_fails_leaves_nothing(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    """A bad setting is a typed error, and the half-made client is dropped in silence."""
    with pytest.raises(error):
        create_client("op", "v1", **arguments)


def test_a_clients_zero_is_no_limit(world: World) -> None:
    """Neither ``None`` nor 0 sets a deadline."""
    for timeout in (None, 0):
        with world.client(timeout=timeout) as client:
            assert client.timeout is None
            client.sync([], {})
    assert [request.deadline for request in world.requests] == [None, None]


def test_sync_hands_everything_over(world: World, client: OperatorClient) -> None:
    """Artifacts, options and controls arrive; artifacts and results come back, and are deleted."""
    artifacts = [{"uri": "u", "slot": "s", "meta": {"m": 1}}]
    before = time.time()
    assert client.sync(
        artifacts, {"n": 1}, "very_low", timeout=7, cancel_key="k", persistent_output=True
    ) == (artifacts, {"n": 1})
    [request] = world.requests
    assert request.cancel_key == "k"
    assert request.persistent_output
    assert request.deadline is not None
    assert before + 7 <= request.deadline <= time.time() + 7
    assert not list(world.folder.glob("*meta*"))


@pytest.mark.parametrize("priority", ["high", "normal", "low", "very_low"])
def test_every_priority_is_answered(client: OperatorClient, priority: str) -> None:
    """Each has its queue."""
    assert client.sync([], {}, priority=priority) == ([], {})


@pytest.mark.parametrize("auto_forget_result", [True, False])
def test_reading_deletes_unless_told_otherwise(world: World, auto_forget_result: bool) -> None:
    """The setting decides over ``sync``, ``desc`` and ``probe``."""
    with world.client(auto_forget_result=auto_forget_result, timeout=WAIT) as client:
        client.sync([], {})
        assert client.desc
        assert client.probe().response_ok
    left = list(world.folder.glob("*meta*"))
    assert len(left) == (0 if auto_forget_result else 3)


def test_bad_calls_queue_nothing(client: OperatorClient) -> None:
    """What is wrong with a call is a typed error of both calls."""
    odd: Any = object()
    for call in (client.sync, client.async_call):
        with pytest.raises(InvalidPriorityError):
            call([], {}, priority="urgent")
        with pytest.raises(InvalidTaskError, match="input_artifacts"):
            call(odd, {})
        with pytest.raises(InvalidTaskError, match=r"input_artifacts\[0\]\.uri"):
            call([{"uri": 1}], {})
        with pytest.raises(InvalidTaskError, match="options"):
            call([], odd)
        with pytest.raises(InvalidTaskError):
            call([], {"a": odd})
        for timeout in (-1, math.nan):
            with pytest.raises(ConfigurationError):
                call([], {}, timeout=timeout)
    assert client.statistics()[0].sent == 0


def test_a_timeout_is_ours_alone(world: World, client: OperatorClient) -> None:
    """The wait ran out: the task and the caller's timeout; an operator's word is not that."""
    with pytest.raises(TaskTimeoutError) as caught:
        client.sync([], {"wait": True}, timeout=0.1)
    assert caught.value.timeout == 0.1
    assert caught.value.task_id
    with pytest.raises(TaskTimeoutError):
        client.sync([], {"wait": True}, timeout=0)
    world.gate.set()
    error = {"error_type": "TimeoutError", "error_message": "timeout"}
    with pytest.raises(TaskExecutionError, match="timeout"):
        client.sync([], {"reply": {"status": "error", "error": error}})
    # In any order: the worker has two threads, and the first tasks waited in them.
    assert sum(request.deadline is None for request in world.requests) == 1
    assert len(world.requests) == 3


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ({"status": "error"}, TaskExecutionError),
        ({"status": "error", "error": "text"}, TaskExecutionError),
        (
            {"status": "error", "error": {"error_type": "TaskDeadlineExceededError"}},
            TaskDeadlineExceededError,
        ),
        ({"status": "error", "error": {"error_type": "TaskCancelledError"}}, TaskCancelledError),
        ({"status": "odd"}, InvalidTaskStatusError),
        ({}, InvalidTaskStatusError),
        ([1], InvalidResultFormatError),
        (None, InvalidResultFormatError),
        ({"status": "success", "artifacts": 5}, InvalidResultFormatError),
    ],
)
def test_replies_of_every_shape(
    client: OperatorClient, reply: object, error: type[Exception]
) -> None:
    """Each reply that is no success is its typed error."""
    with pytest.raises(error):
        client.sync([], {"reply": reply})


def test_a_task_that_failed_or_was_revoked(world: World, client: OperatorClient) -> None:
    """Celery's own states are typed errors too."""
    with pytest.raises(TaskExecutionError) as caught:
        client.sync([], {"boom": True})
    assert caught.value.error_details["exception_type"] == "RuntimeError"
    world.app.backend.mark_as_revoked("revoked")
    with pytest.raises(TaskCancelledError):
        client.attach("revoked").get(timeout=WAIT)


def test_the_description_is_asked_for_once(world: World, client: OperatorClient) -> None:
    """32 threads share one task, and the value is kept."""
    with ThreadPoolExecutor(32) as pool:
        described = list(pool.map(lambda _: client.desc, range(32)))
    assert described == [client.desc] * 32
    schema = {"type": "object"}
    assert client.desc == {"doc": "doc", "options_schema": schema, "results_schema": None}
    assert world.descriptions == 1


def test_a_description_that_failed_is_asked_for_again(
    client: OperatorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is not kept."""
    with monkeypatch.context() as patch:
        patch.setattr(client, "_fetch_description", _fail)
        with pytest.raises(LookupError):
            _ = client.desc
    assert client.desc["doc"] == "doc"


def _fail(limit: float | None, deadline: float) -> dict[str, Any]:
    raise LookupError("no")


def test_ping_and_probe_of_a_healthy_operator(world: World, client: OperatorClient) -> None:
    """A ping runs no task; a probe tells how far it came."""
    assert client.ping() is True
    assert world.requests == []
    result = client.probe(timeout=5)
    assert result == HealthCheckResult(True, True, True, result.task_id, None)
    [request] = world.requests
    assert request.options == {"test": True}
    assert request.artifacts == []
    assert request.deadline is not None


def test_a_probe_that_nobody_answers(world: World) -> None:
    """It could be submitted, no more."""
    with OperatorClient("nobody", "v1", "memory://", world.backend) as client:
        result = client.probe(timeout=0.1)
    assert (result.submit_ok, result.retrieval_ok, result.response_ok) == (True, False, False)
    assert result.task_id
    assert "0.1" in str(result.error)


@pytest.mark.parametrize(
    ("reply", "healthy"),
    [({"status": "error", "error": {"error_message": "no"}}, True), ({"status": "odd"}, False)],
)
def test_a_probe_judges_the_reply(
    client: OperatorClient, monkeypatch: pytest.MonkeyPatch, reply: object, healthy: bool
) -> None:
    """An error envelope is a sign of life, a malformed reply is not."""
    from sandai.op.models import protocol

    monkeypatch.setattr(protocol, "PROBE_OPTIONS", {"reply": reply})
    result = client.probe(timeout=5)
    assert (result.submit_ok, result.retrieval_ok, result.response_ok) == (True, True, healthy)
    assert result.error


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_health_checks_refuse_what_is_no_timeout(client: OperatorClient, timeout: float) -> None:
    """A caller's mistake is not the operator's ill health."""
    for call in (client.ping, client.probe):
        with pytest.raises(ConfigurationError):
            call(timeout)


def test_a_server_that_is_down(down: OperatorClient) -> None:
    """Every call says so soon, without the password."""
    began = time.monotonic()
    for call in (down.sync, down.async_call):
        with pytest.raises(OperatorConnectionError) as caught:
            call([], {})
        assert caught.value.task_id is None
        assert "canary" not in f"{caught.value!r} {caught.value}"
    with pytest.raises(OperatorConnectionError):
        _ = down.desc
    assert down.ping() is False
    result = down.probe()
    assert (result.submit_ok, result.retrieval_ok, result.response_ok) == (False, False, False)
    assert result.error
    assert "canary" not in result.error
    assert time.monotonic() - began < 5


def test_a_closed_client_refuses_everything(world: World) -> None:
    """Closing again does nothing; every call is refused."""
    client = world.client()
    with client as same:
        assert same is client
    client.close()
    for call in (
        lambda: client.sync([], {}),
        lambda: client.async_call([], {}),
        lambda: client.desc,
        client.ping,
        client.probe,
        client.statistics,
        lambda: client.attach("a"),
    ):
        with pytest.raises(ClientClosedError):
            call()
    assert client.task_name


@pytest.mark.parametrize("wait", ["sync", "get", "batch", "desc", "probe"])
def test_closing_ends_waits(world: World, wait: str) -> None:
    """Whoever waits, in whatever call, gets the error, not a result."""
    with OperatorClient("nobody", "v1", "memory://", world.backend) as client:
        calls: dict[str, Any] = {
            "sync": lambda: client.sync([], {}),
            "get": lambda: client.async_call([], {}).get(),
            "batch": lambda: client.batch_sync([([], {})]),
            "desc": lambda: client.desc,
            "probe": client.probe,
        }
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(calls[wait])
            deadline = time.monotonic() + WAIT
            while client._results.hub.statistics().pending == 0:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            client.close()
            with pytest.raises(ClientClosedError):
                future.result(WAIT)


def test_closing_while_others_submit(world: World) -> None:
    """They get their result or the error, and what was queued has a handle."""
    for _ in range(20):
        client = world.client(timeout=WAIT)
        start = threading.Barrier(4)

        def submit(client: OperatorClient = client, start: threading.Barrier = start) -> None:
            start.wait(WAIT)
            try:
                handle = client.async_call([], {})
            except ClientClosedError:
                return
            assert handle.task_id

        with ThreadPoolExecutor(3) as pool:
            submissions = [pool.submit(submit) for _ in range(3)]
            start.wait(WAIT)
            client.close()
            for each in submissions:
                each.result(WAIT)


def test_a_task_queued_as_the_client_closes_has_a_handle(
    client: OperatorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told the id of what was queued, though nothing can be asked of it."""
    send = client._submitter.send

    def closing(message: TaskMessage) -> str:
        task_id = send(message)
        client.close()
        return task_id

    monkeypatch.setattr(client._submitter, "send", closing)
    handle = client.async_call([], {})
    assert handle.task_id
    with pytest.raises(ClientClosedError):
        handle.get()


def test_threads_share_a_client(client: OperatorClient) -> None:
    """Many threads, each gets its own answers."""

    def work(thread: int) -> list[int]:
        return [client.sync([], {"n": thread * 10 + n})[1]["n"] for n in range(10)]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [
            [thread * 10 + n for n in range(10)] for thread in range(16)
        ]


def test_debug_logs_steps_without_values(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Each step is logged when asked for; options are not."""
    with caplog.at_level("DEBUG", logger="sandai.op.client"):
        with world.client(debug=True, timeout=WAIT) as client:
            client.sync([], {"secret": "canary"})
        assert "queued in normal." in caplog.text
        assert "canary" not in caplog.text
        caplog.clear()
        with world.client(timeout=WAIT) as client:
            client.sync([], {})
        assert "queued" not in caplog.text


def test_types_of_the_constructor() -> None:
    """Its hints can be resolved."""
    hints = inspect.get_annotations(OperatorClient.__init__, eval_str=True)
    assert hints["accept_content"] == Iterable[str] | None
    assert hints["broker_transport_options"] == Mapping[str, Any] | None
