"""Spans, by a real SDK with an exporter in memory: their names, kinds, attributes, carriers."""

import threading
from collections.abc import Generator, Iterator
from typing import Any
from weakref import ref

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sandai.op.models import (
    InvalidTaskError,
    OperatorError,
    TaskTimeoutError,
    protocol,
)
from sandai.op.transport import (
    BatchSubmission,
    Config,
    MessageFactory,
    TaskBuilder,
    TaskControls,
    TaskMessage,
    Telemetry,
    TransportError,
    client_app,
    resolve,
    telemetry_of,
)
from sandai.op.transport._peer import address_of, system_of

QUEUE = "normal.op.v1"


def config(**settings: Any) -> Config:
    """Return a configuration."""
    return resolve("op", "v1", env={}, **settings)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Have spans exported to memory."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.fixture
def telemetry(exporter: InMemorySpanExporter) -> Telemetry:
    """Give a client's telemetry with tracing alone."""
    return traced(broker_url="redis://user:hunter2@broker.example:6380/3")


def traced(**settings: Any) -> Telemetry:
    """Return a telemetry that traces."""
    telemetry = telemetry_of(config(tracing=True, **settings))
    assert telemetry is not None
    return telemetry


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return a span's attributes."""
    return dict(span.attributes or {})


def factory() -> tuple[TaskBuilder, MessageFactory]:
    """Return what messages are made with."""
    own = config(broker_url="memory://", result_backend="cache+memory://")

    def none(*_: object) -> Any:
        raise AssertionError

    return TaskBuilder(own), MessageFactory(client_app(own, permit=none, make_backend=none), "json")


def kwargs_of(message: TaskMessage) -> dict[str, Any]:
    """Return what the operator gets."""
    kwargs: dict[str, Any] = message.raw_body[1]
    return kwargs


def test_nothing_without_the_settings() -> None:
    """What is not switched on is not there."""
    assert telemetry_of(config()) is None


def test_a_submission(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """It is a PRODUCER span with the conventions' attributes, and its context is the carrier."""
    builder, messages = factory()
    with telemetry.submission(None) as sending:
        assert trace.get_current_span().get_span_context() == sending.link
        message = builder.task(messages, "", [], {}, TaskControls(), sending)
        assert message.sending is sending
        sending.settle(None)
    [span] = exporter.get_finished_spans()
    assert (span.name, span.kind) == (f"send {QUEUE}", SpanKind.PRODUCER)
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "messaging.system": "redis",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": QUEUE,
        "messaging.message.id": message.task_id,
        "server.address": "broker.example",
        "server.port": 6380,
        "sandai.op.operator.name": "op",
        "sandai.op.operator.version": "v1",
    }
    carrier = kwargs_of(message)["_tracing"]
    remote = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier))
    found, own = remote.get_span_context(), span.get_span_context()
    assert own is not None
    assert (found.trace_id, found.span_id) == (own.trace_id, own.span_id)
    assert "hunter2" not in span.to_json()


