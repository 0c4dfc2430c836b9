"""Messages are Celery's own, key by key, with ids and body stamped in."""

import json
import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import RFC_4122, UUID

import msgpack
import pytest
from celery import VERSION as CELERY_VERSION
from celery import Celery, _state, signals
from kombu.transport import memory

from sandai.op.models import InvalidTaskError
from sandai.op.transport import (
    MessageFactory,
    TaskBuilder,
    TaskControls,
    TaskMessage,
    resolve,
)
from sandai.op.transport._app import broker_app
from sandai.op.transport._kombu_broker import KombuBroker
from sandai.op.transport._message import describe_kwargs, new_id
from sandai.op.transport._redis_envelope import EnvelopeRenderer

each_serializer = pytest.mark.parametrize("serializer", ["msgpack", "json"])
CONFIG = {
    name: resolve(
        "clipper",
        "v1",
        env={},
        broker_url="memory://",
        result_backend="cache+memory://",
        task_serializer=name,
    )
    for name in ("msgpack", "json")
}
QUEUE = "normal.clipper.v1"
OPTIONS = {"clip_duration": 10, "name": "Zoë", "nested": {"list": [1, 2.5, None, True]}}
ARTIFACTS = [{"uri": "file:///secret-input.mp4", "slot": "video", "meta": {"a": 1}}]


def make(serializer: str = "msgpack", **controls: Any) -> tuple[MessageFactory, TaskMessage]:
    """Return a factory and a message of it."""
    config = CONFIG[serializer]
    factory = MessageFactory(broker_app(config.broker_key), serializer)
    controls.setdefault("cancel_key", "secret-key")
    message = TaskBuilder(config).task(
        factory, "reply-queue", ARTIFACTS, OPTIONS, TaskControls(**controls)
    )
    return factory, message


def queued() -> dict[str, Any]:
    """Take the next message out of kombu's memory queue."""
    message: dict[str, Any] = memory.Channel.queues[QUEUE].get(timeout=5)
    return message


def sent_by_celery(serializer: str, kwargs: Any) -> dict[str, Any]:
    """Return the message that a plain Celery app writes for the same task."""
    app = Celery("plain", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_serializer=serializer, accept_content=["json", "msgpack"])
    name = "sandai_operator.clipper.v1.process_task"
    with app.connection_for_write() as connection:
        app.send_task(
            name, kwargs=kwargs, queue=QUEUE, reply_to="reply-queue", connection=connection
        )
    app.close()
    return queued()


def sent_by_us(serializer: str, message: TaskMessage) -> dict[str, Any]:
    """Return the message that our broker writes."""
    broker = KombuBroker(CONFIG[serializer].broker_key)
    assert broker.send([message], acquire_timeout=1) == [None]
    broker.close()
    return queued()


@contextmanager
def inside_a_task(root_id: str | None) -> Iterator[None]:
    """Pretend that a worker runs a task in this thread."""
    request = SimpleNamespace(called_directly=False, id="parent", root_id=root_id)
    _state._task_stack.push(SimpleNamespace(request=request, add_trail=lambda result: None))
    try:
        yield
    finally:
        _state._task_stack.pop()


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without what is new each time, and without what we redact."""
    message = json.loads(json.dumps(message))
    task_id = message["headers"]["id"]
    assert message["properties"]["correlation_id"] == task_id
    for key in ("id", "origin", "kwargsrepr"):
        del message["headers"][key]
    if CELERY_VERSION < (5, 7):
        # False there, which would override the operator's setting; None since.
        del message["headers"]["ignore_result"]
    if message["headers"]["root_id"] == task_id:
        message["headers"]["root_id"] = "its own id"
    for key in ("correlation_id", "delivery_tag"):
        del message["properties"][key]
    return message


@each_serializer
def test_kombu_message_is_celerys(serializer: str) -> None:
    """What we publish through kombu equals what ``send_task`` publishes."""
    _, message = make(serializer)
    ours = sent_by_us(serializer, message)
    assert comparable(ours) == comparable(sent_by_celery(serializer, message.raw_body[1]))


@each_serializer
def test_redis_envelope_is_celerys(serializer: str) -> None:
    """What we push to a Redis list equals what ``send_task`` writes, key by key."""
    factory, message = make(serializer)
    renderer = EnvelopeRenderer(factory, broker_app(CONFIG[serializer].broker_key))
    ours = json.loads(renderer.render(message))
    celerys = sent_by_celery(serializer, message.raw_body[1])
    assert comparable(ours) == comparable(celerys)
    assert list(ours) == list(celerys)


@each_serializer
@pytest.mark.parametrize("root_id", ["root", None])
def test_inside_a_task(serializer: str, root_id: str | None) -> None:
    """Sent from inside a task, root and parent are that task's, as Celery has them."""
    with inside_a_task(root_id):
        factory, message = make(serializer)
        celerys = sent_by_celery(serializer, message.raw_body[1])
    assert (message.root_id, message.parent_id) == (root_id or "parent", "parent")
    renderer = EnvelopeRenderer(factory, broker_app(CONFIG[serializer].broker_key))
    assert comparable(json.loads(renderer.render(message))) == comparable(celerys)
    assert comparable(sent_by_us(serializer, message)) == comparable(celerys)


