"""What is told of streams, with real SDKs on ``memory://``: spans, metrics, and each step."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sandai.op.aio import AsyncOperatorClient, create_async_client
from sandai.op.models import InvalidTaskError, OperatorDescription, TaskRequest, TaskResult
from sandai.op.transport import _limiter, _metrics
from sandai.op.transport.testing import FakeOperator, Reply, World, world

WAIT = 10.0
QUEUE = "normal.clipper.v1"
SCHEMA = {"properties": {"n": {"type": "integer"}}}


class Log(logging.Handler):
    """Keeps what is said of tasks, as text and as facts."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.texts.append(record.getMessage())
        self.records.append(vars(record))

    def of(self, task_id: str | None, text: str) -> dict[str, Any]:
        """Return the one record of a task that has this text."""
        [found] = [
            record
            for said, record in zip(self.texts, self.records, strict=True)
            if record["task_id"] == task_id and text in said
        ]
        return found


@pytest.fixture
def here() -> World:
    """Give a world of the test's own."""
    return world(f"memory://{uuid4()}")


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """Have an SDK, for the client and for us."""
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield provider
    provider.shutdown()


@pytest.fixture
def exporter(provider: TracerProvider) -> InMemorySpanExporter:
    """Have spans exported to memory."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def log() -> Iterator[Log]:
    """Listen to each step."""
    logger, log = logging.getLogger("sandai.op.aio"), Log()
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    yield log
    logger.removeHandler(log)
    logger.setLevel(logging.NOTSET)


def client_of(here: World, **settings: Any) -> AsyncOperatorClient:
    """Return a client."""
    return create_async_client("clipper", "v1", broker_url=here.url, timeout=WAIT, **settings)


def numbered(count: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Yield tasks."""
    for n in range(count):
        yield [], {"n": n}


def process(request: TaskRequest) -> TaskResult:
    """Do a task in a span that goes on with the caller's."""
    parent = TraceContextTextMapPropagator().extract(request.tracing)
    tracer = trace.get_tracer("clipper")
    with tracer.start_as_current_span("process", context=parent, kind=SpanKind.CONSUMER):
        return TaskResult(results=request.options)


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Return the spans that have ended whose name begins so."""
    return [span for span in exporter.get_finished_spans() if span.name.startswith(name)]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return a span's attributes."""
    return dict(span.attributes or {})


def own_id(span: ReadableSpan) -> int:
    """Return a span's id."""
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def parent_id(span: ReadableSpan) -> int | None:
    """Return the id of a span's parent."""
    return None if span.parent is None else span.parent.span_id


@pytest.mark.asyncio
async def test_a_stream(here: World, exporter: InMemorySpanExporter) -> None:
    """What is handed in together is one span, which each of its tasks goes on with."""
    with (
        FakeOperator("clipper", "v1", process, url=here.url),
        trace.get_tracer("application").start_as_current_span("request") as request,
    ):
        async with client_of(here, tracing=True) as client:
            results = [result async for result in client.map(numbered(20), max_in_flight=6)]
    assert all(result.success for result in results)
    sent, processed = named(exporter, "send "), named(exporter, "process")
    assert {span.name for span in exporter.get_finished_spans()} == {
        f"send {QUEUE}",
        "process",
        "request",
    }
    counts = {own_id(span): attributes(span)["messaging.batch.message_count"] for span in sent}
    assert sum(counts.values()) == 20
    assert 20 / 6 <= len(counts) <= 20
    own = request.get_span_context()
    for span in sent:
        assert span.kind is SpanKind.PRODUCER
        assert parent_id(span) == own.span_id
        assert attributes(span)["messaging.system"] == "memory"
        assert "server.address" not in attributes(span)
        assert "error.type" not in attributes(span)
    parents = [parent_id(span) for span in processed]
    assert {each: parents.count(each) for each in parents} == counts
    assert {span.context.trace_id for span in processed if span.context} == {own.trace_id}


@pytest.mark.asyncio
async def test_what_is_current(here: World, exporter: InMemorySpanExporter) -> None:
    """Not where the input is read, even while others are handed in, nor between results."""
    seen = set()

    def note() -> None:
        seen.add(trace.get_current_span().get_span_context().span_id)

    async def tasks() -> AsyncIterator[tuple[list[Any], dict[str, Any]]]:
        for task in numbered(6):
            # All the time in which the task before is on its way.
            while len(named(exporter, "send ")) < task[1]["n"]:
                note()
                await asyncio.sleep(0)
            yield task

    with (
        FakeOperator("clipper", "v1", url=here.url),
        trace.get_tracer("application").start_as_current_span("request") as request,
    ):
        async with client_of(here, tracing=True) as client:
            async for _ in client.map(tasks(), max_in_flight=3):
                note()
    assert seen == {request.get_span_context().span_id}
    assert len(named(exporter, "send ")) == 6


