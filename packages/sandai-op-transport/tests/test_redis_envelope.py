"""The envelope is cut once and stamped; it reads as if it were dumped each time."""

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import InvalidTaskError
from sandai.op.transport import MessageFactory, TaskMessage, _redis_envelope, resolve
from sandai.op.transport._app import broker_app
from sandai.op.transport._redis_envelope import EnvelopeRenderer

CONFIG = resolve("clipper", "v1", env={})
APP = broker_app(CONFIG.broker_key)
FACTORY = MessageFactory(APP, "msgpack")
RENDERER = EnvelopeRenderer(FACTORY, APP)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def make(
    options: dict[str, Any], *, queue: str = "low.clipper.v1", reply: str = "r"
) -> TaskMessage:
    """Return a message."""
    return FACTORY.make(CONFIG.task_name, queue, {"options": options}, reply_to=reply)


def dumped(message: TaskMessage, tag: str) -> str:
    """Return the whole envelope as ``json.dumps`` writes it."""
    return json.dumps(
        {
            "body": b64encode(message.body).decode(),
            "content-encoding": message.content_encoding,
            "content-type": message.content_type,
            "headers": FACTORY.headers(message),
            "properties": {
                "correlation_id": message.task_id,
                "reply_to": message.reply_to,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": message.queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": tag,
            },
        }
    )


@given(st.dictionaries(texts, st.integers(0, 9), max_size=3), texts, texts)
def test_equals_json_dumps(options: dict[str, Any], queue: str, reply: str) -> None:
    """Whatever the names are, the text is that of ``json.dumps``."""
    message = make(options, queue=queue, reply=reply)
    rendered = RENDERER.render(message).decode()
    assert rendered == dumped(message, json.loads(rendered)["properties"]["delivery_tag"])


def test_ids_are_new_each_time() -> None:
    """Two messages share neither id nor delivery tag; nor do two renderings the tag."""
    one, other = make({}), make({})
    rendered = [json.loads(RENDERER.render(message)) for message in (one, other, one)]
    assert len({envelope["headers"]["id"] for envelope in rendered}) == 2
    assert len({envelope["properties"]["delivery_tag"] for envelope in rendered}) == 3


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more than Redis takes is refused before any I/O, the limit itself is not."""
    message = make({"a": "b" * 100})
    size = len(RENDERER.render(message))
    monkeypatch.setattr(_redis_envelope, "MAX_BYTES", size)
    assert len(RENDERER.render(message)) == size
    monkeypatch.setattr(_redis_envelope, "MAX_BYTES", size - 1)
    with pytest.raises(InvalidTaskError):
        RENDERER.render(message)
