"""
A caller's trace goes on in the operator: real SDKs on both sides of a real broker.

The client exports to memory, the worker to a file.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from celery_worker import CeleryWorker
from conftest import MakeClient
from light_operator import LightOperator
from local_rabbitmq import LocalRabbitMQ
from local_redis import LocalRedis
from sandai.op.aio import AsyncOperatorClient
from sandai.op.client import OperatorClient
from sandai.op.models import OperatorConnectionError, TaskExecutionError, TaskTimeoutError
from scenarios import ClientView
from tcp_proxy import TcpProxy, Way
from watching import eventually

TRACED, FIXED, VERSION = "traced", "fixed", "v1"


@frozen
class Spans:
    """The spans that this process has finished."""

    exporter: InMemorySpanExporter

    @property
    def finished(self) -> list[ReadableSpan]:
        """All of them, in the order of their ends."""
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Those whose name begins so."""
        return [span for span in self.finished if span.name.startswith(name)]

    def one(self, name: str) -> ReadableSpan:
        """The one whose name begins so."""
        [span] = self.named(name)
        return span


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Have the clients' spans, and ours, exported to memory."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield Spans(exporter)
    provider.shutdown()


@frozen
class Operators:
    """The operators' URLs, and where the traced one writes its spans."""

    broker_url: str
    result_backend: str
    written: Path

    @property
    def settings(self) -> dict[str, Any]:
        """A client's settings."""
        return {"result_backend": self.result_backend, "timeout": 20}

    def processed(self, task_ids: list[str]) -> dict[str, dict[str, Any]]:
        """Wait for the spans in which tasks were processed; return them by task id."""

        def found() -> dict[str, dict[str, Any]] | None:
            lines = [json.loads(line) for line in self.written.read_text("utf-8").splitlines()]
            by_id = {line["attributes"]["messaging.message.id"]: line for line in lines}
            return by_id if set(task_ids) <= set(by_id) else None

        eventually(lambda: found() is not None, within=5)
        spans = found()
        assert spans is not None
        return {task_id: spans[task_id] for task_id in task_ids}


@contextmanager
def running(broker_url: str, result_backend: str, folder: Path) -> Iterator[Operators]:
    """Run a worker of both operators."""
    operators = Operators(broker_url, result_backend, folder / "spans.jsonl")
    environment = {
        "TRACED_OPERATOR_BROKER_URL": broker_url,
        "TRACED_OPERATOR_RESULT_BACKEND": result_backend,
        "TRACED_OPERATOR_SPANS": str(operators.written),
    }
    with (
        CeleryWorker("traced_operator", TRACED, VERSION, environment=environment, concurrency=4),
        CeleryWorker("traced_operator", FIXED, VERSION, environment=environment, concurrency=1),
    ):
        yield operators