def test_no_baggage(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """W3C's trace context alone is sent, whatever else the application propagates."""
    token = context.attach(baggage.set_baggage("user", "secret"))
    try:
        with telemetry.submission("high") as sending:
            assert sending.carrier is not None
            assert set(sending.carrier) == {"traceparent"}
    finally:
        context.detach(token)
    assert exporter.get_finished_spans()[0].name == "send high.op.v1"


def test_nothing_is_sent_without_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the API alone and no span of the application's there is no carrier."""
    monkeypatch.setattr(trace, "get_tracer", trace.NoOpTracerProvider().get_tracer)
    builder, messages = factory()
    with traced().submission(None) as sending:
        message = builder.task(messages, "", [], {}, TaskControls(), sending)
    assert "_tracing" not in kwargs_of(message)


def test_the_description_carries_none(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """Its kwargs are the contract's; the spans are there all the same."""
    builder, messages = factory()
    with telemetry.request("desc", "high") as request:
        message = builder.description(messages, "", request)
        assert message.sending is not None
        message.sending.settle(None)
    assert kwargs_of(message) == protocol.DESCRIPTION_KWARGS
    assert [span.name for span in exporter.get_finished_spans()] == [
        "send high.op.v1",
        "desc high.op.v1",
    ]


def test_a_request(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """It is a CLIENT span around the submission's, with the same message."""
    builder, messages = factory()
    with telemetry.request("sync", None) as request:
        message = builder.task(messages, "", [], {}, TaskControls(), request)
        assert message.sending is not None
        message.sending.settle(None)
    send, sync = exporter.get_finished_spans()
    assert (sync.name, sync.kind) == (f"sync {QUEUE}", SpanKind.CLIENT)
    assert send.parent == sync.get_span_context()
    assert "messaging.operation.type" not in attributes(sync)
    for span in (send, sync):
        assert attributes(span)["messaging.message.id"] == message.task_id


def test_a_wait_keeps_no_submission(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """Once a task is queued its submission is let go, however long the answer takes."""
    builder, messages = factory()
    with telemetry.request("sync", None) as request:
        message = builder.task(messages, "", [], {}, TaskControls(), request)
        assert message.sending is not None
        message.sending.settle(None)
        gone = ref(message.sending)
        del message
        assert gone() is None


def test_an_error(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """It is the span's status, ``error.type`` and an event, without a traceback."""
    with pytest.raises(TaskTimeoutError), telemetry.request("sync", None):
        raise TaskTimeoutError("some-id", 3.0) from OSError("redis://:hunter2@host")
    [span] = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "TaskTimeoutError"
    [event] = span.events
    assert event.name == "exception"
    told = dict(event.attributes or {})
    assert told.pop("exception.type") == "TaskTimeoutError"
    assert str(told.pop("exception.message")).startswith("no result of task some-id within 3 s")
    assert not told
    assert "hunter2" not in span.to_json()


def test_what_others_raise_is_named_alone(
    telemetry: Telemetry, exporter: InMemorySpanExporter
) -> None:
    """Of errors that are not ours nothing is told but the class."""
    with pytest.raises(ValueError, match="hunter2"), telemetry.submission(None):
        raise ValueError("hunter2")
    [span] = exporter.get_finished_spans()
    assert attributes(span)["error.type"] == "ValueError"
    assert "hunter2" not in span.to_json()


def test_in_doubt(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """A submission whose fate is unknown says so, under the class that the caller gets."""
    with telemetry.submission(None) as sending:
        sending.settle(TransportError("broke off", True))
    [span] = exporter.get_finished_spans()
    assert attributes(span)["sandai.op.in_doubt"] is True
    assert attributes(span)["error.type"] == "OperatorConnectionError"


def test_given_up(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """Who is interrupted before the outcome is known ends the submission's span too, once."""
    builder, messages = factory()
    request = telemetry.request("sync", None)
    with request:
        message = builder.task(messages, "", [], {}, TaskControls(), request)
        request.end(KeyboardInterrupt())
    assert message.sending is not None
    message.sending.settle(None)  # is told of late
    spans = exporter.get_finished_spans()
    assert [attributes(span)["error.type"] for span in spans] == ["KeyboardInterrupt"] * 2
    assert not any(span.events for span in spans)


def test_a_collected_coroutine_ends_nothing(
    telemetry: Telemetry, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Its finalizer may run in another thread, inside an exporter's lock: the span is dropped."""

    def caller() -> Generator[None, None, None]:
        with telemetry.request("sync", None):
            yield

    waiting = caller()
    thread = threading.Thread(target=lambda: next(waiting))
    thread.start()
    thread.join()
    waiting.close()
    assert exporter.get_finished_spans() == ()
    assert not caplog.records


def test_a_batch(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """One span for all, whose context each message carries; what was not queued is counted."""
    builder, messages = factory()
    good: tuple[list[Any], dict[Any, Any]] = ([], {})
    tasks = [good, ([], {1: 2}), good, good]
    with telemetry.batch("low") as sending:
        batch = BatchSubmission(
            builder, messages, "", tasks, TaskControls(priority="low"), 0, sending
        )
        while batch.prepare():
            pass
        outcomes: list[OperatorError | None] = [None, None, TransportError("gone")]
        carriers = [kwargs_of(message)["_tracing"] for message in batch.messages]
        for message, outcome in zip(batch.messages, outcomes, strict=True):
            assert message.sending is sending
            message.sending.settle(outcome)
        batch.settle(outcomes)
    [span] = exporter.get_finished_spans()
    assert carriers == [sending.carrier] * 3
    assert batch.outcomes.link == span.get_span_context()
    assert (span.name, span.kind) == ("send low.op.v1", SpanKind.PRODUCER)
    found = attributes(span)
    assert found["messaging.batch.message_count"] == 4
    assert found["sandai.op.unsent"] == 2
    assert found["error.type"] == InvalidTaskError.__name__
    assert "messaging.message.id" not in found


def test_a_collection(telemetry: Telemetry, exporter: InMemorySpanExporter) -> None:
    """It is linked to what its tasks were submitted in, and bears no queue."""
    with telemetry.batch(None) as first, telemetry.batch("high") as second:
        pass
    with telemetry.collection([first.link, second.link], 7):
        pass
    span = exporter.get_finished_spans()[-1]
    assert (span.name, span.kind) == ("batch_collect", SpanKind.CLIENT)
    assert [link.context for link in span.links] == [first.link, second.link]
    assert attributes(span)["messaging.operation.type"] == "receive"
    assert attributes(span)["messaging.batch.message_count"] == 7


@pytest.mark.parametrize("priority", ["no such", 5, []])
def test_what_is_no_priority(
    telemetry: Telemetry, exporter: InMemorySpanExporter, priority: object
) -> None:
    """The call says that; the span has no queue."""
    with telemetry.submission(priority):
        pass
    assert exporter.get_finished_spans()[0].name == "send"


@pytest.mark.parametrize(
    ("url", "system", "address"),
    [
        ("redis://h:1/0", "redis", {"server.address": "h", "server.port": 1}),
        ("rediss://u:p@h", "redis", {"server.address": "h", "server.port": 6379}),
        ("redis+socket:///run/r.sock", "redis", {"server.address": "/run/r.sock"}),
        ("sentinel://a:1;sentinel://b:2", "redis", {}),
        ("amqp://u:p@h//", "rabbitmq", {"server.address": "h", "server.port": 5672}),
        ("amqps://h", "rabbitmq", {"server.address": "h", "server.port": 5671}),
        ("pyamqp://", "rabbitmq", {"server.address": "localhost", "server.port": 5672}),
        ("sqs://", "aws_sqs", {}),
        ("memory://", "memory", {}),
        ("memory://tests", "memory", {}),
        ("rpc://", "rpc", {}),
        ("redis://[::1", "redis", {}),
    ],
)
def test_peers(url: str, system: str, address: dict[str, Any]) -> None:
    """A URL's system and address are OpenTelemetry's; no user, no password."""
    assert (system_of(url), address_of(url)) == (system, address)