def test_ignore_result_stays_open() -> None:
    """The operator's own setting for results holds."""
    factory, message = make()
    assert factory.headers(message)["ignore_result"] is None


@each_serializer
def test_body(serializer: str) -> None:
    """The body is ``(args, kwargs, embed)`` in the serializer that was asked for."""
    _, message = make(serializer)
    unpack = {"json": json.loads, "msgpack": msgpack.unpackb}[serializer]
    args, kwargs, embed = unpack(message.body)
    assert args == []
    assert kwargs["options"] == OPTIONS
    assert kwargs["artifacts"] == ARTIFACTS
    assert kwargs["cancel_key"] == "secret-key"
    assert set(embed.values()) == {None}


def test_headers_are_fresh() -> None:
    """Whoever changes a message's headers changes no other message's."""
    factory, message = make()
    first = factory.headers(message)
    first["timelimit"].append("changed")
    first["stamps"]["changed"] = 1
    first["id"] = "changed"
    second = factory.headers(message)
    assert second["timelimit"] == [None, None]
    assert (second["stamps"], second["id"]) == ({}, message.task_id)


def test_kwargsrepr_shows_no_values() -> None:
    """What Flower and logs show is how many artifacts and which options."""
    factory, message = make()
    shown = factory.headers(message)["kwargsrepr"]
    assert shown == "<1 artifacts; options: clip_duration, name, nested>"
    assert "secret" not in str({**factory.headers(message), "root_id": ""})
    assert describe_kwargs({"task_type": "desc"}) == "{'task_type': 'desc'}"
    assert len(describe_kwargs({"options": {f"option{n}": 1 for n in range(99)}})) < 300


@each_serializer
@pytest.mark.parametrize("redis", [True, False])
def test_publish_signals(serializer: str, redis: bool) -> None:
    """Celery's signals fire for a listener, who may change headers and arguments."""
    factory, message = make(serializer)
    after: list[Any] = []
    moment = datetime(2026, 1, 2, tzinfo=UTC)

    def before_publish(
        sender: str, body: Any, headers: Any, properties: Any, routing_key: str, **_: Any
    ) -> None:
        assert (sender, routing_key) == (message.task_name, QUEUE)
        headers["traceparent"] = "00-1"
        headers["moment"] = moment
        properties["user_id"] = "me"
        body[1]["_added"] = True

    def after_publish(sender: str, headers: Any, **_: Any) -> None:
        after.append((sender, headers["id"]))

    signals.before_task_publish.connect(before_publish)
    signals.after_task_publish.connect(after_publish)
    try:
        if redis:
            renderer = EnvelopeRenderer(factory, broker_app(CONFIG[serializer].broker_key))
            sent = json.loads(renderer.render(message))
            assert str(sent["headers"]["moment"])
        else:
            sent = sent_by_us(serializer, message)
            assert after == [(message.task_name, message.task_id)]
    finally:
        signals.before_task_publish.disconnect(before_publish)
        signals.after_task_publish.disconnect(after_publish)
    assert sent["headers"]["traceparent"] == "00-1"
    assert sent["properties"]["user_id"] == "me"
    unpack = {"json": json.loads, "msgpack": msgpack.unpackb}[serializer]
    assert unpack(b64decode(sent["body"]))[1]["_added"] is True