@pytest.mark.asyncio
async def test_tasks_that_cannot_be_sent(here: World, exporter: InMemorySpanExporter) -> None:
    """They are their group's error; the schema was asked for beside it."""
    tasks: list[Any] = [([], {"n": 1}), ([], {"n": "x"}), ([], {"n": 3})]
    description = OperatorDescription("", SCHEMA, {})
    with FakeOperator("clipper", "v1", url=here.url, description=description):
        async with client_of(here, tracing=True, validate_options=True) as client:
            results = [result async for result in client.map(tasks, ordered=True)]
            with pytest.raises(InvalidTaskError, match=r"options\.n"):
                await client.sync([], {"n": "x"})
    assert [result.success for result in results] == [True, False, True]
    [desc], [sync] = named(exporter, "desc "), named(exporter, "sync ")
    asked, group, single = named(exporter, "send ")
    assert (parent_id(asked), parent_id(group), parent_id(desc)) == (own_id(desc), None, None)
    assert attributes(group)["sandai.op.unsent"] == 1
    assert attributes(group)["messaging.batch.message_count"] == 3
    assert parent_id(single) == own_id(sync)
    for span in (group, single, sync):
        assert attributes(span)["error.type"] == "InvalidTaskError"


@pytest.mark.asyncio
async def test_submissions_as_they_complete(here: World, exporter: InMemorySpanExporter) -> None:
    """Waiting for them has no span of its own; collecting them has, linked to the submission."""
    with FakeOperator("clipper", "v1", url=here.url):
        async with client_of(here, tracing=True) as client:
            submissions = await client.batch_submit(numbered(3))
            assert len([result async for result in client.as_completed(submissions)]) == 3
            [sent] = exporter.get_finished_spans()
            await client.batch_collect(await client.batch_submit(numbered(2)))
    *_, second, collected = exporter.get_finished_spans()
    assert attributes(sent)["messaging.batch.message_count"] == 3
    assert [link.context.span_id for link in collected.links] == [own_id(second)]


@pytest.mark.asyncio
async def test_a_stream_that_is_cancelled(
    here: World, provider: TracerProvider, exporter: InMemorySpanExporter, log: Log
) -> None:
    """The tasks that were on their way are revoked, and the span of their group ends."""
    begun = asyncio.Event()

    class Begun(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            begun.set()

    provider.add_span_processor(Begun())
    settings = {"tracing": True, "debug": True, "cancel_on_timeout": True}
    async with client_of(here, **settings) as client:
        with here.outage("stalled", "broker"):
            first = asyncio.ensure_future(anext(client.map(numbered(2))))
            await asyncio.wait_for(begun.wait(), WAIT)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
    [sent] = exporter.get_finished_spans()
    assert attributes(sent)["error.type"] == "CancelledError"
    assert sum(text.endswith(": revoked") for text in log.texts) == 2


@pytest.mark.asyncio
async def test_messages_are_counted(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's tasks are sent messages."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    monkeypatch.setattr(_metrics, "_metrics", None)
    monkeypatch.setattr(_limiter, "on_wait", None)
    with FakeOperator("clipper", "v1", url=here.url):
        async with client_of(here, metrics=True) as client:
            assert len([result async for result in client.map(numbered(9), max_in_flight=4)]) == 9
            found = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]  # there are some
    provider.shutdown()
    points = {
        metric["name"]: metric["data"]["data_points"]
        for resource in found["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
    }
    [sent] = points["messaging.client.sent.messages"]
    assert sent["value"] == 9
    assert sent["attributes"]["messaging.system"] == "memory"
    assert sent["attributes"]["messaging.destination.name"] == QUEUE


@pytest.mark.asyncio
async def test_each_step_of_a_stream(here: World, log: Log) -> None:
    """From the queue to the result, or to the revocation of what came too late."""
    settings = {"debug": True, "cancel_on_timeout": True}
    with FakeOperator("clipper", "v1", url=here.url) as operator:
        operator.replies(Reply(), Reply.lost(), Reply())
        async with client_of(here, **settings) as client:
            given = client.map(numbered(2), ordered=True, timeout=0.3, max_in_flight=1)
            good, late = [result async for result in given]
            handle = await client.async_call([], {})
            [arrived] = [result async for result in client.as_completed([handle])]
    assert (good.success, late.success, arrived.success) == (True, False, True)
    for result in (good, arrived):
        assert log.of(result.task_id, "queued in")["queue"] == QUEUE
        assert log.of(result.task_id, "waiting for its result for")["queue"] == QUEUE
        assert log.of(result.task_id, "SUCCESS")["queue"] == QUEUE
    assert log.of(late.task_id, "no result within 0.3 s")["state"] == "picked_up"
    assert log.of(late.task_id, "revoked")["queue"] == QUEUE


@pytest.mark.asyncio
async def test_revocations(here: World, log: Log) -> None:
    """Whoever revokes, by handle or by client, it is said of each task."""
    async with client_of(here, debug=True) as client:
        first, second, third = [await client.async_call([], {}) for _ in range(3)]
        await first.revoke()
        await client.revoke([second, third], terminate=True)
    assert f"task {first.task_id}: revoked" in log.texts
    for handle in (second, third):
        assert log.of(handle.task_id, "revoked, and ended where it runs")["queue"] == QUEUE


@pytest.mark.asyncio
async def test_a_batch_that_is_late(here: World, log: Log) -> None:
    """Each of its tasks is told of, and what is known of it."""
    async with client_of(here, debug=True) as client:
        results = await client.batch_sync_detailed(numbered(2), timeout=0.05)
    for result in results:
        assert log.of(result.task_id, "no result within 0.05 s")["state"] == "queued"