@pytest.fixture(scope="module")
def on_redis(
    redis_server: LocalRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    """Run the operators on Redis."""
    url = f"{redis_server.url.removesuffix('/0')}/999"
    with running(url, url, tmp_path_factory.mktemp("redis")) as operators:
        yield operators


@pytest.fixture(scope="module")
def on_rabbitmq(
    rabbitmq: LocalRabbitMQ, redis_server: LocalRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    """Run the operators on RabbitMQ, with results on Redis."""
    url = f"{redis_server.url.removesuffix('/0')}/998"
    with running(rabbitmq.url, url, tmp_path_factory.mktemp("rabbitmq")) as operators:
        yield operators


@pytest.fixture(params=["on_redis", "on_rabbitmq"])
def operators(request: pytest.FixtureRequest) -> Operators:
    """Give the operators on each broker."""
    operators: Operators = request.getfixturevalue(request.param)
    return operators


@pytest.fixture
def client(operators: Operators, make_client: MakeClient) -> ClientView:
    """Give a client of each colour that traces."""
    return make_client(operators.broker_url, TRACED, tracing=True, **operators.settings)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return a span's attributes."""
    return dict(span.attributes or {})


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Return a span's trace and id, as the worker writes them."""
    own = span.get_span_context()
    assert own is not None
    return f"0x{own.trace_id:032x}", f"0x{own.span_id:016x}"


def check_child(processed: dict[str, Any], of: ReadableSpan) -> None:
    """Check that the worker's span is the child of a client's."""
    trace_id, span_id = ids(of)
    assert processed["context"]["trace_id"] == trace_id
    assert processed["parent_id"] == span_id


def test_request(spans: Spans, operators: Operators, client: ClientView) -> None:
    """The operator's span is the child of the submission's, that of the call's, that of ours."""
    with trace.get_tracer("app").start_as_current_span("ours") as ours:
        _, results = client.sync([], {}, timeout=20)
    send, sync = spans.one("send "), spans.one("sync ")
    assert (send.kind, sync.kind) == (SpanKind.PRODUCER, SpanKind.CLIENT)
    assert send.parent == sync.get_span_context()
    assert sync.parent == ours.get_span_context()
    task_id = attributes(sync)["messaging.message.id"]
    assert attributes(send)["messaging.message.id"] == task_id
    check_child(operators.processed([task_id])[task_id], send)
    assert set(results["tracing"]) == {"traceparent"}
    assert send.status.status_code is StatusCode.UNSET
    expected = "rabbitmq" if operators.broker_url.startswith("amqp") else "redis"
    assert attributes(send)["messaging.system"] == expected
    assert attributes(send)["server.address"] in ("127.0.0.1", "localhost")


def test_submission_alone(spans: Spans, operators: Operators, client: ClientView) -> None:
    """A submission's span is over when the task is queued; the operator's is its child."""
    handle = client.async_call([], {})
    send = spans.one("send ")
    handle.get(timeout=20)
    check_child(operators.processed([handle.task_id])[handle.task_id], send)
    assert len(spans.finished) == 1


def test_batch(spans: Spans, operators: Operators, client: ClientView) -> None:
    """All of a batch continue its one span; waiting for it is linked to that."""
    submissions = client.batch_submit([([], {"n": n}) for n in range(20)])
    assert all(result.success for result in client.batch_collect(submissions, timeout=20))
    send, collect = spans.finished
    assert attributes(send)["messaging.batch.message_count"] == 20
    assert (collect.name, collect.kind) == ("batch_collect", SpanKind.CLIENT)
    assert [link.context for link in collect.links] == [send.get_span_context()]
    assert attributes(collect)["messaging.batch.message_count"] == 20
    task_ids = [str(submission.task_id) for submission in submissions]
    for processed in operators.processed(task_ids).values():
        check_child(processed, send)


def test_batch_request(spans: Spans, client: ClientView) -> None:
    """A batch that is waited for in one call is one request around one submission."""
    results = client.batch_sync_detailed([([], {}), ([], {1: "no name"})], timeout=20)
    assert [result.success for result in results] == [True, False]
    send, request = spans.finished
    assert request.name == "batch_sync normal.traced.v1"
    assert send.parent == request.get_span_context()
    assert attributes(send)["sandai.op.unsent"] == 1
    assert send.status.status_code is StatusCode.ERROR


def test_probe_and_description(spans: Spans, operators: Operators, client: ClientView) -> None:
    """Both are requests; a description's kwargs stay what they are."""
    probed = client.probe(timeout=20)
    assert probed.response_ok
    described = client.desc()
    assert described["doc"] == "['task_type']"
    assert [span.name for span in spans.finished] == [
        "send low.traced.v1",
        "probe low.traced.v1",
        "send high.traced.v1",
        "desc high.traced.v1",
    ]
    task_id = str(probed.task_id)
    check_child(operators.processed([task_id])[task_id], spans.finished[0])


def test_switched_off(spans: Spans, operators: Operators, make_client: MakeClient) -> None:
    """Without the setting nothing is sent, though a span is current, and nothing is traced."""
    client = make_client(operators.broker_url, TRACED, **operators.settings)
    with trace.get_tracer("app").start_as_current_span("ours"):
        _, results = client.sync([], {})
    assert results["tracing"] == {}
    assert [span.name for span in spans.finished] == ["ours"]


def test_fixed_signature(spans: Spans, on_redis: Operators, make_client: MakeClient) -> None:
    """An operator that knows no ``_tracing`` works where tracing is off, and only there."""
    plain = make_client(on_redis.broker_url, FIXED, **on_redis.settings)
    assert plain.sync([], {"a": 1})[1] == {"options": {"a": 1}}
    tracing = make_client(on_redis.broker_url, FIXED, tracing=True, **on_redis.settings)
    with pytest.raises(TaskExecutionError, match="_tracing"):
        tracing.sync([], {"a": 1})
    sync = spans.one("sync ")
    assert attributes(sync)["error.type"] == "TaskExecutionError"
    assert spans.one("send ").status.status_code is StatusCode.UNSET


# Below, what is of a colour, and what goes wrong.


def test_timeout(spans: Spans, database: str, make_client: MakeClient) -> None:
    """A wait that runs out fails the request and not the submission."""
    client = make_client(database, tracing=True)
    with pytest.raises(TaskTimeoutError):
        client.sync([], {}, timeout=0.1)
    send, sync = spans.finished
    assert send.status.status_code is StatusCode.UNSET
    assert attributes(sync)["error.type"] == "TaskTimeoutError"
    assert [event.name for event in sync.events] == ["exception"]


def test_unhealthy(spans: Spans, database: str, make_client: MakeClient) -> None:
    """A probe that nobody answers is an error, though it raises none."""
    assert not make_client(database, tracing=True).probe(timeout=0.1).response_ok
    probe = spans.one("probe ")
    assert probe.status.status_code is StatusCode.ERROR
    assert attributes(probe)["error.type"] == "unhealthy"


@pytest.mark.parametrize("call", ["async_call", "sync"])
def test_in_doubt(
    spans: Spans, redis_server: LocalRedis, make_client: MakeClient, call: str
) -> None:
    """A submission that broke off says that its fate is unknown."""
    with TcpProxy("127.0.0.1", redis_server.port) as proxy:
        roads: dict[str, Any] = {"result_backend": redis_server.url, "io_timeout": 0.5}
        client = make_client(proxy.url, tracing=True, **roads)
        assert client.ping()
        proxy.black_hole(Way.REPLIES)
        with pytest.raises(OperatorConnectionError) as caught:
            getattr(client, call)([], {}, timeout=10)
    assert caught.value.task_id
    send = spans.one("send ")
    assert attributes(send)["sandai.op.in_doubt"] is True
    assert attributes(send)["error.type"] == "OperatorConnectionError"
    assert len(spans.finished) == (1 if call == "async_call" else 2)


def test_threads(spans: Spans, database: str) -> None:
    """Calls that share writes and a reader have a trace each, their own thread's."""
    tracer = trace.get_tracer("app")
    with (
        LightOperator(database),
        OperatorClient("bench", "v1", database, tracing=True, timeout=20) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        barrier = threading.Barrier(16)

        def call(number: int) -> None:
            with tracer.start_as_current_span(f"ours {number}") as ours:
                barrier.wait(5)
                client.sync([], {"number": number})
                assert trace.get_current_span() is ours

        list(pool.map(call, range(16)))
    check_traces(spans, 16)


def test_coroutines(spans: Spans, database: str) -> None:
    """Calls that share a flush and a hub have a trace each, their own task's."""
    tracer = trace.get_tracer("app")

    async def call(client: AsyncOperatorClient, number: int) -> None:
        with tracer.start_as_current_span(f"ours {number}") as ours:
            await client.sync([], {"number": number})
            assert trace.get_current_span() is ours

    async def main() -> None:
        async with AsyncOperatorClient("bench", "v1", database, tracing=True) as client:
            await asyncio.gather(*(call(client, number) for number in range(50)))

    with LightOperator(database):
        asyncio.run(main())
    check_traces(spans, 50)


def check_traces(spans: Spans, number: int) -> None:
    """Check that each of our spans has a request, and that a submission, in its own trace."""
    assert len(spans.finished) == 3 * number
    assert parents(spans.named("sync ")) == {ids(span) for span in spans.named("ours ")}
    assert parents(spans.named("send ")) == {ids(span) for span in spans.named("sync ")}


def parents(children: list[ReadableSpan]) -> set[tuple[str, str]]:
    """Return the trace and the id of each one's parent."""
    found = [span.parent for span in children]
    return {(f"0x{own.trace_id:032x}", f"0x{own.span_id:016x}") for own in found if own is not None}


def test_cancelled(spans: Spans, database: str) -> None:
    """A coroutine that is cancelled as it waits ends its span as such; the task was queued."""

    async def main() -> None:
        async with AsyncOperatorClient("bench", "v1", database, tracing=True) as client:
            waiting = asyncio.create_task(client.sync([], {}))
            await asyncio.to_thread(eventually, lambda: bool(spans.named("send ")), within=5)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())
    send, sync = spans.finished
    assert send.status.status_code is StatusCode.UNSET
    assert attributes(sync)["error.type"] == "CancelledError"
    assert not sync.events


def test_cancelled_at_once(spans: Spans, database: str) -> None:
    """One that is cancelled before it was sent ends both."""

    async def main() -> None:
        async with AsyncOperatorClient("bench", "v1", database, tracing=True) as client:
            waiting = asyncio.create_task(client.sync([], {}))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())
    assert [attributes(span)["error.type"] for span in spans.finished] == ["CancelledError"] * 2


@pytest.mark.parametrize("call", ["async_call", "sync", "batch_sync_detailed", "probe"])
def test_no_password(
    spans: Spans,
    database: str,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    """Neither spans nor the steps of ``debug`` show the password of a server that refuses it."""
    url = database.replace("redis://", "redis://somebody:hunter2@")
    caplog.set_level("DEBUG")
    client = make_client(url, tracing=True, debug=True, timeout=2)
    odd: dict[str, list[Any]] = {"probe": [2], "batch_sync_detailed": [[([], {})]]}
    arguments = odd.get(call, [[], {}])
    with suppress(OperatorConnectionError):
        getattr(client, call)(*arguments)
    send = spans.one("send ")
    assert attributes(send)["error.type"] == "OperatorConnectionError"
    assert attributes(send)["server.address"] == "127.0.0.1"
    told = [span.to_json() for span in spans.finished] + [caplog.text]
    assert len(told) == (2 if call == "async_call" else 3)
    assert "refused" in told[0]
    assert "hunter2" not in "".join(told)
    assert "somebody" not in "".join(told[:-1])