def test_listener_that_spoils_the_headers() -> None:
    """Headers that no JSON can hold are that task's error."""
    factory, message = make()
    renderer = EnvelopeRenderer(factory, broker_app(CONFIG["msgpack"].broker_key))

    def before_publish(headers: Any, **_: Any) -> None:
        headers["spoilt"] = object()

    signals.before_task_publish.connect(before_publish)
    try:
        with pytest.raises(InvalidTaskError) as caught:
            renderer.render(message)
    finally:
        signals.before_task_publish.disconnect(before_publish)
    assert caught.value.path == "headers"


def circular() -> dict[str, Any]:
    """Return an object that contains itself."""
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@each_serializer
@pytest.mark.parametrize(
    ("artifacts", "options", "path"),
    [
        ([], {"a": 1, "b": {"c": [0, object()]}}, "options.b.c[1]"),
        ([], {"a": object()}, "options.a"),
        ([{"uri": "u", "slot": "s"}, {"meta": {"x": object()}}], {}, "input_artifacts[1].meta.x"),
    ],
)
def test_unencodable_is_named(
    serializer: str, artifacts: list[Any], options: dict[str, Any], path: str
) -> None:
    """What the serializer cannot encode is named by its path."""
    factory, _ = make(serializer)
    with pytest.raises(InvalidTaskError) as caught:
        TaskBuilder(CONFIG[serializer]).task(factory, "", artifacts, options, TaskControls())
    assert caught.value.path == path


@each_serializer
def test_circular_options(serializer: str) -> None:
    """Options that contain themselves are a typed error, not a crash."""
    factory, _ = make(serializer)
    with pytest.raises(InvalidTaskError) as caught:
        TaskBuilder(CONFIG[serializer]).task(factory, "", [], circular(), TaskControls())
    assert caught.value.path.startswith("options")


def test_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Priority, deadline and flags go where the contract has them."""
    monkeypatch.setattr("time.time", lambda: 1000.0)
    _, message = make(priority="high", timeout=60, persistent_output=True)
    kwargs = message.raw_body[1]
    assert message.queue == "high.clipper.v1"
    assert kwargs["deadline"] == 1060
    assert kwargs["meta"] == {"persistent-output": True}
    _, without = make(timeout=0)
    assert "deadline" not in without.raw_body[1]


def test_ids() -> None:
    """An id is a random UUID in its usual form, as Celery makes them."""
    ids = {new_id() for _ in range(500)}
    assert len(ids) == 500
    for task_id in ids:
        parsed = UUID(task_id)
        assert str(parsed) == task_id
        assert (parsed.version, parsed.variant) == (4, RFC_4122)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_ids_of_a_forked_child_are_its_own() -> None:
    """Ids are drawn many at a time; a child does not go on with its parent's draw."""
    code = (
        "import os\n"
        "from sandai.op.transport._message import new_id\n"
        "new_id()\n"
        "child = os.fork()\n"
        "child and os.waitpid(child, 0)\n"  # or they write into each other's lines
        "print(*(new_id() for _ in range(300)), flush=True)\n"
        "child or os._exit(0)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert len(set(done.stdout.split())) == len(done.stdout.split()) == 600


def test_probe_and_description() -> None:
    """The two tasks of our own are what operators expect."""
    factory, _ = make()
    builder = TaskBuilder(CONFIG["msgpack"])
    probe = builder.probe(factory, "", 5)
    assert probe.queue == "low.clipper.v1"
    assert probe.raw_body[1]["options"] == {"test": True}
    assert probe.raw_body[1]["artifacts"] == []
    assert "deadline" in probe.raw_body[1]
    description = builder.description(factory, "")
    assert description.queue == "high.clipper.v1"
    assert description.raw_body[1] == {"task_type": "desc"}
